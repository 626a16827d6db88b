"""Every figure of the committed records: no text on another, none cut, no point outside its axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bench.reporting import figures
from bench.reporting.figures.forest import Row
from bench.reporting.figures.series import Look
from bench.reporting.figures.style import accuracy_bars
from bench.reporting.records import experiments_in, read_experiment
from bench.reporting.report import make_report
from bench.reporting.statistics import Interval
from bench.reporting.tuned import searches

RESULTS = Path(__file__).parents[2] / "results"
SLACK = 1.5  # pixels that the boxes of two texts may share: boxes are taller than letters


def _texts(figure: Figure) -> list[tuple[str, Bbox]]:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    unused = _unused_texts(figure)
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in shown if not unused.get(id(t), False)]


def _unused_texts(figure: Figure) -> dict[int, bool]:
    """Return of the texts of axes, by ``id``, which are not drawn: outside the limits, or the axis is off."""
    unused: dict[int, bool] = {}
    for axes in figure.findobj(lambda artist: hasattr(artist, "xaxis")):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            drawn = axes.axison and axes.get_visible() and axis.get_visible()
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                inside = low - 1e-9 * abs(low) <= tick.get_loc() <= high + 1e-9 * abs(high)
                for label in (tick.label1, tick.label2):
                    unused.setdefault(id(label), not (drawn and inside))
            for text in (axis.get_offset_text(), axis.label):
                unused.setdefault(id(text), not axes.axison)
    return unused


def _overlapping(texts: list[tuple[str, Bbox]]) -> list[str]:
    """Return the pairs of texts whose boxes share more than ``SLACK`` in both directions."""
    low, high = (np.array([getattr(box, name) for _, box in texts]).reshape(-1, 2) for name in ("min", "max"))
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    pairs = np.argwhere(np.triu((shared > SLACK).all(2), 1))
    return [f"{texts[i][0]!r} lies on {texts[j][0]!r}" for i, j in pairs]


def faults(figure: Figure) -> list[str]:
    """Return what is wrong to the eye in a figure."""
    figure.canvas.draw()
    texts = _texts(figure)
    found = _overlapping(texts)
    page = figure.bbox
    for text, box in texts:
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1:
            found.append(f"{text!r} is cut at the edge")
    found += _cut_or_doubled(figure)
    for axes in figure.axes:
        box = axes.get_window_extent().padded(1.5)
        for line in axes.lines:
            if line.get_marker() in ("None", "", None) or not len(line.get_xdata()):
                continue
            points = np.column_stack(
                [np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)]
            )
            for x, y in line.get_transform().transform(points[np.isfinite(points).all(1)]):
                if not box.contains(x, y):
                    found.append(f"a point of {line.get_label()!r} lies outside its axes")
                    break
    return found


def _cut_or_doubled(figure: Figure) -> list[str]:
    """Return what a reader could not tell: texts of the page on axes, entries and ticks that say the same."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    outer = [text for legend in figure.legends for text in legend.get_texts()]
    entries = [text.get_text() for text in outer]
    found = [
        f"{text!r} stands {entries.count(text)} times in the legend"
        for text in {*entries}
        if entries.count(text) > 1
    ]
    if figure.get_suptitle():
        outer.append(figure._suptitle)  # type: ignore[attr-defined]
    for axes in figure.axes:
        inside = axes.get_window_extent(renderer).padded(-1)
        found += [
            f"{t.get_text()!r} lies on axes" for t in outer if t.get_window_extent(renderer).overlaps(inside)
        ]
        low, high = sorted(axes.get_xlim())
        ticks = [t.label1.get_text() for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
        told = [text for text in ticks if text]
        found += [f"two ticks say {text!r}" for text in {*told} if told.count(text) > 1]
        if axes.get_ylabel() == "test accuracy, %" and axes.lines:
            low, high = sorted(axes.get_ylim())
            found += ["the axis goes beyond 0 to 100 %"] if low < -1 or high > 101.5 else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments_in(RESULTS))
def test_the_figures_of_the_committed_records_are_clean(name):
    report = make_report(read_experiment(RESULTS, name))
    told = []
    for file, _, make in figures.plans(report):
        figure = make()
        if figure is not None:
            told += [f"{file}: {fault}" for fault in faults(figure)]
            _one_look_a_series(figure)
    assert told == []


def _one_look_a_series(figure: Figure) -> None:
    """No two entries of a legend look the same."""
    for legend in figure.legends:
        looks = [
            (h.get_color(), h.get_marker(), h.get_linestyle(), h.get_linewidth(), h.get_alpha(), h.get_mfc())
            for h in legend.legend_handles
        ]
        assert len(set(map(str, looks))) == len(looks), [text.get_text() for text in legend.get_texts()]


def test_the_check_finds_what_it_is_for():
    rows = [Row("a gain", Interval(3, 1.0, 0.5, 1.5))]
    figure = figures.forest_figure(rows)
    assert figure is not None and faults(figure) == []
    axis = figure.axes[0]
    axis.text(1.0, 0, "one text")
    axis.text(1.0, 0, "another text")
    axis.text(9.0, 0, "far away")
    axis.plot([99.0], [0], "o")
    axis.set_xlim(0, 2)
    axis.set_xticks([0.5, 1.5], ["one", "one"])
    figure.legend(handles=[Line2D([], [], label="an arm")] * 2, loc="center")
    told = " ".join(faults(figure))
    assert "two ticks say 'one'" in told and "stands 2 times" in told and "'an arm' lies on axes" in told
    assert "lies on" in told and "cut at the edge" in told and "outside its axes" in told


def test_bars_end_where_accuracies_do():
    """Of means 50 with half 60, 98 with half 5, 1 with half 3, and a single seed."""
    intervals = [Interval(3, m, m - h, m + h) for m, h in ((50.0, 60.0), (98.0, 5.0), (1.0, 3.0))]
    below, above = accuracy_bars([*intervals, Interval(1, 40.0)])
    assert below == [50.0, 5.0, 1.0, 0.0] and above == [50.0, 2.0, 3.0, 0.0]


def test_the_figure_of_a_search_is_clean():
    lines = [
        {
            "arm": arm,
            "grid": {},
            "configuration": {"learning_rate.initial": rate},
            "accuracies": [70.0 + i - abs(k - 2) * (1 + i), 71.0 + i - abs(k - 2)],
            "mean": 70.5 + i - abs(k - 2) * (1 + i / 2),
            "dropped_at": None,
            "chosen": k == 2,
        }
        for i, arm in enumerate(("Plain, 40 epochs", "EXP-Net (sum)", "EXP-Net (concat)"))
        for k, rate in enumerate((1e-3, 2e-3, 4e-3, 8e-3, 16e-3))
    ]
    found = searches(lines)
    assert found[0].width() == (2e-3, 8e-3)  # one point below the best on both sides
    assert found[0].expected_best()[-1] == pytest.approx(70.5, abs=0.5)
    own = [Look("#123456", "s"), Look("#654321", "o"), Look("#abcdef", "v")]  # those of the other figures
    look = {search.label: how for search, how in zip(found, own, strict=True)}
    figure = figures.tuning_figure(found, look, "Tuning")
    assert figure is not None and faults(figure) == []
    expected_best = figure.axes[1].lines
    assert [(line.get_color(), line.get_marker()) for line in expected_best] == [
        (a.color, a.marker) for a in own
    ]
