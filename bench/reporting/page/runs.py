"""The runs behind each cell, as the page shows them when a row is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.grouping import Trial
from bench.reporting.table import NONE
from bench.reporting.tables import budget, gain_text, with_interval
from bench.text import fixed, signed

COLUMNS = (
    ("Seed", "r"),
    ("Run", "l"),
    ("Status", "l"),
    ("Accuracy, %", "r"),
    ("Less the baseline's", "r"),
    ("Baseline's run", "l"),
    ("Epochs", "r"),
    ("Seconds", "r"),
    ("Signs flipped in the last epoch", "r"),
    ("Branch over main path", "r"),
    ("Device", "l"),
    ("Code", "l"),
    ("Record and log", "l"),
    ("Remarks", "l"),
)
POINTS = 40_000  # of the curves of single runs of a page; above, they are thinned to evenly spaced epochs


def details(cells: Sequence[Cell], epochs: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return for each cell its title, its flags and its runs; ``epochs`` maps a trial's id to its epochs."""
    share = max(8, POINTS // max(1, sum(len(cell.trials) for cell in cells)))
    return [_cell(cell, epochs, share) for cell in cells]


def _cell(cell: Cell, epochs: Mapping[str, pd.DataFrame], share: int) -> dict[str, Any]:
    partners = {t["seed"]: t for t in cell.pairing.against.trials} if cell.pairing is not None else {}
    title = f"{cell.label}, {budget(cell)}: {with_interval(cell.numbers.accuracy)} %"
    if cell.pairing is not None:
        title += f"; gain over {cell.pairing.against.label}: {gain_text(cell.pairing)} points"
    runs = []
    for trial in cell.trials:
        lines = epochs.get(trial["id"])
        values = _values(trial, partners.get(trial["seed"]), lines, cell.facts.epochs)
        run: dict[str, Any] = {"values": values}
        if lines is not None:
            run["curve"] = _curve(lines, share)
        runs.append(run)
    return {"title": title, "notes": list(cell.flags), "runs": runs}


def _values(
    trial: Trial, partner: Trial | None, lines: pd.DataFrame | None, planned: int | None
) -> list[str]:
    accuracy = trial["accuracy"]
    other = partner["accuracy"] if partner is not None else None
    return [
        str(trial["seed"]),
        str(trial["id"] or "?"),
        trial["status"],
        NONE if accuracy is None else fixed(accuracy),
        NONE if accuracy is None or other is None else signed(accuracy - other),
        str(partner["id"] or "?") if partner is not None else "",
        f"{trial['epochs_done'] or 0:g}/{planned or '?'}",
        "" if trial["wall_seconds"] is None else f"{trial['wall_seconds']:.0f}",
        _last(lines, "sign_flip_rate"),
        _last(lines, "branch_ratio"),
        str(trial["device"] or ""),
        str(trial["commit"] or "")[:10] + (" with uncommitted changes" if trial["dirty"] else ""),
        f"{trial['results']}/trials/{trial['id']}" if trial["id"] else "",
        "; ".join(filter(None, [trial["reason"], *trial["flags"], *trial["warnings"]])),
    ]


def _last(lines: pd.DataFrame | None, column: str) -> str:
    known = [] if lines is None else [value for value in lines[column] if not pd.isna(value)]
    return f"{known[-1]:.3g}" if known else ""


def _curve(lines: pd.DataFrame, share: int) -> list[list[Any]]:
    """Return epochs and accuracies of a run, at most ``share`` of them, the last one among them."""
    tested = lines.dropna(subset=["test_acc"])
    step = -(-len(tested) // share) if len(tested) else 1
    tested = tested.iloc[(len(tested) - 1) % step :: step] if len(tested) else tested
    return [[int(e) for e in tested["epoch"]], [round(float(a), 2) for a in tested["test_acc"]]]
