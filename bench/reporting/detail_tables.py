"""The tables behind the main ones: published values, convergence, runs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.reporting import statistics as st
from bench.reporting.cells import Cell, Comparison
from bench.reporting.convergence import TIMES, Convergence
from bench.reporting.records import Records
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tables import budget, cell_columns, cell_data, interval_data, kind_name, with_interval
from bench.text import clean

_OF_A_PUBLISHED_ROW = {  # further columns of the data, and the attributes of the row
    **{name: name for name in ("reading_error", "table")},
    **{f"published_{name}": name for name in ("network", "method")},
    **{name: name for name in ("source", "source_location", "arxiv_id", "note")},
}


def published_table(records: Records, cells: Sequence[Cell]) -> Table:
    """Return a row for each published value of each cell; a cell without any says ``not available``."""
    entries: list[tuple[Cell, Comparison | None]] = []
    for cell in cells:
        if cell.arm is not None:
            entries += [(cell, comparison) for comparison in cell.comparisons or (None,)]
    shown = [cell for cell, _ in entries]
    ours = [_ours(cell, c) for cell, c in entries]
    columns = [
        *cell_columns(shown),
        Column("Ours, %", [with_interval(interval) for interval in ours], "r"),
        Column(
            "Published, %", [f"{c.match.row.accuracy:.2f}" if c else "not available" for _, c in entries], "r"
        ),
        Column("Metric", [c.match.row.metric if c else "" for _, c in entries], common=True),
        Column("Kind", [kind_name(c.match.row.kind) if c else "" for _, c in entries]),
        Column("Source", [c.match.row.source if c else "" for _, c in entries]),
        Column("Verdict", [f"{c.verdict.word}: {c.verdict.reason}" if c else "" for _, c in entries]),
        Column("Remarks", [_remarks(c) for _, c in entries], note=True),
    ]
    data = []
    for (cell, c), interval in zip(entries, ours, strict=True):
        row = c.match.row if c else None
        known = {column: getattr(row, name, None) for column, name in _OF_A_PUBLISHED_ROW.items()}
        data.append(
            {
                **cell_data(records, cell),
                "n": interval.n,
                **interval_data("ours", interval),
                "published": row.accuracy if row else "not available",
                "metric": row.metric if row else None,
                "kind": row.kind if row else None,
                "verdict": c.verdict.word if c else None,
                "reason": c.verdict.reason if c else None,
                **known,
                "remarks": "; ".join(c.match.remarks) if c else None,
            }
        )
    notes = [
        f"reproduced: the 95 % interval of our mean lies within {st.MARGIN:g} point of the published "
        "value; not reproduced: it lies farther off; inconclusive: neither, or no interval, or far from "
        "a value that is only quoted or was superseded; not comparable: another budget, data or network. "
        "Published rows are never averaged. Kinds: original (the method's authors), rerun (by another "
        "paper), reproduction (a repository's own), quoted (copied), superseded (replaced or withdrawn "
        "by the source itself)."
    ]
    return Table("published", f"{records.title}: published values beside ours", columns, data, notes, shown)


def _ours(cell: Cell, comparison: Comparison | None) -> st.Interval:
    top5 = comparison is not None and comparison.match.row.metric == "top5"
    return cell.numbers.top5 if top5 else cell.numbers.accuracy


def _remarks(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    row = comparison.match.row
    error = f"read off a figure, ± {row.reading_error:g}" if row.reading_error is not None else ""
    return "; ".join(filter(None, [*comparison.match.remarks, error, row.note]))


def convergence_table(records: Records, rows: Sequence[Convergence]) -> Table | None:
    """Return a row a cell: epochs and seconds to the baseline's accuracy, dip at removal, recovery."""
    rows = [row for row in rows if row.threshold is not None and row.epochs_deployed.n]
    if not rows:
        return None
    cells = [row.cell for row in rows]
    columns = [
        *cell_columns(cells),
        Column("Budget", [budget(cell) for cell in cells], "r", common=True),
        Column("Threshold, %", [f"{row.threshold:g}" for row in rows], "r", common=True),
        Column("Epochs, deployed", [_time(row.epochs_deployed, row.cell.facts.epochs) for row in rows], "r"),
        Column("held from", [_time(row.epochs_held, row.cell.facts.epochs) for row in rows], "r"),
        Column("Epochs, as trained", [_time(row.epochs_trained, row.cell.facts.epochs) for row in rows], "r"),
        Column("Seconds, deployed", [_time(row.seconds_deployed, None) for row in rows], "r"),
        Column("Seconds, as trained", [_time(row.seconds_trained, None) for row in rows], "r"),
        Column("Mean of the curve, %", [with_interval(row.mean_curve) for row in rows], "r"),
        Column("Dip at removal", [with_interval(row.dip) for row in rows], "r", optional=True),
        Column(
            "Recovery, epochs",
            [_time(row.recovery, None) if row.recovery.n else NONE for row in rows],
            "r",
            optional=True,
        ),
    ]
    data = []
    for row in rows:
        entry = {**cell_data(records, row.cell), "threshold": row.threshold, "n": row.epochs_deployed.n}
        for key, time in [*((name, getattr(row, name)) for name in TIMES), ("recovery_epochs", row.recovery)]:
            entry |= {key: time.median, f"{key}_reached": len(time.times)}
        data.append({**entry, **interval_data("mean_curve", row.mean_curve), **interval_data("dip", row.dip)})
    notes = [
        "Threshold: the largest multiple of 5 % not above the mean final accuracy of the arm's baseline "
        "(its own, where it has none). Times are medians over seeds, with how many runs reached it; '> "
        "40' or 'not reached': fewer than half did within the budget. Deployed: the factor forced to 0; "
        "held from: at or above it to the end; as trained: with the branch. Seconds are those of "
        "training on the device of the accuracy table. Dip: expanded accuracy at the last evaluated epoch "
        "with the branch minus the lowest deployed accuracy after it; recovery: epochs until back there."
    ]
    return Table("convergence", f"{records.title}: convergence", columns, data, notes, cells)


def _time(time: st.TimeTo, budget: int | None) -> str:
    if time.n == 0:
        return NONE
    reached = f"{len(time.times)}/{time.n}"
    if time.median is None:
        return f"> {budget} ({reached})" if budget else f"not reached ({reached})"
    return f"{time.median:.0f}" + ("" if len(time.times) == time.n else f" ({reached})")


_RECORDED = ("status", "reason", "epochs_done", "accuracy", "wall_seconds", "device", "commit")


def runs_table(records: Records, cells: Sequence[Cell]) -> Table:
    """Return a row a trial, whatever became of it."""
    entries = [(cell, trial) for cell in cells for trial in cell.trials]
    shown, accuracies = [cell for cell, _ in entries], [trial["accuracy"] for _, trial in entries]
    columns = [
        *cell_columns(shown),
        Column("Seed", [str(trial["seed"]) for _, trial in entries], "r"),
        Column("Run", [trial["id"] or "?" for _, trial in entries]),
        Column("Status", [trial["status"] for _, trial in entries]),
        Column(
            "Epochs",
            [f"{trial['epochs_done'] or 0:g}/{cell.facts.epochs or '?'}" for cell, trial in entries],
            "r",
        ),
        Column("Accuracy, %", [NONE if a is None else f"{a:.2f}" for a in accuracies], "r"),
        Column("Reason", [clean(trial["reason"] or "", 160) for _, trial in entries], note=True),
    ]
    data = [
        {
            **cell_data(records, cell, role=cell.runs.role),
            "seed": trial["seed"],
            "run": trial["id"],
            **{key: trial[key] for key in _RECORDED},
            "uncommitted_changes": trial["dirty"],
            "versions": " ".join(f"{k}={v}" for k, v in sorted(trial["versions"].items())),
            "data": (trial["data"] or "").strip('"'),
            "flags": "; ".join([*trial["flags"], *trial["warnings"]]),
        }
        for cell, trial in entries
    ]
    return Table("runs", f"{records.title}: runs", columns, data, cells=shown)
