"""Weighted-entropy quantization: clusters of weights, logarithmic activations (CVPR 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.deployed import ActivationMap, level_table
from bench.quantizers.functional import bipolar, to_levels, with_slope
from bench.quantizers.shared import Rectified

ENTRIES = [
    {
        "name": "weq",
        "factory": "WEQ",
        "help": "clusters of |w| that maximise the entropy weighted by w^2; activations on a logarithmic "
        "scale",
        "title": "Weighted-Entropy-Based Quantization for Deep Neural Networks (CVPR 2017)",
        "options": {
            "sweeps": {
                "default": 4,
                "min": 0,
                "max": 100,
                "help": "passes over the boundaries between clusters, from clusters of equal size",
            }
        },
        "w_bits": [1, 2, 3, 4],
        "a_bits": [1, 2, 3, 4, 5, 32],
    }
]

# Highest level and distance of levels, as exponents of 2 in sixteenths: those that maximise the weighted
# entropy of a rectified standard normal variable. A test finds them again. One bit has one positive level.
LOGARITHMIC = {1: (5, 16), 2: (16, 12), 3: (19, 6), 4: (21, 3), 5: (25, 2)}


def weighted_entropy(importance: Tensor, count: Tensor, total: int) -> Tensor:
    """Return -I P log P; ``importance``: the sum over a cluster, ``count``: its size, P = count / total."""
    share = count.clamp_min(1.0) / total
    return -(importance / total) * share.log()


def clusters(w: Tensor, count: int, sweeps: int) -> tuple[Tensor, Tensor]:
    """Return thresholds (count - 1,) and levels (count,) of |w|, float32, of the best clusters.

    The best ones have the greatest weighted entropy. The importance of a weight is w^2. The clusters are
    runs of the sorted importances, at first of equal size. Each sweep moves one boundary after the other to
    where -sum I P log P is greatest while its neighbours stay, I the mean importance of a cluster and P its
    share of the weights. A level is the root of the mean importance.
    """
    importance = w.detach().flatten().to(torch.float64).square().sort().values
    total = importance.numel()
    sums = torch.cat([importance.new_zeros(1), importance.cumsum(0)])
    places = torch.arange(total + 1, device=w.device)
    cuts = [places[total * j // count] for j in range(count + 1)]
    for _ in range(sweeps if count > 1 else 0):
        for j in range(1, count):
            low, high = cuts[j - 1], cuts[j + 1]
            value = weighted_entropy(sums - sums.take(low), (places - low).double(), total)
            value = value + weighted_entropy(sums.take(high) - sums, (high - places).double(), total)
            within = (places > low) & (places < high)
            cuts[j] = torch.where(within.any(), torch.where(within, value, -torch.inf).argmax(), cuts[j])
    edges = torch.stack(cuts)
    sizes = (edges[1:] - edges[:-1]).clamp_min(1)
    levels = ((sums[edges[1:]] - sums[edges[:-1]]) / sizes).clamp_min(0.0).sqrt()
    thresholds = importance[(edges[1:-1] - 1).clamp_min(0)].sqrt()
    return thresholds.float(), levels.float()


class WEQ(Rectified):
    """Weighted-entropy quantization (Park, Ahn, Yoo: CVPR 2017).

    weight:      sign(w) r with r the level of the cluster that |w| falls into, see ``clusters``; 2^(k-1)
                 clusters, so k bits have 2^k levels; sign(0) = +1. The gradient passes straight.
    activation:  0, or the nearest of 2^k - 1 powers of two on a logarithmic scale, with a fixed distance of
                 the exponents in sixteenths; below half a distance under the lowest power: 0. Gradient:
                 that of ReLU.
    bound:       ReLU

    Differences to the paper: it clusters positive and negative weights each for itself, and searches until
    the entropy no longer grows; here both signs have one set of clusters, found by ``sweeps`` passes at
    each use. It searches highest level and distance of the activations on samples of each layer; here they
    are those of a rectified standard normal variable (``LOGARITHMIC``), since batch norm stands before most
    inputs. Only the paper's abstract could be seen when this was checked, and no code of the authors: the
    importance w^2, the entropy -sum I P log P and the logarithmic levels were written from memory of the
    paper. Statistic: thresholds, then levels.
    """

    thresholds: Tensor
    levels: Tensor

    def __init__(self, *args: Any, sweeps: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sweeps = sweeps
        if self.a_bits < 32:
            top, distance = LOGARITHMIC[self.a_bits]
            codes = torch.arange(2**self.a_bits - 1, dtype=torch.float64)
            exponents = top - distance * codes.flip(0)
            powers = torch.exp2(exponents / 16.0).float()
            below = torch.exp2((exponents - distance / 2.0) / 16.0).float()
            self.register_buffer("levels", torch.cat([torch.zeros(1), powers]), persistent=False)
            self.register_buffer("thresholds", below, persistent=False)

    def statistics(self, w: Tensor) -> Tensor:
        """Return the thresholds and the levels of |w|, one behind the other, float32 of shape (2^k - 1,)."""
        return torch.cat(clusters(w, 2 ** (self.w_bits - 1), self.sweeps))

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        found = self.statistics(w) if statistics is None else statistics
        middle = 2 ** (self.w_bits - 1) - 1
        real = w.detach().float()
        return with_slope(w, bipolar(real) * to_levels(real.abs(), found[:middle], found[middle:]), 1.0)

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of clusters: each has its level."""
        return 2 ** (self.w_bits - 1)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the levels of both signs, rising."""
        found = self.statistics(w) if statistics is None else statistics
        levels = found[2 ** (self.w_bits - 1) - 1 :]
        return torch.cat([-levels.flip(0), levels]).reshape(-1, *[1] * w.dim())

    def activation_map(self) -> ActivationMap:
        """Return the table of the powers of two; max(x, 0) at 32 bits."""
        return self.bound_map() if self.a_bits == 32 else level_table(self.thresholds, self.levels)

    def activation(self, x: Tensor) -> Tensor:
        """Return the quantized activations, any shape; ReLU at 32 bits."""
        if self.a_bits == 32:
            return torch.relu(x)
        real = x.detach().float()
        return with_slope(x, to_levels(real, self.thresholds, self.levels), (real > 0).float())
