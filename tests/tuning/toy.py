"""A toy objective with a known optimum, and records of it in memory: searches without any training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from bench.tuning.phases import Standing, WantedTrial, find_standing
from bench.tuning.points import point_key
from bench.tuning.results import MISSING, Result
from bench.tuning.space import key

RATE, UNTIL = "learning_rate.initial", "strategy.factor.until"


@dataclass(frozen=True)
class ToyPoint:
    arm: str
    reached: tuple[str, ...] = (RATE,)
    grid: dict[str, Any] = field(default_factory=dict)
    epochs: int = 9
    best_rate: float = 4e-3

    @property
    def key(self) -> str:
        return point_key(self.arm, self.grid)

    @property
    def config(self):
        return SimpleNamespace(epochs=self.epochs, evaluate_every=1)


def accuracy(point: ToyPoint, configuration: dict[str, Any], seed: int, epoch: int) -> float:
    """Highest at the point's best rate and at until = 0.5; a higher rate learns faster at first."""
    distance = math.log(configuration.get(RATE, point.best_rate) / point.best_rate)
    late = abs(configuration.get(UNTIL, 0.5) - 0.5)
    return 80.0 - 5.0 * distance**2 - 10.0 * late - 20.0 / epoch + 0.01 * (seed % 10)


class ToyTrials:
    """Stands in for ``bench.tuning.points.Trials``."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ToyPoint, dict[str, Any], int]] = {}
        self.impossible: set[float] = set()

    def tuning(self, point: ToyPoint, configuration: dict[str, Any], seed: int):
        from bench.errors import InputError

        if configuration.get(RATE) in self.impossible:
            raise InputError("planted: no such learning rate")
        id = f"{point.key} {key(configuration)} {seed}"
        self.known[id] = (point, dict(configuration), seed)
        return SimpleNamespace(id=id, config=SimpleNamespace(epochs=point.epochs, seed=seed), needs={})


class ToyRecords:
    """Records of trials of the toy objective."""

    def __init__(self, trials: ToyTrials) -> None:
        self.trials, self.epochs, self.diverged = trials, {}, set()
        self.trained = 0  # epochs, of all trials
        self.diverging: dict[str, int] = {}  # id -> the epoch in which the trial diverges

    def __call__(self, id: str) -> Result:
        if id in self.diverged:
            return Result("diverged")
        if id not in self.epochs:
            return MISSING
        point, configuration, seed = self.trials.known[id]
        curve = {e: accuracy(point, configuration, seed, e) for e in range(1, self.epochs[id] + 1)}
        if (end := self.diverging.get(id, math.inf)) <= self.epochs[id]:
            return Result("diverged", {e: value for e, value in curve.items() if e < end})
        if self.epochs[id] == point.epochs:
            return Result("done", curve, curve[point.epochs])
        return Result("unfinished", curve)

    def run(self, wanted: WantedTrial, epochs: int | None = None) -> None:
        """Train a trial as far as is wanted, or only ``epochs`` of it."""
        point = self.trials.known[wanted.trial.id][0]
        end = wanted.until or point.epochs
        before = self.epochs.get(wanted.trial.id, 0)
        assert before < end, "trained again"
        self.epochs[wanted.trial.id] = end if epochs is None else min(end, before + epochs)
        self.trained += self.epochs[wanted.trial.id] - before


def finish(tuning, points, trials, records, pick=lambda wanted: wanted[0]) -> Standing:
    """Run whatever is wanted, one trial after the other, until the search is over."""
    for _ in range(10_000):
        standing = find_standing(tuning, points, trials, records)
        if not standing.wanted:
            return standing
        records.run(pick(standing.wanted))
    raise AssertionError("the search does not end")
