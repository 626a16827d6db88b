"""Gains with their intervals, one row each: the label on the left, the numbers on the right of its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import seaborn as sns
from matplotlib.figure import Figure

from bench.reporting.cells import Cell
from bench.reporting.claims import Judged, names
from bench.reporting.figures.style import PAGE, PALETTE, new_figure, styled, wrapped
from bench.reporting.statistics import Interval
from bench.text import signed

ROWS = 12  # gains of one figure
_STEP = 0.34  # inches from one gain to the next


@dataclass(frozen=True)
class Row:
    """A gain: the compared arms, the interval of the gain in points, and a remark."""

    label: str
    interval: Interval
    remark: str = ""


def claim_rows(judged: Sequence[Judged], place: str = "") -> list[Row]:
    """Return the declared claims that have a gain; ``place`` stands before each label."""
    rows = []
    for name, entry in zip(names(judged), judged, strict=True):
        if entry.pairing is not None and entry.pairing.gain.interval.mean is not None:
            label = ": ".join(filter(None, [place, name]))
            rows.append(Row(label, entry.pairing.gain.interval, entry.verdict.partition(":")[0]))
    return rows


def gain_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return the gains of cells over their baselines; a label names the cell and the varying facts."""
    shown = [c for c in cells if c.pairing is not None and c.pairing.gain.interval.mean is not None]
    facts = [(*cell.place, f"{cell.facts.epochs} epochs") for cell in shown]
    varying = [i for i in range(5) if len({fact[i] for fact in facts}) > 1]
    rows = []
    for cell, fact in zip(shown, facts, strict=True):
        assert cell.pairing is not None
        label = ", ".join(filter(None, [cell.label, *(fact[i] for i in varying)]))
        rows.append(Row(label, cell.pairing.gain.interval, "exploratory"))
    return rows


def forest_figure(rows: Sequence[Row], title: str = "") -> Figure | None:
    """Return the gains with their intervals, one row each, as wide as a page; None without any.

    A gain without an interval is hollow. At most ``ROWS`` rows are drawn: the tables have all.
    """
    drawn = rows[:ROWS]
    if not drawn:
        return None
    labels = [wrapped(row.label, 46, 2) for row in drawn]
    with styled():
        figure = new_figure(title, PAGE, _STEP * len(drawn) + 0.6)
        axis = figure.subplots()
        axis.axvline(0, color="black", lw=0.7)
        for y, row in enumerate(drawn):
            low, high = row.interval.low, row.interval.high
            if low is not None and high is not None:
                axis.hlines(y, low, high, color=PALETTE[0], lw=1.2)
            hollow = "white" if low is None else PALETTE[0]
            axis.plot(row.interval.mean or 0.0, y, "o", color=PALETTE[0], ms=4, mfc=hollow, mew=1.0)
        positions = range(len(drawn))
        axis.set_ylim(len(drawn) - 0.5, -0.5)
        axis.set_yticks(positions, labels)
        axis.margins(x=0.04)
        beside = axis.secondary_yaxis("right")
        beside.set_yticks(positions, [_numbers(row) for row in drawn])
        for one in (axis.yaxis, beside.yaxis):
            one.set_tick_params(length=0)
        axis.set_xlabel("gain over the baseline, points (95 % interval)")
        sns.despine(figure, left=True)
        beside.spines["right"].set_visible(False)
        figure.canvas.draw()
    return figure


def _numbers(row: Row) -> str:
    interval = row.interval
    text = signed(interval.mean or 0.0)
    if interval.low is not None and interval.high is not None:
        text += f" [{signed(interval.low)}, {signed(interval.high)}]"
    return f"{text}, n = {interval.n}" + (f"\n{row.remark}" if row.remark else "")
