"""The operations of a trial's training, computed from its networks alone, without training or images."""

from __future__ import annotations

from bench.experiments.config import TrialConfig
from bench.networks import Network
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training.operations import step_operations
from bench.training.setup import make_network, untrained_weights


def training_operations(config: TrialConfig, steps_per_epoch: int, num_classes: int) -> float:
    """Return the floating-point operations of a trial's training: ``train_flops`` of its summary.

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
    trained, frozen = [network, *strategy.trained().values()], strategy.forward_only()
    on, off = (step_operations(trained, frozen, branch_on) for branch_on in (True, False))
    total = config.epochs * steps_per_epoch
    active = sum(strategy.factor(step) > 0.0 for step in range(total))
    return config.batch_size * (active * on + (total - active) * off)
