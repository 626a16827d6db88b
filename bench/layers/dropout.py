"""Dropout whose draws are functions of the step and of the sample's place in the batch."""

from __future__ import annotations

from torch import Tensor, nn

from bench.randomness import Draws


class Dropout(nn.Module):
    """Dropout (1207.0580) with counter-based draws: in training x / (1 - p), or 0 with probability p."""

    def __init__(self, p: float, draws: Draws) -> None:
        super().__init__()
        self.p = p
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, ...) to the same shape; the draws of a channel do not depend on later channels."""
        if not self.training or self.p == 0.0:
            return x
        keep = (self.draws.uniform(x) >= self.p).to(x.dtype)
        return x * keep.mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"
