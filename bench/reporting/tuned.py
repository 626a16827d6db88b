"""What a search tried and chose (``tuning.jsonl``): curves by learning rate, expected best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.experiments.labels import plain
from bench.reporting.statistics.search import expected_best
from bench.tuning.choice import rate

WITHIN = 1.0  # points below the best that a configuration may be to count as close to it


@dataclass(frozen=True)
class Tried:
    """A configuration that was tried.

    ``accuracies`` are the held-out accuracies in percent, one a tuning seed; None for a run that diverged
    or is missing. ``score`` is their mean where the configuration was trained to the end with every seed,
    else None.
    """

    configuration: Mapping[str, Any]
    accuracies: tuple[float | None, ...]
    score: float | None
    chosen: bool
    operations: float | None
    seconds: float

    @property
    def rate(self) -> float | None:
        """The learning rate; None where it was not tuned."""
        return rate(self.configuration) or None


@dataclass(frozen=True)
class Searched:
    """The search of one arm at one grid point."""

    arm: str
    place: str
    tried: tuple[Tried, ...]
    random: bool

    @property
    def label(self) -> str:
        """The arm with its grid point."""
        return f"{self.arm}, {self.place}" if self.place else self.arm

    @property
    def chosen(self) -> Tried | None:
        """The chosen configuration; None while the search goes on."""
        return next((tried for tried in self.tried if tried.chosen), None)

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
        Searched(arm, place, tuple(map(_tried, group)), group[0].get("sampler") == "quasirandom")
        for (arm, place), group in groups.items()
    ]


def _place(line: Mapping[str, Any]) -> str:
    grid = line.get("grid") if isinstance(line.get("grid"), Mapping) else {}
    parts = [f"{name.split('.')[-1]} {plain(value)}" for name, value in sorted((grid or {}).items())]
    return ", ".join([*parts, *([str(line["profile"])] if line.get("profile") else [])])


def _tried(line: Mapping[str, Any]) -> Tried:
    accuracies = line.get("accuracies")
    known = [_number(a) for a in accuracies] if isinstance(accuracies, Sequence) else []
    whole = line.get("dropped_at") is None and bool(known) and None not in known
    return Tried(
        dict(line["configuration"]),
        tuple(known),
        _number(line.get("mean")) if whole else None,
        line.get("chosen") is True,
        _number(line.get("operations")),
        _number(line.get("seconds")) or 0.0,
    )


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if usable else None
