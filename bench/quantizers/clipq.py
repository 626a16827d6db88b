"""CLIP-Q: clipping, partitioning and quantizing of weights while they are trained (CVPR 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.functional import to_levels, with_slope
from bench.quantizers.shared import WeightsOnly

ENTRIES = [
    {
        "name": "clipq",
        "factory": "CLIPQ",
        "help": "a share of the weights is 0, the others are the means of equally wide intervals",
        "title": "CLIP-Q: Deep Network Compression Learning by In-Parallel Pruning-Quantization (CVPR 2018)",
        "options": {
            "clip": {
                "default": 0.5,
                "min": 0.0,
                "below": 1.0,
                "help": "share p of the positive and of the negative weights that are set to 0",
            }
        },
        "w_bits": [2, 3, 4],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


def clipping(magnitudes: Tensor, number: Tensor, clip: float) -> Tensor:
    """Return c, of shape (): the share ``clip`` of the ``number`` largest ``magnitudes`` is less than c.

    ``magnitudes`` rise. Weights of magnitude c and more are kept. Without any weight c is infinite.
    """
    total = magnitudes.numel()
    place = total - number + (number.double() * clip).floor().long()
    return torch.where(number > 0, magnitudes.take(place.clamp_max(total - 1)), torch.inf)


def edges(clipped: Tensor, largest: Tensor, count: int) -> Tensor:
    """Return the count - 1 rising edges between ``count`` equal intervals from ``clipped`` to ``largest``."""
    width = torch.where(clipped.isinf(), 0.0, largest - clipped)
    return clipped + width * torch.arange(1, count, device=clipped.device, dtype=clipped.dtype) / count


class CLIPQ(WeightsOnly):
    """CLIP-Q (Tung and Mori: CVPR 2018), three steps in each forward pass.

    weight:  1. Clipping: c+ and c- are such that the share p of the positive weights is less than c+ and the
             share p of the negative ones is greater than c-. Weights between are 0 in this pass.
             2. Partitioning: what is left of the axis, [min, c-] and [c+, max], falls into 2^k - 1 equally
             wide intervals.
             3. Quantizing: each weight becomes the mean of the weights of its interval.
             The gradient passes straight: all stored weights are full precision and trained, so that a
             clipped weight may return.

    The steps were taken from two summaries of the paper; the paper itself and its code could not be seen.
    Choices of the suite, which may differ from the paper's: of the odd number of intervals 2^(k-1) - 1 lie on
    one side and 2^(k-1) on the other, the one with the longer axis (the positive one where both are equal),
    and each side has intervals of one width.

    The paper searches p and k of each layer by Bayesian optimisation (a Gaussian process), one layer after
    the other, for the error on a part of the training images less lambda times the bits saved. Here p is the
    option ``clip``, one for all layers, and k the bit width of the arm, which no search changes, so that arms
    are compared at equal bits. ``"quantizer.clip" = { linear = [0.0, 0.8] }`` in ``[tuning.space]`` searches
    p on held-out training images, with ``sampler = "optuna"`` by a tree-structured Parzen estimator, which is
    a Bayesian optimisation, too; the size is no part of what is maximised.

    The activations of the paper are full precision; see ``WeightsOnly``. Statistic: 2^k - 1 thresholds, then
    2^k levels.
    """

    def __init__(self, *args: Any, clip: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clip = clip

    def statistics(self, w: Tensor) -> Tensor:
        """Return thresholds and levels, one behind the other, float32 of shape (2^(k+1) - 1,)."""
        real = w.detach().flatten().float()
        thresholds, zero = self._thresholds(real.double())
        codes = torch.bucketize(real, thresholds)
        means = []
        for code in range(2**self.w_bits):
            within = codes == code
            total = torch.where(within, real, 0.0).sum(dtype=torch.float64)
            means.append(torch.where(zero == code, 0.0, total / within.sum().clamp_min(1)))
        return torch.cat([thresholds, torch.stack(means).float()])

    def _thresholds(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return 2^k - 1 rising thresholds, float32, and the number of the interval of the clipped weights.

        ``real``: (n,) float64. A weight at a threshold belongs to the interval below.
        """
        rising = real.sort().values
        positive, negative = (rising > 0).sum(), (rising < 0).sum()
        upper = clipping(rising, positive, self.clip)
        lower = clipping(-rising.flip(0), negative, self.clip)
        highest, lowest = rising[-1], -rising[0]
        just_below = torch.nextafter(upper.float(), -torch.full_like(upper.float(), torch.inf))
        half = 2 ** (self.w_bits - 1)

        def axis(below: int, above: int) -> Tensor:
            under, over = edges(lower, lowest, below), edges(upper, highest, above)
            middle = torch.stack([-lower.float(), just_below])
            return torch.cat([-under.flip(0).float(), middle, over.float()])

        reach = [torch.where(c.isinf(), 0.0, end - c) for c, end in ((lower, lowest), (upper, highest))]
        longer = reach[0] > reach[1]
        thresholds = torch.where(longer, axis(half, half - 1), axis(half - 1, half))
        return thresholds, torch.where(longer, half, half - 1)

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the quantized weights, same shape and dtype."""
        found = self.statistics(w) if statistics is None else statistics
        count = 2**self.w_bits - 1
        return with_slope(w, to_levels(w.detach().float(), found[:count], found[count:]), 1.0)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the 2^k levels, rising; that of an interval without weights is 0."""
        found = self.statistics(w) if statistics is None else statistics
        return found[2**self.w_bits - 1 :].reshape(-1, *[1] * w.dim())

    def stored_scales(self, w: Tensor) -> int:
        """Return 2^k - 1: the levels beside 0."""
        return 2**self.w_bits - 1
