"""The input of a layer: the quantized main path, and the output of the previous layer's branch."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from bench.quantizers import Quantizer
from bench.randomness import Clock

Pair = tuple[Tensor, Tensor | None]


class Quantizing(nn.Module):
    """A module with a quantizer, and with others in its place in the stages of a strategy."""

    quantizer: Quantizer
    clock: Clock
    interims: tuple[Quantizer, ...] = ()  # the quantizers of a strategy's stages, the last stage left out

    @property
    def acting(self) -> Quantizer:
        """The quantizer in use: the stage's while the factor is above 0, else the module's own."""
        return self.interims[self.clock.stage] if self.interims and self.clock.active else self.quantizer

    def add_penalty_(self) -> None:
        """Add the gradients of the quantizer's penalty on its activations' parameters."""
        self.quantizer.add_penalty_()

    def train(self, mode: bool = True) -> Self:
        """Set the mode, also of the stages' quantizers: they are no children, their state is the module's."""
        for interim in self.interims:
            interim.train(mode)
        return super().train(mode)


class ActivationInput(Quantizing):
    """The input of a layer that reads a pair ``(y, side)``: ``y`` is quantized, ``side`` joined."""

    merge: str | None
    magnitude_first: bool
    weight_extra: nn.Parameter | None

    def set_up_input(
        self, quantizer: Quantizer, clock: Clock, merge: str | None, blend: str | None, magnitude_first: bool
    ) -> None:
        """Set what ``LowPrecisionLayer.setup`` describes under these names."""
        self.quantizer = quantizer
        self.clock = clock
        self.merge = merge
        self.blend_activations = blend in ("both", "activations")
        self.magnitude_first = magnitude_first

    def real(self, y: Tensor) -> Tensor:
        """Return what the activation maps read: ``y``, or min(1, |y|) with ``magnitude_first``; any shape."""
        return torch.clamp(torch.abs(y), max=1.0) if self.magnitude_first else y

    def bounded(self, y: Tensor) -> Tensor:
        """Return the bounded ``real(y)``, any shape."""
        return self.acting.bound(self.real(y))

    def activate(self, y: Tensor, *, again: bool = False) -> Tensor:
        """Return the low-precision activations of ``y``, any shape.

        With ``blend`` they are mixed with the bounded activations, which have the weight f. ``again``: the
        layer has just read ``y``, so levels that move with what is read stay those of that time.
        """
        y = self.real(y)
        x = self.acting.reread(y) if again else self.acting.activation(y)
        if self.blend_activations and self.clock.active:
            x = x + self.clock.factor * (self.quantizer.bound(y) - x)
        return x

    def join(self, x: Tensor, side: Tensor | None) -> Tensor:
        """Return the activated input ``x`` joined with ``side``, the output of a branch."""
        if side is None:
            return x
        if self.merge == "concat":
            return torch.cat([x, side], 1)
        return x - side if self.merge == "difference" else x + side
