"""The one builder of a run: trials, ``bench show --cost`` and ``bench speed`` train what this module makes.

clock = Clock(config.seed, device)
data = make_batches(config, images, clock)
run = make_run(config, data, clock, weights=weights)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench import datasets
from bench.datasets.batches import Batches
from bench.experiments.config import TrialConfig
from bench.experiments.roles import needed_roles
from bench.networks import Network, build, initialize
from bench.networks.initialization import start_scales_
from bench.quantizers import Quantizer
from bench.randomness import Clock
from bench.strategies import Strategy, make_strategy
from bench.strategies.taps import Helper
from bench.training.distributed import SOLO, Team, batch_norm_for
from bench.training.loop import Run
from bench.training.memory import recompute_activations
from bench.training.start import Start


def make_batches(config: TrialConfig, images: datasets.Loaded, clock: Clock, team: Team = SOLO) -> Batches:
    """Return the batches of a trial on the clock's device, in the size that its network reads."""
    size = config.input_size
    if size is None:  # a network of the user's own tells its size once it is built
        size = make_network(config, images.num_classes, clock, team=team).input_size
    return datasets.make_data(images, config, size, clock.step.device, team.rank_and_size)


def make_network(
    config: TrialConfig,
    num_classes: int,
    clock: Clock,
    strategy: Strategy | None = None,
    team: Team = SOLO,
    check_original: bool = False,
) -> Network:
    """Return an initialised network on the clock's device, as the recipe trains it.

    Args:
        config: The trial's.
        num_classes: The length of the logits of an image.
        clock: Tells the layers the step and the factor.
        strategy: Gives branch or blend; None: neither.
        team: The workers that share the trial.
        check_original: Whether a transformed network is first compared with its original.
    """
    network = build(
        config,
        num_classes=num_classes,
        clock=clock,
        branch=strategy.branch if strategy else None,
        blend=strategy.blend if strategy else None,
        check_original=check_original,
    )
    initialize(network, config.seed, config.initialization)
    batch_norm_for(network, config, team)
    for module in network.modules():
        if isinstance(module, Quantizer):
            module.parts = config.micro_batches
    if config.activation_checkpointing:
        recompute_activations(network)
    return network.to(clock.step.device).to(memory_format=torch.channels_last)


def make_run(
    config: TrialConfig,
    data: Batches,
    clock: Clock,
    *,
    weights: Mapping[str, Mapping[str, Any]],
    start: Start | None = None,
    mode: str = "eager",
    team: Team = SOLO,
) -> Run:
    """Return a run at its first step.

    Args:
        config: What is trained, and how.
        data: What ``make_batches`` returned.
        clock: That of the data; its seed is the trial's.
        weights: State dicts of the trials that the strategy needs, by role ("teacher", "start").
        start: The weights that training begins with; None: those of the recipe's initialisation.
        mode: "eager", "compiled" or "captured".
        team: The workers that share the trial.

    Raises:
        InputError: ``start`` does not fit the network.
        RuntimeError, ValueError, TypeError, AttributeError: ``weights`` do not fit the networks.
    """

    def make(other: TrialConfig) -> Network:
        return make_network(other, data.num_classes, clock, team=team)

    strategy = make_strategy(config, data.steps_per_epoch)
    network = make_network(config, data.num_classes, clock, strategy, team, check_original=True)
    if start is not None:
        start.put_into(network)
    strategy.prepare(network, make, weights)
    complete_helpers(strategy, config, clock, team)
    start_scales_(network)  # learned scales may begin as a measure of the weights
    return Run(config, data, network, strategy, clock, mode=mode, team=team)


def complete_helpers(strategy: Strategy, config: TrialConfig, clock: Clock, team: Team = SOLO) -> None:
    """Initialise, in place, the helpers that a strategy trains beside the network, as the recipe says."""
    for helper in strategy.trained().values():
        if isinstance(helper, Helper):
            initialize(helper, config.seed, config.initialization)
            batch_norm_for(helper, config, team)
            helper.to(clock.step.device).to(memory_format=torch.channels_last)


def untrained_weights(config: TrialConfig, num_classes: int, clock: Clock) -> dict[str, dict[str, Any]]:
    """Return initial weights for the roles of ``config``, to measure with: trained ones cost the same."""
    needed = {
        role: TrialConfig.model_validate(config.strategy[role]) for role in needed_roles(config.strategy)
    }
    return {role: make_network(other, num_classes, clock).state_dict() for role, other in needed.items()}
