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

    ``pool_first``: pooling comes before the batch norm, as on the main path. ``relu``: a ReLU stands at the
    end. f is at least 0, so f commutes with max-pooling and with the ReLU.
    """

    relu = False

    def __init__(
        self,
        main: nn.Conv2d,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm_eps: float | None,
        pool: nn.Module | None,
        pool_first: bool,
    ) -> None:
        margin = (main.kernel_size[0] - kernel) // 2
        padding = int(main.padding[0]) - margin
        super().__init__(
            in_channels, out_channels, kernel, main.stride[0], max(padding, 0), groups=main.groups, bias=False
        )
        self.margin = margin
        self.crop = max(-padding, 0)
        self.norm = None if norm_eps is None else FactorBatchNorm(out_channels, eps=norm_eps)
        self.pool = pool
        self.pool_first = pool_first

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in, H, W) to f times the branch, (B, out, H', W')."""
        y = self._convolved(x, factor)
        return torch.relu(y) if self.relu else y

    def _convolved(self, x: Tensor, factor: Tensor) -> Tensor:
        if self.crop:
            x = x[:, :, self.crop : -self.crop, self.crop : -self.crop]
        if self.norm is None:
            y = F.conv2d(x, self.weight * factor, None, self.stride, self.padding, groups=self.groups)
            return y if self.pool is None else self.pool(y)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)
        if self.pool is not None and self.pool_first:
            return self.norm(self.pool(y), factor)
        y = self.norm(y, factor)
        return y if self.pool is None else self.pool(y)

    def centred(self) -> Tensor:
        """Return the kernel, padded with zeros to the size of the main kernel."""
        return F.pad(self.weight, [self.margin] * 4) if self.margin else self.weight


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
