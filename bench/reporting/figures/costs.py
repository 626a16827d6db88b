"""Accuracy against cost: training operations, bits of the model, bit operations of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reporting.cells import Cell
from bench.reporting.figures import style
from bench.reporting.figures.series import Look

COSTS = {
    "train_flops": "training operations",
    "model_bits": "bits of the model",
    "bit_operations": "bit operations of an image",
}


def cost_figure(
    cells: Sequence[Cell], look: Mapping[str, Look], costs: Sequence[str], title: str = ""
) -> Figure | None:
    """Return accuracy against each of ``costs`` (keys of ``COSTS``), a panel each; None without any point.

    A point is a cell: the mean over seeds with its 95 % interval. The grey line is the front: no other cell
    has a higher accuracy at the same or a lower cost. Networks whose branch was never removed are left out:
    they do not ship.
    """
    shown = [c for c in cells if c.arm is not None and not c.kept and c.numbers.accuracy.mean is not None]
    found = [cost for cost in costs if len({c.mean_of(cost) for c in shown} - {None}) > 1]
    if not found:
        return None
    labels = [label for label in look if any(cell.label == label for cell in shown)]
    width = style.COLUMN if len(found) == 1 else style.PAGE
    with style.styled():
        figure = style.new_figure(title, width, 2.3, labels, further=1)
        axes = figure.subplots(1, len(found), sharey=True, squeeze=False)
        for axis, cost in zip(axes[0], found, strict=True):
            _draw(axis, shown, look, cost)
            axis.set_xlabel(COSTS[cost])
        axes[0][0].set_ylabel("test accuracy, %")
        sns.despine(figure)
        handles = [
            style.handle(label, color=look[label].color, marker=look[label].marker or "o", ls="", ms=4)
            for label in labels
        ]
        handles.append(style.handle("best at this cost", color="0.6", lw=0.8))
        style.legend(figure, handles, labels)
    return figure


def _draw(axis: Axes, cells: Sequence[Cell], look: Mapping[str, Look], cost: str) -> None:
    points = []
    for cell in cells:
        x, accuracy = cell.mean_of(cost), cell.numbers.accuracy
        if not x or accuracy.mean is None:
            continue
        how = look[cell.label]
        points.append((x, accuracy.mean))
        marks: dict[str, Any] = {"fmt": how.marker or "o", "ms": 4, **style.ERROR_BARS}
        axis.errorbar(x, accuracy.mean, style.accuracy_bars([accuracy]), color=how.color, **marks)
    front, top = [], -1.0
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > top:
            front.append((x, y))
            top = y
    axis.plot(*zip(*front, strict=True), color="0.6", lw=0.8, zorder=0, drawstyle="steps-post")
    axis.set_xscale("log")
    style.plain_log(axis)
    style.limit_to_accuracies(axis)
