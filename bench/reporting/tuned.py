"""What a search tried and chose (``tuning.jsonl``): curves by learning rate, expected best, edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.experiments.labels import plain
from bench.reporting.statistics.search import expected_best
from bench.text import plural
from bench.tuning.choice import mean, tuned_learning_rate
from bench.tuning.results import Result
from bench.tuning.space import edge_sides

WITHIN = 1.0  # points below the best that a configuration may be to count as close to it


@dataclass(frozen=True)
class Tried:
    """A configuration that was tried.

    ``accuracies`` are the held-out accuracies in percent, one a tuning seed; None for a run that diverged
    or is missing. ``score`` is their mean where the configuration was trained to the end with every seed,
    else None. ``trials`` counts the tuning trials, one a seed, and ``ended`` those that are through.
    ``widening`` is the widening that asked for the configuration: the field, the side of its range and the
    number of widenings of this side so far.
    """

    configuration: Mapping[str, Any]
    accuracies: tuple[float | None, ...]
    score: float | None
    chosen: bool
    operations: float | None
    seconds: float
    trials: int = 0
    ended: int = 0
    widening: tuple[str, str, int] | None = None

    @property
    def rate(self) -> float | None:
        """The learning rate; None where it was not tuned."""
        return tuned_learning_rate(self.configuration) or None


@dataclass(frozen=True)
class Edge:
    """A chosen number beyond which the arm tried none: a better one may lie there.

    ``side`` is "low" or "high", ``extended`` the number of times that the range was widened on this side.
    """

    name: str
    value: float
    side: str
    extended: int

    @property
    def text(self) -> str:
        """``learning_rate.initial 0.004 is the smallest value tried (range not extended)``."""
        end = "smallest" if self.side == "low" else "largest"
        how = f"extended {plural(self.extended, 'time')}" if self.extended else "not extended"
        return f"{self.name} {plain(self.value)} is the {end} value tried (range {how})"


@dataclass(frozen=True)
class Searched:
    """The search of one arm at one grid point (without the seed).

    ``holdout`` is the number of training images on which the configurations were measured, None where no
    record tells it.
    """

    arm: str
    place: str
    tried: tuple[Tried, ...]
    random: bool
    grid: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    holdout: int | None = None

    @property
    def label(self) -> str:
        """The arm with its grid point."""
        return f"{self.arm}, {self.place}" if self.place else self.arm

    @property
    def chosen(self) -> Tried | None:
        """The chosen configuration; None while the search goes on."""
        return next((tried for tried in self.tried if tried.chosen), None)

    @property
    def edges(self) -> list[Edge]:
        """The chosen numbers that lie at an edge of what the arm tried; none while the search goes on.

        Numbers are ordered, whether they come from a range or from a list. Texts, truth values and tables
        have no edge. A configuration that diverged was tried, too.
        """
        found = []
        for name, value in (self.chosen.configuration if self.chosen else {}).items():
            numbers = [_number(tried.configuration.get(name)) for tried in self.tried]
            known = [number for number in numbers if number is not None]
            if len(known) == len(numbers):
                sides = edge_sides(value, known)
                found += [Edge(name, value, side, self._extended(name, side)) for side in sides]
        return found

    def _extended(self, name: str, side: str) -> int:
        """Return how many times one side of a range was widened."""
        made = [tried.widening for tried in self.tried if tried.widening is not None]
        return max((times for field, end, times in made if (field, end) == (name, side)), default=0)

    @property
    def effort(self) -> str:
        """What the choice has cost: ``5 configurations × 3 seeds, 1,084 images held out``."""
        seeds = max((tried.trials for tried in self.tried), default=0)
        told = f"{plural(len(self.tried), 'configuration')} × {plural(seeds, 'seed')}"
        return told if self.holdout is None else f"{told}, {plural(self.holdout, 'image')} held out"

    @property
    def choice(self) -> str:
        """The chosen values in words, or how far the search is."""
        if self.chosen is None:
            return f"not yet: {self.progress} trials"
        return ", ".join(f"{name} {plain(value)}" for name, value in self.chosen.configuration.items())

    @property
    def progress(self) -> str:
        """How many of the tuning trials are through: ``3 of 6``."""
        return f"{sum(t.ended for t in self.tried)} of {sum(t.trials for t in self.tried)}"

    @property
    def scored(self) -> list[Tried]:
        """The configurations with a score."""
        return [tried for tried in self.tried if tried.score is not None]

    def curve(self) -> list[tuple[float, float]]:
        """Return the best mean held-out accuracy at each learning rate, over whatever else was tuned."""
        best: dict[float, float] = {}
        for tried in self.scored:
            if tried.rate is not None and tried.score is not None:
                best[tried.rate] = max(best.get(tried.rate, -1.0), tried.score)
        return sorted(best.items())

    def points(self) -> list[tuple[float, list[float]]]:
        """Return the held-out accuracies of all seeds, by learning rate."""
        found = [(t.rate, [a for a in t.accuracies if a is not None]) for t in self.tried]
        return [(r, values) for r, values in found if r is not None and values]

    def width(self) -> tuple[float, float] | None:
        """Return the smallest and the largest rate within ``WITHIN`` points of the best; None without any.

        Rates between them that are worse are not left out: the range is that of the tried rates on both
        sides of the best whose scores are all within ``WITHIN`` points.
        """
        curve = self.curve()
        if not curve:
            return None
        top = max(score for _, score in curve)
        at = next(i for i, (_, score) in enumerate(curve) if score == top)
        low = high = at
        while low > 0 and curve[low - 1][1] >= top - WITHIN:
            low -= 1
        while high < len(curve) - 1 and curve[high + 1][1] >= top - WITHIN:
            high += 1
        return curve[low][0], curve[high][0]

    def expected_best(self) -> list[float]:
        """Return the expected best score after 1, 2, ... configurations (``statistics.expected_best``)."""
        return expected_best([tried.score for tried in self.scored if tried.score is not None])


def searches(lines: Iterable[Mapping[str, Any]]) -> list[Searched]:
    """Return the searches of an experiment from the lines of ``tuning.jsonl``; damaged lines are left out."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        if isinstance(line.get("arm"), str) and isinstance(line.get("configuration"), Mapping):
            groups.setdefault((line["arm"], _place(line)), []).append(line)
    return [
        Searched(
            arm,
            place,
            tuple(map(_tried, group)),
            group[0].get("sampler") == "quasirandom",
            table_of(group[0], "grid"),
            str(group[0]["profile"]) if group[0].get("profile") else None,
            next((n for line in group if isinstance(n := line.get("holdout"), int)), None),
        )
        for (arm, place), group in groups.items()
    ]


def standing(found: Sequence[Searched]) -> str:
    """Return how far searches are: ``tuning: 20 of 48 trials, 0 of 6 choices``; ``""`` where all are over."""
    chosen = sum(search.chosen is not None for search in found)
    if chosen == len(found):
        return ""
    tried = [tried for search in found for tried in search.tried]
    trials = f"{sum(t.ended for t in tried)} of {plural(sum(t.trials for t in tried), 'trial')}"
    return f"tuning: {trials}, {chosen} of {plural(len(found), 'choice')}"


def choices_at_edges(found: Sequence[Searched]) -> str:
    """Return how many choices lie at an edge of what was tried: ``3 of 10 choices ...``; ``""`` for none."""
    count = sum(bool(search.edges) for search in found)
    return f"{count} of {plural(len(found), 'choice')} at an edge of the values tried" if count else ""


def as_recorded(
    line: Mapping[str, Any], read: Callable[[str], Result], holdout: Callable[[str], int | None]
) -> Mapping[str, Any]:
    """Return a line of ``tuning.jsonl`` with what the records of its trials add to it.

    The runner writes the file between trials, so a report of a running search would lag behind the records.
    Added are ``ended``, the number of trials that are through, and ``holdout``; accuracies that the line
    lacks are filled in where all of its trials are through. ``read`` returns what is recorded of a trial,
    ``holdout`` the number of training images that a trial was measured on, where it is recorded.
    """
    ids = [id for id in table_of(line, "trials").values() if isinstance(id, str)]
    known = {"holdout": next((n for id in ids if (n := holdout(id)) is not None), None)}
    if line.get("accuracies") or not ids:
        return {**line, **known, "ended": len(ids)}
    found = [read(id) for id in ids]
    through = [result for result in found if result.status in ("done", "diverged")]
    seconds = sum(result.seconds for result in found)
    if len(through) < len(ids):
        return {**line, **known, "ended": len(through), "seconds": seconds}
    accuracies = [result.final if result.status == "done" else None for result in found]
    return {
        **line,
        **known,
        "ended": len(ids),
        "seconds": seconds,
        "accuracies": accuracies,
        "mean": mean(accuracies),
    }


def table_of(line: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a table of a line of ``tuning.jsonl``: ``trials``, by tuning seed, or ``grid``."""
    table = line.get(key)
    return table if isinstance(table, Mapping) else {}


def _place(line: Mapping[str, Any]) -> str:
    parts = [
        f"{name.split('.')[-1]} {plain(value)}" for name, value in sorted(table_of(line, "grid").items())
    ]
    return ", ".join([*parts, *([str(line["profile"])] if line.get("profile") else [])])


def _tried(line: Mapping[str, Any]) -> Tried:
    accuracies = line.get("accuracies")
    known = [_number(a) for a in accuracies] if isinstance(accuracies, Sequence) else []
    whole = line.get("dropped_at") is None and bool(known) and None not in known
    ended = line.get("ended")
    return Tried(
        dict(line["configuration"]),
        tuple(known),
        _number(line.get("mean")) if whole else None,
        line.get("chosen") is True,
        _number(line.get("operations")),
        _number(line.get("seconds")) or 0.0,
        len(table_of(line, "trials")) or len(known),
        ended if isinstance(ended, int) else len(known),
        _widening(line.get("widening")),
    )


def _widening(text: Any) -> tuple[str, str, int] | None:
    """Return the widening that a line of ``tuning.jsonl`` names: ``learning_rate.initial high 1``."""
    parts = text.rsplit(" ", 2) if isinstance(text, str) else []
    return (parts[0], parts[1], int(parts[2])) if len(parts) == 3 and parts[2].isdecimal() else None


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable else None
