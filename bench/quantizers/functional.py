"""The maps that several quantizers share: exact levels, signs, rounding on [0, 1], gradient windows.

Everything is computed in float32 (float64 for float64 input), whatever the input's dtype and under autocast,
and rounded once to the input's dtype. The functions are built from operations that write floats in one
vectorised pass: on a CPU a comparison that makes a bool tensor, and a ``where`` on it, cost 3 to 20 times a
``relu``.
"""

from __future__ import annotations

import contextlib
import math
import struct

import torch
from torch import Tensor
from torch.autograd import Function


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that maps of ``x`` are computed in: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context on the device of ``x`` in which autocast narrows no matrix product."""
    return torch.autocast(x.device.type, enabled=False)


def steps(bits: int) -> int:
    """Return n = 2^bits - 1, the number of steps between the lowest and the highest level."""
    return (1 << bits) - 1


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _reciprocal(n: int) -> tuple[float, float]:
    """Return float32 numbers (high, low) whose sum is 1/n.

    ``high`` has 15 significant bits, 24 where low is 0.

    For codes of up to 9 bits ``code * high`` is exact, so ``code * high + code * low`` is code/n rounded
    once, with or without a fused multiply-add.
    """
    if n in (1, 3):  # the rounded reciprocal alone gives every level exactly
        return _float32(1.0 / n), 0.0
    mantissa, exponent = math.frexp(1.0 / n)
    high = math.ldexp(math.floor(mantissa * 2**15), exponent - 15)
    return high, _float32(1.0 / n - high)


def level_(codes: Tensor, n: int) -> Tensor:
    """Turn integer ``codes`` in [-n, n] into the levels codes/n, rounded once, in place.

    N = 2^k - 1 with k <= 8.
    """
    if n == 1:
        return codes
    high, low = _reciprocal(n)
    if codes.dtype == torch.float64 or (low != 0.0 and codes.device.type == "cpu"):
        return codes.div_(n)
    return _multiply_level_(codes, high, low)


def _multiply_level_(codes: Tensor, high: float, low: float) -> Tensor:
    # Not a division: on CUDA it multiplies by a rounded reciprocal, and compiled it is approximate.
    if low == 0.0:
        return codes.mul_(high)
    return codes.copy_(torch.add(codes * high, codes, alpha=low))


def bipolar(x: Tensor) -> Tensor:
    """Return sign(x) as +1 and -1 in the compute dtype; both zeros (and nan) map to +1."""
    return torch.sign(x).to(compute_dtype(x)).add_(0.5).sign_()


def ternary(x: Tensor, threshold: Tensor) -> Tensor:
    """Return sign(x) where |x| > threshold and 0 elsewhere, in the compute dtype.

    ``threshold`` >= 0 of shape ().

    As the sign of x minus x clipped to the threshold; exact, since a difference is 0 for equals alone.
    """
    x = x.to(compute_dtype(x))
    clipped = torch.maximum(x, -threshold).clamp_max_(threshold)
    return clipped.sub_(x).sign_().neg_()


def _just_outside(bound: float, direction: float, dtype: torch.dtype) -> float:
    """Return the next number beyond ``bound`` that a comparison in ``dtype`` (at least float32) sees."""
    if dtype == torch.float64:
        return math.nextafter(bound, direction * math.inf)
    if bound == 0.0:
        return direction * 2.0**-126  # the smallest normal number: a device may flush subnormals to zero
    return bound + direction * 2.0**-23


def pass_inside(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Return grad where low <= x <= high and 0 elsewhere, in one pass; ``low`` and ``high`` are -1, 0 or 1.

    The kernel's own window is open, so its ends are moved to the next numbers outside. Compiled for a CPU it
    is arithmetic alone: of a comparison the compiler keeps the bools from the forward pass for the backward
    pass, one slow store each.
    """
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        outside = (x - x.clamp(low, high)).abs().sign()
        return grad * (1.0 - outside)
    return torch.ops.aten.hardtanh_backward(
        grad, x, _just_outside(low, -1.0, x.dtype), _just_outside(high, 1.0, x.dtype)
    )


class _Clip(Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return torch.clamp(x, low, high)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return pass_inside(grad, x, ctx.low, ctx.high), None, None


class _RoundUnit(Function):
    @staticmethod
    def forward(ctx, x, n, half_up):
        # Keeping x costs no pass. A bool mask would be smaller, and slower to make than the rest of this
        # function.
        ctx.save_for_backward(x)
        y = torch.clamp(x, 0.0, 1.0)
        if n > 1 or half_up:
            y = y.to(compute_dtype(x))
        if n > 1:
            y.mul_(n)
        y = y.add_(0.5).floor_() if half_up else y.round_()
        return level_(y, n).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return pass_inside(grad, x, 0.0, 1.0), None, None


class _SignWindow(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return bipolar(x).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return pass_inside(grad, x, -1.0, 1.0)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Return min(max(x, low), high), any shape.

    The gradient passes where low <= x <= high, both ends included.
    """
    return _Clip.apply(x, low, high)


def round_unit(x: Tensor, bits: int, *, half_up: bool = False) -> Tensor:
    """Return round(n clip(x, 0, 1)) / n with n = 2^bits - 1; any shape.

    Levels i/n. Ties go to even, or up with ``half_up`` (floor(n x + 1/2)). The gradient is that of the clip,
    both ends included: straight through the rounding.
    """
    return _RoundUnit.apply(x, steps(bits), half_up)


def sign_window(x: Tensor) -> Tensor:
    """Return sign(x) with sign(0) = +1; any shape. The gradient is that of hard tanh: 1[|x| <= 1]."""
    return _SignWindow.apply(x)


class _WithSlope(Function):
    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(slope)
        return value.to(x.dtype, copy=True)

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(grad.dtype), None, None


def with_slope(x: Tensor, value: Tensor, slope: Tensor | float) -> Tensor:
    """Return ``value`` in the dtype of ``x``, with dL/dx = slope dL/dvalue.

    ``value`` and ``slope`` are constants of the gradient; ``value`` has the shape of ``x``, ``slope`` is
    broadcast to it.
    """
    if not isinstance(slope, Tensor):
        slope = torch.full((), slope, device=x.device)
    return _WithSlope.apply(x, value.detach(), slope.detach())


def to_levels(x: Tensor, thresholds: Tensor, levels: Tensor) -> Tensor:
    """Return levels[i] where thresholds[i - 1] < x <= thresholds[i], without gradient.

    The levels are exact, in their own dtype. ``x``: any shape; ``thresholds`` (m,) rises, ``levels`` (m +
    1,). A NaN gets the highest level.
    """
    return levels[torch.bucketize(x.detach().to(levels.dtype).contiguous(), thresholds)]


def channelwise(values: Tensor, x: Tensor) -> Tensor:
    """Return a value a channel, shaped to meet dimension 1 of ``x``; one value as it is."""
    return values if values.numel() == 1 else values.reshape(-1, *[1] * (x.dim() - 2))


def inside(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return 1 where low <= x <= high and 0 elsewhere, in the compute dtype; any shape and bounds."""
    return ((x >= low) & (x <= high)).to(compute_dtype(x))
