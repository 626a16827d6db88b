"""The page over all experiments: their answers, the leaderboard, and what was not run."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Return the HTML of the page over all experiments of a report; declared claims come first."""
    told = [(bool(r.judged), r.records.name, r.records.title, answer(r)) for r in reports]
    cells, sources = _distinct(reports)
    board = leaderboard(cells, sources)
    at = {id(cell): i for i, cell in enumerate(cells)}
    plots = {}
    for number, (name, own) in enumerate(_places(cells).items()):
        plot = charts.operations(own, looks(own), name, mark_tuning=True)
        if plot:
            plots[f"operations-{number}"] = plot
    epochs = {id: frame for report in reports for id, frame in report.epochs.items()}
    done = len({t["id"] for cell in cells for t in cell.runs.done})
    return render(
        "leaderboard.html.j2",
        {"cells": details(cells, epochs), "plots": plots, "run_columns": COLUMNS},
        title="All experiments",
        what=f"{plural(len(reports), 'experiment')}, {plural(done, 'finished run')}.",
        declared=[entry[1:] for entry in told if entry[0]],
        exploratory=[entry[1:] for entry in told if not entry[0]],
        board=board,
        positions=positions(board, at),
        plots=list(plots),
        matrix=matrix(cells),
    )


def leaderboard(cells: Sequence[Cell], sources: Sequence[str] = ()) -> Table:
    """Return a row for each cell: method, network, data, accuracy (or ``not run``), gain and costs.

    Each accuracy says whether its configuration was tuned, and with what effort.
    """
    columns = [
        Column("Data set", [cell.facts.dataset or "unknown" for cell in cells]),
        Column("Network", [cell.facts.network for cell in cells]),
        Column("Width", [cell.width_label for cell in cells], "r"),
        Column("W/A", [cell.bits_label for cell in cells]),
        Column("Arm", [cell.label for cell in cells]),
        Column("Test accuracy, %", [_accuracy(cell) for cell in cells], "r"),
        Column("n", [str(len(cell.runs.done)) for cell in cells], "r"),
        Column("Tuning", [_tuning(cell) for cell in cells]),
        Column("Gain, points", [gain_text(cell.pairing) for cell in cells], "r"),
        Column("Budget", [budget(cell) for cell in cells], "r"),
        Column("Operations, 10^12", [_cost(cell, "train_flops", 1e12) for cell in cells], "r"),
        Column("Seconds", [_cost(cell, "wall_seconds", 1.0) for cell in cells], "r"),
        Column("Model, kbit", [_cost(cell, "model_bits", 1e3) for cell in cells], "r"),
        Column("Bit operations, 10^6", [_cost(cell, "bit_operations", 1e6) for cell in cells], "r"),
        Column("Method", [_method(cell) for cell in cells]),
        Column("Effort of the tuning", [cell.search.effort if cell.search else NONE for cell in cells]),
        Column("Experiment", list(sources) or [""] * len(cells)),
    ]
    notes = [
        "tuned: the configuration was chosen on held-out training images, with the effort in its column; "
        "untuned: the hyper-parameters stand in the experiment file, so another arm may fit them better. "
        "Tuned and untuned accuracies are no ranking of methods. "
        "Operations and seconds are those of the training of one run, without that of a teacher which is a "
        "run of its own; seconds depend on the device."
    ]
    return Table("leaderboard", "Leaderboard", columns, (), notes, cells)


def matrix(cells: Sequence[Cell]) -> Table:
    """Return the best mean accuracy of each method (rows) on each data set, network and width (columns).

    A method that was tuned and one that was not are two rows.
    """
    methods = list(dict.fromkeys(map(_row, sorted(cells, key=_tuning))))
    columns = [
        Column("Method", [method for method, _, _ in methods]),
        Column("W/A", [bits for _, bits, _ in methods]),
        Column("Tuning", [tuning for _, _, tuning in methods]),
    ]
    for name, own in _places(cells).items():
        best: dict[tuple[str, str, str], float] = {}
        for cell in own:
            key, mean = _row(cell), cell.numbers.accuracy.mean
            if mean is not None:
                best[key] = max(mean, best.get(key, mean))
        columns.append(Column(name, [fixed(best[m]) if m in best else NOT_RUN for m in methods], "r"))
    return Table("matrix", "Method by network and data", columns)


def _row(cell: Cell) -> tuple[str, str, str]:
    return _method(cell), cell.bits_label, _tuning(cell)


def _tuning(cell: Cell) -> str:
    return "tuned" if cell.search is not None else "untuned"


def _distinct(reports: Sequence[Report]) -> tuple[list[Cell], list[str]]:
    """Return the cells of all experiments, each configuration once, and the experiments that have it.

    Of equal cells the one with the most finished runs is shown. A configuration that one experiment chose
    and another fixed is two rows. Rows of one data set, network, width and bits stand together, the tuned
    ones first, the highest accuracy first; what has tuned rows comes first.
    """
    found: dict[object, Cell] = {}
    sources: dict[object, list[str]] = {}
    for report in reports:
        for cell in report.cells:
            if cell.arm is None:
                continue
            known = bool(cell.runs.config)
            place: object = cell.identity if known else (report.records.name, cell.label, cell.bits_label)
            key = (place, cell.search is None)
            if key not in found or len(cell.runs.done) > len(found[key].runs.done):
                found[key] = cell
            if report.records.name not in sources.setdefault(key, []):
                sources[key].append(report.records.name)
    tuned = {_place(cell) for cell in found.values() if cell.search is not None}
    ordered = sorted(found, key=lambda key: (_place(found[key]) not in tuned, _order(found[key])))
    return [found[key] for key in ordered], [", ".join(sources[key]) for key in ordered]


def _place(cell: Cell) -> tuple[object, ...]:
    facts = cell.facts
    return facts.dataset, facts.network, facts.width or 0.0, facts.bits or (99, 99, 99)


def _order(cell: Cell) -> tuple[object, ...]:
    mean = cell.numbers.accuracy.mean
    return (*_place(cell), cell.search is None, 1.0 if mean is None else -mean)


def _places(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells by data set, network and width."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        facts = cell.facts
        if facts.dataset:
            place = ", ".join(filter(None, [facts.dataset, facts.network, cell.width_text]))
            found.setdefault(place, []).append(cell)
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
