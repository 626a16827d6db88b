"""The self-contained page of an experiment: question, answer, tables with their runs, curves."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.reporting.cells import Cell
from bench.reporting.figures.plans import Drawing
from bench.reporting.figures.series import looks, panels
from bench.reporting.page import charts
from bench.reporting.page.answer import answer, question
from bench.reporting.page.assets import render
from bench.reporting.page.runs import COLUMNS, details
from bench.reporting.report import Report
from bench.reporting.table import Table
from bench.text import clean

_HEADINGS = {  # in the order of the page
    "claims": "Declared claims",
    "accuracy": "Accuracy",
    "gains": "Gains over the baseline",
    "tuning": "Tuning",
    "convergence": "Convergence",
    "published": "Published values",
    "sharpness": "Sharpness of the minima",
    "barriers": "Barriers between seeds",
}
# The beginnings of the names of a section's still figures.
_FIGURES = {"accuracy": ("costs", "widths", "heat"), "gains": ("forest",)}
_COLUMNS = {
    "Arm": "the line of the comparison, as the experiment file names it, with grid axes that have no column",
    "W/A": (
        "bits of weights and activations (and of gradients, where they are quantized); 32 is full precision"
    ),
    "n": "finished runs, one a seed; '2 of 3': one is missing, diverged or failed, see Flags and Runs",
    "Test accuracy": (
        "of the network that would ship, at the last epoch, on the whole test set: the branch removed "
        "(factor 0), fp32. Mean over seeds ± half the 95 % interval (Student's t). One run, or runs that "
        "are all the same, have no interval"
    ),
    "Never removed": (
        "accuracy of a network that keeps its branch: an upper bound, not a network that would ship"
    ),
    "Gain": (
        "accuracy minus the baseline's at the same seed, mean over seeds, with its 95 % interval (paired)"
    ),
    "Claim, Verdict": (
        "of comparisons that the experiment file declares before the runs; every other gain is exploratory"
    ),
    "Published": (
        "what others printed for the same method, network, width and bits, with its kind; never averaged"
    ),
    "Budget": "epochs × training images of an epoch",
    "Deployed, as trained": "with the factor forced to 0; with the branch as it stood at that epoch",
}
RUNS = 600  # rows of the table of all runs; above, the page leaves it to runs.csv and to the opened rows
_CURVES = (
    "Solid: deployed, mean over seeds; band: its 95 % interval. Dashed: expanded, while the branch is on. "
    "A click in the legend hides an arm, a double click shows it alone."
)
_RATES = (
    "Lines: the best mean over the tuning seeds at each rate; dots: single seeds; star: the chosen "
    "configuration. Second figure: the expected best after k configurations."
)


@dataclass(frozen=True)
class _Image:
    caption: str
    data: str  # base64
    width: int  # pixels on the page


@dataclass(frozen=True)
class _Section:
    heading: str
    table: Table | None
    positions: dict[int, int]  # row -> cell
    plots: tuple[str, ...]
    images: tuple[_Image, ...]
    note: str = ""


def page(report: Report, drawings: Sequence[Drawing] = ()) -> str:
    """Return the HTML of an experiment's page."""
    plots = _plots(report)
    by_name = {table.name: table for table in report.tables}
    at = {id(cell): i for i, cell in enumerate(report.cells)}
    sections = [
        _Section(
            heading,
            None if name == "published" and not _published(report) else by_name[name],
            positions(by_name[name], at),
            tuple(key for key in plots if key.startswith(f"{name}-")),
            _images(drawings, _FIGURES.get(name, ())),
            _note(name, report),
        )
        for name, heading in _HEADINGS.items()
        if name in by_name
    ]
    return render(
        "page.html.j2",
        {"cells": details(report.cells, report.epochs), "plots": plots, "run_columns": COLUMNS},
        title=report.records.title,
        question=question(report),
        answer=answer(report),
        what=_what(report),
        sections=sections,
        unfinished=list(_missing(report)),
        columns=_COLUMNS.items(),
        provenance=list(_provenance(report)),
        runs=by_name["runs"] if len(by_name["runs"].cells) <= RUNS else None,
        run_positions=positions(by_name["runs"], at),
        file=report.records.text.splitlines(),
    )


def _missing(report: Report) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield arm, bits, seed, id, status and reason of every run without an accuracy.

    Points that have no run yet because their tuning goes on are yielded, too.
    """
    for cell in report.cells:
        for t in cell.trials:
            if t["status"] != "done":
                reason = clean(t["reason"] or "", 300)
                yield cell.label, cell.bits_label, str(t["seed"]), str(t["id"] or "?"), t["status"], reason
    for search in report.tuned:
        if search.chosen is None:
            reason = f"{search.progress} tuning trials are through; no configuration is chosen yet"
            yield search.label, "", "all", "", "tuning", reason


def positions(table: Table, at: dict[int, int]) -> dict[int, int]:
    """Return the position of the cell of each row; ``at`` maps the identity of a cell to its position."""
    return {row: at[id(cell)] for row, cell in enumerate(table.cells) if id(cell) in at}


def _published(report: Report) -> bool:
    return any(cell.comparisons for cell in report.cells)


def _note(name: str, report: Report) -> str:
    """Return what stands below the table of a section."""
    if name == "published":
        told = "No published value is known for any method, network, width and bits of this experiment."
        return "" if _published(report) else told
    return {"convergence": _CURVES, "tuning": _RATES}.get(name, "")


def _plots(report: Report) -> dict[str, Any]:
    """Return the figures by name; the part of a name before the dash is the section's table."""
    look, drawn = looks(report.cells), panels(report.cells)
    found: dict[str, Any] = {}
    told = charts.claims(report.judged)
    if told:
        found["claims-forest"] = told
    costs = charts.operations(report.cells, look, "Accuracy against training operations")
    if costs:
        found["accuracy-operations"] = costs
    for number, plot in enumerate(charts.rates(report.tuned, look)):
        found[f"tuning-{number}"] = plot
    share = max(20, charts.POINTS // max(1, sum(len(panel.cells) for panel in drawn)))
    for number, panel in enumerate(drawn):
        found[f"convergence-{number}"] = charts.curves(panel, report.epochs, look, share)
    return found


def _what(report: Report) -> str:
    cells: Sequence[Cell] = report.cells
    sets = ", ".join(dict.fromkeys(c.facts.dataset for c in cells if c.facts.dataset))
    networks = ", ".join(dict.fromkeys(c.facts.network for c in cells if c.facts.network))
    return (
        f"Data: {sets or 'unknown'}; network: {networks or 'unknown'}. Measured is the test accuracy of "
        "the network that would ship, after the last epoch, with any training-only branch removed."
    )


def _images(drawings: Sequence[Drawing], starts: Sequence[str]) -> tuple[_Image, ...]:
    """Return the still figures of a section."""
    images = []
    for drawing in drawings:
        if not drawing.name.startswith(tuple(starts) or ("\0",)) or "png" not in drawing.files:
            continue
        png = drawing.files["png"]
        inches = int.from_bytes(png[16:20], "big") / 200  # drawn at 200 dots an inch, shown at 120 pixels
        images.append(_Image(drawing.caption, base64.b64encode(png).decode(), round(inches * 120)))
    return tuple(images)


def _provenance(report: Report) -> Iterator[tuple[str, str]]:
    trials: list[Any] = [trial for cell in report.cells for trial in cell.trials]
    commits = {
        f"{t['commit']}{' with uncommitted changes' if t['dirty'] else ''}" for t in trials if t["commit"]
    }
    versions = {f"{name} {version}" for t in trials for name, version in t["versions"].items()}
    yield "Code", ", ".join(sorted(commits)) or "not recorded"
    yield "Versions", ", ".join(sorted(versions)) or "not recorded"
    yield "Device", "; ".join(sorted({str(t["device"]) for t in trials if t["device"]})) or "not recorded"
    sums = {t["data"].strip('"') for t in trials if t["data"]}
    yield "Data checksums", ", ".join(sorted(sums)) or "not recorded"
    once = {t["id"] or id(t): t["wall_seconds"] or 0 for t in trials}  # a run may serve several arms
    hours = sum(once.values()) / 3600
    yield "Training time", clean(f"{hours:.2f} hours over all runs")
