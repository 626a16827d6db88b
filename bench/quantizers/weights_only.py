"""What the methods that quantize weights alone have in common: their activations."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.base import Quantizer
from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import clip, round_unit


class WeightsOnly(Quantizer):
    """The base class of methods whose papers leave the activations in full precision.

    activation:  ReLU at 32 bits, as the papers have it. Below, round_k(clip(x, 0, 1)) as DoReFa-Net's,
                 which the suite puts beside such weights.
    bound:       clip(x, 0, 1); ReLU at 32 bits
    """

    def bound_map(self) -> ActivationMap:
        """Return clip(x, 0, 1), or max(x, 0) at 32 bits."""
        return ActivationMap("relu") if self.a_bits == 32 else ActivationMap("clip", 0.0, 1.0)

    def activation_map(self) -> ActivationMap:
        """Return round_k(clip(x, 0, 1)), or max(x, 0) at 32 bits."""
        return self.bound_map() if self.a_bits == 32 else ActivationMap("round", bits=self.a_bits)

    def bound(self, x: Tensor) -> Tensor:
        """Return clip(x, 0, 1), or max(x, 0) at 32 bits; any shape."""
        return torch.relu(x) if self.a_bits == 32 else clip(x, 0.0, 1.0)

    def activation(self, x: Tensor) -> Tensor:
        """Return round_k(clip(x, 0, 1)), or max(x, 0) at 32 bits; any shape."""
        return self.bound(x) if self.a_bits == 32 else round_unit(x, self.a_bits)
