"""Cells -> tables, and tables -> markdown, CSV, LaTeX (booktabs) and HTML.

Markdown, LaTeX and HTML show rounded numbers for reading; the CSV has everything, unrounded, with the ids of the runs.
Text from files is escaped for each format (``bench.text``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.reporting import statistics as st
from bench.reporting.cells import Cell, Comparison, Convergence
from bench.reporting.records import Records
from bench.text import clean, latex, markdown, spreadsheet, webpage

NONE = "–"
PUBLISHED_IN_CELL = (
    3  # published values listed in the accuracy table itself; the table of published values has all
)


@dataclass(frozen=True)
class Column:
    """A column of a table for reading. ``common``: where all rows that say anything say the same it moves to a line above."""

    title: str
    values: Sequence[str]
    align: str = "l"
    common: bool = False
    optional: bool = False  # left out where it is empty
    note: bool = False  # long remarks: footnotes in LaTeX


@dataclass(frozen=True)
class Table:
    """A table for reading (``columns``) and for machines (``data``)."""

    name: str
    title: str
    columns: Sequence[Column]
    data: pd.DataFrame
    notes: Sequence[str] = field(default_factory=tuple)

    def shown(self) -> tuple[list[Column], list[tuple[str, str]]]:
        """Return the columns to print, and (title, value) of those that say the same in every row."""
        columns, same = [], []
        for column in self.columns:
            values = set(column.values) - {"", NONE}
            if column.common and len(values) == 1:
                same.append((column.title, values.pop()))
            elif values or not (column.common or column.optional or column.note):
                columns.append(column)
        return columns, same


# -- numbers for reading ---------------------------------------------------------------------------------------------


def with_interval(interval: st.Interval) -> str:
    """Return ``84.40 ± 1.24``, or the mean alone with the reason why it has no interval."""
    if interval.mean is None:
        return NONE
    if interval.half is None:
        return f"{interval.mean:.2f} ({interval.note})"
    return f"{interval.mean:.2f} ± {interval.half:.2f}"


def gain_text(gain: st.Gain | None) -> str:
    """Return ``+8.12 [+5.03, +11.21]``, or the mean gain alone with the reason why it has no interval."""
    if gain is None or gain.interval.mean is None:
        return NONE
    if gain.interval.low is None:
        return f"{gain.interval.mean:+.2f} ({gain.interval.note})"
    return f"{gain.interval.mean:+.2f} [{gain.interval.low:+.2f}, {gain.interval.high:+.2f}]"


def _count(cell: Cell) -> str:
    return str(cell.accuracy.n) if cell.accuracy.n == cell.wanted else f"{cell.accuracy.n} of {cell.wanted}"


def _budget(cell: Cell) -> str:
    if cell.epochs is None:
        return "unknown"
    images = f" × {cell.train_images:,} images" if cell.train_images else " epochs"
    return f"{cell.epochs}{images}"


def _published(cell: Cell) -> str:
    shown = [
        f"{comparison.match.row.accuracy:.2f} ({_kind(comparison.match.row.kind)})"
        for comparison in cell.comparisons
        if comparison.match.row.metric == "top1"
    ]
    if not shown:
        return "not available" if cell.arm is not None else NONE
    if len(shown) > PUBLISHED_IN_CELL:
        values = [c.match.row.accuracy for c in cell.comparisons if c.match.row.metric == "top1"]
        return f"{min(values):.2f} to {max(values):.2f} ({len(shown)} rows)"
    return "; ".join(shown)


def _kind(kind: str) -> str:
    return {"rerun_by_other_paper": "rerun"}.get(kind, kind)


def _width(cell: Cell) -> str:
    return "" if cell.width is None else f"{cell.width:g}"


def _where(cells: Sequence[Cell]) -> list[Column]:
    """The columns that say which cell a row is about."""
    return [
        Column("Data set", [cell.dataset for cell in cells], common=True),
        Column("Network", [cell.network for cell in cells], common=True),
        Column("Width", [_width(cell) for cell in cells], "r", common=True),
        Column("Arm", [cell.label for cell in cells]),
        Column("W/A", [cell.bits_label for cell in cells], common=True),
    ]


# -- the tables ------------------------------------------------------------------------------------------------------


def accuracy_table(records: Records, cells: Sequence[Cell]) -> Table:
    """One row a cell: final test accuracy of the deployed network, gain over the baseline, published value, budget."""
    columns = [
        *_where(cells),
        Column("n", [_count(cell) for cell in cells], "r"),
        Column("Test accuracy, %", [with_interval(cell.accuracy) for cell in cells], "r"),
        Column("Top-5, %", [with_interval(cell.top5) for cell in cells], "r", optional=True),
        Column("Gain, points", [gain_text(cell.gain) for cell in cells], "r", optional=True),
        Column("Published, %", [_published(cell) for cell in cells], "r"),
        Column("Budget", [_budget(cell) for cell in cells], "r", common=True),
        Column("Batch", [str(cell.batch_size or "") for cell in cells], "r", common=True),
        Column("Precision", [cell.precision or "" for cell in cells], common=True),
        Column("Device", ["; ".join(cell.devices) for cell in cells], common=True),
        Column("Flags", ["; ".join(cell.flags) for cell in cells], note=True),
    ]
    notes = [
        "Mean over n seeds of the last epoch's accuracy, the factor at 0, ± half the 95 % t-interval; gains are paired by "
        "seed, with their 95 % t-interval. Published values stand beside ours for orientation; verdicts are in the table "
        "of published values. The ids of the runs are in the CSV file.",
        *records.notes,
    ]
    return Table("accuracy", f"{records.title}: accuracy", columns, _accuracy_data(records, cells), notes)


def _ends(prefix: str, interval: st.Interval) -> dict[str, Any]:
    return {f"{prefix}": interval.mean, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}


def _accuracy_data(records: Records, cells: Sequence[Cell]) -> pd.DataFrame:
    rows = []
    for cell in cells:
        gain = cell.gain.interval if cell.gain is not None else st.Interval(0, None)
        rows.append(
            {
                "experiment": records.name,
                "arm": cell.arm,
                "baseline": cell.baseline,
                "role": cell.role,
                **_place(cell),
                "device": "; ".join(cell.devices),
                "n": cell.accuracy.n,
                "wanted": cell.wanted,
                **_ends("accuracy", cell.accuracy),
                "accuracy_note": cell.accuracy.note,
                "accuracy_by_seed": " ".join(f"{seed}:{_cell(value)}" for seed, value in cell.values.items()),
                "test_set_low": cell.test_set and cell.test_set[0],
                "test_set_high": cell.test_set and cell.test_set[1],
                **_ends("gain", gain),
                "gain_n": gain.n if cell.gain is not None else None,
                "gain_note": gain.note,
                "claim": cell.claim,
                "published": "; ".join(f"{c.match.row.accuracy} {c.match.row.kind}" for c in cell.comparisons)
                or ("not available" if cell.arm is not None else ""),
                **_ends("top5", cell.top5),
                "selected": cell.selected.mean,
                "best_on_test": cell.best.mean,
                **{
                    key: cell.mean_of(key)
                    for key in (
                        "wall_seconds",
                        "peak_memory_bytes",
                        "model_bits",
                        "bit_operations",
                        "train_flops",
                    )
                },
                "flags": "; ".join(cell.flags),
                "runs": " ".join(str(trial["id"] or "?") for trial in cell.trials),
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _place(cell: Cell) -> dict[str, Any]:
    return {
        "dataset": cell.dataset,
        "network": cell.network,
        "width": cell.width,
        "quantizer": cell.quantizer,
        "bits": "/".join(map(str, cell.bits)) if cell.bits else None,
        "strategy": cell.strategy,
        "settings": cell.settings,
        "epochs": cell.epochs,
        "batch_size": cell.batch_size,
        "precision": cell.precision,
        "train_images": cell.train_images,
        "images_processed": cell.images,
    }


def claims_table(records: Records, cells: Sequence[Cell]) -> Table | None:
    """One row a gain, with what may be claimed at a family-wise error of 5 %; None without any gain."""
    cells = [cell for cell in cells if cell.gain is not None]
    if not cells:
        return None
    tested = sum(cell.adjusted is not None for cell in cells)
    gains = [cell.gain for cell in cells if cell.gain is not None]
    columns = [
        *_where(cells),
        Column("Baseline", [cell.baseline or "" for cell in cells], common=True),
        Column("Budget", [_budget(cell) for cell in cells], "r", common=True),
        Column("Pairs", [str(gain.interval.n) for gain in gains], "r"),
        Column("Gain, points", [gain_text(gain) for gain in gains], "r"),
        Column("p", [NONE if gain.p_value is None else _p(gain.p_value) for gain in gains], "r"),
        Column("p (Holm)", [NONE if cell.adjusted is None else _p(cell.adjusted) for cell in cells], "r"),
        Column("Claim", [cell.claim for cell in cells]),
    ]
    data = [
        {
            "experiment": records.name,
            "arm": cell.arm,
            "baseline": cell.baseline,
            **_place(cell),
            "pairs": gain.interval.n,
            "seeds": " ".join(map(str, gain.seeds)),
            **_ends("gain", gain.interval),
            "gain_note": gain.interval.note,
            "p_value": gain.p_value,
            "p_holm": cell.adjusted,
            "claim": cell.claim,
        }
        for cell, gain in zip(cells, gains, strict=True)
    ]
    notes = [
        "Two-sided paired t-tests, corrected by Holm's method over the "
        f"{tested} gain{'s' * (tested != 1)} of this experiment that can be tested: the chance of one false claim or more "
        "in this table is at most 5 %. No claim is made on one pair, on identical differences, or where a run diverged."
    ]
    return Table(
        "claims",
        f"{records.title}: gains over the baseline",
        columns,
        pd.DataFrame(data, dtype=object),
        notes,
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def published_table(records: Records, cells: Sequence[Cell]) -> Table:
    """One row a published value that a cell can be held against; cells that have none say ``not available``."""
    entries: list[tuple[Cell, Comparison | None]] = []
    for cell in cells:
        if cell.arm is not None:
            entries.extend((cell, comparison) for comparison in cell.comparisons)
            if not cell.comparisons:
                entries.append((cell, None))
    ours = [_ours(cell, c) for cell, c in entries]
    columns = [
        *_where([cell for cell, _ in entries]),
        Column("Ours, %", [with_interval(interval) for interval in ours], "r"),
        Column(
            "Published, %", [f"{c.match.row.accuracy:.2f}" if c else "not available" for _, c in entries], "r"
        ),
        Column("Metric", [c.match.row.metric if c else "" for _, c in entries], common=True),
        Column("Kind", [_kind(c.match.row.kind) if c else "" for _, c in entries]),
        Column("Source", [c.match.row.source if c else "" for _, c in entries]),
        Column("Verdict", [f"{c.verdict.word}: {c.verdict.reason}" if c else "" for _, c in entries]),
        Column("Remarks", [_remarks(c) for _, c in entries], note=True),
    ]
    data = []
    for (cell, c), interval in zip(entries, ours, strict=True):
        row = c.match.row if c else None
        data.append(
            {
                "experiment": records.name,
                "arm": cell.arm,
                **_place(cell),
                "n": interval.n,
                **_ends("ours", interval),
                "published": row.accuracy if row else "not available",
                "metric": row.metric if row else None,
                "kind": row.kind if row else None,
                "verdict": c.verdict.word if c else None,
                "reason": c.verdict.reason if c else None,
                "reading_error": row.reading_error if row else None,
                "table": row.table if row else None,
                "published_network": row.network if row else None,
                "published_method": row.method if row else None,
                "source": row.source if row else None,
                "source_location": row.source_location if row else None,
                "arxiv_id": row.arxiv_id if row else None,
                "note": row.note if row else None,
                "remarks": "; ".join(c.match.remarks) if c else None,
            }
        )
    notes = [
        f"reproduced: the 95 % interval of our mean lies within {st.MARGIN:g} point of the published value; not reproduced: "
        "it lies farther off; inconclusive: neither, or no interval, or far from a value that is only quoted; not "
        "comparable: another budget, data or network. Published rows are never averaged. Kinds: original (the method's "
        "authors), rerun (by another paper), reproduction (a repository's own), quoted (copied)."
    ]
    frame = pd.DataFrame(data, dtype=object)
    return Table("published", f"{records.title}: published values beside ours", columns, frame, notes)


def _ours(cell: Cell, comparison: Comparison | None) -> st.Interval:
    return cell.top5 if comparison is not None and comparison.match.row.metric == "top5" else cell.accuracy


def _remarks(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    row = comparison.match.row
    error = f"read off a figure, ± {row.reading_error:g}" if row.reading_error is not None else ""
    return "; ".join(filter(None, [*comparison.match.remarks, error, row.note]))


def convergence_table(records: Records, rows: Sequence[Convergence]) -> Table | None:
    """One row a cell: epochs and seconds to the baseline's accuracy, the dip at removal and the recovery."""
    rows = [row for row in rows if row.threshold is not None and row.epochs_deployed.n]
    if not rows:
        return None
    cells = [row.cell for row in rows]
    columns = [
        *_where(cells),
        Column("Budget", [_budget(cell) for cell in cells], "r", common=True),
        Column("Threshold, %", [f"{row.threshold:g}" for row in rows], "r", common=True),
        Column("Epochs, deployed", [_time(row.epochs_deployed, row.cell.epochs) for row in rows], "r"),
        Column("held from", [_time(row.epochs_held, row.cell.epochs) for row in rows], "r"),
        Column("Epochs, as trained", [_time(row.epochs_trained, row.cell.epochs) for row in rows], "r"),
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
        times = {
            "epochs_deployed": row.epochs_deployed,
            "epochs_held": row.epochs_held,
            "epochs_trained": row.epochs_trained,
            "seconds_deployed": row.seconds_deployed,
            "seconds_trained": row.seconds_trained,
            "recovery_epochs": row.recovery,
        }
        entry = {
            "experiment": records.name,
            "arm": row.cell.arm,
            **_place(row.cell),
            "threshold": row.threshold,
        }
        entry["n"] = row.epochs_deployed.n
        for key, value in times.items():
            entry[key] = value.median
            entry[f"{key}_reached"] = len(value.times)
        data.append({**entry, **_ends("mean_curve", row.mean_curve), **_ends("dip", row.dip)})
    notes = [
        "Threshold: the largest multiple of 5 % not above the mean final accuracy of the arm's baseline (its own, where it "
        "has none). Times are medians over seeds, with how many runs reached it; '> 40' or 'not reached': fewer than half "
        "did within the budget. Deployed: the factor forced to 0; held from: at or above it to the end; as trained: with "
        "the branch. Seconds are those of training on the device of the accuracy table. Dip: expanded accuracy at the "
        "last epoch with the branch minus the lowest deployed accuracy after it; recovery: epochs until back there."
    ]
    frame = pd.DataFrame(data, dtype=object)
    return Table("convergence", f"{records.title}: convergence", columns, frame, notes)


def _time(time: st.TimeTo, budget: int | None) -> str:
    if time.n == 0:
        return NONE
    reached = f"{len(time.times)}/{time.n}"
    if time.median is None:
        return f"> {budget} ({reached})" if budget else f"not reached ({reached})"
    return f"{time.median:.0f}" + ("" if len(time.times) == time.n else f" ({reached})")


def runs_table(records: Records, cells: Sequence[Cell]) -> Table:
    """One row a trial, whatever became of it."""
    entries = [(cell, trial) for cell in cells for trial in cell.trials]
    columns = [
        *_where([cell for cell, _ in entries]),
        Column("Seed", [str(trial["seed"]) for _, trial in entries], "r"),
        Column("Run", [trial["id"] or "?" for _, trial in entries]),
        Column("Status", [trial["status"] for _, trial in entries]),
        Column(
            "Epochs", [f"{trial['epochs_done'] or 0:g}/{cell.epochs or '?'}" for cell, trial in entries], "r"
        ),
        Column("Accuracy, %", [_or_none(trial["accuracy"]) for _, trial in entries], "r"),
        Column("Reason", [clean(trial["reason"] or "", 160) for _, trial in entries], note=True),
    ]
    data = [
        {
            "experiment": records.name,
            "arm": cell.arm,
            "role": cell.role,
            **_place(cell),
            "seed": trial["seed"],
            "run": trial["id"],
            "status": trial["status"],
            "reason": trial["reason"],
            "epochs_done": trial["epochs_done"],
            "accuracy": trial["accuracy"],
            "wall_seconds": trial["wall_seconds"],
            "device": trial["device"],
            "commit": trial["commit"],
            "uncommitted_changes": trial["dirty"],
            "versions": " ".join(f"{k}={v}" for k, v in sorted(trial["versions"].items())),
            "data": (trial["data"] or "").strip('"'),
            "flags": "; ".join([*trial["flags"], *trial["warnings"]]),
        }
        for cell, trial in entries
    ]
    return Table("runs", f"{records.title}: runs", columns, pd.DataFrame(data, dtype=object))


def _or_none(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


# -- formats ---------------------------------------------------------------------------------------------------------


def _cell(value: Any) -> Any:
    """Return a CSV cell: nothing for None, numbers with eight significant digits, text made inert."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.8g}"
    return spreadsheet(value)


def to_csv(data: pd.DataFrame) -> str:
    """Return the table for machines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(data.columns)
    for row in data.itertuples(index=False):
        writer.writerow([_cell(value) for value in row])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table for reading, in GitHub's markdown."""
    columns, same = table.shown()
    lines = [f"## {markdown(table.title)}", ""]
    if same:
        lines += ["All rows: " + "; ".join(f"{markdown(t)} {markdown(v)}" for t, v in same) + ".", ""]
    lines.append("| " + " | ".join(markdown(column.title) for column in columns) + " |")
    lines.append("|" + "|".join("---:" if column.align == "r" else "---" for column in columns) + "|")
    for row in zip(*(column.values for column in columns), strict=True):
        lines.append("| " + " | ".join(markdown(value) for value in row) + " |")
    for note in table.notes:
        lines += ["", markdown(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""Return the table for LaTeX; needs ``\usepackage{booktabs}``. Long remarks become lettered notes below it."""
    columns, same = table.shown()
    remarks = [column for column in columns if column.note]
    columns = [column for column in columns if not column.note]
    letters: dict[str, str] = {}
    marks = []
    for row in (
        zip(*(column.values for column in remarks), strict=True) if remarks else [()] * len(columns[0].values)
    ):
        own = [letters.setdefault(value, _letter(len(letters))) for value in row if value]
        marks.append(f"\\textsuperscript{{{','.join(own)}}}" if own else "")
    caption = latex(table.title) + "."
    if same:
        caption += " " + latex("; ".join(f"{t}: {v}" for t, v in same)) + "."
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{{''.join(column.align for column in columns)}}}",
        "    \\toprule",
        "    " + " & ".join(latex(column.title) for column in columns) + " \\\\",
        "    \\midrule",
    ]
    position = next((i for i, column in enumerate(columns) if column.title == "Arm"), 0)
    for mark, row in zip(marks, zip(*(column.values for column in columns), strict=True), strict=True):
        cells = [latex(value) for value in row]
        cells[position] += mark
        lines.append("    " + " & ".join(cells) + " \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    below = [f"\\textsuperscript{{{letter}}} {latex(value)}." for value, letter in letters.items()]
    below += [latex(note) for note in table.notes]
    if below:
        lines += ["", "  \\smallskip", "  {\\footnotesize " + "\\\\\n  ".join(below) + "\\par}"]
    lines += ["\\end{table*}"]
    return "\n".join(lines) + "\n"


def _letter(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[number] if number < 26 else _letter(number // 26 - 1) + letters[number % 26]


def to_html(table: Table) -> str:
    """Return the table as an HTML fragment."""
    columns, same = table.shown()
    parts = []
    if same:
        parts.append(
            "<p>All rows: " + "; ".join(f"{webpage(t)} <b>{webpage(v)}</b>" for t, v in same) + ".</p>"
        )
    head = "".join(f'<th class="{column.align}">{webpage(column.title)}</th>' for column in columns)
    parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>')
    for row in zip(*(column.values for column in columns), strict=True):
        cells = "".join(
            f'<td class="{"note" if column.note else column.align}">{webpage(value)}</td>'
            for column, value in zip(columns, row, strict=True)
        )
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</tbody></table></div>")
    parts += [f'<p class="small">{webpage(note)}</p>' for note in table.notes]
    return "\n".join(parts)


FORMATS = {"md": to_markdown, "tex": to_latex, "csv": lambda table: to_csv(table.data)}
