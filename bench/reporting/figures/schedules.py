"""Learning rate and factor over the epochs, as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from bench.errors import InputError, nearest
from bench.reporting.cells import Cell
from bench.reporting.figures.series import Look
from bench.reporting.figures.style import COLUMN, handle, legend, new_figure, styled


def schedule_figure(
    cells: Sequence[Cell],
    epochs: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    arms: Sequence[str] | None = None,
) -> Figure | None:
    """Return learning rate and factor of the first recorded run of each cell of ``arms`` (default all).

    Without records the figure is None. Raises ``InputError`` for an arm that is not there.
    """
    known = list(dict.fromkeys(cell.arm for cell in cells if cell.arm is not None))
    for name in arms or ():
        if name not in known:
            raise InputError(f"arms: no run of an arm {name!r} is recorded.{nearest(name, known)}")
    runs = []
    for cell in cells:
        ids = [trial["id"] for trial in cell.trials if trial["id"] in epochs]
        if ids and cell.arm is not None and (arms is None or cell.arm in arms):
            runs.append((cell, epochs[ids[0]].assign(lr=lambda run: pd.to_numeric(run["lr"]))))
    if not runs:
        return None
    faded = [(cell, run) for cell, run in runs if (pd.to_numeric(run["factor"]) > 0).any()]
    labels = list(dict.fromkeys(cell.label for cell, _ in runs))
    rows = 1 + bool(faded)
    with styled():
        figure = new_figure("", COLUMN, 1.3 * rows + 0.4, labels)
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        for cell, run in runs:
            axes[0].plot(run["epoch"], run["lr"], color=look[cell.label].color)
        for cell, run in faded:
            axes[1].plot(run["epoch"], pd.to_numeric(run["factor"]), color=look[cell.label].color)
        axes[0].set_ylabel("learning rate")
        if faded:
            axes[1].set_ylabel("factor")
            axes[1].set_ylim(-0.05, 1.05)
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        sns.despine(figure)
        figure.align_ylabels()
        legend(figure, [handle(label, color=look[label].color) for label in labels], labels)
    return figure
