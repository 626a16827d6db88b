"""A layer's low-precision weights, fitted to the layer's output by alternating least squares.

The problem is the second step of Two-Step Quantization (Wang et al., CVPR 2018): for each filter

    min over a > 0 and t of  sum over rows |y - q(s a t'x + c)|^2

``x`` is what the low-precision layer reads, ``y`` the activation that the full-precision weights give, q the
activation behind the layer, s and c the affine map of batch norm between both, and t has a few codes, for
instance -1, 0 and 1. As q is not linear, a variable z of each output is put between both, with a penalty:

    min over a, t and z of  sum |y - q(z)|^2 + p |z - s a t'x - c|^2

The two steps of an iteration are solved in closed form in turn, so the penalized sum never rises:

    z     each piece of q on its own, where q is constant or linear: ``best_inputs``
    a, t  code by code, each with the best a for it, a = t'Xu / t'XX't for u = (z - c) / s:
          ``improve_codes_``

Zhang et al. (1411.4229, section 2.2) introduced z and the penalty for a layer before a rectifier, and raise
the penalty so that z and the layer's output meet. All sums are float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.quantizers.deployed import ActivationMap

PENALTIES = (0.01, 0.1, 1.0)  # one after the other
ITERATIONS = 10  # at most, at each penalty
_FORMS = ("identity", "relu", "clip", "sign", "round", "table")
_LEAST = 1e-12  # of a relative change of a code that counts
_ENOUGH = 1e-4  # relative fall of the penalized sum below which a penalty is done with
_BLOCK = 64  # codes whose sums are kept together

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Pieces:
    """A map of activations in pieces: ``level + slope x`` from ``low`` to ``high``.

    Four float64 tensors of shape (pieces,); the pieces rise and cover the line. Of a point between two pieces
    the upper one is the map's.
    """

    low: Tensor
    high: Tensor
    level: Tensor
    slope: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the map of ``x``, float64 of any shape."""
        piece = torch.bucketize(x, self.high[:-1], right=True)
        return self.level[piece] + self.slope[piece] * x


def pieces_of(map: ActivationMap, device: torch.device | str = "cpu") -> Pieces | None:
    """Return the pieces of a map of activations; None of a map whose pieces are no constants of the layer."""
    if map.form not in _FORMS:
        return None
    thresholds, levels, slopes = _corners(map)
    ends = [-torch.inf, *thresholds, torch.inf]
    kept = [i for i in range(len(levels)) if ends[i] < ends[i + 1]]
    columns = zip(*((ends[i], ends[i + 1], levels[i], slopes[i]) for i in kept), strict=True)
    return Pieces(*(torch.tensor(column, dtype=torch.float64, device=device) for column in columns))


def _corners(map: ActivationMap) -> tuple[list[float], list[float], list[float]]:
    """Return the thresholds between the pieces, and level and slope of each piece."""
    if map.form == "identity":
        return [], [0.0], [1.0]
    if map.form == "relu":
        return [0.0], [0.0, 0.0], [0.0, 1.0]
    if map.form == "clip":
        return [map.low, map.high], [map.low, 0.0, map.high], [0.0, 1.0, 0.0]
    values = map.values
    assert values is not None
    if map.form == "table":
        thresholds = map.tensors["thresholds"].double().tolist()
    elif map.form == "sign":
        thresholds = [0.0]
    else:
        thresholds = [(one + other) / 2.0 for one, other in itertools.pairwise(values)]
    return thresholds, values, [0.0] * len(values)


def best_inputs(target: Tensor, response: Tensor, penalty: float, pieces: Pieces) -> tuple[Tensor, Tensor]:
    """Return the z of the least (target - q(z))^2 + penalty (z - response)^2, and this least sum.

    All float64 of one shape. On each piece the sum is a parabola, whose lowest point in the piece is at its
    vertex or at an end. The end of a piece counts as part of it, so that the least sum is attained.
    """
    best, least = torch.empty_like(response), torch.full_like(response, torch.inf)
    for low, high, level, slope in zip(pieces.low, pieces.high, pieces.level, pieces.slope, strict=True):
        vertex = (slope * (target - level) + penalty * response) / (slope + penalty)  # slope is 0 or 1
        z = vertex.clamp(low, high)
        cost = (target - level - slope * z).square() + penalty * (z - response).square()
        best = torch.where(cost < least, z, best)
        least = torch.minimum(cost, least)
    return best, least


def improve_codes_(codes: Array, gram: Array, product: Array, levels: Array) -> Array:
    """Improve ``codes`` (m, out) in place, one code after the other; return the best scales (out,).

    For each filter, min over t and a > 0 of |u - a X't|^2 with ``gram`` = XX' (m, m) and ``product`` = Xu
    (m, out). Each code in turn becomes the one of ``levels`` that is best beside the others, with the scale
    that is best for it; it stays where no other is better.
    """
    least = _LEAST * max(float(gram.diagonal().max()), 0.0)
    energy, along = (codes * (gram @ codes)).sum(0), (codes * product).sum(0)
    for start in range(0, len(codes), _BLOCK):  # XX't of a block is kept up to date, of the others behind it
        block = slice(start, start + _BLOCK)
        own, reached = gram[block, block], gram[block] @ codes
        for k, j in enumerate(range(start, min(start + _BLOCK, len(codes)))):
            change = levels[:, None] - codes[j]
            energies = energy + change * (2.0 * reached[k] + change * own[k, k])
            alongs = along + change * product[j]
            scores = _scores(alongs, energies, least)
            place = scores.argmax(0)
            best = place, np.arange(len(place))
            better = scores[best] > _scores(along, energy, least) * (1.0 + _LEAST)
            if better.any():
                energy = np.where(better, energies[best], energy)
                along = np.where(better, alongs[best], along)
                reached += own[:, k, None] * np.where(better, change[best], 0.0)
                codes[j] = np.where(better, levels[place], codes[j])
    return np.maximum(np.divide(along, energy, out=np.zeros_like(along), where=energy > least), 0.0)


def _scores(along: Array, energy: Array, least: float) -> Array:
    """Return by how much the best a > 0 lowers |u - a X't|^2, for ``along`` = t'Xu, ``energy`` = |X't|^2."""
    good = (along > 0.0) & (energy > least)
    return np.divide(along * along, energy, out=np.zeros_like(energy), where=good)


@dataclass(frozen=True)
class Layer:
    """What a fit needs of a layer: float64 on one device.

    rows      (n, m), what the layer reads at n positions
    target    (n, out), the activation that the full-precision weights give there
    slope     (out,), of the affine map behind the layer
    offset    (out,)
    pieces    the activation behind the affine map
    levels    (codes,), rising: the codes of a weight
    """

    rows: Tensor
    target: Tensor
    slope: Tensor
    offset: Tensor
    pieces: Pieces
    levels: Tensor

    def response(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return what the activation reads, (n, out), from codes (m, out) and scales (out,)."""
        return (self.rows @ codes) * (scale * self.slope) + self.offset

    def errors(self, response: Tensor) -> Tensor:
        """Return the sum of |y - q(response)|^2 of each filter, (out,)."""
        return (self.target - self.pieces(response)).square().sum(0)


@dataclass(frozen=True)
class Fit:
    """Codes (m, out) and scales (out,) of a fitted layer, with the errors (out,) before and after.

    ``path``: (penalty, penalized sum after the step of z, after the step of the weights) of each iteration.
    """

    codes: Tensor
    scale: Tensor
    before: Tensor
    after: Tensor
    path: list[tuple[float, float, float]]


def fit(layer: Layer, codes: Tensor, scale: Tensor) -> Fit:
    """Return the best codes and scales that alternation finds from ``codes`` (m, out) and ``scale`` (out,).

    Of all iterations and the start each filter keeps the one with the least error, the penalty left out; so
    no filter becomes worse than it was.
    """
    slope = torch.where(layer.slope == 0.0, 1.0, layer.slope)  # without effect: such a filter keeps its start
    gram, levels = (x.cpu().numpy() for x in (layer.rows.T @ layer.rows, layer.levels))
    response = layer.response(codes, scale)
    before = layer.errors(response)
    best, path = (codes, scale, before), list[tuple[float, float, float]]()
    for penalty in PENALTIES:
        reached = math.inf
        for _ in range(ITERATIONS):
            z, least = best_inputs(layer.target, response, penalty, layer.pieces)
            inner, gap = float(least.sum()), float((z - response).square().sum())
            product = layer.rows.T @ ((z - layer.offset) / slope)
            improved = codes.cpu().numpy().copy()
            scales = improve_codes_(improved, gram, product.cpu().numpy(), levels)
            codes, scale = (torch.from_numpy(x).to(product.device) for x in (improved, scales))
            response = layer.response(codes, scale)
            outer = inner + penalty * (float((z - response).square().sum()) - gap)
            path.append((penalty, inner, outer))
            errors = layer.errors(response)
            better = (errors < best[2]) & (scale > 0.0)
            pairs = zip((codes, scale, errors), best, strict=True)
            best = tuple(torch.where(better, new, old) for new, old in pairs)  # type: ignore[assignment]
            if outer > reached * (1.0 - _ENOUGH):
                break
            reached = outer
    return Fit(best[0], best[1], before, best[2], path)
