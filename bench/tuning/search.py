"""The search of one experiment in one results folder: the trials to run, and the records of the search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.errors import InputError, shown
from bench.experiments.overrides import flatten, listed
from bench.experiments.toml_files import MAX_PROBLEMS
from bench.experiments.trials import Experiment, IndexLine, Trial
from bench.experiments.tuning_table import Tuning
from bench.records.files import StoreError
from bench.records.store import Store
from bench.tuning import choice, samplers
from bench.tuning.phases import PointSearch, Standing, WantedTrial, equal_operation_efforts, find_standing
from bench.tuning.points import Point, Trials, find_points, with_choices
from bench.tuning.results import Results

ROLE = "tuning"  # of the index lines of tuning trials


@dataclass(frozen=True)
class Unfolded:
    """An experiment as far as the records decide it.

    ``experiment`` has the tuning trials known so far and the final trials of every point with a choice.
    ``wanted`` are the trials to be run now, with the epoch that a rung ends at (None: the trial's own end).
    """

    experiment: Experiment
    standing: Standing
    wanted: tuple[WantedTrial, ...]


class Search:
    """The search of an experiment that has a table ``[tuning]``."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.experiment, self.store = experiment, store
        self.points = find_points(experiment)
        before = store.tuning(experiment.name) if self.tuning.scheduler == "asha" else []
        stopped = {
            id: line["dropped_at"]
            for line in before
            if line.get("scheduler") == "asha" and line.get("dropped_at")
            for id in line["trials"].values()
        }
        self.trials, self.results = Trials(experiment), Results(store, stopped)
        self.efforts = dict.fromkeys((point.key for point in self.points), self.tuning.effort)
        if self.tuning.equal_operations:
            operations = {point.key: self.trials.operations(point) for point in self.points}
            self.efforts = equal_operation_efforts(self.tuning, self.points, operations)
        self._untuned = {  # what the final trials have whatever is chosen
            _arm_and_point(line.as_dict()): self._without_tuned(line.trial.config.dump())
            for point in self.points
            for line in point.lines
        }
        self._check_starts()
        self._check_configurations()

    def _check_starts(self) -> None:
        """Raise ``InputError`` where a trial's weights were trained on the images that are held out."""
        problems = dict[str, None]()
        for point in self.points:
            id = (point.config.start or {}).get("trial")
            try:
                record = self.store.read_trial(id) if id is not None else None
            except StoreError:
                record = None
            config = (record or {}).get("config") or {}
            tuned = {**point.config.dump(), "holdout": self.tuning.holdout}
            same_images = all(config.get(key) == tuned[key] for key in ("train_size", "holdout"))
            if config.get("dataset") == tuned["dataset"] and not same_images:
                problems[
                    f"{self.experiment.path}: arm {shown(point.arm)}.start.trial: {id} was trained on images "
                    f"that tuning.holdout = {self.tuning.holdout} keeps for choosing; a start with this "
                    "holdout has not seen them"
                ] = None
        if problems:
            raise InputError("\n".join(list(problems)[:MAX_PROBLEMS]))

    def _check_configurations(self) -> None:
        """Raise ``InputError`` naming every value of the space that an arm cannot have.

        Two configurations of an arm must be two trials, and so must two grid points: else an arm would try
        less than the others, or what the search chooses would replace what the grid says.
        """
        problems = dict[str, None]()
        points: dict[str, dict[str, Any]] = {}  # the grid points of an arm by what is trained there
        for point in self.points:
            made: dict[str, str] = {}  # the configurations by what they train
            for configuration in samplers.configurations(self.tuning, point.reached, self.efforts[point.key]):
                text = _configuration_text(configuration)
                config = self._checked(point, configuration, problems)
                if config is None:
                    continue
                other = made.setdefault(config, text)
                if other != text:
                    where = f"tuning.space: arm {shown(point.arm)} at {text}"
                    problems[f"{where}: is the same trial as {other}"] = None
                grid = points.setdefault(point.arm + config, point.grid)
                if axes := [name for name in point.grid if grid.get(name) != point.grid[name]]:
                    problems[f"grid.{axes[0]}: [tuning] chooses what this axis says"] = None
            if self.tuning.sampler == "optuna":  # it may choose the ends of ranges
                ranges = [d for d in self.tuning.space if d.ranged and d.name in point.reached]
                for end in (0, -1):
                    self._checked(point, {d.name: d.values[end] for d in ranges}, problems)
        if problems:
            file = self.experiment.path
            raise InputError("\n".join(f"{file}: {text}" for text in list(problems)[:MAX_PROBLEMS]))

    def _checked(
        self, point: Point, configuration: Mapping[str, Any], problems: dict[str, None]
    ) -> str | None:
        """Return what a configuration trains, as a text; None after noting why it is impossible."""
        try:
            trial = self.trials.tuning(point, configuration, self.tuning.seeds[0])
        except InputError as error:
            for line in str(error).splitlines():
                key, _, reason = line.partition(": ")
                if key == "holdout":
                    problems[f"tuning.holdout: arm {shown(point.arm)}: {reason}"] = None
                else:
                    where = f"tuning.space: arm {shown(point.arm)} at {_configuration_text(configuration)}"
                    problems[f"{where}: {line}"] = None
            return None
        return json.dumps(trial.config.dump(), sort_keys=True)

    @property
    def tuning(self) -> Tuning:
        """The table ``[tuning]``."""
        assert self.experiment.tuning is not None
        return self.experiment.tuning

    def _stale(self, line: dict[str, Any]) -> bool:
        """Return whether an index line is of a final trial with values that this search chose before."""
        if line.get("arm") is None or line.get("profile") != self.experiment.profile:
            return False
        wanted = self._untuned.get(_arm_and_point(line))
        try:
            record = self.store.read_trial(line["id"]) if wanted is not None else None
        except StoreError:
            return False
        return record is not None and self._without_tuned(record.get("config") or {}) == wanted

    def _without_tuned(self, config: Mapping[str, Any]) -> dict[str, Any]:
        tuned = [dimension.name for dimension in self.tuning.space]
        return {name: value for name, value in flatten(config).items() if not listed(name, tuned)}

    def find_standing(self) -> Standing:
        """Return where the search stands in the records now."""
        return find_standing(self.tuning, self.points, self.trials, self.results, self.efforts)

    def unfold(self) -> Unfolded:
        """Return the experiment as far as it is decided, and what is to be run now."""
        standing = self.find_standing()
        lines = [
            line for search in standing.points for line in _tuning_lines(search, self.experiment.profile)
        ]
        final = with_choices(self.experiment, standing.choices, self.trials)
        trials: dict[str, Trial] = {}
        for line in (*lines, *final):
            for needed in line.trial.needs.values():
                if needed is not None:
                    trials[needed] = self.trials.needed[needed]
            trials[_trial_key(line.trial)] = line.trial
        profile = self.experiment.profile
        needed_as = {(role, id): None for trial in trials.values() for role, id in trial.needs.items() if id}
        needs = [
            IndexLine(None, None, {"seed": trials[id].config.seed}, trials[id], role=role, profile=profile)
            for role, id in needed_as
        ]
        wanted: dict[str, WantedTrial] = {_trial_key(w.trial): w for w in standing.wanted}
        wanted |= {_trial_key(line.trial): WantedTrial(line.trial) for line in final}
        further = {
            id: WantedTrial(trials[id])
            for one in wanted.values()
            for id in one.trial.needs.values()
            if id is not None and id not in wanted
        }
        experiment = replace(self.experiment, trials=tuple(trials.values()), index=(*final, *lines, *needs))
        return Unfolded(experiment, standing, (*further.values(), *wanted.values()))

    def write(self, unfolded: Unfolded, file: str) -> None:
        """Write the index and ``tuning.jsonl`` of the experiment; lines of other points and profiles stay."""
        experiment = unfolded.experiment
        lines = [line.as_dict() for line in experiment.index]
        self.store.write_index(experiment.name, experiment.text, lines, file=file, stale=self._stale)
        self.store.write_tuning(experiment.name, self.lines(unfolded))

    def lines(self, unfolded: Unfolded) -> list[dict[str, Any]]:
        """Return the lines of ``tuning.jsonl``, one for each configuration of each point."""
        return [
            line
            for search in unfolded.standing.points
            for line in tuning_lines(self.tuning, search, self.results, self.experiment.profile)
        ]


def unfold(experiment: Experiment, store: Store) -> tuple[Experiment, Standing | None]:
    """Return (the experiment as far as the records decide it, the state of its search or None)."""
    if experiment.tuning is None:
        return experiment, None
    unfolded = Search(experiment, store).unfold()
    return unfolded.experiment, unfolded.standing


def _arm_and_point(line: Mapping[str, Any]) -> str:
    """Return the arm and the grid point, seed included, of an index line as one text."""
    return json.dumps([line.get("arm"), line.get("grid")], sort_keys=True, default=str)


def _configuration_text(configuration: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in configuration.items())


def _trial_key(trial: Trial) -> str:
    return trial.id or json.dumps(trial.config.dump(), sort_keys=True)


def _tuning_lines(search: PointSearch, profile: str | None) -> list[IndexLine]:
    """Return the index lines of a point's tuning trials."""
    point = search.point
    return [
        IndexLine(
            None,
            None,
            {**point.grid, **tried.configuration, "seed": trial.config.seed},
            trial,
            role=ROLE,
            profile=profile,
            tunes=point.arm,
        )
        for tried in search.tried
        for trial in tried.trials
    ]


def tuning_lines(
    tuning: Tuning, search: PointSearch, results: Results, profile: str | None
) -> list[dict[str, Any]]:
    """Return the lines of ``tuning.jsonl`` about one point, one for each configuration.

    ``mean`` is the mean held-out accuracy after ``epoch`` (in percent; null where a run diverged or one is
    missing), ``operations`` and ``seconds`` are the sums over the trials. ``dropped_at`` is the epoch of
    the rung at which the configuration was given up: its trials stay unfinished.
    """
    lines = []
    for tried in search.tried:
        found = [results(trial.id) for trial in tried.trials]
        operations = [result.operations for result in found]
        known = [value for value in operations if value is not None]
        lines.append(
            {
                "profile": profile,
                "arm": search.point.arm,
                "grid": search.point.grid,
                "configuration": tried.configuration,
                "trials": {str(trial.config.seed): trial.id for trial in tried.trials},
                "epoch": tried.epoch,
                "accuracies": tried.accuracies,
                "mean": choice.mean(tried.accuracies),
                "dropped_at": tried.dropped,
                "widening": None if tried.edge is None else " ".join(map(str, tried.edge)),
                "operations": sum(known) if len(known) == len(operations) else None,
                "seconds": sum(result.seconds for result in found),
                "sampler": tuning.sampler,
                "scheduler": tuning.scheduler,
                "depends_on_timing": tuning.scheduler == "asha",
                "chosen": tried is search.chosen,
            }
        )
    return lines


def progress_text(standing: Standing) -> str:
    """Return one line that says where the search stands."""
    through = count = 0
    for search in standing.points:
        count += len(search.tried)
        wanted = {w.trial.id for w in search.wanted}
        through += sum(
            bool(one.accuracies) and wanted.isdisjoint(t.id for t in one.trials) for one in search.tried
        )
    chosen = sum(search.chosen is not None for search in standing.points)
    points = len(standing.points)
    return f"tuning: {through} of {count} configurations tried, {chosen} of {points} choices made"
