"""The last layer of a network, and the module in which a branch meets the main path outside a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.layers.activation_input import ActivationInput, Pair
from bench.quantizers import Quantizer
from bench.randomness import Clock


class Classifier(ActivationInput, nn.Linear):
    """The last layer: full-precision weights, logits (B, classes).

    ``reads`` says what happens to the input: it is "bounded", "quantized" as the input of a low-precision
    layer, goes through "relu", or stays "unbounded". With ``average`` the layer reads the mean of the input
    over all positions, otherwise the flattened input. Behind a layer with a ``concat`` branch
    ``weight_extra`` reads the features of the branch, in full precision.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        quantizer: Quantizer,
        clock: Clock,
        merge: str | None,
        blend: str | None,
        magnitude_first: bool,
        extra: int,
        average: bool,
        reads: str = "bounded",
    ) -> None:
        super().__init__(in_features, classes)
        self.set_up_input(quantizer, clock, merge, blend, magnitude_first)
        self.average = average
        self.reads = reads
        quantizer.keep_("activation" if reads == "quantized" else "bound")
        self.register_parameter("weight_extra", nn.Parameter(torch.zeros(classes, extra)) if extra else None)

    @property
    def a_bits(self) -> int:
        """Bits of the activations that the layer reads."""
        return self.quantizer.a_bits if self.reads == "quantized" else 32

    def activate(self, y: Tensor, *, again: bool = False) -> Tensor:
        """Return the input from the main path, transformed as ``reads`` says; any shape."""
        if self.reads == "quantized":
            return super().activate(y, again=again)
        if self.reads == "unbounded":
            return y
        return torch.relu(y) if self.reads == "relu" else self.bounded(y)

    def forward(self, y: Tensor, side: Tensor | None = None) -> Tensor:
        """Map the pair ``(y, side)``, (B, C, H, W) or (B, C) each, to logits."""
        x = self.join(self.activate(y), side)
        x = x.mean((2, 3)) if self.average else x.flatten(1)
        weight = self.weight
        if side is not None and self.weight_extra is not None:
            weight = torch.cat([weight, self.weight_extra], 1)
        return F.linear(x, weight, self.bias)

    def strip_(self) -> None:
        """Remove the extra weights."""
        self.weight_extra = None
        self.merge = None


class Meeting(nn.Module):
    """The place where a branch meets the main path outside a layer: behind the batch norm of both."""

    def __init__(self, merge: str | None) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, y: Tensor, side: Tensor | None) -> Pair:
        """Return the next layer's pair: sum and difference join ``side`` to ``y``, concat keeps both."""
        if side is None or self.merge == "concat":
            return y, side
        return (y - side if self.merge == "difference" else y + side), None
