"""Ablations over two grid axes: one heat map an arm, with mean and interval in every field."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench.experiments.labels import plain
from bench.reporting.cells import Cell
from bench.reporting.figures.style import COLUMN, PAGE, new_figure, style, wrapped
from bench.text import fixed

_HAVE_PANELS = ("width", "bits", "dataset", "network", "epochs")


def heat_figure(cells: Sequence[Cell], title: str = "") -> Figure | None:
    """Return the accuracy of each arm that has two grid axes with several values; None without such an arm.

    A field holds the mean over seeds and half its 95 % interval; an empty field was not run.
    """
    groups = _groups(cells)
    if not groups:
        return None
    across = min(2, len(groups))
    down = -(-len(groups) // across)
    width = COLUMN * 1.35 if across == 1 else PAGE
    rows = max(len(_values(group, axes[0])) for _, axes, group in groups)
    means = [m for _, _, g in groups for c in g if (m := c.numbers.accuracy.mean) is not None]
    with style():
        figure = new_figure(title, width, down * (0.32 * rows + 0.8) + 0.2)
        drawn = figure.subplots(down, across, squeeze=False)
        for axis, (name, axes, group) in zip(drawn.flat, groups, strict=False):
            image = _draw(axis, axes, group, min(means), max(means))
            axis.set_title(wrapped(name, 44))
        for axis in list(drawn.flat)[len(groups) :]:
            axis.set_axis_off()
        figure.colorbar(image, ax=list(drawn.flat), label="test accuracy, %", shrink=0.8)
        figure.canvas.draw()
    return figure


_Group = tuple[str, tuple[str, str], list[Cell]]


def _groups(cells: Sequence[Cell]) -> list[_Group]:
    """Return (title, axes, cells) of each arm, width, bits and budget with two varying axes and a result."""
    found: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.arm is not None:
            facts = cell.facts
            key = (cell.arm, facts.dataset, facts.network, facts.width, cell.bits_label, facts.epochs)
            found.setdefault(key, []).append(cell)
    groups: list[_Group] = []
    for key, group in found.items():
        names = sorted({name for cell in group for name in cell.runs.grid} - set(_HAVE_PANELS))
        axes = [name for name in names if len(_values(group, name)) > 1]
        if len(axes) == 2 and any(cell.numbers.accuracy.mean is not None for cell in group):
            width = "" if key[3] is None else f"width {key[3]:g}"
            title = ", ".join(filter(None, [key[0], width, key[4] and f"W/A {key[4]}", f"{key[5]} epochs"]))
            groups.append((title, (axes[0], axes[1]), group))
    return groups


def _values(cells: Sequence[Cell], axis: str) -> list[str]:
    """Return the values of an axis: numbers in their order, others in the order of the cells."""
    values = [cell.runs.grid[axis] for cell in cells if axis in cell.runs.grid]
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return list(dict.fromkeys(map(plain, values)))


def _draw(axis: Axes, axes: tuple[str, str], group: Sequence[Cell], low: float, high: float) -> AxesImage:
    rows, columns = _values(group, axes[0]), _values(group, axes[1])
    image = np.full((len(rows), len(columns)), np.nan)
    for cell in group:
        if all(name in cell.runs.grid for name in axes) and cell.numbers.accuracy.mean is not None:
            y = rows.index(plain(cell.runs.grid[axes[0]]))
            x = columns.index(plain(cell.runs.grid[axes[1]]))
            interval = cell.numbers.accuracy
            image[y, x] = interval.mean
            text = fixed(interval.mean or 0.0, 1) + (
                f"\n± {interval.half:.1f}" if interval.half is not None else ""
            )
            light = (interval.mean or 0.0) > (low + high) / 2
            axis.text(x, y, text, ha="center", va="center", fontsize=6, color="black" if light else "white")
    shown = axis.imshow(image, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(rows)), [wrapped(value, 14, 1) for value in rows])
    axis.set_xticks(range(len(columns)), [wrapped(value, 10, 1) for value in columns])
    axis.set_ylabel(axes[0].rpartition("strategy.")[2])
    axis.set_xlabel(axes[1].rpartition("strategy.")[2])
    return shown
