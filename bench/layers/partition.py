"""The part of a layer's weights that is quantized for good, while the rest is still trained in full
precision.

Source: Zhou, Yao, Guo, Xu and Chen, *Incremental Network Quantization*, arXiv 1702.03044, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Partition(nn.Module):
    """Which weights of a layer are frozen, and the values at which they were frozen.

    ``frozen``: bool, in the shape of the weights; ``held``: the stored weights as they were when they were
    frozen, in that shape (elsewhere without meaning). Both are buffers, so that a checkpoint keeps them.
    """

    frozen: Tensor
    held: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.bool))
        self.register_buffer("held", torch.zeros_like(weight, requires_grad=False))

    def mixed(self, weight: Tensor, low: Tensor) -> Tensor:
        """Return ``low`` where the weights are frozen and ``weight`` elsewhere; frozen weights get no
        gradient.
        """
        return torch.where(self.frozen, low.detach(), weight)

    @torch.no_grad()
    def freeze_(self, weight: Tensor, share: float) -> None:
        """Freeze the largest free weights by magnitude until ``share`` of all are frozen; of equals the
        first.
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
        """Undo in place what an update did to the frozen weights (momentum and weight decay move them,
        too).
        """
        weight.copy_(torch.where(self.frozen, self.held, weight))
