"""Which figures a report has: their names, their captions, and what draws them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from bench.reporting.ablation import ablations
from bench.reporting.cells import Cell
from bench.reporting.figures.convergence import convergence_figure
from bench.reporting.figures.costs import COSTS, cost_figure
from bench.reporting.figures.forest import ROWS, claim_rows, forest_figure, gain_rows
from bench.reporting.figures.heat import heat_figure
from bench.reporting.figures.series import even_parts, looks, panels
from bench.reporting.figures.style import PANELS, TOGETHER, render
from bench.reporting.figures.tuning import tuning_figure
from bench.reporting.figures.widths import width_figure
from bench.reporting.report import Report

SINGLE_PANELS = 6  # up to so many panels get a figure of their own at column width


@dataclass(frozen=True)
class Drawing:
    """A figure as files: its name, its caption, and its bytes by kind (``png``, ``pdf``)."""

    name: str
    caption: str
    files: Mapping[str, bytes]


def draw(report: Report, kinds: Sequence[str]) -> list[Drawing]:
    """Return the figures of a report in the given kinds (``png``, ``pdf``)."""
    drawings = []
    for name, caption, make in plans(report):
        figure = make()
        if figure is not None:
            files = {kind: render(figure, kind) for kind in kinds}
            drawings.append(Drawing(name, caption, files))
    return drawings


Plan = tuple[str, str, Callable[[], Figure | None]]  # file name, caption, the function that draws


def plans(report: Report) -> Iterator[Plan]:
    """Yield the file name, the caption and the function that draws of every figure."""
    cells, look, title = report.cells, looks(report.cells), report.records.title
    training, *others = COSTS
    caption = "Test accuracy against training operations."
    yield "operations", caption, partial(cost_figure, cells, look, [training], title)
    caption = "Test accuracy against bits of the model and bit operations."
    yield "costs", caption, partial(cost_figure, cells, look, others, title)
    caption = "Accuracy by width: ours and published."
    yield "widths", caption, partial(width_figure, cells, look, title)
    caption = (
        "Test accuracy over the axes of the strategy: mean, half its 95 % interval, tuned learning rate."
    )
    yield "heat", caption, partial(heat_figure, ablations(cells, report.tuned), title)
    yield from _searches(report)
    yield _forest(report)
    yield from _curves(report)


def _searches(report: Report) -> Iterator[Plan]:
    """Yield the plans of the searches: so many a figure as there are colours."""
    caption = "Held-out accuracy against the learning rate, and the expected best after k configurations."
    parts = even_parts([search for search in report.tuned if search.scored], TOGETHER)
    for number, own in enumerate(parts, 1):
        name = "tuning" if len(parts) == 1 else f"tuning-{number}"
        yield name, caption, partial(tuning_figure, own, looks(report.cells), report.records.title)


def _forest(report: Report) -> Plan:
    """Return the plan of the gains: the declared claims alone, where there are any."""
    rows = claim_rows(report.judged)
    caption = "Declared claims: gains over the baseline, paired by seed."
    if not rows:
        rows = gain_rows(report.cells)
        caption = "Gains over the baseline, paired by seed. No claim was declared: all are exploratory."
    if len(rows) > ROWS:
        caption += f" The first {ROWS} of {len(rows)} gains; the table has all."
    return "forest", caption, partial(forest_figure, rows, report.records.title)


def _curves(report: Report) -> Iterator[Plan]:
    """Yield the plans of the convergence curves."""
    found = panels(report.cells)
    drawn = found[:PANELS]
    caption = "Test accuracy, training loss and factor."
    if len(found) > len(drawn):
        caption += f" The first {len(drawn)} of {len(found)} panels; curves.csv has all."
    look, title = looks(report.cells), report.records.title
    curves = partial(convergence_figure, epochs=report.epochs, look=look, title=title)
    if len(drawn) <= SINGLE_PANELS:
        names = _unique(["curves" if len(drawn) == 1 else f"curves-{_slug(panel.title)}" for panel in drawn])
        for name, panel in zip(names, drawn, strict=True):
            yield name, caption, partial(curves, [panel])
    if len(drawn) == 1 and len(drawn[0].cells) > 4:
        yield "curves_wide", caption, partial(curves, drawn, wide=True)
    if len(drawn) > 1:
        for start in range(0, len(drawn), 3):
            name = "curves_wide" if len(drawn) <= 3 else f"curves_wide-{start // 3 + 1}"
            yield name, caption, partial(curves, drawn[start : start + 3])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60] or "panel"


def _unique(names: Sequence[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        suffix = ""
        while name + suffix in unique:
            suffix += "-2"
        unique.append(name + suffix)
    return unique


def gains_figure(reports: Sequence[Report]) -> Figure | None:
    """Return the gains of all experiments in one figure; None without any.

    They are the declared claims; where none was declared, the exploratory gains with the most pairs.
    """
    rows = [row for report in reports for row in claim_rows(report.judged, report.records.name)]
    if rows:
        shown = f": the first {ROWS} of {len(rows)}" if len(rows) > ROWS else ""
        return forest_figure(rows, f"Declared claims of all experiments{shown}")
    cells: dict[object, Cell] = {}
    for report in reports:
        for cell in report.cells:
            cells.setdefault(cell.identity, cell)
    found = gain_rows(list(cells.values()))
    most = sorted(found, key=lambda row: -row.interval.n)[:ROWS]
    title = f"No claim was declared. The {len(most)} of {len(found)} exploratory gains with the most pairs"
    return forest_figure(most, title)
