"""Quantized weights and activations as small integers and their bit planes.

A table of levels has integers where every level is an integer times one step, but for float32's rounding.
Weights whose levels have no common step are a sum of terms, each with a scale of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.quantizers.deployed import Levels

MOST_PAIRS = 4  # of bit planes of weights and activations: 2/2. With eight, AVX2 is no faster than float32
MOST_STEPS = 15  # thresholds of activations
MOST_TAPS = 256  # positions of a kernel; as in popcount.c
_LARGEST = 255  # of the integers
_NEAR = 2.0**-23  # how far an integer times the step may be from the level's float32 number, relatively


@dataclass(frozen=True)
class Integers:
    """Levels as integers times a step.

    ``numbers``  an integer for each level, in the order of the levels
    ``step``     float64 (n,): one for each column of the table
    """

    numbers: tuple[int, ...]
    step: Tensor


def integers_of(values: Tensor) -> Integers | None:
    """Return the smallest integers whose multiples the levels are; None where there are none up to 255.

    ``values`` (levels, n), float32. Every value is within 2^-23 of its own size of integer times step.
    """
    table = values.double()
    top = table.abs().amax(0)
    widest = int(top.argmax())
    if not bool(torch.isfinite(table).all()):
        return None
    if top[widest] == 0.0:
        return Integers((0,) * len(table), torch.zeros_like(top))
    for largest in range(1, _LARGEST + 1):
        step = top / largest
        numbers = (table[:, widest] / step[widest]).round()
        if bool(((numbers[:, None] * step - table).abs() <= _NEAR * table.abs()).all()):
            return Integers(tuple(int(number) for number in numbers), step)
    return None


@dataclass(frozen=True)
class Planes:
    """Integers as ``lowest`` plus the sum of ``factors[j]`` times bit j of ``codes``."""

    lowest: int
    factors: tuple[int, ...]
    codes: tuple[int, ...]


def planes_of(numbers: Sequence[int]) -> Planes:
    """Return the fewest bit planes with factors of 2^j times one common number."""
    lowest = min(numbers)
    common = math.gcd(*(number - lowest for number in numbers)) or 1
    codes = tuple((number - lowest) // common for number in numbers)
    return Planes(lowest, tuple(common << j for j in range(max(1, max(codes).bit_length()))), codes)


@dataclass(frozen=True)
class Term:
    """A part of a layer's weights: integers times a scale for each output channel.

    ``positions``  first and end of the kernel positions, in C order, that the term covers
    ``lowest``, ``factors``, ``bits``  the integers: ``lowest + sum_j factors[j] bits[j]``; ``bits`` bool
                   (planes, out, in, positions of the kernel)
    ``scale``      float64 (out,)
    """

    positions: tuple[int, int]
    lowest: int
    factors: tuple[int, ...]
    bits: Tensor
    scale: Tensor

    def numbers(self) -> Tensor:
        """Return the integers, int64 (out, in, positions of the kernel); 0 at positions of other terms."""
        factors = torch.tensor(self.factors).reshape(-1, 1, 1, 1)
        found = self.lowest + (factors * self.bits).sum(0)
        inside = torch.zeros(found.shape[-1], dtype=torch.bool)
        inside[slice(*self.positions)] = True
        return torch.where(inside, found, 0)


def weight_terms(levels: Levels) -> list[Term] | str:
    """Return the terms of quantized weights, or why there are none.

    Levels that are multiples of one step are one term, or one for each kernel row or position where the scale
    varies so (SYQ). Other levels are a term for each value but 0 (TTQ), and opposite values share one. Terms
    whose bits are equal tensors (the same object) share their planes.
    """
    # four axes: output, input, kernel row, kernel column
    shape = tuple(levels.codes.shape) + (1,) * (4 - levels.codes.dim())
    codes = levels.codes.reshape(*shape[:2], -1)
    values = levels.values.reshape(*levels.values.shape, *(1,) * (5 - levels.values.dim()))
    if values.shape[2] != 1:
        return "its weights have a scale for each input channel"
    if codes.shape[-1] > MOST_TAPS:
        return f"its kernel has more than {MOST_TAPS} positions"
    found = integers_of(values.flatten(1))
    if found is not None:
        planes = planes_of(found.numbers)
        of_code = torch.tensor(planes.codes)[codes.long()]
        bits = torch.stack([(of_code >> j & 1).bool() for j in range(len(planes.factors))])
        scale = found.step.reshape(values.shape[1:])
        return _split(scale, shape, planes.lowest, planes.factors, bits)
    if not bool(torch.isfinite(values).all()):
        return "its weights are not finite"
    terms: list[Term] = []
    left = [code for code in range(len(values)) if bool((values[code] != 0).any())]
    while left:
        code = left.pop()
        opposite = next((other for other in left if torch.equal(values[other], -values[code])), None)
        pair = [code] if opposite is None else [code, opposite]
        left = [other for other in left if other not in pair]
        bits = torch.stack([codes == one for one in pair])
        terms += _split(values[code].double(), shape, 0, (1, -1)[: len(pair)], bits)
    return terms


def _split(
    scale: Tensor, shape: Sequence[int], lowest: int, factors: tuple[int, ...], bits: Tensor
) -> list[Term]:
    """Return a term for each part of the kernel with its own scale; ``scale`` broadcasts to ``shape``."""
    height, width = shape[2:]
    whole = scale.expand(shape[0], 1, height, width)[:, 0].flatten(1)
    spans = [(0, height * width)]
    if not torch.equal(whole, whole[:, :1].expand_as(whole)):
        spans = [(row * width, (row + 1) * width) for row in range(height)]
        if any(not torch.equal(whole[:, a:b], whole[:, a : a + 1].expand(-1, b - a)) for a, b in spans):
            spans = [(i, i + 1) for i in range(height * width)]
    return [Term(span, lowest, factors, bits, whole[:, span[0]].clone()) for span in spans]


def pairs_of(terms: Sequence[Term], x_planes: int) -> int:
    """Return how many pairs of bit planes of weights and activations are multiplied at each position."""
    return x_planes * sum(len(bits) for bits in {id(term.bits): term.bits for term in terms}.values())


def sums_are_exact(terms: Sequence[Term], numbers: Sequence[int], step: float) -> bool:
    """Return whether float32 adds up a layer's products without rounding, in whatever order.

    Steps that are powers of two, of one term, and sums below 2^24.
    """
    if len(terms) != 1:
        return False
    steps = torch.cat([terms[0].scale, torch.tensor([step], dtype=torch.float64)])
    mantissas = torch.frexp(steps.abs()).mantissa
    return bool(((mantissas == 0.5) | (steps == 0)).all()) and largest_sum(terms, numbers) < 2**24


def largest_sum(terms: Sequence[Term], numbers: Sequence[int]) -> int:
    """Return a bound of the magnitude of every sum that a term's integers and the activations' can have."""
    largest = max((abs(number) for number in numbers), default=0)
    return largest * max(int(term.numbers().abs().sum((1, 2)).max()) for term in terms)
