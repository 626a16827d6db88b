"""Convergence curves: test accuracy, training loss and factor over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.reporting.cells import Cell
from bench.reporting.figures import style
from bench.reporting.figures.series import Look, Panel, curve_data

_Drawn = Sequence[tuple[Cell, pd.DataFrame | None]]  # the cells of a panel with their curves


@dataclass
class _Shown:
    """The kinds of lines that a figure has; the legend names these kinds alone."""

    dashed: bool = False
    dotted: bool = False
    band: bool = False
    published: bool = False


def convergence_figure(
    drawn: Sequence[Panel],
    epochs: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    title: str = "",
    wide: bool = False,
) -> Figure | None:
    """Return a column of axes for each panel: test accuracy, training loss and, if any, the factor.

    Solid: the deployed network, mean over seeds with the 95 % interval of the mean. Dashed: the expanded
    network while its branch is on. Dotted: single runs that diverged. Triangle: a published value, at the
    last epoch.

    Args:
        drawn: The panels.
        epochs: The epochs' lines of each trial, by id.
        look: Colour, marker and line by the label of a cell.
        title: Of the whole figure.
        wide: Whether one panel is as wide as a paper's page, as several are, and not as its column.

    Returns:
        None where there is nothing to draw.
    """
    data: list[_Drawn] = [[(cell, _curve(cell, epochs)) for cell in panel.cells] for panel in drawn]
    curves = [curve for column in data for _, curve in column if curve is not None]
    if not curves:
        return None
    fades = any((curve["factor"] > 0).any() for curve in curves)
    labels = [label for label in look if any(cell.label == label for panel in drawn for cell in panel.cells)]
    width = style.COLUMN if len(drawn) == 1 and not wide else style.PAGE
    heights = [1.75, 0.95, *([0.6] if fades else [])]
    with style.styled():
        figure = style.new_figure(title, width, sum(heights) + 0.55, labels, further=4)
        axes = figure.subplots(
            len(heights), len(drawn), height_ratios=heights, sharex="col", sharey="row", squeeze=False
        )
        engine: Any = figure.get_layout_engine()
        engine.set(h_pad=0.03, w_pad=0.03, hspace=0.02)
        shown = _Shown()
        for j, (panel, column) in enumerate(zip(drawn, data, strict=True)):
            axes[0][j].set_title(style.wrapped(panel.title, 46 if width / len(drawn) > 3 else 34))
            _draw_panel(list(axes[:, j]), column, epochs, look, shown)
        _name_axes(axes, fades)
        style.limit_to_accuracies(axes[0][0])
        low, high = axes[1][0].get_ylim()
        axes[1][0].set_ylim(max(low, 0.0), high)  # intervals of few seeds reach past what a loss can be
        sns.despine(figure)
        figure.align_ylabels()
        style.legend(figure, _handles(labels, look, shown), labels)
    return figure


def _draw_panel(
    axes: Sequence[Axes],
    column: _Drawn,
    epochs: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    shown: _Shown,
) -> None:
    for cell, curve in column:
        how = look[cell.label]
        if curve is not None:
            shown.dashed |= bool(curve["test_acc_expanded"].notna().any())
            shown.band |= bool(curve["test_acc_low"].notna().any())
            _draw_curve(axes, curve, how)
        for run in [epochs[t["id"]] for t in cell.trials if t["status"] == "diverged" and t["id"] in epochs]:
            shown.dotted = True
            tested = run.dropna(subset=["test_acc"])  # epochs between evaluations have no accuracy
            axes[0].plot(tested["epoch"], tested["test_acc"].astype(float), ":", color=how.color, lw=0.8)
            axes[1].plot(run["epoch"], run["train_loss"].astype(float), ":", color=how.color, lw=0.8)
        for comparison in cell.comparisons:
            row = comparison.match.row
            if row.metric == "top1" and not comparison.match.not_comparable and cell.facts.epochs:
                shown.published = True
                look_of: dict[str, Any] = {"color": how.color, "ms": 4, "mfc": "white", "clip_on": False}
                axes[0].plot(cell.facts.epochs, row.accuracy, "<", **look_of)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def _name_axes(axes: Any, fades: bool) -> None:
    axes[0][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylabel("training loss")
    if fades:
        axes[2][0].set_ylabel("factor")
        axes[2][0].set_ylim(-0.05, 1.05)


def _handles(labels: Sequence[str], look: Mapping[str, Look], shown: _Shown) -> list[Line2D]:
    handles = [
        style.handle(
            label, color=look[label].color, marker=look[label].marker, ls=look[label].line or "-", ms=3
        )
        for label in labels
    ]
    handles.append(style.handle("deployed (f = 0)" if shown.dashed else "deployed"))
    handles += [style.handle("expanded, as trained", ls="--", lw=0.9)] * shown.dashed
    handles += [style.handle("mean's 95 % interval", alpha=0.18, lw=5)] * shown.band
    handles += [style.handle("a run that diverged", ls=":", lw=0.8)] * shown.dotted
    handles += [style.handle("published", marker="<", ls="", mfc="white", ms=4)] * shown.published
    return handles


def _curve(cell: Cell, epochs: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    data = curve_data([cell], epochs)
    if data.empty:
        return None
    texts = ("arm", "settings", "dataset", "network", "bits")
    numbers = [column for column in data.columns if column not in texts]
    return data.assign(**{column: pd.to_numeric(data[column], errors="coerce") for column in numbers})


def _draw_curve(axes: Sequence[Axes], curve: pd.DataFrame, how: Look) -> None:
    x = curve["epoch"]
    every = max(1, len(x) // 6)
    look: dict[str, Any] = {
        "color": how.color,
        "marker": how.marker,
        "ls": how.line or "-",
        "markevery": every,
        "ms": 3,
    }
    if len(x) == 1 and not how.marker:
        look["marker"] = "o"
    tested = curve.dropna(subset=["test_acc"])  # epochs between evaluations have no accuracy
    axes[0].plot(tested["epoch"], tested["test_acc"], **{**look, "markevery": max(1, len(tested) // 6)})
    for axis, column, data in ((axes[0], "test_acc", tested), (axes[1], "train_loss", curve)):
        known = data.dropna(subset=[f"{column}_low"])
        if len(known):
            low, high = known[f"{column}_low"], known[f"{column}_high"]
            axis.fill_between(known["epoch"], low, high, color=how.color, alpha=0.16, lw=0)
    expanded = curve.dropna(subset=["test_acc_expanded"])
    if len(expanded):
        axes[0].plot(expanded["epoch"], expanded["test_acc_expanded"], "--", color=how.color, lw=0.9)
    axes[1].plot(x, curve["train_loss"], **look)
    if len(axes) > 2 and (curve["factor"] > 0).any():
        axes[2].plot(x, curve["factor"], **look)
