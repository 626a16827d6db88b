"""Low-precision layers made from anybody's convolutions and linear layers, and what stands between them.

Beyond ``bench.layers.low_precision`` they have a bias, dilation and kernels that are not square.
Their parameters are those of the layer they are made from, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.layers.activation_input import Pair
from bench.layers.branch import BranchConv2d, FactorBatchNorm
from bench.layers.low_precision import LowPrecisionConv2d, LowPrecisionLayer, LowPrecisionLinear
from bench.quantizers import Quantizer
from bench.randomness import Draws


class _Adopted(LowPrecisionLayer):
    """A layer that took over weight and bias of another; ``reads_images``: its input is not quantized, nor
    bounded.
    """

    bias: nn.Parameter | None
    reads_images = False

    def bounded(self, y: Tensor) -> Tensor:
        return y if self.reads_images else super().bounded(y)

    def activate(self, y: Tensor) -> Tensor:
        return y if self.reads_images else super().activate(y)

    def forward(self, y: Tensor, rest: Tensor | None = None) -> Pair:
        """Map the pair ``(y, rest)`` as ``LowPrecisionLayer`` does; then add the full-precision bias."""
        main, side = super().forward(y, rest)
        if self.bias is not None:
            shape = (-1, 1, 1) if main.dim() == 4 else (-1,)
            main = main + self.bias.to(main.dtype).reshape(shape)
        return main, side


class GeneralConv2d(_Adopted, LowPrecisionConv2d):  # type: ignore[misc]
    """A convolution with bias, groups, dilation: (B, in, H, W) -> (B, out, H', W')."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, padding: tuple[int, int]) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            padding,
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
        )
        self.weight, self.bias = conv.weight, conv.bias  # type: ignore[assignment]

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class GeneralLinear(_Adopted, LowPrecisionLinear):  # type: ignore[misc]
    """A linear layer with bias: (B, in) -> (B, out)."""

    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight, self.bias = linear.weight, linear.bias  # type: ignore[assignment]


class GeneralBranch(BranchConv2d):
    """The ancillary convolution of a ``GeneralConv2d``: ``f * BN'(FP x)``; the network pools it."""

    def __init__(
        self,
        main: nn.Conv2d,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        norm_eps: float | None,
    ) -> None:
        margins = [
            (size - own) // 2 * step
            for size, own, step in zip(main.kernel_size, kernel, main.dilation, strict=True)
        ]
        paddings = [int(main.padding[i]) - margins[i] for i in range(2)]
        nn.Conv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel,
            main.stride,  # type: ignore[arg-type]
            (max(paddings[0], 0), max(paddings[1], 0)),
            main.dilation,  # type: ignore[arg-type]
            main.groups,
            bias=False,
        )
        self.crops = [max(-padding, 0) for padding in paddings]
        self.sizes = main.kernel_size
        self.norm = None if norm_eps is None else FactorBatchNorm(out_channels, eps=norm_eps)
        self.pool = None

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in, H, W) to f times the branch, (B, out, H', W')."""
        rows, columns = self.crops
        x = x[:, :, rows : x.shape[2] - rows, columns : x.shape[3] - columns]
        weight = self.weight if self.norm is not None else self.weight * factor
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        y = y if self.norm is None else self.norm(y, factor)
        return torch.relu(y) if self.relu else y

    def centred(self) -> Tensor:
        rows, columns = ((size - own) // 2 for size, own in zip(self.sizes, self.kernel_size, strict=True))
        return F.pad(self.weight, [columns, columns, rows, rows])


class Bound(nn.Module):
    """The quantizer's bounding map, where the network had an activation; any shape. Its readers quantize."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, y: Tensor) -> Tensor:
        """Return the bounded ``y``."""
        return self.quantizer.bound(y)


class CountedStochasticDepth(nn.Module):
    """Stochastic depth (1603.09382) with counter-based draws: in training, a sample is x / (1 - p) or 0."""

    def __init__(self, p: float, draws: Draws) -> None:
        super().__init__()
        self.p = p
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, ...) to the same shape; equal for tensors of one step."""
        if not self.training or self.p == 0.0:
            return x
        keep = (self.draws.uniform(x.detach().flatten(1)[:, :1]) >= self.p).to(x.dtype)
        kept = keep / (1.0 - self.p) if self.p < 1.0 else keep
        return x * kept.reshape(-1, *[1] * (x.dim() - 1))


# -- what goes beside the main path: None wherever no branch is active ---------------------------------------


def beside(rest: Any, module: nn.Module) -> Any:
    """Return ``module(rest)``: what happened to the main path happens to ``rest``."""
    return None if rest is None else module(rest)


def beside_function(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return ``function``, or the tensor's method of that name, as a function that turns None into None."""

    def along(rest: Any, *args: Any, **kwargs: Any) -> Any:
        if rest is None:
            return None
        if isinstance(function, str):
            return getattr(rest, function)(*args, **kwargs)
        return function(rest, *args, **kwargs)

    along.__name__ = f"beside_{function if isinstance(function, str) else function.__name__}"
    return along


def carried(y: Tensor, rest: Tensor | None, difference: bool) -> Tensor:
    """Return what a reader that knows nothing of ``rest`` reads: both, joined by sum or difference."""
    if rest is None:
        return y
    return y - rest if difference else y + rest


def plus(rests: list[Tensor | None]) -> Tensor | None:
    """Return the sum of what goes beside the terms of a sum."""
    found = [rest for rest in rests if rest is not None]
    total = found[0] if found else None
    for rest in found[1:]:
        total = total + rest  # type: ignore[operator]
    return total


def side_by_side(rests: list[Tensor | None], mains: list[Tensor] | None) -> Tensor | None:
    """Return the channels beside, one after the other; zeros for ``mains`` that have none beside them."""
    if all(rest is None for rest in rests):
        return None
    if mains is not None:
        rests = [
            torch.zeros_like(main) if rest is None else rest for main, rest in zip(mains, rests, strict=True)
        ]
    return torch.cat([rest for rest in rests if rest is not None], 1)
