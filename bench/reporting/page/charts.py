"""The figures of a page that answer to the pointer: traces and layout for plotly, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.claims import Judged, names
from bench.reporting.figures.series import Look, Panel, curve_data
from bench.reporting.tables import gain_text
from bench.reporting.tuned import Searched

Plot = dict[str, Any]
_DASHES = {"": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_MARKERS = {
    "": "circle",
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
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
            edge = _rounded([*band["test_acc_high"], *list(band["test_acc_low"])[::-1]])
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
            more = {"line": line, "showlegend": False, "name": f"{cell.label}, expanded"}
            traces.append({**_line(cell, expanded["epoch"], _rounded(expanded["test_acc_expanded"])), **more})
    title = panel.title + (f" (drawn: the last of every {widest} epochs)" if widest > 1 else "")
    return {"traces": traces, "layout": _layout(title, "epoch", "test accuracy, %", hovermode="x unified")}


def operations(cells: Iterable[Cell], look: Mapping[str, Look], title: str = "") -> Plot | None:
    """Return accuracy against the training operations of every arm, None without any; size says nothing."""
    traces: list[Plot] = []
    told: set[str] = set()
    for cell in cells:
        cost, accuracy = cell.mean_of("train_flops"), cell.numbers.accuracy
        if cell.arm is None or not cost or accuracy.mean is None:
            continue
        how = look.get(cell.label)
        name = ", ".join(filter(None, [cell.label, cell.bits_label and f"W/A {cell.bits_label}"]))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [cost],
                "y": [round(accuracy.mean, 3)],
                "error_y": {"type": "data", "array": [accuracy.half or 0.0], "thickness": 1.2},
                "marker": {
                    "color": how.color if how else None,
                    "symbol": _MARKERS.get(how.marker, "circle") if how else "circle",
                    "size": 9,
                },
                "name": name,
                "legendgroup": name,
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
        rows.append(f"{name}: {entry.verdict.partition(':')[0]}")
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
    layout["yaxis"] |= {"tickvals": list(range(len(rows))), "ticktext": rows, "autorange": "reversed"}
    layout |= {"height": 90 + 42 * len(rows), "showlegend": False}
    return {"traces": [trace], "layout": layout}


def rates(searches: Sequence[Searched], look: Mapping[str, Look]) -> list[Plot]:
    """Return held-out accuracy against the learning rate, and the expected best after k configurations."""
    rate, best = [], []
    for search in searches:
        how = _look_of(search.arm, look)
        curve = search.curve()
        if curve:
            x, y = [r for r, _ in curve], [round(a, 2) for _, a in curve]
            line = {"color": how.color, "dash": _DASHES[how.line]}
            base: Plot = {"type": "scatter", "legendgroup": search.label, "name": search.label, "line": line}
            rate.append({**base, "x": x, "y": y, "mode": "lines+markers"})
            seeds = [(r, a) for r, values in search.points() for a in values]
            dots = {"mode": "markers", "marker": {"size": 5, "color": how.color, "opacity": 0.5}}
            hidden = {"showlegend": False, "hoverinfo": "skip"}
            rate.append({**base, **dots, **hidden, "x": [r for r, _ in seeds], "y": [a for _, a in seeds]})
            if (
                search.chosen is not None
                and search.chosen.rate is not None
                and search.chosen.score is not None
            ):
                star = {"marker": {"size": 15, "symbol": "star-open", "color": how.color}, "mode": "markers"}
                at = {"x": [search.chosen.rate], "y": [round(search.chosen.score, 2)]}
                rate.append({**base, **star, **at, "showlegend": False, "name": f"{search.label}, chosen"})
        expected = search.expected_best()
        if expected:
            k = list(range(1, len(expected) + 1))
            line = {"color": how.color, "dash": _DASHES[how.line]}
            values = _rounded(expected)
            best.append({"type": "scatter", "name": search.label, "x": k, "y": values, "line": line})
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


def _look_of(arm: str, look: Mapping[str, Look]) -> Look:
    own = next((how for label, how in look.items() if label == arm or label.startswith(f"{arm},")), None)
    return own or Look("#555555", "", "")


def _line(cell: Cell, x: Iterable[Any], y: Sequence[Any]) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": cell.label,
        "legendgroup": cell.label,
        "x": list(x),
        "y": list(y),
    }


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
        "legend": {"orientation": "h", "y": -0.2},
        "height": 440,
        **more,
    }
