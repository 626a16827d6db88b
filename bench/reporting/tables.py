"""Cells -> the main tables: accuracy, gains, declared claims.

For reading numbers are rounded; the data of a table has everything, unrounded, with the ids of the runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.reporting import statistics as st
from bench.reporting.cells import Cell, Pairing
from bench.reporting.claims import Judged, PairKey, names, verdict_of
from bench.reporting.formats import csv_cell
from bench.reporting.records import Records
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tuned import searches, standing, table_of
from bench.text import fixed, plural, signed

PUBLISHED_IN_CELL = 3  # published values in the accuracy table itself; the table of published values has all
_COSTS = ("wall_seconds", "peak_memory_bytes", "model_bits", "bit_operations", "train_flops")


# -- parts of rows -------------------------------------------------------------------------------------------


def with_interval(interval: st.Interval, digits: int = 2) -> str:
    """Return ``84.40 ± 1.24``, or the mean alone with the reason why it has no interval."""
    if interval.mean is None:
        return NONE
    if interval.half is None:
        return f"{fixed(interval.mean, digits)} ({interval.note})"
    return f"{fixed(interval.mean, digits)} ± {fixed(interval.half, digits)}"


def difference_text(interval: st.Interval, digits: int = 2) -> str:
    """Return ``+8.12 [+5.03, +11.21]``, or the mean alone with the reason why it has no interval."""
    if interval.mean is None:
        return NONE
    if interval.low is None or interval.high is None:
        return f"{signed(interval.mean, digits)} ({interval.note})"
    low, high = signed(interval.low, digits), signed(interval.high, digits)
    return f"{signed(interval.mean, digits)} [{low}, {high}]"


def gain_text(pairing: Pairing | None) -> str:
    """Return ``difference_text`` of the gain of a pair of cells."""
    return NONE if pairing is None else difference_text(pairing.gain.interval)


def _ratio_text(ratio: st.DeviationRatio) -> str:
    """Return ``0.31 [0.12, 0.80]``, or the ratio alone with the reason why it has no interval."""
    if ratio.ratio is None:
        return NONE
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2g} ({ratio.note})"
    return f"{ratio.ratio:.2g} [{ratio.low:.2g}, {ratio.high:.2g}]"


def _count(cell: Cell) -> str:
    n = len(cell.runs.done)
    return str(n) if n == len(cell.trials) else f"{n} of {len(cell.trials)}"


def budget(cell: Cell) -> str:
    """Return epochs and training images of an epoch."""
    if cell.facts.epochs is None:
        return "unknown"
    images = f" × {cell.facts.train_images:,} images" if cell.facts.train_images else " epochs"
    return f"{cell.facts.epochs}{images}"


def _published(cell: Cell) -> str:
    rows = [c.match.row for c in cell.comparisons if c.match.row.metric == "top1"]
    if not rows:
        return "not available" if cell.arm is not None else NONE
    if len(rows) > PUBLISHED_IN_CELL:
        values = [row.accuracy for row in rows]
        return f"{min(values):.2f} to {max(values):.2f} ({len(rows)} rows)"
    return "; ".join(f"{row.accuracy:.2f} ({kind_name(row.kind)})" for row in rows)


def kind_name(kind: str) -> str:
    """Return the name of a kind of published values in a table."""
    return {"rerun_by_other_paper": "rerun", "superseded": "superseded by its source"}.get(kind, kind)


def cell_columns(cells: Sequence[Cell]) -> list[Column]:
    """The columns that say which cell a row is about."""
    return [
        Column("Data set", [cell.facts.dataset for cell in cells], common=True),
        Column("Network", [cell.facts.network for cell in cells], common=True),
        Column("Width", [cell.width_label for cell in cells], "r", common=True),
        Column("Arm", [cell.label for cell in cells]),
        Column("W/A", [cell.bits_label for cell in cells], common=True),
    ]


def cell_data(records: Records, cell: Cell, **further: Any) -> dict[str, Any]:
    """Return the columns of a data frame that say which cell a row is about; ``further`` ones by the arm."""
    return {
        "experiment": records.name,
        "arm": cell.arm,
        **further,
        "dataset": cell.facts.dataset,
        "network": cell.facts.network,
        "width": cell.facts.width,
        "quantizer": cell.facts.quantizer,
        "bits": "/".join(map(str, cell.facts.bits)) if cell.facts.bits else None,
        "strategy": cell.facts.strategy,
        "settings": cell.settings,
        "epochs": cell.facts.epochs,
        "batch_size": cell.facts.batch_size,
        "precision": cell.facts.precision,
        "train_images": cell.facts.train_images,
        "images_processed": cell.facts.images,
    }


def interval_data(prefix: str, interval: st.Interval | st.DeviationRatio) -> dict[str, Any]:
    """Return a mean or a ratio with the ends of its interval as three columns of a data frame."""
    value = interval.mean if isinstance(interval, st.Interval) else interval.ratio
    return {prefix: value, f"{prefix}_low": interval.low, f"{prefix}_high": interval.high}


def _p(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# -- accuracy ------------------------------------------------------------------------------------------------


def accuracy_table(records: Records, cells: Sequence[Cell], known: Mapping[PairKey, str]) -> Table:
    """Return test accuracy, gain, published value and budget of the deployed network of each cell.

    ``known`` holds the verdicts of declared claims. A network whose branch was never removed has a column of
    its own.
    """
    columns = [
        *cell_columns(cells),
        Column("n", [_count(cell) for cell in cells], "r"),
        Column("Test accuracy, %", [with_interval(cell.numbers.accuracy) for cell in cells], "r"),
        Column(
            "Never removed, %",
            [with_interval(cell.numbers.expanded) if cell.kept else "" for cell in cells],
            "r",
            optional=True,
        ),
        Column("Top-5, %", [with_interval(cell.numbers.top5) for cell in cells], "r", optional=True),
        Column("Gain, points", [gain_text(cell.pairing) for cell in cells], "r", optional=True),
        Column("Chosen", [cell.search.choice if cell.search else "" for cell in cells], optional=True),
        Column("Published, %", [_published(cell) for cell in cells], "r"),
        Column("Budget", [budget(cell) for cell in cells], "r", common=True),
        Column("Batch", [str(cell.facts.batch_size or "") for cell in cells], "r", common=True),
        Column("Precision", [cell.facts.precision or "" for cell in cells], common=True),
        Column("Device", ["; ".join(cell.devices) for cell in cells], common=True),
        Column("Flags", ["; ".join(cell.flags) for cell in cells], note=True),
    ]
    notes = [
        "Mean over n seeds of the last epoch's accuracy, the factor at 0, ± half the 95 % t-interval; "
        "gains are paired by seed, with their 95 % t-interval. Published values stand beside ours for "
        "orientation; verdicts are in the table of published values. The ids of the runs are in the CSV "
        "file.",
        *records.notes,
    ]
    if records.tuning:
        notes += _tuning_notes(records)
    data = _accuracy_data(records, cells, known)
    return Table("accuracy", f"{records.title}: accuracy", columns, data, notes, cells)


def _tuning_notes(records: Records) -> list[str]:
    """Return what readers must know of the tuning trials, and which rows are still to come."""
    chose = {str(id) for line in records.searches for id in table_of(line, "trials").values()}
    notes = [
        f"{plural(len(chose) or records.tuning, 'trial')} that chose the configurations never saw the test "
        "images and stand in no table; tuning.jsonl beside the records says what was chosen from what."
    ]
    found = searches(records.searches)
    waiting = [search for search in found if search.chosen is None]
    if waiting:
        named = "; ".join(f"{search.label} ({search.progress} trials)" for search in waiting)
        notes = [
            f"The tuning is not over: {standing(found).removeprefix('tuning: ')}. A point is trained on all "
            f"images, and has a row, once its configuration is chosen. Without a choice: {named}."
        ]
    return notes


def _accuracy_data(
    records: Records, cells: Sequence[Cell], known: Mapping[PairKey, str]
) -> list[dict[str, Any]]:
    rows = []
    for cell in cells:
        numbers, pairing = cell.numbers, cell.pairing
        gain = pairing.gain.interval if pairing is not None else st.Interval(0, None)
        published = [f"{c.match.row.accuracy} {c.match.row.kind}" for c in cell.comparisons]
        rows.append(
            {
                **cell_data(records, cell, baseline=cell.runs.baseline, role=cell.runs.role),
                "device": "; ".join(cell.devices),
                "n": len(cell.runs.done),
                "wanted": len(cell.trials),
                **interval_data("accuracy", numbers.accuracy),
                "accuracy_note": numbers.accuracy.note,
                "accuracy_by_seed": " ".join(f"{seed}:{csv_cell(a)}" for seed, a in numbers.values.items()),
                "test_set_low": numbers.test_set and numbers.test_set[0],
                "test_set_high": numbers.test_set and numbers.test_set[1],
                **(interval_data("never_removed", numbers.expanded) if cell.kept else _NOTHING_KEPT),
                **interval_data("gain", gain),
                "gain_n": gain.n if pairing is not None else None,
                "gain_note": gain.note,
                "claim": verdict_of(cell, known),
                "published": "; ".join(published) or ("not available" if cell.arm is not None else ""),
                **interval_data("top5", numbers.top5),
                "selected": numbers.selected.mean,
                "best_on_test": numbers.best.mean,
                **{key: cell.mean_of(key) for key in _COSTS},
                "flags": "; ".join(cell.flags),
                "runs": " ".join(str(trial["id"] or "?") for trial in cell.trials),
            }
        )
    return rows


_NOTHING_KEPT = dict.fromkeys(("never_removed", "never_removed_low", "never_removed_high"))


# -- gains and claims ----------------------------------------------------------------------------------------


def gains_table(records: Records, cells: Sequence[Cell], known: Mapping[PairKey, str]) -> Table | None:
    """Return every gain over a baseline, with its interval and the claim's verdict; None without a gain."""
    entries = [(cell, cell.pairing) for cell in cells if cell.pairing is not None]
    if not entries:
        return None
    gained = [cell for cell, _ in entries]
    columns = [
        *cell_columns(gained),
        Column("Baseline", [cell.runs.baseline or "" for cell in gained], common=True),
        Column("Budget", [budget(cell) for cell in gained], "r", common=True),
        Column("Pairs", [str(pairing.gain.interval.n) for _, pairing in entries], "r"),
        Column("Gain, points", [gain_text(pairing) for _, pairing in entries], "r"),
        Column("Seeds' spread, ratio", [_ratio_text(pairing.ratio) for _, pairing in entries], "r"),
        Column("Claim", [verdict_of(cell, known) for cell in gained], common=True),
    ]
    data = [
        {
            **cell_data(records, cell, baseline=cell.runs.baseline),
            **_pair_columns(pairing),
            "claim": verdict_of(cell, known),
        }
        for cell, pairing in entries
    ]
    notes = [
        "Gains are paired by seed, with their 95 % t-interval, uncorrected. A gain without a declared "
        "claim is exploratory: it has an interval and no verdict. Ratio of the seeds' spread: standard "
        "deviation over seeds, the arm's over its baseline's, with the 95 % interval of Pitman and "
        "Morgan; below 1 the arm depends less on the seed."
    ]
    return Table("gains", f"{records.title}: gains over the baseline", columns, data, notes, gained)


def _pair_columns(pairing: Pairing) -> dict[str, Any]:
    gain, test = pairing.gain, pairing.test
    return {
        "pairs": gain.interval.n,
        "seeds": " ".join(map(str, gain.seeds)),
        **interval_data("gain", gain.interval),
        "gain_note": gain.interval.note,
        "p_t_test": gain.p_value,
        "p_sign_flip": test and test.p_value,
        "p_smallest": test and test.smallest,
        **interval_data("spread_ratio", pairing.ratio),
    }


def claims_table(records: Records, judged: Sequence[Judged]) -> Table | None:
    """Return the declared claims with their tests and verdicts; None where none was declared."""
    if not judged:
        return None
    shown = [(entry, entry.cell, entry.pairing) for entry in judged if entry.cell and entry.pairing]
    entries, cells = [entry for entry, _, _ in shown], [cell for _, cell, _ in shown]
    pairings, tests = [pairing for _, _, pairing in shown], [pairing.test for _, _, pairing in shown]
    absent = [entry for entry in judged if not (entry.cell and entry.pairing)]
    columns = [
        *cell_columns(cells),
        Column("Over", [entry.claim.over for entry in entries], common=True),
        Column("At", [entry.claim.at for entry in entries], common=True),
        Column(
            "Operations", [NONE if e.operations is None else f"× {e.operations:.2f}" for e in entries], "r"
        ),
        Column("Pairs", [str(pairing.gain.interval.n) for pairing in pairings], "r"),
        Column("Gain, points", [gain_text(pairing) for pairing in pairings], "r"),
        Column("p, exact", [_p(test.p_value if test else None) for test in tests], "r"),
        Column("smallest", [_p(test.smallest if test else None) for test in tests], "r"),
        Column("p (Holm)", [_p(entry.p_holm) for entry in entries], "r"),
        Column("Margin", [f"{entry.claim.margin:g}" for entry in entries], "r", common=True),
        Column("p, equivalent (Holm)", [_p(entry.p_equivalence_holm) for entry in entries], "r"),
        Column("Seeds' spread, ratio", [_ratio_text(pairing.ratio) for pairing in pairings], "r"),
        Column("Verdict", [entry.verdict for entry in entries]),
        Column("Chosen at an edge", [entry.at_edge for entry in entries], note=True),
    ]
    data = [
        {
            **cell_data(records, cell, over=entry.claim.over, at=entry.claim.at, margin=entry.claim.margin),
            "operations_ratio": entry.operations,
            **_pair_columns(pairing),
            "p_holm": entry.p_holm,
            "p_equivalence": entry.p_equivalence,
            "p_equivalence_holm": entry.p_equivalence_holm,
            "verdict": entry.verdict,
            "at_edge": entry.at_edge,
        }
        for entry, cell, pairing in shown
    ]
    data += [
        {
            "experiment": records.name,
            "arm": entry.claim.arm,
            **{key: getattr(entry.claim, key) for key in ("over", "at", "margin")},
            "verdict": entry.verdict,
        }
        for entry in absent
    ]
    notes = [
        f"{plural(len(judged), 'claim')} declared in the experiment file before the runs. p, exact: "
        "sign-flip test of the paired differences; smallest: the smallest p that so many pairs can "
        "give, so few pairs claim nothing. Holm's correction runs over the declared claims alone, once "
        "for differences and once for equivalence within the margin (two one-sided t-tests); each kind "
        "of statement is wrong in at most 5 % of such tables. better, worse: the corrected exact test "
        "is at most 0.05 and the interval excludes 0. A pair of arms is tested on all its seeds.",
        *(f"{entry.claim.arm} over {entry.claim.over}: {entry.verdict}." for entry in absent),
    ]
    return Table("claims", f"{records.title}: declared claims", columns, data, notes, cells)


def claim_texts(judged: Sequence[Judged]) -> list[str]:
    """Return each claim in sentences: the verdict, the gain, and what was chosen at an edge."""
    return [_claim_text(name, entry) for name, entry in zip(names(judged), judged, strict=True)]


def _claim_text(name: str, entry: Judged) -> str:
    if entry.pairing is None or entry.cell is None:
        return f"{name}: {entry.verdict}."
    pairs = plural(entry.pairing.gain.interval.n, "pair")
    edges = f" {entry.at_edge}." if entry.at_edge else ""
    return f"{name}: {entry.verdict}, {gain_text(entry.pairing)} points, {pairs}.{edges}"
