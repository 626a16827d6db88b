"""Two-Step Quantization: sparse activations, ternary weights of least squared error (CVPR 2018)."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from bench.quantizers.functional import ternary, with_slope
from bench.quantizers.hwgq import HWGQ

ENTRIES = [
    {
        "name": "tsq",
        "factory": "TSQ",
        "help": "activations 0 up to a threshold, then equally spaced levels; best ternary weights a filter",
        "title": "Two-Step Quantization for Low-bit Neural Networks (CVPR 2018)",
        "options": {
            "sparsity": {
                "default": 0.75,
                "min": 0.5,
                "below": 1.0,
                "help": "share of a normal variable that the threshold sets to 0; 0.5 is HWGQ",
            }
        },
        "w_bits": [2],
        "a_bits": [1, 2, 3, 4, 32],
    }
]

_NORMAL = NormalDist()


@functools.cache
def sparse_step(bits: int, sparsity: float) -> tuple[float, float]:
    """Return the threshold e and the step d of the sparse quantizer for a standard normal variable.

    P(x <= e) = ``sparsity``; d minimises E (q(x) - x)^2 over x > e, where q(x) is the nearest of d, 2 d, ...,
    (2^bits - 1) d. Both are rounded to 6 places, so that they do not depend on the mathematical library.
    """
    threshold = _NORMAL.inv_cdf(sparsity)
    count = 2**bits - 1
    step, before = 1.0 / 2 ** (bits - 1), 0.0
    while abs(step - before) > 1e-10:  # Lloyd's iteration for equally spaced levels
        inner = (max(threshold, (code + 0.5) * step) for code in range(1, count))
        ends = [threshold, *inner, math.inf]
        tails = [0.5 * math.erfc(end / math.sqrt(2.0)) for end in ends]
        densities = [_NORMAL.pdf(end) for end in ends]
        first = sum(code * (densities[code - 1] - densities[code]) for code in range(1, count + 1))
        second = sum(code**2 * (tails[code - 1] - tails[code]) for code in range(1, count + 1))
        step, before = first / second, step
    return round(threshold, 6), round(step, 6)


class TSQ(HWGQ):
    """The maps of Two-Step Quantization (Wang et al.: CVPR 2018).

    activation:  0 where x <= e, else the nearest of d, 2 d, ..., (2^k - 1) d; e and d by ``sparse_step``. So
                 more activations are 0 than with HWGQ, and the levels lie closer. Gradient: that of the
                 clipped ReLU, as HWGQ's.
    bound:       the clipped ReLU; ReLU at 32 bits
    weight:      a t for each filter, with t in {-1, 0, 1} and a > 0 of least |w - a t|^2: t = sign(w) for the
                 r largest |w| and a their mean, with the r that maximises the square of their sum over r.
                 The gradient passes straight.

    The two steps of the paper are the strategy ``two_step``: first the codes are learned, with full-precision
    weights; then a and t of each layer are fitted to the layer's activation. Without that strategy the
    weights are nearest in each step, and training adapts them to the output; so does the authors' code for
    ternary weights. The strategy ``staged`` with ``stages = ["32/2"]`` learns the codes first and trains on.

    Of the paper only abstract, summaries and a text beside the authors' code for ternary weights could be
    seen. Choices of the suite: the default of ``sparsity``, levels that are multiples of one step, and the
    gradient. Statistic: a, one for each filter.
    """

    def __init__(self, *args: Any, sparsity: float = 0.75, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.a_bits < 32:
            threshold, step = sparse_step(self.a_bits, sparsity)
            levels = torch.tensor([step * code for code in range(2**self.a_bits)])
            middles = ((levels[1:-1] + levels[2:]) / 2.0).clamp_min(threshold)
            self.set_table(torch.cat([torch.tensor([threshold]), middles]), levels)

    def statistics(self, w: Tensor) -> Tensor:
        """Return a, float32, shape (out, 1, ...)."""
        magnitudes = w.detach().double().abs().flatten(1).sort(descending=True).values
        sums = magnitudes.cumsum(1)
        number = torch.arange(1, sums.shape[1] + 1, device=w.device, dtype=sums.dtype)
        best = (sums.square() / number).argmax(1, keepdim=True)
        scale = sums.gather(1, best) / number[best]
        return scale.float().reshape(-1, *[1] * (w.dim() - 1))

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the ternary weights, same shape and dtype: at the best a, t is 0 where |w| <= a / 2."""
        scale = self.statistics(w) if statistics is None else statistics.detach()
        return with_slope(w, ternary(w.detach().float(), scale / 2.0) * scale, 1.0)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -a, 0 and a of each filter."""
        scale = (self.statistics(w) if statistics is None else statistics).detach()
        return torch.stack([-scale, torch.zeros_like(scale), scale])

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters: each has its a."""
        return w.shape[0]
