"""The figures of a page that answer to the pointer: traces and layout for plotly, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.claims import Judged, names
from bench.reporting.figures.series import Look, Panel, curve_data, numbered_looks, search_looks
from bench.reporting.figures.style import accuracy_bars, wrapped
from bench.reporting.tables import gain_text
from bench.reporting.tuned import Searched
from bench.text import clean

Plot = dict[str, Any]
_DASHES = {"": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_MARKERS = {
    "": "circle",
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "p": "pentagon",
}
POINTS = 16_000  # of all curves of a page; above, curves are thinned to evenly spaced epochs


def curves(panel: Panel, epochs: Mapping[str, pd.DataFrame], look: Mapping[str, Look], share: int) -> Plot:
    """Return the accuracy curves of a panel, at most ``share`` points each.

    An entry of the legend toggles an arm.

    Solid: the deployed network, with the 95 % interval of its mean. Dashed: the expanded network.
    """
    traces: list[Plot] = []
    widest = 1
    for cell in panel.cells:
        data = curve_data([cell], epochs)
        if data.empty:
            continue
        how = look[cell.label]
        step = -(-len(data) // share)
        widest = max(widest, step)
        shown = data.iloc[(len(data) - 1) % step :: step]
        tested = shown[shown["test_acc"].notna()]
        band = tested[tested["test_acc_low"].notna()]
        if len(band):
            there, back = list(band["epoch"]), list(band["epoch"])[::-1]
            ends = [*band["test_acc_high"], *list(band["test_acc_low"])[::-1]]
            edge = _rounded(min(100.0, max(0.0, end)) for end in ends)  # an accuracy cannot lie beyond
            fill = {"fill": "toself", "fillcolor": _faint(how.color), "line": {"width": 0}, "mode": "lines"}
            traces.append(
                {**_line(cell, [*there, *back], edge), **fill, "showlegend": False, "hoverinfo": "skip"}
            )
        line = {"color": how.color, "width": 2, "dash": _DASHES[how.line]}
        mean = {**_line(cell, tested["epoch"], _rounded(tested["test_acc"])), "line": line}
        if len(band) == len(tested):
            mean["customdata"] = _rounded(tested["test_acc_high"] - tested["test_acc"])
            mean["hovertemplate"] = "%{y:.2f} ± %{customdata:.2f}"
        traces.append(mean)
        expanded = shown[shown["test_acc_expanded"].notna()]
        if len(expanded):
            line = {"color": how.color, "width": 1.2, "dash": "dash"}
            more = {"line": line, "showlegend": False, "name": f"{clean(cell.label)}, expanded"}
            traces.append({**_line(cell, expanded["epoch"], _rounded(expanded["test_acc_expanded"])), **more})
    title = panel.title + (f" (drawn: the last of every {widest} epochs)" if widest > 1 else "")
    return {"traces": traces, "layout": _layout(title, "epoch", "test accuracy, %", hovermode="x unified")}


def operations(
    cells: Iterable[Cell], look: Mapping[str, Look], title: str = "", mark_tuning: bool = False
) -> Plot | None:
    """Return accuracy against the training operations of every arm, None without any; size says nothing.

    ``mark_tuning``: rows that were not tuned are hollow and say so in the legend.
    """
    shown = [
        c
        for c in cells
        if c.arm is not None and c.mean_of("train_flops") and c.numbers.accuracy.mean is not None
    ]
    series = {_series(cell, mark_tuning): cell for cell in reversed(shown)}
    own = _own_looks(series, look)
    traces: list[Plot] = []
    told: set[str] = set()
    for cell in shown:
        cost, accuracy, name = cell.mean_of("train_flops"), cell.numbers.accuracy, _series(cell, mark_tuning)
        hollow = "-open" if mark_tuning and cell.search is None else ""
        below, above = accuracy_bars([accuracy])
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [cost],
                "y": [round(accuracy.mean or 0.0, 3)],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": above,
                    "arrayminus": below,
                    "visible": bool(accuracy.half),
                },
                "marker": {
                    "color": own[name].color,
                    "symbol": _MARKERS.get(own[name].marker, "circle") + hollow,
                    "size": 9,
                },
                "name": clean(name),
                "legendgroup": clean(name),
                "showlegend": name not in told,
                "hovertemplate": f"%{{y:.2f}} ± {accuracy.half or 0:.2f} %<br>%{{x:.3s}} operations, "
                f"{cell.facts.epochs} epochs, width {cell.facts.width or 1:g}",
            }
        )
        told.add(name)
    if not traces:
        return None
    layout = _layout(title, "training operations", "test accuracy, %")
    layout["xaxis"] |= {"type": "log", "exponentformat": "power", "nticks": 8}
    return {"traces": traces, "layout": layout}


def _series(cell: Cell, mark_tuning: bool) -> str:
    tuning = ("untuned" if cell.search is None else "tuned") if mark_tuning else ""
    return ", ".join(filter(None, [cell.label, cell.bits_text, tuning]))


def _own_looks(series: Mapping[str, Cell], look: Mapping[str, Look]) -> dict[str, Look]:
    """Return the looks of the arms, or looks of their own where one arm has several series (bits, tuning)."""
    labels = [cell.label for cell in series.values()]
    if len(set(labels)) == len(labels) and set(labels) <= look.keys():
        return {name: look[cell.label] for name, cell in series.items()}
    return dict(zip(sorted(series), numbered_looks(len(series)), strict=True))


def claims(judged: Sequence[Judged]) -> Plot | None:
    """Return the declared claims with their intervals, one row each; None without any pair."""
    means, low, high, texts, rows = [], [], [], [], []
    for name, entry in zip(names(judged), judged, strict=True):
        if entry.pairing is None or entry.pairing.gain.interval.mean is None:
            continue
        interval, mean = entry.pairing.gain.interval, entry.pairing.gain.interval.mean
        means.append(mean)
        low.append(mean - (interval.low if interval.low is not None else mean))
        high.append((interval.high if interval.high is not None else mean) - mean)
        texts.append(f"{entry.verdict}: {gain_text(entry.pairing)}, n = {interval.n}")
        rows.append(wrapped(f"{name}: {entry.verdict.partition(':')[0]}", 46, 3))
    if not rows:
        return None
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": means,
        "y": list(range(len(rows))),
        "error_x": {"type": "data", "symmetric": False, "array": high, "arrayminus": low},
        "marker": {"size": 9, "color": "#0072B2"},
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
    }
    layout = _layout("", "gain, points (95 % interval)", "")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["yaxis"] |= {"visible": False, "range": [len(rows) - 0.6, -0.9]}
    above = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 5, "align": "left"}
    labels = [{"text": text, "y": y, "showarrow": False, **above} for y, text in enumerate(rows)]
    layout |= {"height": 100 + 66 * len(rows), "showlegend": False, "annotations": labels}
    return {"traces": [trace], "layout": layout}


def rates(searches: Sequence[Searched], look: Mapping[str, Look]) -> list[Plot]:
    """Return held-out accuracy against the learning rate, and the expected best after k configurations."""
    rate, best = [], []
    own = search_looks(searches, look)
    for search, how in zip(searches, own, strict=True):
        curve, label = search.curve(), clean(search.label)
        line = {"color": how.color, "dash": _DASHES[how.line]}
        if curve:
            x, y = [r for r, _ in curve], [round(a, 2) for _, a in curve]
            base: Plot = {"type": "scatter", "legendgroup": label, "name": label, "line": line}
            rate.append({**base, "x": x, "y": y, "mode": "lines+markers"})
            seeds = [(r, a) for r, values in search.points() for a in values]
            dots = {"mode": "markers", "marker": {"size": 5, "color": how.color, "opacity": 0.5}}
            hidden = {"showlegend": False, "hoverinfo": "skip"}
            rate.append({**base, **dots, **hidden, "x": [r for r, _ in seeds], "y": [a for _, a in seeds]})
            chosen = search.chosen
            if chosen is not None and chosen.rate is not None and chosen.score is not None:
                star = {"marker": {"size": 15, "symbol": "star-open", "color": how.color}, "mode": "markers"}
                at = {"x": [chosen.rate], "y": [round(chosen.score, 2)]}
                rate.append({**base, **star, **at, "showlegend": False, "name": f"{label}, chosen"})
        expected = search.expected_best()
        if expected:
            k, values = list(range(1, len(expected) + 1)), _rounded(expected)
            best.append({"type": "scatter", "name": label, "x": k, "y": values, "line": line})
    found = []
    if rate:
        layout = _layout("", "learning rate", "held-out accuracy, %")
        layout["xaxis"] |= {"type": "log", "exponentformat": "power"}
        found.append({"traces": rate, "layout": layout})
    if best:
        found.append(
            {"traces": best, "layout": _layout("", "configurations tried", "expected best, held out, %")}
        )
    return found


def _line(cell: Cell, x: Iterable[Any], y: Sequence[Any]) -> Plot:
    label = clean(cell.label)  # a line break becomes a tag on the page
    named = {"type": "scatter", "mode": "lines", "name": label, "legendgroup": label}
    return {**named, "x": list(x), "y": list(y)}


def _rounded(values: Iterable[Any]) -> list[float]:
    return [round(float(value), 2) for value in values]


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _layout(title: str, x: str, y: str, **more: Any) -> Plot:
    return {
        "title": {"text": title, "font": {"size": 13}},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "margin": {"t": 40 if title else 20, "r": 15, "l": 55, "b": 45},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        "height": 440,
        **more,
    }
