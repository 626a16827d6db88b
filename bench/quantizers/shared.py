"""What several papers have in common: activations on [0, 1], signs, ReLU, clipped stored weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.base import Quantizer
from bench.quantizers.deployed import ActivationMap, two_levels
from bench.quantizers.functional import clip, round_unit, sign_window


class Rectified(Quantizer):
    """The base class of quantizers whose bounding map is ReLU, max(x, 0); its gradient at 0 is 0."""

    def bound(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def bound_map(self) -> ActivationMap:
        return ActivationMap("relu")


class Bounded(Quantizer):
    """The base class of quantizers whose bounding map is clip(x, ``lowest``, 1).

    ``relu_at_32``: at 32 bits of activations the map is ReLU instead.
    """

    lowest = 0.0
    relu_at_32 = False

    @property
    def _rectified(self) -> bool:
        return self.relu_at_32 and self.a_bits == 32

    def bound(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self._rectified else clip(x, self.lowest, 1.0)

    def bound_map(self) -> ActivationMap:
        return ActivationMap("relu") if self._rectified else ActivationMap("clip", self.lowest, 1.0)


class UnitActivations(Bounded):
    """DoReFa-Net's activations: round_k(clip(x, 0, 1)) for k bits; ties go to even, or up (``half_up``)."""

    half_up = False

    def activation(self, x: Tensor) -> Tensor:
        return self.bound(x) if self.a_bits == 32 else round_unit(x, self.a_bits, half_up=self.half_up)

    def activation_map(self) -> ActivationMap:
        if self.a_bits == 32:
            return self.bound_map()
        return ActivationMap("round", bits=self.a_bits, half_up=self.half_up)


class WeightsOnly(UnitActivations):
    """The base class of methods whose papers leave the activations in full precision.

    activation:  ReLU at 32 bits, as the papers have it. Below, round_k(clip(x, 0, 1)) as DoReFa-Net's,
                 which the suite puts beside such weights.
    bound:       clip(x, 0, 1); ReLU at 32 bits
    """

    relu_at_32 = True


class SignActivations(Bounded):
    """Activations of +1 and -1: sign(x), sign(0) = +1; the bounding map, clip(x, -1, 1), at 32 bits."""

    lowest = -1.0

    def sign(self, x: Tensor) -> Tensor:
        """Return sign(x), any shape; the gradient is that of hard tanh unless a paper says otherwise."""
        return sign_window(x)

    def activation(self, x: Tensor) -> Tensor:
        return self.bound(x) if self.a_bits == 32 else self.sign(x)

    def activation_map(self) -> ActivationMap:
        return self.bound_map() if self.a_bits == 32 else ActivationMap("sign")


class ClippedWeights(Quantizer):
    """The base class of methods that clip the stored weights to [-1, 1] after each update."""

    @torch.no_grad()
    def after_step_(self, w: Tensor) -> None:
        w.clamp_(-1.0, 1.0)


class SignWeights(ClippedWeights):
    """Weights of +1 and -1: sign(w), sign(0) = +1, gradient 1[|w| <= 1]; stored weights are clipped."""

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        return sign_window(w)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -1 and 1."""
        return two_levels(w.new_ones(()), w)
