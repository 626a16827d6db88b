"""The layers of a network on integers. Each replaces the float32 layer of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.export.modules import Activation, InferenceConv2d, InferenceLinear
from bench.integer.build import loaded
from bench.integer.kernel import Bits, Product


@dataclass(frozen=True)
class Arithmetic:
    """How a layer on integers computes.

    ``bits``          of weights and activations, as "1/2"
    ``instructions``  the instruction set of its library
    ``exact``         whether float32 adds up the same products without rounding, so that the results are
                      equal bit for bit
    """

    bits: str
    instructions: str
    exact: bool


class _OnIntegers(nn.Module):
    """A low-precision layer as bit planes of its input, exact sums, one scale, then what float32 does behind.

    The result differs from the exact sum of the float32 levels' products by at most 5 x 2^-24 of the sum of
    their magnitudes: half a unit in the last place for the result, and two units for levels such as 1/3 that
    float32 rounds. ``activation`` is applied where levels are no thresholds of its input.
    """

    def __init__(
        self,
        like: InferenceConv2d | InferenceLinear,
        bits: Bits,
        product: Product,
        activation: Activation | None,
        arithmetic: Arithmetic,
    ) -> None:
        super().__init__()
        self.bits, self.product, self.activation = bits, product, activation
        self.input_scale = like.input_scale
        self.bias = like.bias
        self.arithmetic = arithmetic
        if hasattr(like, "bound"):  # the bounding map, which a shortcut around the layer reads
            self.bound = like.bound

    def _sums(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the scaled sums (images, rows, columns, out) of rows of activations, one a pixel."""
        kernels = loaded(self.arithmetic.instructions)
        bits, sums = self.bits(rows, self.product.needs_sums, kernels)
        return self.product(bits, sums, size, kernels)

    def _read(self, y: Tensor) -> Tensor:
        if y.dtype != torch.float32 or y.device.type != "cpu":
            raise TypeError(f"a layer on integers reads float32 on the CPU, not {y.dtype} on {y.device}")
        return y if self.activation is None else self.activation(y)

    def _scaled(self, out: Tensor, y: Tensor) -> Tensor:
        return out if self.input_scale is None else out * self.input_scale(y)

    def extra_repr(self) -> str:
        return str(self.arithmetic)


class IntegerConv2d(_OnIntegers):
    """A convolution on integers: (B, in, H, W) float32 -> (B, out, H', W') float32, channels last.

    The padding counts 0, whether or not 0 is a level of the activations.
    """

    def forward(self, y: Tensor) -> Tensor:
        """Return the layer's output of its real-valued input ``y``; raises ``TypeError`` for other dtypes."""
        pixels = self._read(y).permute(0, 2, 3, 1).contiguous()
        size: Any = tuple(pixels.shape[1:3])
        out = self._sums(pixels.flatten(0, 2), size).permute(0, 3, 1, 2)
        out = self._scaled(out, y)
        return out if self.bias is None else out + self.bias.reshape(-1, 1, 1)


class IntegerLinear(_OnIntegers):
    """A linear layer on integers: (B, ...) float32, flattened to (B, in) -> (B, out) float32."""

    def forward(self, y: Tensor) -> Tensor:
        """Return the layer's output of its real-valued input ``y``; raises ``TypeError`` for other dtypes."""
        rows = self._read(y).flatten(1).contiguous()
        out = self._scaled(self._sums(rows, (1, 1)).flatten(1), y)
        return out if self.bias is None else out + self.bias
