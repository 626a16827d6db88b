"""Figures: convergence curves, accuracy by width, gains. Drawn for a paper's column (3.5 inches) or its page (7.16).

Colours are Okabe and Ito's, safe for the colour-blind, and belong to an arm throughout an experiment; full precision is
grey. Files hold no dates, so equal records give equal files on equal versions of the libraries.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.reporting.cells import Cell
from bench.text import clean

COLUMN, PAGE = 3.5, 7.16  # inches
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
GREY = "#555555"
MARKERS = ("", "o", "s", "^", "D")
PANELS = 24  # the curves of more panels are in the CSV alone
GAINS = 80  # and so are more gains
_LABEL = 44  # characters of a label in a figure
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
    "text.usetex": False,
    "savefig.dpi": 200,
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    style: dict[Any, Any] = {**sns.axes_style("ticks"), **_STYLE}
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # a name in a script that the font lacks
        yield


@dataclass(frozen=True)
class Panel:
    """What is drawn together: cells that differ in the arm (full precision stands in every panel of its network)."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Look:
    """Colour and marker of a series."""

    color: str
    marker: str


def _root(cell: Cell) -> Cell:
    seen = 0
    while cell.against is not None and seen < 10:
        cell, seen = cell.against, seen + 1
    return cell


def _full_precision(cell: Cell) -> bool:
    return cell.bits == (32, 32, 32)


def looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """Return a colour (and, from the eighth series on, a marker) for each series' label, in the arms' order."""
    result: dict[str, Look] = {}
    greys = colours = 0
    for cell in sorted((cell for cell in cells if cell.arm is not None), key=lambda c: (c.order, c.settings)):
        if cell.label in result:
            continue
        if _full_precision(cell):
            result[cell.label] = Look(GREY, MARKERS[greys % len(MARKERS)])
            greys += 1
        else:
            result[cell.label] = Look(
                PALETTE[colours % len(PALETTE)], MARKERS[colours // len(PALETTE) % len(MARKERS)]
            )
            colours += 1
    return result


def panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return the panels of the convergence curves.

    An arm stands with its baseline even where it trains longer; otherwise budgets are separate panels.
    """
    groups: dict[tuple, list[Cell]] = {}
    references = []
    for cell in cells:
        if cell.arm is None or not any(t["status"] in ("done", "diverged") for t in cell.trials):
            continue
        root = _root(cell)
        budget = (root.epochs, root.batch_size, root.train_images, root.precision)
        place = (cell.dataset, cell.network, cell.width, budget)
        if _full_precision(cell):
            references.append((place, cell))
        else:
            groups.setdefault((*place, cell.bits), []).append(cell)
    for place, cell in references:
        joined = [
            group
            for key, group in groups.items()
            if key[:4] == place and not all(map(_full_precision, group))
        ]
        for group in joined:
            group.append(cell)
        if not joined:
            groups.setdefault((*place, cell.bits), []).append(cell)
    described = {key: _facts(group) for key, group in groups.items()}
    varying = [i for i in range(6) if len({facts[i] for facts in described.values()}) > 1]
    result = []
    for key, group in groups.items():
        facts = described[key]
        shown = [facts[i] for i in varying if facts[i]] or [facts[i] for i in (0, 1, 2, 3)]
        result.append(
            Panel(clean(", ".join(shown), 100), tuple(sorted(group, key=lambda c: (c.order, c.settings))))
        )
    return result


def _facts(group: Sequence[Cell]) -> list[str]:
    cell = next((c for c in group if not _full_precision(c)), group[0])
    root = _root(cell)
    return [
        cell.dataset,
        cell.network,
        f"width {cell.width:g}" if cell.width is not None else "",
        f"W/A {cell.bits_label}" if cell.bits else "",
        f"{root.epochs} epochs" if root.epochs else "",
        f"{root.train_images} images" if root.train_images else "",
    ]


def curve_data(cells: Sequence[Cell], epochs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the curves as drawn: for each cell and epoch mean, lowest and highest over the finished runs."""
    frames = []
    for cell in cells:
        runs = [epochs[t["id"]] for t in cell.trials if t["status"] == "done" and t["id"] in epochs]
        if cell.arm is None or not runs:
            continue
        columns = ["test_acc", "test_acc_expanded", "train_loss", "factor"]
        together = pd.concat([run[["epoch", *columns]] for run in runs])
        together[columns] = together[columns].apply(pd.to_numeric, errors="coerce")
        by_epoch = together.groupby("epoch", sort=True)
        frame = pd.DataFrame({"n": by_epoch.size()})
        for column in columns:
            frame[column] = by_epoch[column].mean()
            if column != "factor":
                frame[f"{column}_min"] = by_epoch[column].min()
                frame[f"{column}_max"] = by_epoch[column].max()
        place = {
            "arm": cell.arm,
            "settings": cell.settings,
            "dataset": cell.dataset,
            "network": cell.network,
            "width": cell.width,
            "bits": cell.bits_label,
            "epochs": cell.epochs,
        }
        frames.append(frame.reset_index().assign(**place)[[*place, "epoch", *frame.columns]])
    if not frames:
        return pd.DataFrame(columns=["arm", "epoch"])
    result = pd.concat(frames, ignore_index=True).astype(object)
    return result.where(result.notna(), None)


# -- convergence -----------------------------------------------------------------------------------------------------


def convergence_figure(
    drawn: Sequence[Panel],
    epochs: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    title: str = "",
    wide: bool = False,
) -> Figure | None:
    """Return one column of axes a panel: test accuracy, training loss and, where there is one, the factor.

    As wide as a paper's column for one panel, as its page for several or if ``wide``.

    Solid: the deployed network (mean over seeds; band from the lowest to the highest). Dashed: the expanded network
    while its branch is on. Dotted: single runs that diverged. None where there is nothing to draw.
    """
    data = [[(cell, _curve(cell, epochs)) for cell in panel.cells] for panel in drawn]
    if not any(curve is not None for column in data for _, curve in column):
        return None
    fades = any(c is not None and (c["factor"] > 0).any() for column in data for _, c in column)
    labels = [label for label in look if any(cell.label == label for panel in drawn for cell in panel.cells)]
    width = COLUMN if len(drawn) == 1 and not wide else PAGE
    columns = _legend_columns(labels, width)
    legend_rows = -(-(len(labels) + 3) // columns)
    heights = [1.75, 0.95, *([0.6] if fades else [])]
    headline = _headline(title, width)
    with _style():
        figure, axes = plt.subplots(
            len(heights),
            len(drawn),
            figsize=(width, sum(heights) + 0.62 + 0.125 * legend_rows + _room(headline)),
            height_ratios=heights,
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03, hspace=0.02)  # type: ignore[union-attr, call-arg]
        if title:
            figure.suptitle(headline, fontsize=8)
        dashed = dotted = band = False
        for j, (panel, column) in enumerate(zip(drawn, data, strict=True)):
            axes[0][j].set_title(_wrapped(panel.title, 46 if width / len(drawn) > 3 else 34))
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
            Line2D(
                [], [], color=look[label].color, marker=look[label].marker, ms=3, label=clean(label, _LABEL)
            )
            for label in labels
        ]
        handles.append(Line2D([], [], color="black", label="deployed (f = 0)" if dashed else "deployed"))
        if dashed:
            handles.append(Line2D([], [], color="black", ls="--", lw=0.9, label="expanded, as trained"))
        if band:
            handles.append(Line2D([], [], color="black", alpha=0.18, lw=5, label="lowest to highest seed"))
        if dotted:
            handles.append(Line2D([], [], color="black", ls=":", lw=0.8, label="a run that diverged"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2, labelspacing=0.25
        )
        figure.canvas.draw()
    return figure


def _wrapped(text: str, width: int, lines: int = 3) -> str:
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=lines, placeholder=" …"))


def _headline(title: str, inches: float) -> str:
    """Return an experiment's title on at most two lines of a figure so many inches wide."""
    return _wrapped(title, int(inches * 15), 2)


def _room(headline: str) -> float:
    return 0.14 * len(headline.splitlines()) + 0.06 if headline else 0.0


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = max((min(len(label), _LABEL) for label in labels), default=10)
    longest = max(longest, 22)  # "lowest to highest seed"
    return max(1, min(4, int(width / (0.055 * longest + 0.38))))


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
    style: dict[str, Any] = {"color": how.color, "marker": how.marker, "markevery": every, "ms": 3}
    if len(x) == 1 and not how.marker:
        style["marker"] = "o"
    tested = curve.dropna(subset=["test_acc"])  # epochs between evaluations have no accuracy
    axes[0].plot(tested["epoch"], tested["test_acc"], **{**style, "markevery": max(1, len(tested) // 6)})
    if (curve["n"] > 1).any():
        for axis, column, data in ((axes[0], "test_acc", tested), (axes[1], "train_loss", curve)):
            low, high = data[f"{column}_min"], data[f"{column}_max"]
            axis.fill_between(data["epoch"], low, high, color=how.color, alpha=0.16, lw=0)
    expanded = curve.dropna(subset=["test_acc_expanded"])
    if len(expanded):
        axes[0].plot(expanded["epoch"], expanded["test_acc_expanded"], "--", color=how.color, lw=0.9)
    axes[1].plot(x, curve["train_loss"], **style)
    if len(axes) > 2 and (curve["factor"] > 0).any():
        axes[2].plot(x, curve["factor"], **style)


# -- accuracy by width -----------------------------------------------------------------------------------------------


def width_figure(cells: Sequence[Cell], look: Mapping[str, Look], title: str = "") -> Figure | None:
    """Return accuracy by width, a panel for each quantizer, bits and budget: ours beside the published values.

    Filled: ours (mean, 95 % interval). Hollow: published. A cross at the bottom: no finished run. None for one width.
    """
    kinds = {cell.arm: cell.quantizer for cell in cells if cell.quantizer}
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.arm is None or cell.width is None or _full_precision(cell):
            continue
        root = _root(cell)
        place = (
            cell.dataset,
            cell.network,
            kinds.get(cell.arm, ""),
            cell.bits or (),
            cell.precision if root is cell else "",
        )
        groups.setdefault((*place[:4], root.epochs), []).append(cell)
    groups = _absorb_unknown(groups)
    widths = sorted({cell.width for group in groups.values() for cell in group if cell.width is not None})
    if len(widths) < 2:
        return None
    keys = sorted(groups, key=lambda key: (key[0], key[1], key[4] or 0, _first_order(groups[key]), key[3]))[
        :PANELS
    ]
    across = min(3, len(keys))
    down = -(-len(keys) // across)
    labels = [label for label in look if any(cell.label == label for key in keys for cell in groups[key])]
    figure_width = COLUMN if across == 1 else PAGE
    columns = _legend_columns(labels, figure_width)
    varying = [i for i in range(5) if len({key[i] for key in keys}) > 1] or [2, 3]
    headline = _headline(title, figure_width)
    published = missing = False
    with _style():
        height = 1.75 * down + 0.5 + 0.125 * -(-(len(labels) + 3) // columns) + _room(headline)
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(figure_width, height),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        if title:
            figure.suptitle(headline, fontsize=8)
        for key, axis in zip(keys, axes.flat, strict=False):
            facts = [key[0], key[1], key[2], "W/A " + "/".join(map(str, key[3][:2])), f"{key[4]} epochs"]
            axis.set_title(clean(", ".join(facts[i] for i in varying), 48))
            series = list(dict.fromkeys(cell.label for cell in groups[key]))
            for k, name in enumerate(series):
                own = sorted((c for c in groups[key] if c.label == name), key=lambda c: c.width or 0)
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
        handles = [
            Line2D([], [], color=look[label].color, marker="o", ms=3.5, label=clean(label, _LABEL))
            for label in labels
        ]
        handles.append(Line2D([], [], color="black", marker="o", ms=3.5, label="ours, 95 % interval"))
        if published:
            handles.append(
                Line2D(
                    [],
                    [],
                    color="black",
                    marker="o",
                    ms=3.5,
                    mfc="white",
                    ls=(0, (1, 1)),
                    lw=0.8,
                    label="published",
                )
            )
        if missing:
            handles.append(Line2D([], [], color="black", marker="x", ms=4, ls="", label="no finished run"))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2, labelspacing=0.25
        )
        figure.canvas.draw()
    return figure


def _first_order(group: Sequence[Cell]) -> int:
    return min(cell.order for cell in group)


def _absorb_unknown(groups: dict[tuple, list[Cell]]) -> dict[tuple, list[Cell]]:
    """Put cells of which nothing was ever recorded into the panel of their arm, where bits tell which."""
    result = {key: list(group) for key, group in groups.items() if key[0]}
    for key, group in groups.items():
        for cell in group if not key[0] else []:
            for other, members in result.items():
                same = any(member.arm == cell.arm for member in members)
                if same and (not cell.bits or cell.bits == other[3]):
                    members.append(cell)
                    break
            else:
                result.setdefault(key, []).append(cell)
    return result


def _draw_widths(axis: Axes, own: Sequence[Cell], how: Look, shift: float) -> bool:
    """Draw one arm, and its published values; return whether it has any."""
    known = [cell for cell in own if cell.accuracy.mean is not None]
    x = np.array([cell.width for cell in known], dtype=float) * shift
    y = np.array([cell.accuracy.mean for cell in known], dtype=float)
    half = np.array([cell.accuracy.half or 0.0 for cell in known])
    axis.errorbar(
        x, y, half, color=how.color, marker="o", ms=3.5, lw=1.1, elinewidth=0.8, capsize=1.8, capthick=0.8
    )
    targets = [
        (cell.width * shift, c.match.row.accuracy)
        for cell in own
        for c in cell.comparisons
        if c.match.row.metric == "top1" and cell.width is not None
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
    absent = [cell.width * shift for cell in own if cell.accuracy.mean is None and cell.width is not None]
    if absent:  # an empty line that is not clipped would upset the layout
        bottom = axis.get_xaxis_transform()
        axis.plot(
            absent, [0.03] * len(absent), "x", color=how.color, ms=4, mew=1.0, transform=bottom, clip_on=False
        )
    return bool(absent)


# -- gains -----------------------------------------------------------------------------------------------------------


_BACKING = {
    "facecolor": "white",
    "edgecolor": "none",
    "pad": 0.6,
}  # behind text that crosses the line at zero


def forest_figure(
    cells: Sequence[Cell],
    look: Mapping[str, Look] | None = None,
    title: str = "",
    headings: Mapping[int, str] | None = None,
) -> Figure | None:
    """Return the paired gains with their intervals, one line each; a gain without an interval is hollow.

    ``headings`` maps the position of a cell in ``cells`` to the line written above the first gain from there on.
    """
    places = [
        i for i, cell in enumerate(cells) if cell.gain is not None and cell.gain.interval.mean is not None
    ]
    shown = [cells[i] for i in places]
    if not shown:
        return None
    if len(shown) > GAINS:
        title = f"{clean(title, 80)}: the first {GAINS} of {len(shown)} gains"
        shown = shown[:GAINS]
    facts = [
        [
            cell.dataset,
            cell.network,
            f"width {cell.width:g}" if cell.width is not None else "",
            cell.bits_label,
            f"{cell.epochs} epochs",
        ]
        for cell in shown
    ]
    starts = sorted(headings or {})
    groups = [
        bisect.bisect_right(starts, place) for place in places
    ]  # what no gain under a heading differs in is left out
    names = []
    for cell, fact, group in zip(shown, facts, groups, strict=False):
        beside = [f for f, g in zip(facts, groups, strict=False) if g == group]
        varying = [text for i, text in enumerate(fact) if len({f[i] for f in beside}) > 1]
        names.append(", ".join(filter(None, [cell.label, *varying])))
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
    step = 0.27
    with _style():
        headline = _headline(title, PAGE if wide else COLUMN)
        height = step * line + 0.55 + _room(headline)
        figure, axis = plt.subplots(figsize=(PAGE if wide else COLUMN, height), layout="constrained")
        axis.axvline(0, color="black", lw=0.7)
        for k, text in above.items():
            if 0 <= k < len(shown):
                place: dict[str, Any] = {
                    "transform": axis.get_yaxis_transform(),
                    "va": "bottom",
                    "fontsize": 7.0,
                    "weight": "bold",
                }
                axis.text(0.0, lines[k] - 0.95, clean(text, 100), ha="left", bbox=_BACKING, **place)
        for i, cell, name in zip(lines, shown, names, strict=True):
            assert cell.gain is not None
            interval = cell.gain.interval
            mean, low, high = interval.mean or 0.0, interval.low, interval.high
            color = look[cell.label].color if look and cell.label in look else PALETTE[0]
            hollow = low is None or high is None
            if low is not None and high is not None:
                axis.hlines(i, low, high, color=color, lw=1.2)
            axis.plot(mean, i, "o", color=color, ms=4, mfc="white" if hollow else color, mew=1.0)
            limits: dict[str, Any] = {
                "transform": axis.get_yaxis_transform(),
                "va": "bottom",
                "fontsize": 6.3,
                "bbox": _BACKING,
            }
            axis.text(0.0, i - 0.22, clean(name, 90 if wide else 44), ha="left", **limits)
            what = f"{mean:+.2f}" + ("" if hollow else f" [{low:+.2f}, {high:+.2f}]")
            axis.text(1.0, i - 0.22, f"{what}, n = {interval.n}", ha="right", **limits)
        axis.set_ylim(line - 0.5, -0.85)
        axis.set_yticks([])
        axis.set_xlabel("gain over the baseline, points (95 % interval)")
        axis.margins(x=0.04)
        if title:
            axis.set_title(headline)
        sns.despine(figure, left=True)
        figure.canvas.draw()
    return figure


# -- files -----------------------------------------------------------------------------------------------------------


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``png`` or ``pdf`` bytes without dates or versions, and close nothing."""
    out = io.BytesIO()
    metadata = (
        {"Software": None} if kind == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
    )
    with _style():
        figure.savefig(out, format=kind, metadata=metadata)
    return out.getvalue()


def close(figure: Figure) -> None:
    """Free a figure."""
    plt.close(figure)
