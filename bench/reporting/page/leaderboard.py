"""The page over all experiments: their answers, the leaderboard, and what was not run."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.figures.series import looks
from bench.reporting.page import charts
from bench.reporting.page.answer import answer
from bench.reporting.page.assets import render
from bench.reporting.page.experiment import positions
from bench.reporting.page.runs import COLUMNS, details
from bench.reporting.report import Report
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tables import budget, gain_text, with_interval
from bench.text import fixed, plural

NOT_RUN = "not run"


def leaderboard_page(reports: Sequence[Report]) -> str:
    """Return the HTML of the page over all experiments of a report; those with declared claims come first."""
    ordered = sorted(reports, key=lambda report: not report.judged)
    cells, sources = _distinct(reports)
    board = leaderboard(cells, sources)
    at = {id(cell): i for i, cell in enumerate(cells)}
    plots = {}
    for number, (name, own) in enumerate(_places(cells).items()):
        plot = charts.operations(own, looks(own), name)
        if plot:
            plots[f"operations-{number}"] = plot
    epochs = {id: frame for report in reports for id, frame in report.epochs.items()}
    done = len({t["id"] for cell in cells for t in cell.runs.done})
    return render(
        "leaderboard.html.j2",
        {"cells": details(cells, epochs), "plots": plots, "run_columns": COLUMNS},
        title="All experiments",
        what=f"{plural(len(reports), 'experiment')}, {plural(done, 'finished run')}.",
        experiments=[(r.records.name, r.records.title, answer(r)) for r in ordered],
        board=board,
        positions=positions(board, at),
        plots=list(plots),
        matrix=matrix(cells),
    )


def leaderboard(cells: Sequence[Cell], sources: Sequence[str] = ()) -> Table:
    """Return a row for each cell: method, network, data, accuracy (or ``not run``), gain and costs."""
    columns = [
        Column("Data set", [cell.facts.dataset or "unknown" for cell in cells]),
        Column("Network", [cell.facts.network for cell in cells]),
        Column("Width", ["" if c.facts.width is None else f"{c.facts.width:g}" for c in cells], "r"),
        Column("Method", [_method(cell) for cell in cells]),
        Column("W/A", [cell.bits_label for cell in cells]),
        Column("Arm", [cell.label for cell in cells]),
        Column("Test accuracy, %", [_accuracy(cell) for cell in cells], "r"),
        Column("n", [str(len(cell.runs.done)) for cell in cells], "r"),
        Column("Gain, points", [gain_text(cell.pairing) for cell in cells], "r"),
        Column("Budget", [budget(cell) for cell in cells], "r"),
        Column("Operations, 10^12", [_cost(cell, "train_flops", 1e12) for cell in cells], "r"),
        Column("Seconds", [_cost(cell, "wall_seconds", 1.0) for cell in cells], "r"),
        Column("Model, kbit", [_cost(cell, "model_bits", 1e3) for cell in cells], "r"),
        Column("Bit operations, 10^6", [_cost(cell, "bit_operations", 1e6) for cell in cells], "r"),
        Column("Experiment", list(sources) or [""] * len(cells)),
    ]
    notes = ["Operations and seconds are those of the training of one run; seconds depend on the device."]
    return Table("leaderboard", "Leaderboard", columns, pd.DataFrame(), notes, cells)


def matrix(cells: Sequence[Cell]) -> Table:
    """Return the best mean accuracy of each method (rows) on each data set, network and width (columns)."""
    methods = list(dict.fromkeys((_method(cell), cell.bits_label) for cell in cells))
    places = _places(cells)
    columns = [
        Column("Method", [method for method, _ in methods]),
        Column("W/A", [bits for _, bits in methods]),
    ]
    for name, own in places.items():
        best: dict[tuple[str, str], float] = {}
        for cell in own:
            key, mean = (_method(cell), cell.bits_label), cell.numbers.accuracy.mean
            if mean is not None:
                best[key] = max(mean, best.get(key, mean))
        columns.append(Column(name, [fixed(best[m]) if m in best else NOT_RUN for m in methods], "r"))
    return Table("matrix", "Method by network and data", columns, pd.DataFrame())


def _distinct(reports: Sequence[Report]) -> tuple[list[Cell], list[str]]:
    """Return the cells of all experiments, each configuration once, and the experiments that have it.

    Of equal cells the one with the most finished runs is shown.
    """
    found: dict[object, Cell] = {}
    sources: dict[object, list[str]] = {}
    for report in reports:
        for cell in report.cells:
            if cell.arm is None:
                continue
            known = bool(cell.runs.config)
            key: object = cell.identity if known else (report.records.name, cell.label, cell.bits_label)
            if key not in found or len(cell.runs.done) > len(found[key].runs.done):
                found[key] = cell
            if report.records.name not in sources.setdefault(key, []):
                sources[key].append(report.records.name)
    return list(found.values()), [", ".join(sources[key]) for key in found]


def _places(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by data set, network and width."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        facts = cell.facts
        if facts.dataset:
            width = "" if facts.width is None else f"width {facts.width:g}"
            found.setdefault(", ".join(filter(None, [facts.dataset, facts.network, width])), []).append(cell)
    return found


def _method(cell: Cell) -> str:
    return " + ".join(filter(None, [cell.facts.quantizer, cell.facts.strategy]))


def _accuracy(cell: Cell) -> str:
    if not cell.runs.done:
        return NOT_RUN
    return with_interval(cell.numbers.accuracy) if not cell.kept else "branch never removed"


def _cost(cell: Cell, column: str, unit: float) -> str:
    mean = cell.mean_of(column)
    return NONE if mean is None else f"{mean / unit:.4g}"
