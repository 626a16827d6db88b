"""The figures of reports, one function each: a matplotlib figure, or None where nothing is recorded.

    bench.plot.convergence("runs", "digits").savefig("curves.png")

A notebook shows a figure that is the last value of a cell. ``results`` is a results folder and
``experiment`` the name or file of an experiment, which may be left out where one alone is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.api import Place, recorded
from bench.errors import InputError
from bench.reporting import figures
from bench.reporting.records import read_experiment
from bench.reporting.report import Report, make_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["convergence", "forest", "learning_rate"]


def convergence(results: Place = "runs", experiment: Place | None = None) -> Figure | None:
    """Return test accuracy, training loss and factor over the epochs, a column for each kind of network."""
    report = _report(results, experiment)
    panels, look = figures.panels(report.cells), figures.looks(report.cells)
    return figures.convergence_figure(panels[: figures.PANELS], report.epochs, look, report.records.title)


def forest(results: Place = "runs", experiment: Place | None = None) -> Figure | None:
    """Return the declared claims, else the paired gains over the baselines, with their 95 % intervals."""
    report = _report(results, experiment)
    rows = figures.claim_rows(report.judged) or figures.gain_rows(report.cells)
    return figures.forest_figure(rows, report.records.title)


def learning_rate(
    results: Place = "runs", experiment: Place | None = None, arms: Sequence[str] | None = None
) -> Figure | None:
    """Return the recorded learning rate and factor of ``arms`` (default all) at the end of each epoch."""
    report = _report(results, experiment)
    return figures.schedule_figure(report.cells, report.epochs, figures.looks(report.cells), arms)


def _report(results: Place, experiment: Place | None) -> Report:
    names = recorded(results, experiment)
    if len(names) > 1:
        raise InputError(f"{results}: several experiments are recorded, name one of them: {', '.join(names)}")
    return make_report(read_experiment(Path(results), names[0]))
