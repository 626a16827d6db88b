"""What a strategy is: the questions that the training loop asks, with the answers of plain training.

A strategy says which expansion the network gets (``branch`` or ``blend``), what the factor is at a step,
which further networks take part, and what is minimised. The training loop asks; it knows no strategy by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bench import registry
from bench.experiments.config import TrialConfig
from bench.layers.branch import Branch
from bench.networks import Network
from bench.schedules import factor_value
from bench.strategies.taps import Helper

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, classes), labels (B,) int64 -> 0-d mean over the batch
Build = Callable[[TrialConfig], Network]  # another network, initialised and on the device
Weights = Mapping[
    str, Any
]  # role of a trial that this one needs ("teacher", "start") -> its final state dict


class Strategy:
    """The plain case of every question the training loop asks."""

    def __init__(self, config: TrialConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.options: Mapping[str, Any] = config.strategy
        self.bn_reestimate: int = self.options.get("bn_reestimate", 0)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = config.epochs * steps_per_epoch

    @property
    def branch(self) -> Branch | None:
        """The ancillary convolutions of the network, None for none."""
        return None

    @property
    def blend(self) -> str | None:
        """What the factor blends: None, "both", "weights", "activations" or "signs" (see ``anneal``)."""
        return None

    def factor(self, step: int) -> float:
        """Return f at ``step`` (0 .. total - 1); 0 where the strategy has no factor."""
        return 0.0

    def removal(self, step: int) -> bool:
        """Return whether ``step`` is the first at which a factor that was above 0 is 0."""
        return step > 0 and self.factor(step) == 0.0 and self.factor(step - 1) > 0.0

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        """Get ready before the first step; also called before a checkpoint is restored."""

    def further(self, role: str, build: Build) -> Network:
        """Return the further network whose configuration is the option ``role``."""
        return build(TrialConfig.model_validate(self.options[role]))

    def frozen(self, role: str, build: Build, weights: Weights) -> Network:
        """Return the trained network of ``role``, in evaluation mode and without gradients."""
        network = self.further(role, build)
        network.load_state_dict(weights[role])
        return network.eval().requires_grad_(False)

    def stage(self, step: int) -> int:
        """Return the number of the stage that ``step`` lies in; the layers read it from the clock.

        What a step computes may depend on it beside the factor: a recorded step is recorded anew at each
        stage.
        """
        return 0

    def before_step(self, network: Network, step: int) -> None:
        """Change the stored state as the method says before ``step``; called once a step, in order."""

    def calibration_images(self, step: int) -> int:
        """Return how many training images ``calibrate`` needs before ``step``; 0: it is not called."""
        return 0

    def calibrate(self, network: Network, images: Tensor, step: int) -> None:
        """Change the stored weights before ``step`` by what the network makes of training images.

        ``images``: (N, 3, S, S), without augmentation, in an order fixed by the seed. All images are given
        where there are fewer than ``calibration_images``. With several workers the first one is asked, and
        the others get its network.
        """

    def trained(self) -> Mapping[str, Network | Helper]:
        """Return what is trained and checkpointed with the trial's network, by name.

        Further networks, and modules that are no networks (``bench.strategies.taps.Helper``).
        """
        return {}

    def forward_only(self) -> list[Network]:
        """Return the frozen networks that each step runs forward (their cost counts)."""
        return []

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        """Return what is minimised, from the network's ``logits`` on the batch and the recipe's ``loss``."""
        return loss(logits, labels)

    def largest_loss(self, largest: float) -> float:
        """Return the largest mean of ``loss`` over an epoch, given the largest of the recipe's own loss."""
        return largest


class Faded(Strategy):
    """A strategy with a factor that is faded out: option ``factor``, and ``bn_reestimate`` at its end."""

    def factor(self, step: int) -> float:
        return factor_value(self.options["factor"], step, self.total_steps, self.steps_per_epoch)


def make_strategy(config: TrialConfig, steps_per_epoch: int) -> Strategy:
    """Return the strategy that ``config.strategy`` names."""
    return registry.load("strategies", config.strategy["kind"])(config, steps_per_epoch)
