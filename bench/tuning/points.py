"""What is tuned: every arm at every grid point, and the trials that a configuration stands for there.

A tuning trial is the arm's trial with the configuration's values, a part of the training images held out, a
tuning seed and no evaluation of the test images. Its teacher, where it has one, is trained on the same part
of the images. A final trial is the arm's trial with the chosen values and nothing else changed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.errors import InputError
from bench.experiments.config import TrialConfig, make_config
from bench.experiments.identity import identity
from bench.experiments.library import Library
from bench.experiments.overrides import assign
from bench.experiments.resolve import check_steps
from bench.experiments.roles import needed_roles, roles
from bench.experiments.toml_files import Problems
from bench.experiments.trials import Experiment, IndexLine, Trial
from bench.experiments.tuning_table import Tuning, reached_dimensions
from bench.tuning.space import Configuration

Change = Callable[[dict[str, Any]], None]  # of the fields of a trial, in place


@dataclass(frozen=True)
class Point:
    """An arm at a grid point: ``reached`` are the tuned fields that it has, ``lines`` the file's trials."""

    arm: str
    grid: dict[str, Any]  # without the seed
    reached: tuple[str, ...]
    lines: tuple[IndexLine, ...]

    @property
    def key(self) -> str:
        """A text that no other point of the experiment has."""
        return point_key(self.arm, self.grid)

    @property
    def config(self) -> TrialConfig:
        """The configuration of the point's first trial, as the file has it."""
        return self.lines[0].trial.config


def point_key(arm: str | None, grid: Mapping[str, Any]) -> str:
    """Return a text for an arm and a grid point, whatever the seed is."""
    seedless = {name: value for name, value in grid.items() if name != "seed"}
    return json.dumps([arm, seedless], sort_keys=True, default=str)


def find_points(experiment: Experiment) -> list[Point]:
    """Return the points of an experiment in the file's order; raises ``InputError`` for a wrong search."""
    tuning = experiment.tuning
    assert tuning is not None
    groups: dict[str, list[IndexLine]] = {}
    for line in experiment.index:
        if line.arm is not None:
            groups.setdefault(point_key(line.arm, line.grid), []).append(line)
    found = []
    for lines in groups.values():
        fields = lines[0].trial.config.dump()
        reached = tuple(d.name for d in reached_dimensions(tuning.space, fields))
        grid = {name: value for name, value in lines[0].grid.items() if name != "seed"}
        assert lines[0].arm is not None
        found.append(Point(lines[0].arm, grid, reached, tuple(lines)))
    _check_disjoint(experiment, tuning, found)
    return found


def _check_disjoint(experiment: Experiment, tuning: Tuning, points: Iterable[Point]) -> None:
    """Raise ``InputError`` where a tuning seed or a tuned field is in the grid, too."""
    problems = []
    points = list(points)
    seeds = {line.trial.config.seed for point in points for line in point.lines}
    if shared := sorted(seeds & set(tuning.seeds)):
        text = ", ".join(map(str, shared))
        problems.append(
            f"tuning.seeds: {text} stands in the grid, too: a final trial needs a seed of its own"
        )
    for dimension in tuning.space:
        key = f"tuning.space.{dimension.name}"
        if any(dimension.name in point.grid for point in points):
            problems.append(f"{key}: is an axis of the grid, too")
    if problems:
        raise InputError("\n".join(f"{experiment.path}: {problem}" for problem in problems))


class Trials:
    """Makes the trials of an experiment's points; a trial that several points share is made once.

    ``needed`` holds the teachers and starts of the trials made so far, by their ids.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.needed: dict[str, Trial] = {}
        self._made: dict[str, Trial] = {}
        problems = Problems(str(experiment.path))
        self._library = Library(experiment.path.parent, experiment.data_dir, problems)

    def tuning(self, point: Point, configuration: Configuration, seed: int) -> Trial:
        """Return the tuning trial of a configuration; raises ``InputError`` for impossible values."""
        tuning = self.experiment.tuning
        assert tuning is not None

        def change(fields: dict[str, Any]) -> None:
            fields.update(holdout=tuning.holdout, evaluate_test=False, seed=seed)

        return self._make_trial(point.config, configuration, change)

    def final(self, line: IndexLine, configuration: Configuration) -> Trial:
        """Return the final trial of an index line with the values chosen for its point."""
        return self._make_trial(line.trial.config, configuration, lambda fields: None)

    def operations(self, point: Point) -> Callable[[int], float]:
        """Return a function from epochs to the training operations of a trial of the point. Loads torch.

        Raises ``InputError`` for absent data.
        """
        from bench.costs.operations import operations_by_epoch

        config = point.config
        steps, classes = self._library.steps_per_epoch(config), self._library.num_classes(config)
        if steps is None or classes is None:
            raise InputError(
                f"{self.experiment.path}: tuning.effort: the data is absent, so operations are not known"
            )
        return functools.cache(operations_by_epoch(config, steps, classes))

    def _make_trial(self, config: TrialConfig, configuration: Configuration, change: Change) -> Trial:
        fields = config.dump()
        for name, value in configuration.items():
            assign(fields, tuple(name.split(".")), value)
        change(fields)
        strategy = fields["strategy"]
        for named in roles(config.strategy):
            table = strategy[named.name]
            own = {} if table["seed"] == config.seed else {"seed": table["seed"]}
            change(table)
            table.update(own)
        key = json.dumps(fields, sort_keys=True)
        if key not in self._made:
            made = make_config(fields)
            check_steps(made, self._library)
            needs = {}
            for role in needed_roles(made.strategy):
                teacher = make_config(made.strategy[role])
                needed = Trial(identity(teacher, self._library.checksum(teacher)), teacher)
                needs[role] = needed.id
                if needed.id is not None:
                    self.needed[needed.id] = needed
            self._made[key] = Trial(identity(made, self._library.checksum(made)), made, needs)
        return self._made[key]


def with_choices(
    experiment: Experiment, choices: Mapping[str, Configuration], trials: Trials
) -> list[IndexLine]:
    """Return the index lines of the final trials; ``choices`` maps a point's key to its configuration.

    Points without a choice are left out, and so is the partner of a trial whose baseline has no choice yet.
    """
    chosen: dict[tuple[str | None, int], Trial] = {}  # by arm and the identity of the file's own trial
    lines = []
    for line in experiment.index:
        key = point_key(line.arm, line.grid)
        if line.arm is not None and key in choices:
            chosen[line.arm, id(line.trial)] = trial = trials.final(line, choices[key])
            lines.append((line, trial))
    return [
        replace(line, trial=trial, baseline_trial=chosen.get((line.baseline, id(line.baseline_trial))))
        for line, trial in lines
    ]
