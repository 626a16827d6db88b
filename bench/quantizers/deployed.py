"""What a quantizer says of the deployed network: the levels of its weights, and its map of activations.

Both are data, not code: a file can hold them, and an inference module needs nothing else of the quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Return the uint8 codes of ``weight``, whose elements are exactly in ``values`` (levels, ...).

    Raises ``ValueError`` where an element is none of the values.
    """
    codes = torch.full_like(weight, values.shape[0], dtype=torch.int16)
    for code, row in enumerate(values):
        codes = torch.where(weight == row, code, codes)
    if bool((codes == values.shape[0]).any()):
        raise ValueError("a quantized weight is none of the levels that its quantizer declares")
    return codes.to(torch.uint8)


@dataclass(frozen=True)
class ActivationMap:
    """The map of activations in the deployed network, in one of five forms.

    ``form``     "identity" x; "relu" max(x, 0); "clip" min(max(x, low), high); "sign" +1 where x >= 0, else
                 -1; "round" round(n clip(x, 0, 1)) / n with n = 2^``bits`` - 1
    ``half_up``  of "round": ties go up, floor(n x + 1/2); else to the even number
    """

    form: str
    low: float = 0.0
    high: float = 1.0
    bits: int = 32
    half_up: bool = False

    @property
    def values(self) -> list[float] | None:
        """The values that activations take, in rising order; None for the forms that do not quantize."""
        if self.form == "sign":
            return [-1.0, 1.0]
        if self.form != "round":
            return None
        n = (1 << self.bits) - 1
        return [float(torch.tensor(i / n, dtype=torch.float32)) for i in range(n + 1)]
