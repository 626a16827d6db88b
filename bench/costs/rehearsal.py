"""Builds networks and strategies without training: what is wrong with them is told before a run begins."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from bench.costs.predict import cost_kind, steps_per_epoch
from bench.errors import InputError, NetworkError, shown
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.experiments.permission import PREFIX
from bench.experiments.roles import needed_roles
from bench.experiments.toml_files import MAX_PROBLEMS
from bench.experiments.trials import Experiment, Trial
from bench.networks import Network, build
from bench.randomness import Clock
from bench.strategies import make_strategy


def check_networks(experiment: Experiment, trials: Iterable[Trial], data_dir: Path) -> None:
    """Raise ``InputError`` naming file, arm and key where a trial's network or strategy cannot be built.

    Trials that differ in seed, epochs and learning rate alone are built once. A network of the user's own
    code is left to its trial, because that code may take long or end the process.
    """
    arms = {line.id: line.arm or line.tunes for line in reversed(experiment.index)}
    kinds: dict[str, Trial] = {}
    for trial in trials:
        kinds.setdefault(json.dumps(cost_kind(trial.config), sort_keys=True), trial)
    problems = dict[str, None]()
    for kind, trial in kinds.items():
        facts = catalog.facts(trial.config.dataset, data_dir)
        if f'"{PREFIX}' in kind or facts.train_count is None or facts.num_classes is None:
            continue
        arm = f"arm {shown(arms[trial.id])}." if arms.get(trial.id) else ""
        try:
            _build(trial.config, steps_per_epoch(trial.config, facts.train_count), facts.num_classes)
        except InputError as error:
            problems |= dict.fromkeys(f"{experiment.path}: {arm}{line}" for line in str(error).splitlines())
    if problems:
        raise InputError("\n".join(list(problems)[:MAX_PROBLEMS]))


def _build(config: TrialConfig, steps: int, num_classes: int) -> None:
    """Build what a trial trains, with the weights that torch gives: initialising them takes longest.

    Raises ``InputError`` for wrong input. Every other error is left to the trial, which records it.
    """
    clock = Clock(config.seed, "cpu")

    def make(other: TrialConfig) -> Network:
        return build(other, num_classes=num_classes, clock=clock)

    with contextlib.suppress(NetworkError):  # a trial that raises it is recorded as failed
        try:
            strategy = make_strategy(config, steps)
            branch, blend = strategy.branch, strategy.blend
            network = build(config, num_classes=num_classes, clock=clock, branch=branch, blend=blend)
            needed = {role: config.strategy[role] for role in needed_roles(config.strategy)}
            weights = {role: make(TrialConfig.model_validate(n)).state_dict() for role, n in needed.items()}
            strategy.prepare(network, make, weights)
        except InputError:
            raise
        except Exception:  # for instance of a package that is not installed here
            return
