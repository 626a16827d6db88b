"""The operations of a trial's training, computed from its networks alone, without training or images."""

from __future__ import annotations

from bench.experiments.config import TrialConfig
from bench.experiments.roles import roles
from bench.networks import costs
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training.setup import make_network


def training_operations(config: TrialConfig, steps_per_epoch: int, num_classes: int) -> float:
    """Return the floating-point operations of a trial's training: ``train_flops`` of its summary.

    A teacher within the trial counts: its training, or its forward passes alone. The training of a teacher
    that is a trial of its own counts in that trial.
    """
    clock = Clock(config.seed, "cpu")
    strategy = make_strategy(config, steps_per_epoch)
    cost = costs(make_network(config, num_classes, clock, strategy))
    on, off = float(cost.train_flops_per_image), float(cost.train_flops_per_image_plain)
    others = 0.0
    for role in roles(config.strategy):
        other = TrialConfig.model_validate(config.strategy[role.name])
        others += role.cost * costs(make_network(other, num_classes, clock)).train_flops_per_image
    total = config.epochs * steps_per_epoch
    active = sum(strategy.factor(step) > 0.0 for step in range(total))
    return config.batch_size * (active * (on + others) + (total - active) * (off + others))
