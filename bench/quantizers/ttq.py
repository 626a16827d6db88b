"""Trained Ternary Quantization (arXiv 1612.01064)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bench.quantizers.functional import compute_dtype, ternary
from bench.quantizers.shared import WeightsOnly

ENTRIES = [
    {
        "name": "ttq",
        "factory": "TTQ",
        "help": "ternary weights {-Wn, 0, Wp} with two learned scales a layer",
        "title": "Trained Ternary Quantization",
        "arxiv": "1612.01064",
        "options": {
            "threshold": {
                "default": 0.05,
                "min": 0.0,
                "below": 1.0,
                "help": "threshold as a part of max |w|",
            },
            "scale": {"default": 1.0, "above": 0.0, "help": "what the learned scales start at"},
        },
        "w_bits": [2],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


class _Ternary(Function):
    @staticmethod
    def forward(ctx, w, positive, negative, threshold):
        codes = ternary(w, threshold)
        ctx.save_for_backward(codes, positive, negative)
        return (codes.clamp_min(0.0) * positive + codes.clamp_max(0.0) * negative).to(w.dtype)

    @staticmethod
    def backward(ctx, grad):
        codes, positive, negative = ctx.saved_tensors
        above, under = codes.clamp_min(0.0), codes.clamp_max(0.0)  # 1 or 0, -1 or 0
        to_positive, to_negative = (grad * above).sum(), (grad * under).sum()
        between = under - above
        factor = above.mul_(positive).sub_(under.mul_(negative)).add_(between.add_(1.0))
        return (grad * factor).to(grad.dtype), to_positive, to_negative, None


def ternary_weight(w: Tensor, positive: Tensor, negative: Tensor, threshold: Tensor) -> Tensor:
    """Return Wp where w > threshold, -Wn where w < -threshold, else 0 (eq. 6); any shape.

    The scales and the threshold have the shape ().

    Gradients: dL/dw = Wp dL/dq, Wn dL/dq and dL/dq in these three cases (eq. 8); dL/dWp = sum of dL/dq over
    the first, dL/dWn = - sum of dL/dq over the second. Eq. (7) prints no minus for Wn; it is the derivative
    of the forward map and what the authors' code computes. The threshold is a constant.
    """
    return _Ternary.apply(w, positive, negative, threshold)


class TTQ(WeightsOnly):
    """Trained Ternary Quantization (arXiv 1612.01064).

    weight:      {-Wn, 0, Wp} with the threshold 0.05 max |w| of the layer (eq. 6, 9); gradients in
                 ``ternary_weight``
    activation:  the paper's are full precision; see ``WeightsOnly``, as the released EXP-Net files have it

    ``positive`` and ``negative`` are parameters of shape (), not constrained. The paper first divides the
    stored weights by their largest magnitude; that changes no assignment, since the threshold scales with
    it. Statistic: max |w|.
    """

    def __init__(self, *args: Any, threshold: float = 0.05, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threshold = threshold
        self.initial_scale = scale
        self.positive: nn.Parameter | None = None
        self.negative: nn.Parameter | None = None

    def create_scales(self, weight_shape: Sequence[int], device: Any = None) -> None:
        """Create ``positive`` and ``negative``, at their initial value."""
        self.positive = nn.Parameter(torch.full((), self.initial_scale, device=device))
        self.negative = nn.Parameter(torch.full((), self.initial_scale, device=device))

    def statistics(self, w: Tensor) -> Tensor:
        """Return max |w|, float32 of shape (), without gradient."""
        return w.detach().to(compute_dtype(w)).abs().amax()

    def _scales(self, w: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
        if self.positive is None:
            self.create_scales(w.shape, w.device)
        assert self.positive is not None and self.negative is not None
        return self.positive, self.negative

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        maximum = self.statistics(w) if statistics is None else statistics.detach()
        return ternary_weight(w, *self._scales(w), maximum * self.threshold)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -Wn, 0 and Wp."""
        positive, negative = (scale.detach() for scale in self._scales(w))
        values = torch.stack([-negative, torch.zeros_like(positive), positive])
        return values.reshape(3, *[1] * w.dim())
