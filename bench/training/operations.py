"""Operations of a training step, counted from the layers of all networks that take part."""

from __future__ import annotations

from collections.abc import Iterable

from bench.networks import Network, costs
from bench.strategies.taps import Helper


def step_operations(trained: Iterable[Network | Helper], frozen: Iterable[Network], branch_on: bool) -> float:
    """Return the floating-point operations of a step for one image.

    Forward and backward for what is ``trained``, with its branches where ``branch_on``; forward alone, a
    third of that, for ``frozen`` networks.
    """
    found = sum(_of(module, branch_on) for module in trained)
    return found + sum(_of(network, True) / 3.0 for network in frozen)


def _of(module: Network | Helper, branch_on: bool) -> float:
    """Return the operations of a training step for one image."""
    if isinstance(module, Helper):
        return 6.0 * module.macs
    cost = costs(module)
    return float(cost.train_flops_per_image if branch_on else cost.train_flops_per_image_plain)
