"""Ternary Weight Networks (arXiv 1605.04711)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.functional import compute_dtype, ternary, with_slope
from bench.quantizers.shared import WeightsOnly

ENTRIES = [
    {
        "name": "twn",
        "factory": "TWN",
        "help": "ternary weights {-s, 0, s}: threshold 0.7 mean |w|, s the mean magnitude above it",
        "title": "Ternary Weight Networks",
        "arxiv": "1605.04711",
        "options": {
            "threshold": {"default": 0.7, "above": 0.0, "help": "threshold as a multiple of mean |w|"}
        },
        "w_bits": [2],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


class TWN(WeightsOnly):
    """Ternary Weight Networks (arXiv 1605.04711).

    weight:  s t with t = sign(w) where |w| > d, else 0 (eq. 3); d = 0.7 mean |w| of the layer (eq. 6); s is
             the mean of |w| over the weights with |w| > d (eq. 5). Levels -s, 0, s. The gradient passes
             straight: the stored weights get dL/dq, as in BinaryConnect (section 2.3). d and s are
             constants of the gradient.

    All weights zero: every level is 0. The activations of the paper are full precision; see ``WeightsOnly``.
    Statistic: (d, s).
    """

    def __init__(self, *args: Any, threshold: float = 0.7, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = threshold

    def statistics(self, w: Tensor) -> Tensor:
        """Return threshold and scale, float32 of shape (2,), without gradient."""
        magnitude = w.detach().to(compute_dtype(w)).abs()
        threshold = magnitude.mean() * self.threshold
        above = (magnitude > threshold).to(magnitude.dtype)
        scale = (magnitude * above).sum() / above.sum().clamp_min(1.0)
        return torch.stack([threshold, scale])

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        threshold, scale = (self.statistics(w) if statistics is None else statistics).detach()
        return with_slope(w, ternary(w.detach(), threshold).mul_(scale), 1.0)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -s, 0 and s."""
        _, scale = (self.statistics(w) if statistics is None else statistics).detach()
        return torch.stack([-scale, torch.zeros_like(scale), scale]).reshape(3, *[1] * w.dim())

    def stored_scales(self, w: Tensor) -> int:
        """Return 1: the scale of the layer."""
        return 1
