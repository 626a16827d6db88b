"""What a quantizer says of the deployed network: the levels of its weights, and its map of activations.

Both are data, not code: a file can hold them, and an inference module needs nothing else of the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Quantized weights as codes and the table of the values that the codes stand for.

    ``codes``   uint8, the shape of the weight; code c of a weight stands for row c of the table
    ``values``  float32 (levels, ...): each row broadcasts to the shape of the weight, so that a level has one
                value a layer, an output channel, a kernel row or a kernel position

    A table holds what codes times a scale cannot: the two scales of TTQ, the unscaled levels of
    ``syq_four_levels``, and k/n rounded once.
    """

    codes: Tensor
    values: Tensor

    @property
    def bits(self) -> int:
        """Bits that a packed code needs."""
        return bits_of(self.values.shape[0])

    def weight(self) -> Tensor:
        """Return the quantized weights, float32, as ``Quantizer.weight`` computes them."""
        return look_up(self.codes, self.values)


def bits_of(levels: int) -> int:
    """Return the bits that tell ``levels`` codes apart, at least 1."""
    return max(1, (levels - 1).bit_length())


def look_up(codes: Tensor, values: Tensor) -> Tensor:
    """Return the row of ``values`` (levels, ...) that each of ``codes`` names, broadcast to its shape."""
    found = torch.zeros_like(codes, dtype=values.dtype)
    for code, row in enumerate(values):
        found = torch.where(codes == code, row, found)
    return found


def codes_of(weight: Tensor, values: Tensor) -> Tensor:
    """Return the uint8 codes of ``weight`` in ``values`` (levels, ...); ``ValueError`` for others."""
    codes = torch.full_like(weight, values.shape[0], dtype=torch.int16)
    for code, row in enumerate(values):
        codes = torch.where(weight == row, code, codes)
    if bool((codes == values.shape[0]).any()):
        raise ValueError("a quantized weight is none of the levels that its quantizer declares")
    return codes.to(torch.uint8)


@dataclass(frozen=True)
class ActivationMap:
    """The map of activations in the deployed network.

    ``form`` says which:

        identity      x
        relu          max(x, 0)
        clip          min(max(x, ``low``), ``high``)
        sign          +1 where x >= 0, else -1
        round         round(n clip(x, 0, 1)) / n with n = 2^``bits`` - 1
        scaled_round  a times "round" of x / a; at 32 bits a clip(x / a, 0, 1)
        steps         s round(clip(x / s, ``low``, ``high``))
        fixed         clip(round(h x), -h, h - 1) / h with h = 2^(``bits`` - 1)
        table         the level whose number is the count of thresholds t with x >= t
        prelu         x where x > 0, else r x; a value a channel
        rprelu        "prelu" of x + c, plus b; values a channel
        rsign         +1 where "rprelu" + t >= 0, else -1
        residual      of "prelu" the sum of ``bits`` scaled signs, each of what the signs before leave,
                      scaled by the mean magnitude of the sample; one sign alone is not scaled

    ``contiguous``: of a table, whether its result lies in contiguous memory whatever the memory of x, as
    ``functional.to_levels`` leaves it: sums that read it depend on the order in their last digit. Ties go to
    the even code, or up with ``half_up`` (floor(n x + 1/2)). ``tensors`` are the learned numbers by
    name: "scale" (a, s; of shape ()), "thresholds" and "levels" of a table, "shift_in", "slope", "shift_out",
    "threshold" (c, r, b, t; (channels,) or (1,)).
    """

    form: str
    low: float = 0.0
    high: float = 1.0
    bits: int = 32
    half_up: bool = False
    contiguous: bool = False
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def quantizes(self) -> bool:
        """Whether activations take a few values alone."""
        if self.form == "scaled_round":
            return self.bits < 32
        return self.form in ("sign", "round", "steps", "fixed", "table", "rsign", "residual")

    @property
    def values(self) -> list[float] | None:
        """The values of activations, rising; None where nothing is quantized, or they vary by sample."""
        if not self.quantizes or (self.form == "residual" and self.bits > 1):
            return None
        if self.form in ("sign", "rsign", "residual"):
            return [-1.0, 1.0]
        if self.form == "table":
            return self.tensors["levels"].tolist()
        if self.form == "steps":
            return (torch.arange(self.low, self.high + 1.0) * self.tensors["scale"].cpu()).tolist()
        half, n = float(1 << (self.bits - 1)), float((1 << self.bits) - 1)
        if self.form == "fixed":
            return (torch.arange(-half, half) / half).tolist()
        found = torch.arange(0.0, n + 1.0) / n
        return (found * self.tensors["scale"].cpu() if self.form == "scaled_round" else found).tolist()


def level_table(thresholds: Tensor, levels: Tensor) -> ActivationMap:
    """Return the "table" of ``functional.to_levels``: its level i holds above threshold i - 1, not at it."""
    above = torch.where(
        torch.isinf(thresholds),
        thresholds,
        torch.nextafter(thresholds, torch.full_like(thresholds, torch.inf)),
    ).detach()
    return ActivationMap("table", contiguous=True, tensors={"thresholds": above, "levels": levels.detach()})


def two_levels(scale: Tensor, w: Tensor) -> Tensor:
    """Return the table of -``scale`` and ``scale``, which broadcasts to ``w``."""
    return torch.stack([-scale, scale]).reshape(2, *scale.shape or [1] * w.dim())
