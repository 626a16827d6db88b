"""What the searches found: held-out accuracy against the learning rate, and the expected best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reporting.figures.series import Look, search_looks
from bench.reporting.figures.style import PAGE, handle, legend, new_figure, plain_log, styled
from bench.reporting.tuned import WITHIN, Searched


def tuning_figure(searches: Sequence[Searched], look: Mapping[str, Look], title: str = "") -> Figure | None:
    """Return held-out accuracy by learning rate, and the expected best; None where nothing was measured.

    Left: every seed, the best mean at each rate, and the chosen configuration marked; the thick line below
    the points is the range of rates within a point of the best. Right: the expected best score after k
    configurations. ``look`` is that of each row of the tables, by its label.
    """
    shown = [search for search in searches if search.scored]
    if not shown:
        return None
    labels = [search.label for search in shown]
    with styled():
        figure = new_figure(title, PAGE, 2.5, labels, further=3)
        left, right = figure.subplots(1, 2, sharey=True)
        handles = []
        for number, (search, how) in enumerate(zip(shown, search_looks(shown, look), strict=True)):
            look = how.marks
            handles.append(handle(search.label, **look, ms=3))
            _draw_rates(left, search, look, number)
            best = search.expected_best()
            right.plot(range(1, len(best) + 1), best, **look, ms=3)
        if any(search.curve() for search in shown):
            left.set_xscale("log")
            plain_log(left)
        left.set_xlabel("learning rate")
        left.set_ylabel("held-out accuracy, %")
        right.set_xlabel("configurations tried")
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set_title("expected best")
        sns.despine(figure)
        handles.append(handle("one seed", ls="", marker=".", ms=3))
        handles.append(handle("chosen", ls="", marker="*", mfc="white", ms=8))
        handles.append(handle(f"rates within {WITHIN:g} point", lw=2.5, alpha=0.6))
        legend(figure, handles, labels)
    return figure


def _draw_rates(axis: Axes, search: Searched, look: dict[str, Any], number: int) -> None:
    curve = search.curve()
    axis.plot([rate for rate, _ in curve], [score for _, score in curve], **look, ms=3)
    for rate, values in search.points():
        axis.plot([rate] * len(values), values, ".", color=look["color"], ms=3, alpha=0.5)
    chosen = search.chosen
    if chosen is not None and chosen.rate is not None and chosen.score is not None:
        axis.plot(chosen.rate, chosen.score, "*", color=look["color"], mfc="white", ms=8)
    width = search.width()
    if width is not None and width[0] < width[1]:
        height = 0.02 + 0.025 * number  # below the points, one line an arm
        line: dict[str, Any] = {"color": look["color"], "lw": 2.5, "alpha": 0.6, "solid_capstyle": "butt"}
        axis.plot(width, [height, height], transform=axis.get_xaxis_transform(), **line)
