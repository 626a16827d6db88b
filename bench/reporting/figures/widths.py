"""Accuracy by width: ours beside the published values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reporting.cells import Cell
from bench.reporting.figures.series import Look, full_precision, root_of
from bench.reporting.figures.style import (
    COLUMN,
    PAGE,
    PANELS,
    Drawn,
    handle,
    headline_of,
    legend,
    legend_columns,
    room,
    style,
)
from bench.text import clean


def width_figure(cells: Sequence[Cell], look: Mapping[str, Look], title: str = "") -> Figure | None:
    """Return accuracy by width, a panel for each quantizer, bits and budget: ours beside the published
    values.

    Filled: ours (mean, 95 % interval). Hollow: published. A cross at the bottom: no finished run. None for
    one width.
    """
    kinds = {cell.arm: cell.facts.quantizer for cell in cells if cell.facts.quantizer}
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.arm is None or cell.facts.width is None or full_precision(cell):
            continue
        root = root_of(cell)
        place = (
            cell.facts.dataset,
            cell.facts.network,
            kinds.get(cell.arm, ""),
            cell.facts.bits or (),
            cell.facts.precision if cell.pairing is None else "",
        )
        groups.setdefault((*place[:4], root.facts.epochs), []).append(cell)
    groups = _absorb_unknown(groups)
    widths = sorted(
        {cell.facts.width for group in groups.values() for cell in group if cell.facts.width is not None}
    )
    if len(widths) < 2:
        return None
    keys = sorted(groups, key=lambda key: (key[0], key[1], key[4] or 0, _first_order(groups[key]), key[3]))[
        :PANELS
    ]
    across = min(3, len(keys))
    down = -(-len(keys) // across)
    labels = [label for label in look if any(cell.label == label for key in keys for cell in groups[key])]
    figure_width = COLUMN if across == 1 else PAGE
    columns = legend_columns(labels, figure_width)
    varying = [i for i in range(5) if len({key[i] for key in keys}) > 1] or [2, 3]
    headline = headline_of(title, figure_width)
    published = missing = False
    with style():
        height = 1.75 * down + 0.5 + 0.125 * -(-(len(labels) + 3) // columns) + room(headline)
        figure = Drawn(figsize=(figure_width, height), layout="constrained")
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        if title:
            figure.suptitle(headline, fontsize=8)
        for key, axis in zip(keys, axes.flat, strict=False):
            facts = [key[0], key[1], key[2], "W/A " + "/".join(map(str, key[3][:2])), f"{key[4]} epochs"]
            axis.set_title(clean(", ".join(facts[i] for i in varying), 48))
            series = list(dict.fromkeys(cell.label for cell in groups[key]))
            for k, name in enumerate(series):
                own = sorted((c for c in groups[key] if c.label == name), key=lambda c: c.facts.width or 0)
                shift = 1.0 + 0.05 * (k - (len(series) - 1) / 2)  # side by side, on the logarithmic axis
                published |= _draw_widths(axis, own, look[name], shift)
                missing |= _draw_missing(axis, own, look[name], shift)
            axis.set_xscale("log", base=2)
            axis.set_xlim(widths[0] / 1.3, widths[-1] * 1.3)
            ticks: list[float] = []
            for width in widths:
                if not ticks or width >= 1.6 * ticks[-1]:
                    ticks.append(width)
            axis.set_xticks(ticks, [f"{width:g}" for width in ticks])
            axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        low, high = axes[0][0].get_ylim()
        axes[0][0].set_ylim(max(low, 0.0), min(high, 101.0))  # intervals may reach beyond, accuracies cannot
        for axis in list(axes.flat)[len(keys) :]:
            axis.set_axis_off()
        for j in range(across):
            lowest = [row[j] for row in axes if row[j].axison][-1]
            lowest.set_xlabel("width multiplier")
            lowest.tick_params(labelbottom=True)
        for row in axes:
            row[0].set_ylabel("test accuracy, %")
        sns.despine(figure)
        handles = [handle(label, color=look[label].color, marker="o", ms=3.5) for label in labels]
        handles.append(handle("ours, 95 % interval", marker="o", ms=3.5))
        dots: dict[str, Any] = {"ls": (0, (1, 1)), "lw": 0.8}
        handles += [handle("published", marker="o", ms=3.5, mfc="white", **dots)] * published
        handles += [handle("no finished run", marker="x", ms=4, ls="")] * missing
        legend(figure, handles, columns)
    return figure


def _first_order(group: Sequence[Cell]) -> int:
    return min(cell.runs.order for cell in group)


def _absorb_unknown(groups: dict[tuple, list[Cell]]) -> dict[tuple, list[Cell]]:
    """Put cells of which nothing was ever recorded into the panel of their arm, where bits tell which."""
    result = {key: list(group) for key, group in groups.items() if key[0]}
    for key, group in groups.items():
        for cell in group if not key[0] else []:
            for other, members in result.items():
                same = any(member.arm == cell.arm for member in members)
                if same and (not cell.facts.bits or cell.facts.bits == other[3]):
                    members.append(cell)
                    break
            else:
                result.setdefault(key, []).append(cell)
    return result


def _draw_widths(axis: Axes, own: Sequence[Cell], how: Look, shift: float) -> bool:
    """Draw one arm, and its published values; return whether it has any."""
    known = [cell for cell in own if cell.numbers.accuracy.mean is not None]
    x = np.array([cell.facts.width for cell in known], dtype=float) * shift
    y = np.array([cell.numbers.accuracy.mean for cell in known], dtype=float)
    half = np.array([cell.numbers.accuracy.half or 0.0 for cell in known])
    axis.errorbar(
        x, y, half, color=how.color, marker="o", ms=3.5, lw=1.1, elinewidth=0.8, capsize=1.8, capthick=0.8
    )
    targets = [
        (cell.facts.width * shift, c.match.row.accuracy)
        for cell in own
        for c in cell.comparisons
        if c.match.row.metric == "top1" and cell.facts.width is not None
    ]
    if targets:
        tx, ty = zip(*targets, strict=True)
        axis.plot(
            tx,
            ty,
            color=how.color,
            marker="o",
            ms=3.5,
            mfc="white",
            mew=0.9,
            ls=(0, (1, 1)),
            lw=0.8,
            zorder=1.5,
        )
    return bool(targets)


def _draw_missing(axis: Axes, own: Sequence[Cell], how: Look, shift: float) -> bool:
    absent = [
        cell.facts.width * shift
        for cell in own
        if cell.numbers.accuracy.mean is None and cell.facts.width is not None
    ]
    if absent:  # an empty line that is not clipped would upset the layout
        bottom = axis.get_xaxis_transform()
        axis.plot(
            absent, [0.03] * len(absent), "x", color=how.color, ms=4, mew=1.0, transform=bottom, clip_on=False
        )
    return bool(absent)
