"""Accuracy by width: ours beside the published values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.reporting.cells import Cell
from bench.reporting.figures import style
from bench.reporting.figures.series import Look, full_precision, root_of

_Groups = dict[tuple, list[Cell]]  # the cells of each panel, by what the panel is about


def width_figure(cells: Sequence[Cell], look: Mapping[str, Look], title: str = "") -> Figure | None:
    """Return accuracy by width, ours and published, a panel for each quantizer, bits and budget.

    Filled: ours (mean, 95 % interval), at its width. Hollow: published. A cross at the bottom: no finished
    run. The figure is None for one width.
    """
    groups = _absorb_unknown(_groups(cells))
    widths = sorted({cell.facts.width or 0.0 for group in groups.values() for cell in group})
    if len(widths) < 2:
        return None
    keys = sorted(groups, key=lambda key: (key[0], key[1], key[4] or 0, _first_order(groups[key]), key[3]))
    keys = keys[: style.PANELS]
    across = min(3, len(keys))
    down = -(-len(keys) // across)
    labels = [label for label in look if any(cell.label == label for key in keys for cell in groups[key])]
    width = style.COLUMN if across == 1 else style.PAGE
    with style.styled():
        figure = style.new_figure(title, width, 1.75 * down + 0.4, labels, further=3)
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        published = missing = False
        for name, key, axis in zip(_titles(keys), keys, axes.flat, strict=False):
            axis.set_title(style.wrapped(name, 34, 2))
            for label in dict.fromkeys(cell.label for cell in groups[key]):
                own = [cell for cell in groups[key] if cell.label == label]
                own.sort(key=lambda cell: cell.facts.width or 0.0)
                published |= _draw_widths(axis, own, look[label])
                missing |= _draw_missing(axis, own, look[label])
        _set_up_axes(axes, len(keys), widths)
        sns.despine(figure)
        style.legend(figure, _handles(labels, look, published, missing), labels)
    return figure


def _groups(cells: Sequence[Cell]) -> _Groups:
    kinds = {cell.arm: cell.facts.quantizer for cell in cells if cell.facts.quantizer}
    groups: _Groups = {}
    for cell in cells:
        if cell.arm is None or cell.facts.width is None or full_precision(cell):
            continue
        facts = cell.facts
        key = (facts.dataset, facts.network, kinds.get(cell.arm, ""), facts.bits or ())
        groups.setdefault((*key, root_of(cell).facts.epochs), []).append(cell)
    return groups


def _titles(keys: Sequence[tuple]) -> list[str]:
    """Return the titles of panels: the facts in which the panels differ."""
    varying = [i for i in range(5) if len({key[i] for key in keys}) > 1] or [2, 3]
    titles = []
    for key in keys:
        facts = [key[0], key[1], key[2], "W/A " + "/".join(map(str, key[3][:2])), f"{key[4]} epochs"]
        titles.append(", ".join(facts[i] for i in varying))
    return titles


def _set_up_axes(axes: Any, count: int, widths: Sequence[float]) -> None:
    """Set limits, ticks and names of the axes, the first ``count`` of which are used."""
    first = axes[0][0]
    first.set_xscale("log", base=2)
    first.set_xlim(widths[0] / 1.3, widths[-1] * 1.3)
    ticks: list[float] = []
    for width in widths:
        if not ticks or width >= 1.6 * ticks[-1]:
            ticks.append(width)
    first.set_xticks(ticks, [f"{width:g}" for width in ticks])
    first.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    style.limit_to_accuracies(first)
    for axis in list(axes.flat)[count:]:
        axis.set_axis_off()
    for j in range(len(axes[0])):
        lowest = [row[j] for row in axes if row[j].axison][-1]
        lowest.set_xlabel("width multiplier")
        lowest.tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("test accuracy, %")


def _handles(labels: Sequence[str], look: Mapping[str, Look], published: bool, missing: bool) -> list[Line2D]:
    handles = [style.handle(label, **look[label].marks, ms=3.5) for label in labels]
    handles.append(style.handle("ours, 95 % interval", marker="o", ms=3.5))
    dots: dict[str, Any] = {"ls": (0, (1, 1)), "lw": 0.8}
    handles += [style.handle("published", marker="o", ms=3.5, mfc="white", **dots)] * published
    handles += [style.handle("no finished run", marker="x", ms=4, ls="")] * missing
    return handles


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


def _draw_widths(axis: Axes, own: Sequence[Cell], how: Look) -> bool:
    """Draw one arm, and its published values; return whether it has any."""
    known = [cell for cell in own if cell.numbers.accuracy.mean is not None]
    x = [cell.facts.width or 0.0 for cell in known]
    y = [cell.numbers.accuracy.mean or 0.0 for cell in known]
    bars = style.accuracy_bars([cell.numbers.accuracy for cell in known])
    axis.errorbar(x, y, bars, **how.marks, ms=3.5, lw=1.1, **style.ERROR_BARS)
    targets = [
        (cell.facts.width, c.match.row.accuracy)
        for cell in own
        for c in cell.comparisons
        if c.match.row.metric == "top1" and cell.facts.width is not None
    ]
    if targets:
        hollow: dict[str, Any] = {"mfc": "white", "mew": 0.9, "lw": 0.8, "zorder": 1.5}
        dots = {**how.marks, "ls": (0, (1, 1))}
        axis.plot([x for x, _ in targets], [y for _, y in targets], ms=3.5, **dots, **hollow)
    return bool(targets)


def _draw_missing(axis: Axes, own: Sequence[Cell], how: Look) -> bool:
    absent = [cell.facts.width for cell in own if cell.numbers.accuracy.mean is None]
    widths = [width for width in absent if width is not None]
    if widths:  # an empty line that is not clipped would upset the layout
        cross: dict[str, Any] = {"color": how.color, "ms": 4, "mew": 1.0, "clip_on": False}
        axis.plot(widths, [0.03] * len(widths), "x", transform=axis.get_xaxis_transform(), **cross)
    return bool(widths)
