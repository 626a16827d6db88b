"""What a report shows of one experiment, before any file is written: tables and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bench.errors import InputError
from bench.reporting import deployment, detail_tables, minima, tables, tuning_table
from bench.reporting.ablation import ablations
from bench.reporting.assembly import make_cells
from bench.reporting.cells import Cell
from bench.reporting.claims import Judged, PairKey, judge, verdicts
from bench.reporting.convergence import convergence
from bench.reporting.published_tables import Row, find_table, load_names, load_table
from bench.reporting.records import Records
from bench.reporting.table import Table
from bench.reporting.tuned import Searched, searches
from bench.text import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE_PANELS = 6  # up to so many panels get a figure of their own at column width


@dataclass(frozen=True)
class Drawing:
    """A figure as files: its name, its caption, and its bytes by kind (``png``, ``pdf``)."""

    name: str
    caption: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Report:
    """The tables of an experiment.

    ``epochs`` maps a trial's id to its epochs; ``tuned`` are the searches of the arms.
    """

    records: Records
    cells: Sequence[Cell]
    judged: Sequence[Judged]
    tables: Sequence[Table]
    epochs: Mapping[str, pd.DataFrame] = field(repr=False)
    tuned: Sequence[Searched] = ()


def cells_of(records: Records) -> list[Cell]:
    """Return an experiment's cells beside its published values; ``InputError`` for a bad table."""
    folders = [records.folder / "published"] if records.folder is not None else []
    folders.append(Path("paper_tables") / "published")  # of the working copy
    names = load_names(folders)
    named = (published.get("table") for published in records.published.values())
    wanted = [*records.targets, *(name for name in named if isinstance(name, str))]
    published: dict[str, Sequence[Row]] = {}
    for name in dict.fromkeys(wanted):
        try:
            published[name] = load_table(find_table(name, folders), names)
        except InputError as error:
            raise InputError(f"{clean(records.name)}.toml: {error}") from None
    return make_cells(records, published, names)


def make_report(
    records: Records,
    cells: Sequence[Cell] | None = None,
    judged: Sequence[Judged] | None = None,
    known: Mapping[PairKey, str] | None = None,
) -> Report:
    """Return the tables of an experiment's records.

    ``cells`` is ``cells_of(records)``, ``judged`` its declared claims, judged on the seeds of all experiments
    of the report, and ``known`` the verdicts of all declared claims of the report, of other experiments as
    well.
    """
    cells = cells_of(records) if cells is None else cells
    tuned = searches(records.searches)
    if judged is None:
        judged = judge(records, cells)
    known = verdicts(judged) if known is None else known
    epochs = {str(id): frame.reset_index(drop=True) for id, frame in records.epochs.groupby("id", sort=False)}
    timed = [convergence(cell, epochs) for cell in cells if cell.arm is not None]
    found = [
        tables.accuracy_table(records, cells, known),
        tables.claims_table(records, judged),
        tables.gains_table(records, cells, known),
        tuning_table.tuning_table(records, tuned),
        detail_tables.convergence_table(records, timed),
        detail_tables.published_table(records, cells),
        minima.sharpness_table(records, cells),
        minima.barrier_table(records, cells),
        deployment.deployment_table(records, cells),
        detail_tables.runs_table(records, cells),
    ]
    return Report(records, cells, judged, [table for table in found if table is not None], epochs, tuned)


def draw(report: Report, kinds: Sequence[str]) -> list[Drawing]:
    """Return the figures of a report in the given kinds (``png``, ``pdf``)."""
    from bench.reporting import figures

    drawings = []
    for name, caption, make in plans(report):
        figure = make()
        if figure is not None:
            files = {kind: figures.render(figure, kind) for kind in kinds}
            drawings.append(Drawing(name, caption, files))
    return drawings


Plan = tuple[str, str, "Callable[[], Figure | None]"]  # file name, caption, the function that draws


def plans(report: Report) -> Iterator[Plan]:
    """Yield the file name, the caption and the function that draws of every figure."""
    from bench.reporting import figures

    cells, look, title = report.cells, figures.looks(report.cells), report.records.title
    training, *others = figures.COSTS
    caption = "Test accuracy against training operations."
    yield "operations", caption, partial(figures.cost_figure, cells, look, [training], title)
    caption = "Test accuracy against bits of the model and bit operations."
    yield "costs", caption, partial(figures.cost_figure, cells, look, others, title)
    caption = "Accuracy by width: ours and published."
    yield "widths", caption, partial(figures.width_figure, cells, look, title)
    caption = (
        "Test accuracy over the axes of the strategy: mean, half its 95 % interval, tuned learning rate."
    )
    yield "heat", caption, partial(figures.heat_figure, ablations(cells, report.tuned), title)
    yield from _searches(report)
    yield _forest(report)
    yield from _curves(report)


def _searches(report: Report) -> Iterator[Plan]:
    """Yield the plans of the searches: so many a figure as there are colours."""
    from bench.reporting import figures

    caption = "Held-out accuracy against the learning rate, and the expected best after k configurations."
    shown = [search for search in report.tuned if search.scored]
    count = -(-len(shown) // figures.TOGETHER)
    size = -(-len(shown) // max(1, count))
    for part in range(count):
        name = "tuning" if count == 1 else f"tuning-{part + 1}"
        own = shown[part * size : (part + 1) * size]
        yield name, caption, partial(figures.tuning_figure, own, report.records.title)


def _forest(report: Report) -> Plan:
    """Return the plan of the gains: the declared claims alone, where there are any."""
    from bench.reporting import figures

    rows = figures.claim_rows(report.judged)
    caption = "Declared claims: gains over the baseline, paired by seed."
    if not rows:
        rows = figures.gain_rows(report.cells)
        caption = "Gains over the baseline, paired by seed. No claim was declared: all are exploratory."
    if len(rows) > figures.ROWS:
        caption += f" The first {figures.ROWS} of {len(rows)} gains; the table has all."
    return "forest", caption, partial(figures.forest_figure, rows, report.records.title)


def _curves(report: Report) -> Iterator[Plan]:
    """Yield the plans of the convergence curves."""
    from bench.reporting import figures

    panels = figures.panels(report.cells)
    drawn = panels[: figures.PANELS]
    caption = "Test accuracy, training loss and factor."
    if len(panels) > len(drawn):
        caption += f" The first {len(drawn)} of {len(panels)} panels; curves.csv has all."
    look, title = figures.looks(report.cells), report.records.title
    curves = partial(figures.convergence_figure, epochs=report.epochs, look=look, title=title)
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
