"""Paired gains with their intervals, one line each."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reporting.cells import Cell, Pairing
from bench.reporting.figures.series import Look
from bench.reporting.figures.style import COLUMN, GAINS, PAGE, PALETTE, Drawn, headline_of, room, style
from bench.text import clean, signed

_BACKING = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 0.6,
}  # behind text that crosses the line at zero
_STEP = 0.27  # inches from one gain to the next


def forest_figure(
    cells: Sequence[Cell],
    look: Mapping[str, Look] | None = None,
    title: str = "",
    headings: Mapping[int, str] | None = None,
) -> Figure | None:
    """Return the paired gains with their intervals, one line each; a gain without an interval is hollow.

    ``headings`` maps the position of a cell in ``cells`` to the line written above the first gain from there
    on.
    """
    places = [
        i
        for i, cell in enumerate(cells)
        if cell.pairing is not None and cell.pairing.gain.interval.mean is not None
    ]
    shown = [cells[i] for i in places]
    if not shown:
        return None
    if len(shown) > GAINS:
        title = f"{clean(title, 80)}: the first {GAINS} of {len(shown)} gains"
        shown = shown[:GAINS]
    starts = sorted(headings or {})
    names = _names(shown, [bisect.bisect_right(starts, place) for place in places])
    wide = max(map(len, names)) > 40
    above = {
        next((k for k, i in enumerate(places) if i >= start), -1): text
        for start, text in (headings or {}).items()
    }
    lines, line = [], 0  # a heading takes a line of its own
    for k in range(len(shown)):
        line += k in above
        lines.append(line)
        line += 1
    with style():
        headline = headline_of(title, PAGE if wide else COLUMN)
        height = _STEP * line + 0.55 + room(headline)
        figure = Drawn(figsize=(PAGE if wide else COLUMN, height), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0, color="black", lw=0.7)
        for k, text in above.items():
            if 0 <= k < len(shown):
                place: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "bottom"}
                axis.text(
                    0.0,
                    lines[k] - 0.95,
                    clean(text, 100),
                    ha="left",
                    bbox=_BACKING,
                    fontsize=7.0,
                    weight="bold",
                    **place,
                )
        for y, cell, name in zip(lines, shown, names, strict=True):
            color = look[cell.label].color if look and cell.label in look else PALETTE[0]
            assert cell.pairing is not None
            _draw_gain(axis, y, cell.pairing, clean(name, 90 if wide else 44), color)
        axis.set_ylim(line - 0.5, -0.85)
        axis.set_yticks([])
        axis.set_xlabel("gain over the baseline, points (95 % interval)")
        axis.margins(x=0.04)
        if title:
            axis.set_title(headline)
        sns.despine(figure, left=True)
        figure.canvas.draw()
    return figure


def _names(shown: Sequence[Cell], groups: Sequence[int]) -> list[str]:
    """Return the name of each gain: its label and in what it differs from the gains under the same heading."""
    facts = [
        [
            cell.facts.dataset,
            cell.facts.network,
            f"width {cell.facts.width:g}" if cell.facts.width is not None else "",
            cell.bits_label,
            f"{cell.facts.epochs} epochs",
        ]
        for cell in shown
    ]
    names = []
    for cell, fact, group in zip(shown, facts, groups, strict=False):
        beside = [f for f, g in zip(facts, groups, strict=False) if g == group]
        varying = [text for i, text in enumerate(fact) if len({f[i] for f in beside}) > 1]
        names.append(", ".join(filter(None, [cell.label, *varying])))
    return names


def _draw_gain(axis: Axes, y: float, pairing: Pairing, name: str, color: str) -> None:
    interval = pairing.gain.interval
    mean, low, high = interval.mean or 0.0, interval.low, interval.high
    what = signed(mean)
    if low is not None and high is not None:
        axis.hlines(y, low, high, color=color, lw=1.2)
        what += f" [{signed(low)}, {signed(high)}]"
    axis.plot(mean, y, "o", color=color, ms=4, mfc="white" if low is None else color, mew=1.0)
    limits: dict[str, Any] = {
        "transform": axis.get_yaxis_transform(),
        "va": "bottom",
        "fontsize": 6.3,
        "bbox": _BACKING,
    }
    axis.text(0.0, y - 0.22, name, ha="left", **limits)
    axis.text(1.0, y - 0.22, f"{what}, n = {interval.n}", ha="right", **limits)
