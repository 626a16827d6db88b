"""The state of a search and the trials to run next: a function of the experiment and its records alone.

``find_standing`` is asked again after every trial. A search that was killed at any instant goes on from what
is recorded, and two runners that share the records come to the same answer.

The phases: the configurations of every point (an arm at a grid point), rung by rung where the scheduler is
halving; with ``extend`` the widened parts of the ranges at whose edge some arm's best configuration lies,
for every arm alike; then the final trials of the chosen configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.errors import InputError
from bench.experiments.trials import Trial
from bench.experiments.tuning_table import Tuning
from bench.tuning import choice, samplers
from bench.tuning.halving import Rung, rungs, survivors
from bench.tuning.points import Point, Trials
from bench.tuning.results import Result
from bench.tuning.space import Configuration, edges, key

Read = Callable[[str | None], Result]


@dataclass(frozen=True)
class WantedTrial:
    """A tuning trial that is to be trained: to the end of the epoch ``until``, None: to its own end.

    Trials of one ``bracket`` compete with each other where Ray Tune's ASHA decides which are stopped.
    """

    trial: Trial
    until: int | None = None
    bracket: str | None = None


@dataclass
class Candidate:
    """A configuration of a point, its trials (one a tuning seed) and how far they came.

    ``accuracies`` are held-out accuracies in percent after ``epoch``, one a seed, None for a run that
    diverged. ``dropped`` is the rung's epoch at which the configuration was given up, ``edge`` the widening
    that asked for it.
    """

    configuration: dict[str, Any]
    trials: list[Trial]
    accuracies: list[float | None] = field(default_factory=list)
    epoch: int = 0
    dropped: int | None = None
    edge: tuple[str, str, int] | None = None

    @property
    def score(self) -> float | None:
        """The mean held-out accuracy of a configuration that was trained to the end; None for any other."""
        return choice.mean(self.accuracies) if self.dropped is None else None


@dataclass
class PointSearch:
    """The state of the search of one point. ``complete`` says that all of its configurations are measured."""

    point: Point
    tried: list[Candidate] = field(default_factory=list)
    wanted: list[WantedTrial] = field(default_factory=list)
    complete: bool = False
    chosen: Candidate | None = None


@dataclass(frozen=True)
class Standing:
    """The state of the whole search.

    ``widened`` counts the widenings of each side of a range. ``finished`` says that the search is over; a
    point may have no choice even then, where every configuration diverged.
    """

    points: tuple[PointSearch, ...]
    widened: Mapping[tuple[str, str], int]
    finished: bool

    @property
    def wanted(self) -> list[WantedTrial]:
        """The tuning trials to be trained now, each once."""
        found: dict[str, WantedTrial] = {}
        for search in self.points:
            for wanted in search.wanted:
                found.setdefault(wanted.trial.id or repr(wanted.trial.config), wanted)
        return list(found.values())

    @property
    def dropped(self) -> set[str]:
        """The trials that were stopped at a rung for good, by id."""
        tried = [one for search in self.points for one in search.tried if one.dropped is not None]
        return {trial.id for one in tried for trial in one.trials if trial.id is not None}

    @property
    def choices(self) -> dict[str, dict[str, Any]]:
        """The chosen configurations by the points' keys."""
        return {s.point.key: s.chosen.configuration for s in self.points if s.chosen is not None}


def find_standing(
    tuning: Tuning,
    points: Sequence[Point],
    trials: Trials,
    read: Read,
    efforts: Mapping[str, int] | None = None,
) -> Standing:
    """Return where the search stands.

    Args:
        tuning: The table of the experiment file.
        points: What is tuned, in the file's order.
        trials: Makes the trials of a configuration.
        read: Returns what is recorded of a trial.
        efforts: The numbers of configurations by the points' keys, where arms have equal operations.
    """
    searches = [PointSearch(point) for point in points]
    effort = {point.key: (efforts or {}).get(point.key, tuning.effort) for point in points}
    for search in searches:
        _follow_sampler(tuning, search, effort[search.point.key], trials, read)
    widened: dict[tuple[str, str], int] = {}
    finished = all(search.complete for search in searches)
    while tuning.extend:
        all_complete = all(search.complete for search in searches)
        found = {edge for search in searches if search.complete for edge in _edges(tuning, search)}
        found -= {edge for edge in found if widened.get(edge, 0) >= samplers.MAX_EXTENSIONS}
        grown = [_widen(tuning, searches, edge, widened, effort, trials) for edge in sorted(found)]
        if not any(grown):
            break
        for search in searches:
            _follow_widened(search, trials, read)
        if not all_complete or not all(search.complete for search in searches):
            finished = False  # edges that are known give the machine work before all edges are known
            break
    if tuning.scheduler == "asha":
        for search in searches:
            search.wanted = [replace(wanted, bracket=search.point.key) for wanted in search.wanted]
    for search in searches:
        if finished or (search.complete and not tuning.extend):
            search.chosen = _best_candidate(search)
    return Standing(tuple(searches), widened, finished)


def _follow_sampler(tuning: Tuning, search: PointSearch, effort: int, trials: Trials, read: Read) -> None:
    """Follow the configurations of the sampler, rung by rung."""
    point = search.point
    if tuning.sampler == "optuna":
        _follow_optuna(tuning, search, effort, trials, read)
        return
    for configuration in samplers.configurations(tuning, point.reached, effort):
        search.tried.append(_make_candidate(tuning, point, configuration, trials))
    steps, alive = _rungs(tuning, point, len(search.tried)), list(search.tried)
    for number, rung in enumerate(steps):
        last = number == len(steps) - 1
        wanted = [w for tried in alive for w in _measure(tried, rung.epoch, read)]
        if wanted:
            search.wanted += wanted
            return
        if not last:
            scores = [choice.mean(tried.accuracies) for tried in alive]
            kept = survivors([tried.configuration for tried in alive], scores, steps[number + 1].count)
            for position, tried in enumerate(alive):
                if position not in kept:
                    tried.dropped = rung.epoch
            alive = [alive[position] for position in kept]
    search.complete = True


def _follow_optuna(tuning: Tuning, search: PointSearch, effort: int, trials: Trials, read: Read) -> None:
    """Follow a sampler that learns: each configuration is asked for when the one before is through."""
    told: list[tuple[Configuration, float | None]] = []
    known: dict[str, Candidate] = {}
    while len(told) < effort:
        configuration = samplers.optuna_next(tuning, search.point.reached, told)
        name = key(configuration)
        if name not in known:  # a sampler may ask for the same values twice
            known[name] = _make_candidate(tuning, search.point, configuration, trials)
            search.tried.append(known[name])
        search.wanted += _measure(known[name], search.point.config.epochs, read)
        if search.wanted:
            return
        told.append((configuration, known[name].score))
    search.complete = True


def _make_candidate(tuning: Tuning, point: Point, configuration: Configuration, trials: Trials) -> Candidate:
    made = [trials.tuning(point, configuration, seed) for seed in tuning.seeds]
    return Candidate(dict(configuration), made)


def _measure(tried: Candidate, epoch: int, read: Read) -> list[WantedTrial]:
    """Note the accuracies after ``epoch``; return the trials that must be trained before they are known.

    A run that diverged in a later rung keeps the accuracy of this one: its place there is not given to
    another configuration, whose training would be more than the arm's effort.
    """
    wanted: list[WantedTrial] = []
    accuracies: list[float | None] = []
    for trial in tried.trials:
        result, last = read(trial.id), epoch == trial.config.epochs
        if not last and result.stopped is None and epoch in result.accuracy:
            accuracies.append(result.accuracy[epoch])
        elif result.status == "diverged":
            accuracies.append(None)
        elif result.stopped is not None:
            accuracies.append(result.accuracy.get(result.stopped))
            tried.dropped, epoch = result.stopped, result.stopped
        elif last and result.status == "done":
            accuracies.append(result.final)
        else:
            wanted.append(WantedTrial(trial, None if last else epoch))
    if not wanted:
        tried.accuracies, tried.epoch = accuracies, epoch
    return wanted


def _edges(tuning: Tuning, search: PointSearch) -> list[tuple[str, str]]:
    best = _best_candidate(search)
    if best is None:
        return []
    return edges(best.configuration, [tried.configuration for tried in search.tried], tuning.space)


def _best_candidate(search: PointSearch) -> Candidate | None:
    """Return the best of the configurations that came furthest; None where every one diverged.

    These are the ones that were trained to the end, unless all of them diverged: then those given up at the
    last rung before.
    """
    for epoch in sorted({tried.epoch for tried in search.tried}, reverse=True):
        there = [tried for tried in search.tried if tried.epoch == epoch]
        scores = [choice.mean(tried.accuracies) for tried in there]
        position = choice.best([tried.configuration for tried in there], scores)
        if position is not None:
            return there[position]
    return None


def _widen(
    tuning: Tuning,
    searches: Sequence[PointSearch],
    edge: tuple[str, str],
    widened: dict[tuple[str, str], int],
    effort: Mapping[str, int],
    trials: Trials,
) -> bool:
    """Add the configurations of the next widening at an edge to every point that has the field.

    A point without the field gets as many further ones of its own space, so that the efforts stay equal.
    Returns False, and adds none, where a value of the wider range is impossible for an arm.
    """
    times = widened.get(edge, 0) + 1
    added: list[tuple[PointSearch, Candidate]] = []
    try:
        for search in searches:
            point = search.point
            given = tuning, point.reached, effort[point.key]
            if edge[0] in point.reached:
                further = samplers.extension(*given, edge, times)
            else:
                further = samplers.further(*given, [tried.configuration for tried in search.tried])
            for configuration in further:
                tried = _make_candidate(tuning, point, configuration, trials)
                tried.edge = (*edge, times)
                added.append((search, tried))
    except InputError:
        return False
    known = [{key(tried.configuration) for tried in search.tried} for search in searches]
    fresh = [
        (search, tried)
        for search, tried in added
        if key(tried.configuration) not in known[searches.index(search)]
    ]
    if not any(edge[0] in search.point.reached for search, _ in fresh):
        return False
    widened[edge] = times
    for search, tried in fresh:
        search.tried.append(tried)
    return True


def _follow_widened(search: PointSearch, trials: Trials, read: Read) -> None:
    """Follow the configurations that a widening added: they are trained to the end."""
    wanted = [
        wanted
        for tried in search.tried
        if tried.edge is not None and not tried.accuracies
        for wanted in _measure(tried, tried.trials[0].config.epochs, read)
    ]
    search.wanted += wanted
    search.complete = search.complete and not wanted


def expected_rungs(tuning: Tuning, point: Point, effort: int) -> list[Rung]:
    """Return a point's rungs before anything is known; without halving one rung of all epochs."""
    count = (
        effort if tuning.sampler == "optuna" else len(samplers.configurations(tuning, point.reached, effort))
    )
    return _rungs(tuning, point, count)


def _rungs(tuning: Tuning, point: Point, count: int) -> list[Rung]:
    """Return the rungs of so many configurations; arms of equal operations end theirs at the same epochs."""
    config = point.config
    if tuning.scheduler == "halving":
        shape = min(count, tuning.effort)
        return rungs(config.epochs, count, tuning.reduction, config.evaluate_every, shape=shape)
    return [Rung(config.epochs, count)]


def trained_epochs(steps: Sequence[Rung]) -> int:
    """Return the epochs that a search with these rungs trains, summed over all configurations of one seed."""
    return round(_summed(steps, float))


def _summed(steps: Sequence[Rung], until: Callable[[int], float]) -> float:
    """Return what a search with these rungs takes of what a trial has taken ``until`` an epoch."""
    total, before = 0.0, 0.0
    for rung in steps:
        after = until(rung.epoch)
        total += rung.count * (after - before)
        before = after
    return total


def equal_operation_efforts(
    tuning: Tuning, points: Sequence[Point], operations: Mapping[str, Callable[[int], float]]
) -> dict[str, int]:
    """Return the number of configurations of each point where every arm has the same training operations.

    The search that costs most with ``tuning.effort`` configurations has so many, the others as many as the
    same operations pay for. With halving most trials end in their first epochs, in which a branch is on; so
    the operations are those of the rungs. Those of ASHA depend on timing and are taken as all epochs.

    Args:
        tuning: The table of the experiment file.
        points: What is tuned.
        operations: By the points' keys, a function from epochs to the operations of a trial's first epochs.
    """

    def cost(point: Point, count: int) -> float:
        return _summed(_rungs(tuning, point, count), operations[point.key])

    highest = (1.0 + 1e-9) * max(cost(point, tuning.effort) for point in points)
    efforts = {}
    for point in points:
        count = tuning.effort
        while cost(point, count + 1) <= highest:
            count += 1
        efforts[point.key] = count
    return efforts
