"""Ablations as fields: the arms with grid axes of their own strategy, axis by axis, beside their baseline.

A field is an arm at a grid point. It has an accuracy where final runs are done, else it says why not: it was
not run, or its tuning goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.experiments.labels import plain
from bench.reporting import statistics as st
from bench.reporting.cells import Cell, searched_at
from bench.reporting.grouping import canonical
from bench.reporting.tables import interval_data
from bench.reporting.tuned import Searched

NOT_RUN = "not run"
ARM = "arm"  # the axis of the arms that have none
_PANEL_AXES = ("width", "bits", "dataset", "network", "epochs")  # facts that a panel is about


@dataclass(frozen=True)
class Spot:
    """A field. ``row`` and ``column`` are the values of the panel's axes as text.

    ``accuracy`` is the interval of the final runs' test accuracy in percent, ``gain`` that of the gain over
    the baseline in points. ``done`` of ``wanted`` final runs are finished. ``rate`` is the learning rate that
    the search chose, None where none was tuned. ``state`` says why there is no accuracy, else "".
    """

    arm: str
    row: str
    column: str
    accuracy: st.Interval
    gain: st.Interval
    done: int = 0
    wanted: int = 0
    rate: float | None = None
    state: str = ""


@dataclass(frozen=True)
class Ablation:
    """A panel: an arm over its two axes or its only axis (one row), or the arms without an axis (one row)."""

    title: str
    row_axis: str  # "" for one row
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    spots: Mapping[tuple[str, str], Spot]


@dataclass(frozen=True)
class _Place:
    """An arm at a grid point: its row of the tables, its search, or both."""

    arm: str
    grid: Mapping[str, Any]
    facts: tuple[Any, ...]  # what a panel is about
    told: str
    cell: Cell | None
    search: Searched | None


def ablations(cells: Sequence[Cell], searches: Sequence[Searched] = ()) -> list[Ablation]:
    """Return the panels of an experiment; none where no arm has an axis of its strategy with several values.

    More than two axes of an arm make a panel for each value of the others.
    """
    panels: dict[tuple[str, tuple[Any, ...]], list[_Place]] = {}
    order = {id(search): position for position, search in enumerate(searches)}  # that of the experiment file
    for place in sorted(_places(cells, searches), key=lambda place: order.get(id(place.search), len(order))):
        panels.setdefault((place.arm, place.facts), []).append(place)
    found: list[Ablation] = []
    alone: dict[tuple[Any, ...], list[_Place]] = {}
    for (arm, facts), places in panels.items():
        names = sorted({name for p in places for name in p.grid if name.startswith("strategy.")})
        axes = sorted(
            (n for n in names if len(_values(places, n)) > 1), key=lambda n: (_numbers(places, n), n)
        )
        if not axes:
            alone.setdefault(facts, []).extend(places)
            continue
        rows, columns, others = (axes[-2], axes[-1], axes[:-2]) if len(axes) > 1 else ("", axes[0], [])
        for point, own in _split(places, others).items():
            title = ", ".join(filter(None, [arm, point, own[0].told]))
            found += _panels(title, rows, columns, own)
    if not found:
        return []
    beside = (_panels(f"Beside it: {own[0].told}", "", ARM, own) for own in alone.values())
    return [*found, *itertools.chain.from_iterable(beside)]


def ablation_data(name: str, panels: Sequence[Ablation]) -> pd.DataFrame:
    """Return a row a field, unrounded; ``name`` is the experiment's."""
    return pd.DataFrame(
        [
            {
                "experiment": name,
                "panel": panel.title,
                "arm": spot.arm,
                "row_axis": panel.row_axis,
                "row": spot.row,
                "column_axis": panel.column_axis,
                "column": spot.column,
                **interval_data("accuracy", spot.accuracy),
                **interval_data("gain", spot.gain),
                "n": spot.done,
                "wanted": spot.wanted,
                "learning_rate": spot.rate,
                "state": spot.state,
            }
            for panel in panels
            for spot in panel.spots.values()
        ],
        dtype=object,
    )


def _places(cells: Sequence[Cell], searches: Sequence[Searched]) -> Iterator[_Place]:
    """Yield every arm at every grid point that has a row of the tables or a search.

    Where nothing of a point was recorded, its panel is that of the other points with its width and bits.
    """
    taken = set()
    facts_of: dict[str, tuple[tuple[Any, ...], str]] = {}
    for cell in sorted(cells, key=lambda cell: not cell.runs.config):
        if cell.arm is None:
            continue
        search = next((s for s in searches if searched_at(s, cell.runs)), None)
        taken.add(id(search))
        facts = _panel_facts(cell) if cell.runs.config else _facts_of_unknown(cell.runs.grid, facts_of)
        facts_of.setdefault(_panel_key(cell.runs.grid), facts)
        yield _Place(cell.arm, cell.runs.grid, *facts, cell, search)
    for search in searches:
        if id(search) not in taken:  # its final runs do not exist yet
            facts = _facts_of_unknown(search.grid, facts_of)
            yield _Place(search.arm, search.grid, *facts, None, search)


def _panel_facts(cell: Cell) -> tuple[tuple[Any, ...], str]:
    """Return what a cell's panel is about, and the words for it."""
    facts = cell.facts
    told = [cell.width_text, cell.bits_text, f"{facts.epochs} epochs"]
    key = facts.dataset, facts.network, facts.width, cell.bits_label, facts.epochs
    return key, ", ".join(filter(None, told))


def _facts_of_unknown(
    grid: Mapping[str, Any], facts_of: Mapping[str, tuple[tuple[Any, ...], str]]
) -> tuple[tuple[Any, ...], str]:
    key = _panel_key(grid)
    only = next(iter(facts_of.values())) if len(set(facts_of.values())) == 1 else ((key,), "")
    return facts_of.get(key, only)


def _panel_key(grid: Mapping[str, Any]) -> str:
    return canonical({name: value for name, value in grid.items() if name in _PANEL_AXES})


def _values(places: Sequence[_Place], axis: str) -> list[str]:
    """Return the values of an axis: numbers by size, others in the order of the places."""
    values = [place.grid[axis] for place in places if axis in place.grid]
    if _numbers(places, axis):
        values.sort()
    return list(dict.fromkeys(map(plain, values)))


def _numbers(places: Sequence[_Place], axis: str) -> bool:
    values = [place.grid[axis] for place in places if axis in place.grid]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _split(places: Sequence[_Place], axes: Sequence[str]) -> dict[str, list[_Place]]:
    found: dict[str, list[_Place]] = {}
    for place in places:
        point = ", ".join(f"{name.rpartition('.')[2]} {plain(place.grid.get(name))}" for name in axes)
        found.setdefault(point, []).append(place)
    return found


def _panels(title: str, row_axis: str, column_axis: str, places: Sequence[_Place]) -> list[Ablation]:
    """Return a panel of the places, and further ones for places whose field is taken by another row.

    Such rows differ in what is no axis: the batch size of another run of the file, revised data or code. Each
    field shows the row with the most finished runs, the further panels show the others.
    """
    arms = column_axis == ARM
    columns = list(dict.fromkeys(p.arm for p in places)) if arms else _values(places, column_axis)
    rows = _values(places, row_axis) if row_axis else [""]
    fields: dict[tuple[str, str], list[Spot]] = {}
    for place in places:
        if any(axis and axis not in place.grid for axis in (row_axis, "" if arms else column_axis)):
            continue  # an arm may leave an axis at its default
        row = plain(place.grid[row_axis]) if row_axis else ""
        column = place.arm if arms else plain(place.grid[column_axis])
        fields.setdefault((row, column), []).append(_spot(place, row, column))
    ranked = {field: sorted(spots, key=lambda spot: -spot.done) for field, spots in fields.items()}
    return [
        Ablation(
            f"{title}, other runs {number}" if number else title,
            row_axis,
            column_axis,
            tuple(rows),
            tuple(columns),
            {field: spots[number] for field, spots in ranked.items() if number < len(spots)},
        )
        for number in range(max(map(len, ranked.values()), default=1))
    ]


def _spot(place: _Place, row: str, column: str) -> Spot:
    cell, search = place.cell, place.search
    none = st.Interval(0, None)
    if cell is not None:  # of runs with other values the choice says nothing
        search = cell.search
    rate = search.chosen.rate if search is not None and search.chosen is not None else None
    if cell is None:
        tuning = f"tuning {search.progress}" if search is not None and search.chosen is None else NOT_RUN
        return Spot(place.arm, row, column, none, none, rate=rate, state=tuning)
    gain = cell.pairing.gain.interval if cell.pairing is not None else none
    state = ""
    if cell.numbers.accuracy.mean is None:
        state = "never removed" if cell.kept else NOT_RUN
    done, wanted = len(cell.runs.done), len(cell.trials)
    return Spot(place.arm, row, column, cell.numbers.accuracy, gain, done, wanted, rate, state)
