"""The operations of a trial's training, computed from its networks alone, without training or images."""

from __future__ import annotations

from collections.abc import Callable

from bench.experiments.config import TrialConfig
from bench.networks import Network
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training.operations import operations_until
from bench.training.setup import make_network, untrained_weights


def operations_by_epoch(
    config: TrialConfig, steps_per_epoch: int, num_classes: int
) -> Callable[[int], float]:
    """Return a function from a number of epochs to the floating-point operations of a trial's first epochs.

    What the strategy trains or asks within the trial counts: further networks, a module beside the network,
    the forward passes of a teacher. The training of a teacher that is a trial of its own counts in that
    trial.
    """
    clock = Clock(config.seed, "cpu")

    def make(other: TrialConfig) -> Network:
        return make_network(other, num_classes, clock)

    strategy = make_strategy(config, steps_per_epoch)
    network = make_network(config, num_classes, clock, strategy)
    strategy.prepare(network, make, untrained_weights(config, num_classes, clock))
    until = operations_until(network, strategy, config.batch_size)
    return lambda epochs: until(epochs * steps_per_epoch)


def training_operations(config: TrialConfig, steps_per_epoch: int, num_classes: int) -> float:
    """Return the floating-point operations of a trial's training: ``train_flops`` of its summary."""
    return operations_by_epoch(config, steps_per_epoch, num_classes)(config.epochs)
