"""Predicts the time of trials from measured costs of steps and evaluations, which a file keeps per device.

``bench.costs.measure`` measures, and loads torch. This module keeps the measurements in the user's cache and
adds them up without torch, so that `bench run` can start the longest trials first.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import importlib.metadata
import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.machine.devices import device_name
from bench.machine.folders import cache_folder
from bench.records.files import StoreError, write_atomic
from bench.schedules import factor_value


@dataclass(frozen=True)
class Calibration:
    """The costs of one kind of trial.

    On a CPU seconds are processor seconds of one core, which do not depend on the load of the machine. On a
    GPU they are clock seconds.

    ``setup``                    once: data, network, and the further time of the first step
    ``step_on``, ``step_off``    a training step with the factor above 0, and at 0
    ``epoch_on``, ``epoch_off``  the evaluations at the end of an epoch
    ``memory``                   peak bytes: of the process on a CPU, of the device's allocator on a GPU
    ``context``                  bytes that the process takes of a GPU beside the allocator
    """

    setup: float
    step_on: float
    step_off: float
    epoch_on: float
    epoch_off: float
    memory: int
    context: int = 0


def trial_seconds(config: TrialConfig, steps_per_epoch: int, measured: Calibration) -> float:
    """Return the seconds of a trial: of its steps with the branch on and off, and of its evaluations."""
    total = config.epochs * steps_per_epoch
    factor = config.strategy.get("factor")
    on = 0
    if factor is not None:  # a factor that has reached 0 stays 0
        on = bisect_left(
            range(total), True, key=lambda step: factor_value(factor, step, total, steps_per_epoch) == 0.0
        )
    evaluated = {*range(config.evaluate_every, config.epochs + 1, config.evaluate_every), config.epochs}
    epochs_on = sum(epoch * steps_per_epoch <= on for epoch in evaluated)
    steps = on * measured.step_on + (total - on) * measured.step_off
    return (
        measured.setup
        + steps
        + epochs_on * measured.epoch_on
        + (len(evaluated) - epochs_on) * measured.epoch_off
    )


def makespan(seconds: Mapping[str, float], needs: Mapping[str, list[str]], jobs: int) -> float:
    """Return the seconds until the last trial ends, with ``jobs`` trials at once and long trials first.

    ``needs`` maps a trial to the trials that must end before it starts. Raises ``ValueError`` where trials
    need each other in a circle.
    """
    left = {id: {needed for needed in needs.get(id, ()) if needed in seconds} for id in seconds}
    running: list[tuple[float, str]] = []
    now = 0.0
    while left or running:
        for id in sorted(
            (id for id, open_needs in left.items() if not open_needs), key=lambda id: -seconds[id]
        ):
            if len(running) < jobs:
                heapq.heappush(running, (now + seconds[id], id))
                del left[id]
        if not running:
            raise ValueError("trials that need each other")
        now, ended = heapq.heappop(running)
        for open_needs in left.values():
            open_needs.discard(ended)
    return now


def cost_kind(config: TrialConfig) -> dict[str, Any]:
    """Return the fields that determine the cost of a step.

    Seed, budget, learning rate and initialization are left out. Of the factor only its zeros at the first and
    at the last step count: they say whether a step with the branch and one without it can be measured.
    """
    kind = config.model_copy(update={"seed": 0}).model_dump(
        mode="json", exclude={"epochs", "learning_rate", "initialization", "evaluate_every"}
    )
    factor = config.strategy.get("factor")
    if factor is not None:
        steps = 100  # of an epoch: any number, because lengths are shares of the training or epochs
        last = config.epochs * steps - 1
        zeros = [factor_value(factor, step, last + 1, steps) == 0.0 for step in (0, last)]
        kind["strategy"] = {**kind["strategy"], "factor": zeros}
    return kind


class KeptCosts:
    """Measurements kept in a file, by device, release and kind of trial."""

    def __init__(self, device: str) -> None:
        self.where = (
            f"{device_name(device)} | torch {importlib.metadata.version('torch')} | bench {bench.__version__}"
        )
        self.path: Path = cache_folder() / "calibration.json"
        self.kept = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _key(self, what: Any) -> str:
        return hashlib.sha256(json.dumps([self.where, what], sort_keys=True).encode()).hexdigest()[:16]

    def keep(self, what: Any, value: Any) -> None:
        """Keep a JSON ``value`` under ``what`` for this device.

        A value that cannot be written to the file will be measured again.
        """
        self.kept = {**self._read(), **self.kept, self._key(what): value}
        with contextlib.suppress(StoreError):
            write_atomic(self.path, json.dumps(self.kept, indent=0).encode())

    def number(self, name: str) -> float | None:
        """Return the number kept under ``name``, or None."""
        found = self.kept.get(self._key(name))
        return float(found) if isinstance(found, int | float) else None

    def find(self, config: TrialConfig, mode: str) -> Calibration | None:
        """Return the measured costs of trials like ``config`` in ``mode``, or None."""
        try:
            return Calibration(**self.kept[self._key([cost_kind(config), mode])])
        except (KeyError, TypeError):
            return None

    def remember(self, config: TrialConfig, mode: str, found: Calibration) -> None:
        """Keep the measured costs of trials like ``config`` in ``mode``."""
        self.keep([cost_kind(config), mode], asdict(found))


def steps_per_epoch(config: TrialConfig, train_count: int) -> int:
    """Return the number of steps of an epoch on a data set of ``train_count`` images."""
    count = catalog.training_count(
        train_count,
        batch_size=config.batch_size,
        train_size=config.train_size,
        holdout=config.holdout,
        name=catalog.label(config.dataset),
    )
    return count // config.batch_size


def measured_mode(config: TrialConfig, total_steps: int, device: str) -> str:
    """Return the mode in which trials like this are measured: their own, but "eager" for compiled trials.

    The eager time is an upper bound of the compiled time, and compiling takes longer than a measurement may.
    """
    if not device.startswith("cuda"):
        return "eager"
    from bench.training import execution

    mode = execution.decide(config, total_steps, device)["mode"]
    return "eager" if mode == "compiled" else mode


def known_seconds(configs: Mapping[str, TrialConfig], device: str, data_dir: Path) -> dict[str, float]:
    """Return the predicted seconds, by id, of the trials whose kind was measured on ``device`` before."""
    if device != "cpu" and not device.startswith("cuda"):  # a device of a cluster
        return {}
    kept, found = KeptCosts(device), {}
    counts: dict[str, int | None] = {}
    for id, config in configs.items():
        name = json.dumps(config.dataset, sort_keys=True)
        if name not in counts:
            counts[name] = catalog.facts(config.dataset, data_dir).train_count
        count = counts[name]
        if count is None:
            continue
        try:
            steps = steps_per_epoch(config, count)
        except InputError:  # the trial itself will report the fault
            continue
        measured = kept.find(config, measured_mode(config, config.epochs * steps, device))
        if measured is not None:
            found[id] = trial_seconds(config, steps, measured)
    return found
