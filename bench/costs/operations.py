"""How many operations a trial's training takes, from its networks alone: nothing is trained and no image is
read.
"""

from __future__ import annotations

from bench.experiments.config import TrialConfig
from bench.experiments.roles import roles
from bench.networks import costs
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training.setup import make_network


def training_operations(config: TrialConfig, steps_per_epoch: int, num_classes: int) -> float:
    """Return the floating-point operations of a trial's training: what its summary calls ``train_flops``.

    A teacher that is trained within the trial, or computes its forward pass there, counts; one that is a
    trial of its own counts its training there.
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
