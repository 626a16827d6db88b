"""Low-precision layers made from anybody's convolutions and linear layers, and what stands between them.

Beyond ``bench.layers.low_precision`` they have a bias, dilation and kernels that are not square.
Their parameters are those of the layer they are made from, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.layers.activation_input import Pair, Quantizing
from bench.layers.dropout import Dropout
from bench.layers.low_precision import LowPrecisionConv2d, LowPrecisionLayer, LowPrecisionLinear
from bench.quantizers import Quantizer
from bench.randomness import Clock


class _Converted(LowPrecisionLayer):
    """A layer with the weight and bias of another; with ``reads_images`` its input stays as it is."""

    bias: nn.Parameter | None
    reads_images = False
    tap: str | None = None  # the name of the ``Tap`` before the activation that the layer reads

    def real(self, y: Tensor) -> Tensor:
        return y if self.reads_images else super().real(y)

    def bounded(self, y: Tensor) -> Tensor:
        return y if self.reads_images else super().bounded(y)

    def activate(self, y: Tensor, *, again: bool = False) -> Tensor:
        return y if self.reads_images else super().activate(y, again=again)

    def forward(self, y: Tensor, side: Tensor | None = None) -> Pair:
        """Map the pair ``(y, side)`` as ``LowPrecisionLayer`` does; then add the full-precision bias."""
        main, side = super().forward(y, side)
        if self.bias is not None:
            shape = (-1, 1, 1) if main.dim() == 4 else (-1,)
            main = main + self.bias.to(main.dtype).reshape(shape)
        return main, side


class ConvertedConv2d(_Converted, LowPrecisionConv2d):  # type: ignore[misc]
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


class ConvertedLinear(_Converted, LowPrecisionLinear):  # type: ignore[misc]
    """A linear layer with bias: (B, in) -> (B, out)."""

    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight, self.bias = linear.weight, linear.bias  # type: ignore[assignment]


class Bound(Quantizing):
    """The quantizer's bounding map, where the network had an activation; any shape. Its readers quantize."""

    def __init__(self, quantizer: Quantizer, clock: Clock) -> None:
        super().__init__()
        quantizer.keep_("bound")
        self.quantizer, self.clock = quantizer, clock

    def forward(self, y: Tensor) -> Tensor:
        """Return the bounded ``y``."""
        return self.acting.bound(y)


class Tap(nn.Identity):
    """The place in front of an activation that layers read, for strategies that look at what flows there.

    ``activated`` is what the network makes of the values behind it: the bounding map, in full precision the
    activation of the original.
    """

    def __init__(self) -> None:
        super().__init__()
        self._activated: tuple[Callable[[Tensor], Tensor], ...] = ()

    def lead_to(self, activated: Callable[[Tensor], Tensor]) -> None:
        """Set the map behind this place, which another module may be."""
        self._activated = (activated,)  # a module in a tuple is no child: it has a name already

    def activated(self, y: Tensor) -> Tensor:
        """Return what the activation makes of ``y``; any shape."""
        return self._activated[0](y)


class CountedStochasticDepth(Dropout):
    """Stochastic depth (1603.09382) with counter-based draws: in training, a sample is x / (1 - p) or 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, ...) to the same shape; equal for tensors of one step."""
        if not self.training or self.p == 0.0:
            return x
        keep = (self.draws.uniform(x.detach().flatten(1)[:, :1]) >= self.p).to(x.dtype)
        kept = keep / (1.0 - self.p) if self.p < 1.0 else keep
        return x * kept.reshape(-1, *[1] * (x.dim() - 1))


# -- the side, f times the output of a branch on its way to its readers: None where no branch is active ------


def side_through(side: Any, module: nn.Module) -> Any:
    """Return ``module(side)``: what happened to the main path happens to ``side``."""
    return None if side is None else module(side)


def side_through_function(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return ``function``, or the tensor's method of that name, as a function that turns None into None."""

    def along(side: Any, *args: Any, **kwargs: Any) -> Any:
        if side is None:
            return None
        if isinstance(function, str):
            return getattr(side, function)(*args, **kwargs)
        return function(side, *args, **kwargs)

    along.__name__ = f"side_through_{function if isinstance(function, str) else function.__name__}"
    return along


def carried(y: Tensor, side: Tensor | None, difference: bool) -> Tensor:
    """Return what a reader that knows nothing of ``side`` reads: both, joined by sum or difference."""
    if side is None:
        return y
    return y - side if difference else y + side


def sum_of_sides(sides: list[Tensor | None]) -> Tensor | None:
    """Return the sum of the sides of the terms of a sum, None where no term has a side."""
    found = [side for side in sides if side is not None]
    return sum(found[1:], found[0]) if found else None


def concatenated_sides(sides: list[Tensor | None], mains: list[Tensor] | None) -> Tensor | None:
    """Return the channels of the sides, one after the other; zeros for terms of ``mains`` without a side."""
    if all(side is None for side in sides):
        return None
    if mains is not None:
        sides = [
            torch.zeros_like(main) if side is None else side for main, side in zip(mains, sides, strict=True)
        ]
    return torch.cat([side for side in sides if side is not None], 1)
