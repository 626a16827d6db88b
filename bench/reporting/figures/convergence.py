"""Convergence curves: test accuracy, training loss and factor over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.reporting.cells import Cell
from bench.reporting.figures.series import Look, Panel, curve_data
from bench.reporting.figures.style import (
    COLUMN,
    PAGE,
    Drawn,
    handle,
    headline_of,
    legend,
    legend_columns,
    room,
    style,
    wrapped,
)


def convergence_figure(
    drawn: Sequence[Panel],
    epochs: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    title: str = "",
    wide: bool = False,
) -> Figure | None:
    """Return one column of axes a panel: test accuracy, training loss and, where there is one, the factor.

    As wide as a paper's column for one panel, as its page for several or if ``wide``.

    Solid: the deployed network (mean over seeds; band from the lowest to the highest). Dashed: the expanded
    network while its branch is on. Dotted: single runs that diverged. None where there is nothing to draw.
    """
    data = [[(cell, _curve(cell, epochs)) for cell in panel.cells] for panel in drawn]
    if not any(curve is not None for column in data for _, curve in column):
        return None
    fades = any(c is not None and (c["factor"] > 0).any() for column in data for _, c in column)
    labels = [label for label in look if any(cell.label == label for panel in drawn for cell in panel.cells)]
    width = COLUMN if len(drawn) == 1 and not wide else PAGE
    columns = legend_columns(labels, width)
    legend_rows = -(-(len(labels) + 3) // columns)
    heights = [1.75, 0.95, *([0.6] if fades else [])]
    headline = headline_of(title, width)
    with style():
        height = sum(heights) + 0.62 + 0.125 * legend_rows + room(headline)
        figure = Drawn(figsize=(width, height), layout="constrained")
        axes = figure.subplots(
            len(heights), len(drawn), height_ratios=heights, sharex="col", sharey="row", squeeze=False
        )
        figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03, hspace=0.02)  # type: ignore[union-attr, call-arg]
        if title:
            figure.suptitle(headline, fontsize=8)
        dashed = dotted = band = False
        for j, (panel, column) in enumerate(zip(drawn, data, strict=True)):
            axes[0][j].set_title(wrapped(panel.title, 46 if width / len(drawn) > 3 else 34))
            for cell, curve in column:
                how = look[cell.label]
                if curve is not None:
                    dashed |= bool(curve["test_acc_expanded"].notna().any())
                    band |= bool((curve["n"] > 1).any())
                    _draw_curve(list(axes[:, j]), curve, how)
                for run in _diverged(cell, epochs):
                    dotted = True
                    tested = run.dropna(subset=["test_acc"])  # epochs between evaluations have no accuracy
                    accuracy = tested["test_acc"].astype(float)
                    axes[0][j].plot(tested["epoch"], accuracy, ":", color=how.color, lw=0.8)
                    axes[1][j].plot(
                        run["epoch"], run["train_loss"].astype(float), ":", color=how.color, lw=0.8
                    )
            axes[-1][j].set_xlabel("epoch")
            axes[-1][j].xaxis.get_major_locator().set_params(integer=True)
        axes[0][0].set_ylabel("test accuracy, %")
        axes[1][0].set_ylabel("training loss")
        if fades:
            axes[2][0].set_ylabel("factor")
            axes[2][0].set_ylim(-0.05, 1.05)
        sns.despine(figure)
        figure.align_ylabels()
        handles = [
            handle(label, color=look[label].color, marker=look[label].marker, ms=3) for label in labels
        ]
        handles.append(handle("deployed (f = 0)" if dashed else "deployed"))
        handles += [handle("expanded, as trained", ls="--", lw=0.9)] * dashed
        handles += [handle("lowest to highest seed", alpha=0.18, lw=5)] * band
        handles += [handle("a run that diverged", ls=":", lw=0.8)] * dotted
        legend(figure, handles, columns)
    return figure


def _curve(cell: Cell, epochs: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    data = curve_data([cell], epochs)
    if data.empty:
        return None
    numbers = [
        column for column in data.columns if column not in ("arm", "settings", "dataset", "network", "bits")
    ]
    return data.assign(**{column: pd.to_numeric(data[column], errors="coerce") for column in numbers})


def _diverged(cell: Cell, epochs: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    return [epochs[t["id"]] for t in cell.trials if t["status"] == "diverged" and t["id"] in epochs]


def _draw_curve(axes: Sequence[Axes], curve: pd.DataFrame, how: Look) -> None:
    x = curve["epoch"]
    every = max(1, len(x) // 6)
    look: dict[str, Any] = {"color": how.color, "marker": how.marker, "markevery": every, "ms": 3}
    if len(x) == 1 and not how.marker:
        look["marker"] = "o"
    tested = curve.dropna(subset=["test_acc"])  # epochs between evaluations have no accuracy
    axes[0].plot(tested["epoch"], tested["test_acc"], **{**look, "markevery": max(1, len(tested) // 6)})
    if (curve["n"] > 1).any():
        for axis, column, data in ((axes[0], "test_acc", tested), (axes[1], "train_loss", curve)):
            low, high = data[f"{column}_min"], data[f"{column}_max"]
            axis.fill_between(data["epoch"], low, high, color=how.color, alpha=0.16, lw=0)
    expanded = curve.dropna(subset=["test_acc_expanded"])
    if len(expanded):
        axes[0].plot(expanded["epoch"], expanded["test_acc_expanded"], "--", color=how.color, lw=0.9)
    axes[1].plot(x, curve["train_loss"], **look)
    if len(axes) > 2 and (curve["factor"] > 0).any():
        axes[2].plot(x, curve["factor"], **look)
