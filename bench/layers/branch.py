"""The full-precision branch that expands a low-precision layer, fades out with the factor f and is removed.

Source: *Progressive Learning of Low-Precision Networks* (arXiv 1905.11781), its figure and released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.layers.batch_norm import FactorBatchNorm

MERGES = ("sum", "difference", "concat", "preactivation")


@dataclass(frozen=True)
class Branch:
    """The full-precision branch of a progressive strategy.

    ``merge``        one of ``MERGES``: how branch and main path are joined
    ``kernel``       largest size of the branch's kernel, which reads the centre of the main kernel's window;
                     None: the size of the main kernel
    ``width_ratio``  channels of the branch over channels of the main path; only ``concat`` allows other
                     values than 1
    ``batch_norm``   whether the branch has its own batch norm (never with ``preactivation``)
    ``relu``         a ReLU behind the branch's batch norm and pooling (never with ``preactivation``)
    ``layers``       names of the layers that get a branch; None: every low-precision convolution
    ``statistics``   for ``concat``: with "main", main and extra weights each have a scale of their own; with
                     "joint" they have one scale together, as in the release
    """

    merge: str
    kernel: int | None = None
    width_ratio: float = 1.0
    batch_norm: bool = True
    relu: bool = False
    layers: tuple[str, ...] | None = None
    statistics: str = "main"


class BranchConv2d(nn.Conv2d):
    """The convolution of a branch, ``f * pool(BN'(FP x))``; its output is as large as the main layer's.

    ``kernel``: its rows and columns. ``pool``: None also where the network pools the branch itself.
    ``pool_first``: pooling comes before the batch norm, as on the main path. ``relu``: a ReLU stands at the
    end. f is at least 0, so f commutes with max-pooling and with the ReLU.
    """

    relu = False

    def __init__(
        self,
        main: nn.Conv2d,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        norm_eps: float | None,
        pool: nn.Module | None = None,
        pool_first: bool = False,
    ) -> None:
        margins = [(size - own) // 2 for size, own in zip(main.kernel_size, kernel, strict=True)]
        paddings = [int(main.padding[i]) - margins[i] * main.dilation[i] for i in range(2)]
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            main.stride,  # type: ignore[arg-type]
            (max(paddings[0], 0), max(paddings[1], 0)),
            main.dilation,  # type: ignore[arg-type]
            main.groups,
            bias=False,
        )
        self.margins = margins
        self.crops = [max(-padding, 0) for padding in paddings]
        self.norm = None if norm_eps is None else FactorBatchNorm(out_channels, eps=norm_eps)
        self.pool = pool
        self.pool_first = pool_first

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in, H, W) to f times the branch, (B, out, H', W')."""
        y = self._convolved(x, factor)
        return torch.relu(y) if self.relu else y

    def _convolved(self, x: Tensor, factor: Tensor) -> Tensor:
        if any(self.crops):
            rows, columns = self.crops
            x = x[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]
        weight = self.weight if self.norm is not None else self.weight * factor
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        if self.norm is None:
            return y if self.pool is None else self.pool(y)
        if self.pool is not None and self.pool_first:
            return self.norm(self.pool(y), factor)
        y = self.norm(y, factor)
        return y if self.pool is None else self.pool(y)

    def centred(self) -> Tensor:
        """Return the kernel, padded with zeros to the size of the main kernel."""
        rows, columns = self.margins
        return F.pad(self.weight, [columns, columns, rows, rows]) if any(self.margins) else self.weight


class BranchLinear(nn.Linear):
    """The ancillary linear layer: ``f * BN'(FP x)``; ``relu``: a ReLU stands at the end."""

    relu = False

    def __init__(self, in_features: int, out_features: int, norm_eps: float | None) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.norm = None if norm_eps is None else FactorBatchNorm(out_features, eps=norm_eps)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in) to f times the branch, (B, out)."""
        if self.norm is None:
            y = F.linear(x, self.weight * factor)
        else:
            y = self.norm(F.linear(x, self.weight), factor)
        return torch.relu(y) if self.relu else y

    def centred(self) -> Tensor:
        """Return the kernel."""
        return self.weight
