"""Where another program's rounding can move an activation to the next level.

Sums of floats come out otherwise in another order. Logits then differ in their last digits, unless an
activation lies on a threshold but for rounding: then its level changes, and the logits differ visibly.
PyTorch's own float64 arithmetic changes the same activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.export.modules import Activation, channelwise

NEAR = 5e-6  # of the unit of ``threshold_distance``: the rounding of float32 sums of a few thousand terms
_PARTS = 5.0  # of the range of the levels: the least unit, since sums round by their size, not by the step


@torch.no_grad()
def threshold_distance(plain: nn.Module, images: Tensor) -> Tensor:
    """Return how near the nearest activation of each image comes to a threshold, float32 (B,).

    The unit is the step between two levels, but at least a fifth of the range of the levels: 51 steps at
    8 bits. Activations of +1 and -1 have the unit 1, and tables of levels the unit of their thresholds.
    Infinite for a network that quantizes no activation.
    """
    nearest = torch.full((len(images),), torch.inf)

    def watch(activation: Activation) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
            nearest.copy_(torch.minimum(nearest, _distance(activation, inputs[0]).flatten(1).amin(1).cpu()))

        return hook

    activations = [m for m in plain.modules() if isinstance(m, Activation) and m.map.quantizes]
    handles = [activation.register_forward_hook(watch(activation)) for activation in activations]
    try:
        plain(images)
    finally:
        for handle in handles:
            handle.remove()
    return nearest


def _distance(activation: Activation, x: Tensor) -> Tensor:
    """Return the distance of each of ``x`` from the nearest threshold, in the unit of
    ``threshold_distance``.
    """
    map = activation.map
    if activation.magnitude_first:
        x = x.abs()
    if map.form == "residual":
        return _residual_distance(activation, x)
    if map.form == "sign":
        return x.abs()
    if map.form == "rsign":
        return activation.before_sign(x).abs()
    if map.form == "table":
        thresholds = activation.thresholds
        place = torch.bucketize(x.contiguous(), thresholds)
        low, high = (thresholds[(place - i).clamp(0, len(thresholds) - 1)] for i in (1, 0))
        return torch.minimum((x - low).abs(), (x - high).abs())
    n = float((1 << map.bits) - 1)
    y, lowest, highest = x * n, 0.0, n
    if map.form == "scaled_round":
        y = x / activation.scale * n
    if map.form == "steps":
        y, lowest, highest = x / activation.scale, map.low, map.high
    if map.form == "fixed":
        half = float(1 << (map.bits - 1))
        y, lowest, highest = x * half, -half, half - 1
    steps = (y - (y.floor() + 0.5).clamp(lowest + 0.5, highest - 0.5)).abs()
    return steps / max(1.0, (highest - lowest) / _PARTS)


def _residual_distance(activation: Activation, x: Tensor) -> Tensor:
    """Return the distance of the nearest of the signs that "residual" adds up."""
    left = torch.where(x > 0, x, x * channelwise(activation.slope, x))
    nearest = left.abs()
    for _ in range(activation.map.bits - 1):
        left = left - left.abs().mean(tuple(range(1, x.dim())), keepdim=True) * torch.where(
            left >= 0.0, 1.0, -1.0
        )
        nearest = torch.minimum(nearest, left.abs())
    return nearest
