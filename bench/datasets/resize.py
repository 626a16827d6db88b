"""Bilinear resizing in exact arithmetic: the same numbers on every device, in eager and compiled code.

Output pixel i of n has the source position s = (i + 1/2) m / n - 1/2 among m pixels (half-pixel centres,
positions below 0 taken as 0, the last pixel repeated). It weighs the two neighbours of s by 1 - frac(s) and
frac(s). The weights are fractions with a small denominator d (10 for 32 -> 40). So weights times d, times
pixels 0..255, are integers, and the sums of an image, at most d_rows * d_columns * 255, are exact in any
order of summation. There is no antialiasing: the networks here need enlarged images, which do not need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_EXACT_FLOAT32 = 1 << 24


@dataclass(frozen=True)
class Axis:
    """The two neighbours of each output pixel along an axis, and their weights.

    Neighbours are int64. Weights are whole numbers, stored as floats, with the sum ``denominator``.
    """

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor
    denominator: int


class Bilinear:
    """Resizes (B, height, width, C) to (B, size, size, C): sums over ``denominator`` are the pixels."""

    def __init__(
        self, height: int, width: int, size: int, channels: int, device: torch.device | str = "cpu"
    ) -> None:
        rows, columns = _fractions(height, size), _fractions(width, size)
        self.denominator = rows[2] * columns[2]
        exact = 255 * self.denominator <= _EXACT_FLOAT32
        self.dtype = torch.float32 if exact else torch.float64
        self.size = size
        self.rows = _axis(*rows, height, 1, self.dtype, device)
        self.columns = _axis(*columns, width, channels, self.dtype, device)

    def sums(self, images: Tensor) -> Tensor:
        """Return ``denominator`` times the resized uint8 ``images``, exact: in float32 or else in float64."""
        count, height, width, channels = images.shape
        x = images.to(self.dtype).view(count, height, width * channels)
        x = _interpolate(x, self.rows, self.rows.low_weight[:, None], self.rows.high_weight[:, None])
        x = x.view(count * self.size, width * channels)
        x = _interpolate(x, self.columns, self.columns.low_weight, self.columns.high_weight)
        return x.view(count, self.size, self.size, channels)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Return the resized uint8 ``images`` rounded to uint8, halves up."""
        # In float64 the quotient of two such integers never rounds across an integer.
        sums = self.sums(images).to(torch.float64)
        return sums.mul_(2).add_(self.denominator).div_(2 * self.denominator).floor_().to(torch.uint8)


class OpenCVBilinear:
    """Resizes bytes like OpenCV's ``resize`` (``INTER_LINEAR``), in its integer arithmetic, bit for bit.

    The two weights of an axis are rounded to multiples of 2^-11. Sums along a row are exact. Along a column
    each of the two products loses its low bits before the addition, and the sum is rounded. For 32 -> 40
    pixels, 13 % of the values are one level below the exact value rounded to nearest; the others are equal to
    it. The released SVHN scripts resize in this way. Source: OpenCV, modules/imgproc/src/resize.cpp,
    ``VResizeLinear`` for 8 bits.
    """

    def __init__(
        self, height: int, width: int, size: int, channels: int, device: torch.device | str = "cpu"
    ) -> None:
        self.size = size
        self.rows, self.columns = (
            tuple(part.to(device) for part in _opencv_axis(side, size)) for side in (height, width)
        )

    def to_uint8(self, images: Tensor) -> Tensor:
        """Return uint8 ``images`` (B, height, width, C) resized to (B, size, size, C) uint8."""
        x = images.to(torch.int32)
        low, high, first, second = self.columns
        x = x[:, :, low] * first[:, None] + x[:, :, high] * second[:, None]
        low, high, first, second = (
            part if i < 2 else part[:, None, None] for i, part in enumerate(self.rows)
        )
        x = (first * (x[:, low] >> 4) >> 16) + (second * (x[:, high] >> 4) >> 16)
        return (x + 2 >> 2).to(torch.uint8)


def _opencv_axis(source: int, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two neighbours of each output pixel (int64) and their weights times 2^11 (int32)."""
    scale = 1.0 / (target / source)  # in this order, as OpenCV divides
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5).to(torch.float32)
    base = position.floor()
    high_weight = position - base
    first, second = ((weight * 2048).round().to(torch.int32) for weight in (1.0 - high_weight, high_weight))
    low = base.to(torch.int64)
    return low.clamp(0, source - 1), (low + 1).clamp(0, source - 1), first, second


RESIZES: dict[str, type[Bilinear] | type[OpenCVBilinear]] = {"exact": Bilinear, "opencv": OpenCVBilinear}


def _interpolate(x: Tensor, axis: Axis, low_weight: Tensor, high_weight: Tensor) -> Tensor:
    high = x.index_select(1, axis.high).mul_(high_weight)
    return x.index_select(1, axis.low).mul_(low_weight).add_(high)


def _fractions(source: int, target: int) -> tuple[list[int], list[int], int]:
    """Return (lower neighbour of each output pixel, weight of its upper neighbour, common denominator)."""
    positions = [max((2 * i + 1) * source - target, 0) for i in range(target)]  # in units of 1 / (2 target)
    common = math.gcd(2 * target, *positions)
    denominator = 2 * target // common
    return [p // (2 * target) for p in positions], [p // common % denominator for p in positions], denominator


def _axis(
    low: list[int],
    weights: list[int],
    denominator: int,
    source: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Axis:
    """Return an axis over interleaved channels: pixel p of channel c is element ``p * channels + c``."""
    channel = torch.arange(channels)

    def elements(pixels: list[int]) -> Tensor:
        return (torch.tensor(pixels)[:, None] * channels + channel).reshape(-1).to(device)

    high_weight = torch.tensor(weights, dtype=dtype).repeat_interleave(channels).to(device)
    return Axis(
        elements(low),
        elements([min(p + 1, source - 1) for p in low]),
        denominator - high_weight,
        high_weight,
        denominator,
    )
