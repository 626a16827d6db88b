"""Ablations: one heat map an arm, with mean and interval in every field, beside the arms without an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench.reporting.ablation import ARM, NOT_RUN, Ablation, Spot
from bench.reporting.figures.style import COLUMN, PAGE, new_figure, styled, wrapped
from bench.text import fixed

_ROOMY = 4  # columns of a panel that fit half a page


def heat_figure(panels: Sequence[Ablation], title: str = "") -> Figure | None:
    """Return the accuracies of the panels, one below the other; None where no field has a state or a result.

    A field holds the mean over seeds, half its 95 % interval, the chosen learning rate where it was tuned,
    and ``n = 2 of 5`` where runs are missing; or why it has no accuracy. All panels have one scale.
    """
    if not any(panel.spots for panel in panels):
        return None
    means = [m for p in panels for s in p.spots.values() if (m := s.accuracy.mean) is not None]
    limits = (min(means), max(means)) if means else (0.0, 100.0)
    wide = max(len(panel.columns) for panel in panels) > _ROOMY or any(not p.row_axis for p in panels)
    width = PAGE if wide else COLUMN * 1.35
    lines = [max(_text(spot).count("\n") + 1 for spot in panel.spots.values()) for panel in panels]
    heights = [0.13 * n * len(panel.rows) + 0.12 for n, panel in zip(lines, panels, strict=True)]
    with styled():
        figure = new_figure(title, width, sum(heights) + 0.62 * len(panels) + 0.2)
        drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, panel in zip(drawn, panels, strict=True):
            image = _draw(axis, panel, *limits)
            axis.set_title(wrapped(panel.title, int(width * 13), 2))
        if means:
            figure.colorbar(image, ax=list(drawn), label="test accuracy, %", shrink=0.8)
        figure.canvas.draw()
    return figure


def _text(spot: Spot) -> str:
    rate = [f"rate {spot.rate:.3g}"] if spot.rate is not None else []
    interval = spot.accuracy
    if interval.mean is None:
        state = spot.state if spot.state == NOT_RUN else spot.state.replace(" ", "\n", 1)
        return "\n".join([state, *rate])
    lines = [fixed(interval.mean, 1)]
    if interval.half is not None:
        lines.append(f"± {interval.half:.1f}")
    if spot.done < spot.wanted:
        lines.append(f"n = {spot.done} of {spot.wanted}")
    return "\n".join([*lines, *rate])


def _draw(axis: Axes, panel: Ablation, low: float, high: float) -> AxesImage:
    image = np.full((len(panel.rows), len(panel.columns)), np.nan)
    for y, row in enumerate(panel.rows):
        for x, column in enumerate(panel.columns):
            spot = panel.spots.get((row, column))
            mean = spot.accuracy.mean if spot is not None else None
            text, color = NOT_RUN if spot is None else _text(spot), "0.35"
            if mean is not None:
                image[y, x] = mean
                color = "black" if mean > (low + high) / 2 else "white"
            axis.text(x, y, text, ha="center", va="center", fontsize=6, color=color)
    shown = axis.imshow(image, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(panel.rows)), [wrapped(value, 14, 1) for value in panel.rows])
    if not panel.row_axis:
        axis.tick_params(left=False)
    axis.set_xticks(range(len(panel.columns)), [wrapped(value, 22, 2) for value in panel.columns])
    axis.set_ylabel(panel.row_axis.rpartition("strategy.")[2])
    axis.set_xlabel("" if panel.column_axis == ARM else panel.column_axis.rpartition("strategy.")[2])
    return shown
