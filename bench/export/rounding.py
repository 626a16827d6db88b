"""Whether another program's logits are the network's but for rounding; float64 is the judge.

Sums of floats come out otherwise in another order, and the differences grow from layer to layer. Where an
activation lies on a threshold but for rounding, its level changes, and the logits differ visibly. Another
program's logits are therefore compared with the exact ones, beside PyTorch's own float32 logits, and an image
counts as moved only where one of its activations is that near to a threshold.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from bench.export.modules import Activation
from bench.layers.diagnostics import watched
from bench.quantizers.functional import channelwise

TOLERANCE = 1e-4  # how far logits may be off, as a part of their spread
NEAR = 5e-6  # of the unit of ``_distance``: the least rounding that is reckoned with
_TIMES = 2.0  # another program may round so many times as much as PyTorch's float32 arithmetic
_PARTS = 5.0  # of the range of the levels: the least unit, since sums round by their size, not by the step
_OTHER_LEVEL = 1e-3  # of the largest level: levels are further apart, rounding is not
_AT_ONCE = 8  # images whose activations are in memory
_OTHERS = 32  # images beside those in question of which PyTorch's own rounding is measured


@dataclass(frozen=True)
class Judgement:
    """Of a batch (B,): which images are off without a cause, which were moved; what was allowed.

    ``wrong``    bool: the logits are off, and rounding does not explain them
    ``moved``    bool: the logits are off, and an activation lies on a threshold but for rounding
    ``allowed``  the largest difference from the exact logits that counts as rounding
    """

    wrong: Tensor
    moved: Tensor
    allowed: float


@torch.no_grad()
def judge(plain: fx.GraphModule, images: Tensor, wanted: Tensor, found: Tensor, spread: float) -> Judgement:
    """Return which of another program's logits ``found`` are not those of ``plain`` but for rounding.

    Logits within ``TOLERANCE`` of PyTorch's are right. Any other image is compared with the logits that
    ``plain`` has in float64. It is right where ``found`` is no further from these than ``TOLERANCE``, or than
    twice as far as PyTorch's float32 logits are, in the worst of all images that are compared and not moved.

    Args:
        plain: The plain network, on the CPU.
        images: A batch, float32 (B, 3, S, S).
        wanted: PyTorch's logits of the batch, float32 (B, classes).
        found: The other program's, of the same shape.
        spread: The standard deviation of all logits of the test set, the unit of ``TOLERANCE``.
    """
    off = (wanted - found).abs().amax(1) > TOLERANCE * spread
    wrong, moved, allowed = torch.zeros_like(off), torch.zeros_like(off), TOLERANCE * spread
    if not bool(off.any()):
        return Judgement(wrong, moved, allowed)
    chosen = off.clone()
    chosen[:_OTHERS] = True
    exact, tie = exact_logits(plain, images[chosen])
    own, theirs = ((each[chosen] - exact).abs().amax(1) for each in (wanted, found))
    if not bool(tie.all()):
        allowed = max(allowed, _TIMES * float(own[~tie].max()))
    moved[chosen], wrong[chosen] = tie, ~tie & (theirs > allowed)
    return Judgement(wrong & off, moved & off, allowed)


@torch.no_grad()
def exact_logits(plain: fx.GraphModule, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of ``plain`` in float64 (B, classes), and which images rounding can move, bool (B,).

    An image can be moved where float64 arithmetic gives an activation another level, or where an activation
    comes as near to a threshold as twice the rounding of its layer: the largest difference of the two
    arithmetics in this layer, in images that are not moved before it, and ``NEAR`` at least.
    """
    twin = _in_float64(plain)
    logits, ties = [], []
    for part in images.split(_AT_ONCE):
        ours, _ = _watched(plain, part)
        with _default_float64():
            theirs, found = _watched(twin, part.double())
        tie = torch.zeros(len(part), dtype=torch.bool)
        for (activation, x, y), (exact, x64, y64) in zip(ours, theirs, strict=True):
            near, near64 = _distance(activation, x).flatten(1), _distance(exact, x64).flatten(1)
            rounding = float((near - near64)[~tie].abs().max()) if not bool(tie.all()) else 0.0
            other = (y - y64).abs().flatten(1).amax(1) > _OTHER_LEVEL * y64.abs().max()
            close = torch.minimum(near, near64).amin(1) < max(NEAR, _TIMES * rounding)
            tie |= other | close
        logits.append(found)
        ties.append(tie)
    return torch.cat(logits), torch.cat(ties)


def _watched(network: nn.Module, images: Tensor) -> tuple[list[tuple[Activation, Tensor, Tensor]], Tensor]:
    """Return each activation that quantizes with its input and output, in order of the calls; the logits."""
    calls: list[tuple[Activation, Tensor, Tensor]] = []

    def keep(_name: str, activation: Activation, inputs: tuple[Tensor], output: Tensor) -> None:
        calls.append((activation, inputs[0], output))

    named = network.named_modules()
    quantizing = [(n, m) for n, m in named if isinstance(m, Activation) and m.map.quantizes]
    with watched(quantizing, keep):
        return calls, network(images)


def _in_float64(plain: fx.GraphModule) -> fx.GraphModule:
    """Return a copy that computes in float64, also where the architecture's code asks for float32."""

    def wider(argument: Any) -> Any:
        return torch.float64 if argument is torch.float32 else argument

    twin = copy.deepcopy(plain).double()
    for node in twin.graph.nodes:
        if node.op == "call_method" and node.target == "float":
            node.target = "double"
        node.args, node.kwargs = map_aggregate(node.args, wider), map_aggregate(node.kwargs, wider)
    twin.recompile()
    return twin


@contextlib.contextmanager
def _default_float64() -> Iterator[None]:
    """Let numbers that meet no tensor become float64, as the +1 and -1 of a sign."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _distance(activation: Activation, x: Tensor) -> Tensor:
    """Return the distance of each of ``x`` from the nearest threshold, same shape.

    The unit is the step between two levels, but at least a fifth of the range of the levels: 51 steps at
    8 bits. Activations of +1 and -1 have the unit 1, and tables of levels the unit of their thresholds.
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
