"""Operations of a training step and of a training, counted from the layers of all networks that take part."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.networks import Network, costs
from bench.strategies import Strategy
from bench.strategies.taps import Helper


def step_operations(trained: Iterable[Network | Helper], frozen: Iterable[Network], branch_on: bool) -> float:
    """Return the floating-point operations of a step for one image.

    Forward and backward for what is ``trained``, with its branches where ``branch_on``; forward alone, a
    third of that, for ``frozen`` networks.
    """
    found = sum(_of(module, branch_on) for module in trained)
    return found + sum(_of(network, True) / 3.0 for network in frozen)


def operations_until(network: Network, strategy: Strategy, batch_size: int) -> Callable[[int], float]:
    """Return a function from a number of steps to the floating-point operations of a trial's first steps.

    The steps as ``step_operations`` counts them, and the forward passes in which a strategy re-estimates
    batch norm when its factor reaches 0.

    Args:
        network: The trial's.
        strategy: Prepared, with the further networks that it trains or asks.
        batch_size: Images of a step and of a batch of the re-estimation.
    """
    networks = [network, *strategy.trained().values()]
    on, off = (
        batch_size * step_operations(networks, strategy.forward_only(), branch_on)
        for branch_on in (True, False)
    )
    estimation = batch_size * strategy.bn_reestimate * _of(network, False) / 3.0

    def until(steps: int) -> float:
        active = sum(strategy.factor(step) > 0.0 for step in range(steps))
        found = active * on + (steps - active) * off
        return found + estimation * sum(map(strategy.removal, range(steps))) if estimation else found

    return until


def _of(module: Network | Helper, branch_on: bool) -> float:
    """Return the operations of a training step for one image."""
    if isinstance(module, Helper):
        return 6.0 * module.macs
    cost = costs(module)
    return float(cost.train_flops_per_image if branch_on else cost.train_flops_per_image_plain)
