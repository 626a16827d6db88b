"""The tables of minima: how sharp the minima of an arm are, and how high the barriers between its seeds.

Both read the lines that ``bench sharpness --experiment`` wrote. A measurement with other numbers (draws,
images, sizes) is another row: nothing is averaged over different ways of measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.reporting import statistics as st
from bench.reporting.cells import Cell
from bench.reporting.grouping import canonical
from bench.reporting.records import Records
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tables import cell_columns, cell_data, difference_text, interval_data, with_interval
from bench.text import fixed

DIGITS = 4  # of losses
_SHARPNESS = (
    "Rise: of the training loss (without augmentation) when noise is added to the weights of the "
    "low-precision layers, the mean over draws; the noise of a filter has the stated share of the norm of "
    "its weights. Mean over seeds ± half the 95 % t-interval; the difference to the baseline is paired by "
    "seed, with its interval, and exploratory. Untrained: the same with the weights of the beginning."
)
_BARRIERS = (
    "Barrier: the largest rise of the training loss on the straight line between the weights of two seeds, "
    "over the line between their losses, with batch norm measured anew at each point; 0: both lie in one "
    "valley. Seeds are paired in rising order, each in one pair. Mean over pairs ± half the 95 % t-interval."
)


@dataclass(frozen=True)
class _Row:
    """A cell measured in one way: by seed the loss, the rise after training and the rise before it."""

    cell: Cell
    measured_with: Mapping[str, Any]
    size: float
    loss: Mapping[int, float]
    rise: Mapping[int, float]
    untrained: Mapping[int, float]
    against: Mapping[int, float]

    @property
    def difference(self) -> st.Interval:
        return st.paired_gain(self.rise, self.against).interval


def sharpness_table(records: Records, cells: Sequence[Cell]) -> Table | None:
    """Return one row a cell, way of measuring and size of noise; None where no trial was measured."""
    rows = list(_rows(records, cells))
    if not rows:
        return None
    losses, rises, untrained = (
        [st.mean_interval(list(getattr(row, name).values())) for row in rows]
        for name in ("loss", "rise", "untrained")
    )
    columns = [
        *cell_columns([row.cell for row in rows]),
        Column("Noise on", [str(row.measured_with.get("noise_on")) for row in rows], common=True),
        Column("Draws", [str(row.measured_with.get("draws")) for row in rows], "r", common=True),
        Column("Images", [str(row.measured_with.get("images")) for row in rows], "r", common=True),
        Column("Size", [f"{row.size:g}" for row in rows], "r"),
        Column("Seeds", [str(len(row.rise)) for row in rows], "r"),
        Column("Loss", [with_interval(interval, DIGITS) for interval in losses], "r"),
        Column("Rise", [with_interval(interval, DIGITS) for interval in rises], "r"),
        Column("Over the baseline", [_difference(row) for row in rows], "r", optional=True),
        Column("Rise, untrained", [with_interval(interval, DIGITS) for interval in untrained], "r"),
    ]
    data = [
        {
            **cell_data(records, row.cell, baseline=row.cell.runs.baseline),
            **{key: row.measured_with.get(key) for key in ("noise_on", "draws", "images")},
            "size": row.size,
            "n": len(row.rise),
            **interval_data("loss", loss),
            **interval_data("rise", rise),
            **interval_data("difference", row.difference),
            "pairs": row.difference.n if row.against else None,
            **interval_data("untrained_rise", before),
            "rise_by_seed": " ".join(f"{seed}:{value:.9g}" for seed, value in row.rise.items()),
        }
        for row, loss, rise, before in zip(rows, losses, rises, untrained, strict=True)
    ]
    title = f"{records.title}: sharpness of the minima"
    shown = [row.cell for row in rows]
    return Table("sharpness", title, columns, data, [_SHARPNESS], shown)


def barrier_table(records: Records, cells: Sequence[Cell]) -> Table | None:
    """Return one row a cell and way of measuring; None where no pair of trials was measured."""
    rows = []
    pairs = [line for line in _last(records) if "ids" in line]
    for cell in cells:
        own = {trial["id"] for trial in cell.trials}
        ways: dict[str, list[Mapping[str, Any]]] = {}
        for line in pairs:
            if set(line["ids"]) <= own:
                ways.setdefault(canonical(line["with"]), []).append(line)
        rows += [(cell, found) for found in ways.values()]
    if not rows:
        return None
    barriers = [st.mean_interval([line["barrier"] for line in found]) for _, found in rows]
    paths = [[line["path"] for line in found] for _, found in rows]
    ends_of = [st.mean_interval([loss for path in own for loss in (path[0], path[-1])]) for own in paths]
    columns = [
        *cell_columns([cell for cell, _ in rows]),
        Column("Images", [str(found[0]["with"].get("images")) for _, found in rows], "r", common=True),
        Column("Points", [str(found[0]["with"].get("points")) for _, found in rows], "r", common=True),
        Column("Pairs of seeds", [str(len(found)) for _, found in rows], "r"),
        Column("Loss at the ends", [NONE if e.mean is None else fixed(e.mean, DIGITS) for e in ends_of], "r"),
        Column("Barrier", [with_interval(interval, DIGITS) for interval in barriers], "r"),
    ]
    data = [
        {
            **cell_data(records, cell),
            **{key: found[0]["with"].get(key) for key in ("images", "points")},
            "pairs": len(found),
            "loss_at_the_ends": end.mean,
            **interval_data("barrier", interval),
            "trials": "; ".join(" ".join(line["ids"]) for line in found),
        }
        for (cell, found), interval, end in zip(rows, barriers, ends_of, strict=True)
    ]
    title = f"{records.title}: barriers between seeds"
    shown = [cell for cell, _ in rows]
    return Table("barriers", title, columns, data, [_BARRIERS], shown)


def _difference(row: _Row) -> str:
    return "" if row.difference.mean is None else difference_text(row.difference, DIGITS)


def _last(records: Records) -> list[Mapping[str, Any]]:
    """Return the lines of minima, of equal measurements the last."""
    return list({canonical([m.get("id"), m.get("ids"), m.get("with")]): m for m in records.minima}.values())


def _rows(records: Records, cells: Sequence[Cell]) -> Iterator[_Row]:
    """Yield the rows of the table of sharpness, in the order of the cells."""
    measured = [line for line in _last(records) if "id" in line]
    ways = {canonical(line["with"]): line["with"] for line in measured}
    for cell in cells:
        for way, numbers in ways.items():
            of = {line["id"]: line for line in measured if canonical(line["with"]) == way}
            mine = _by_seed(cell, of)
            against = _by_seed(cell.pairing.against, of) if cell.pairing is not None else {}
            for i, size in enumerate(numbers["sizes"] if mine else ()):
                yield _Row(
                    cell,
                    numbers,
                    size,
                    loss={seed: line["trained"]["loss"] for seed, line in mine.items()},
                    rise=_rises(mine, "trained", i),
                    untrained=_rises(mine, "untrained", i),
                    against=_rises(against, "trained", i),
                )


def _by_seed(cell: Cell, of: Mapping[str, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {trial["seed"]: of[trial["id"]] for trial in cell.trials if trial["id"] in of}


def _rises(lines: Mapping[int, Mapping[str, Any]], when: str, i: int) -> dict[int, float]:
    """Return the mean rises at the ``i``-th size by seed; a trial with given weights has none untrained."""
    return {seed: line[when]["rises"][i]["mean"] for seed, line in lines.items() if line[when] is not None}
