"""The part of a layer's weights that is quantized and frozen, while full precision still trains the others.

Source: Zhou, Yao, Guo, Xu and Chen, *Incremental Network Quantization*, arXiv 1702.03044, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Partition(nn.Module):
    """Which weights of a layer are frozen, and the values at which they were frozen.

    ``frozen`` is a bool tensor in the shape of the weights. ``held`` has the same shape and the value of each
    frozen weight; its other elements mean nothing. Both are buffers, so a checkpoint keeps them.
    """

    frozen: Tensor
    held: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("held", torch.zeros_like(weight, requires_grad=False))

    def mixed(self, weight: Tensor, low: Tensor) -> Tensor:
        """Return ``low`` for frozen weights and ``weight`` for others, in the shape of the weights.

        ``low``, of the same shape, is the quantized ``weight.detach()``: frozen weights get no gradient, the
        learned scales of a quantizer get that of the frozen weights.
        """
        return torch.where(self.frozen, low, weight)

    @torch.no_grad()
    def freeze_(self, weight: Tensor, share: float) -> None:
        """Freeze free weights, the largest magnitude first, until ``share`` of all weights are frozen.

        Of weights of equal magnitude the first is frozen.
        """
        size = weight.detach().abs().flatten()
        size = torch.where(self.frozen.flatten(), torch.inf, size)  # what is frozen stays so
        count = round(share * size.numel())
        chosen = torch.zeros_like(size, dtype=torch.bool)
        chosen[size.argsort(descending=True, stable=True)[:count]] = True
        new = chosen.view_as(self.frozen) & ~self.frozen
        self.held.copy_(torch.where(new, weight, self.held))
        self.frozen.logical_or_(new)

    @torch.no_grad()
    def restore_(self, weight: Tensor) -> None:
        """Restore the frozen weights in place after an update, whose momentum and weight decay move them."""
        weight.copy_(torch.where(self.frozen, self.held, weight))
