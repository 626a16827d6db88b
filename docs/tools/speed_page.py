"""The tables of ``docs/performance.md`` from ``docs/speed/*.json``.

``python -m docs.tools.speed_page`` writes them anew.

A table stands between ``<!-- speed: FILE TABLE DTYPE -->`` and ``<!-- end -->``, for instance ``amd-epyc.json
ratios fp32``; ``all`` stands for all precisions in that of the modes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.tools.markdown import table

_MARKED = re.compile(r"(<!-- speed: (\S+) (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = Mapping[str, Any]


def _column(row: Row) -> str:
    return f"{row['network']} {row['width']:g}x {row['mode']}"


def _name(row: Row) -> str:
    if row.get("kind") == "peer":
        return f"{row['peer']} ({row['bits']})"
    if row["quantizer"] == "full_precision":
        return "full precision, ms"
    name = f"{row['quantizer']} {row['bits']}"
    if row["merge"] is not None:
        return f"{name}, {row['merge']}, {'f > 0' if row['factor_on'] else 'f = 0'}"
    return name if row["strategy"] == "plain" else f"{name}, {row['strategy']}"


_Cells = dict[str, dict[str, str]]  # the texts of a table, by row and column


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return table(header, lines, "---:")


def _crossed(corner: str, cells: _Cells) -> str:
    """Return a table with the names of ``cells`` on two sides; a place without a text is empty."""
    columns = list(dict.fromkeys(column for line in cells.values() for column in line))
    lines = [[name, *(line.get(column, "") for column in columns)] for name, line in cells.items()]
    return _table([corner, *columns], lines)


def ratios(document: Row, dtype: str) -> str:
    """Return the table of ratios to the full-precision step, a column for each network and mode."""
    rows = [row for row in document["rows"] if row["dtype"] == dtype and row.get("kind", "peer") == "peer"]
    cells: _Cells = {}
    for row in rows:
        unit = row["quantizer"] == "full_precision"
        text = f"{1e3 * row['seconds']:.1f}" if unit else f"{row['ratio']:.2f}"
        cells.setdefault(_name(row), {})[_column(row)] = text
    return _crossed("", cells)


def rates(document: Row, dtype: str) -> str:
    """Return the table of images a second, of DoReFa 1/1: evaluation, training, data alone, floor's share."""
    head = ["", "evaluation", "training", "data alone", "share of the floor's rate", "first step, s"]
    lines: dict[str, list[str]] = {}
    for row in document["rows"]:
        if row["dtype"] != dtype:
            continue
        line = lines.setdefault(_column(row), [""] * 6)
        rate = f"{row['images_per_second']:,.0f}"
        kind = row.get("kind")
        if kind in ("evaluation", "data"):
            line[0 if kind == "evaluation" else 2] = rate
        elif kind is None and (row["quantizer"], row["bits"], row["strategy"]) == ("dorefa", "1/1", "plain"):
            line[1] = rate
            if "roofline_share" in row:
                line[3], line[4] = f"{100 * row['roofline_share']:.0f} %", f"{row['first_step_seconds']:.1f}"
            if "processes" in row:
                line[5] = f"{row['throughput']:.2f} times one, {row['processes']} processes"
    return _table([*head, "several at once"], [[name, *cells] for name, cells in lines.items()])


def machine(document: Row, dtype: str) -> str:
    """Return the table of the devices: measured rates, versions, the load of the machine meanwhile."""
    head = ["", "GFLOP/s", "GB/s", "torch", "load average before, after"]
    load = ", ".join(str(value) for value in document["load_average"])
    torch = document["versions"].get("torch", "")
    lines = []
    for name, rates in document["rates"].items():
        if dtype in rates:
            flops, moved = (rates[dtype][key] / 1e9 for key in ("flops_per_second", "bytes_per_second"))
            lines.append([f"{name}, {dtype}", f"{flops:,.0f}", f"{moved:,.1f}", torch, load])
    return _table(head, lines)


# (quantizer, bits, merge, f > 0): at most this ratio to full precision on a CPU; None: that of operations
AIMS: tuple[tuple[tuple[str, str, str | None, bool], float | None], ...] = (
    (("dorefa", "1/1", None, False), 1.05),
    (("dorefa", "1/1", "preactivation", True), 1.10),
    (("dorefa", "1/1", "sum", True), 1.70),
    (("dorefa", "1/1", "concat", True), None),
    (("dorefa", "1/1", "sum", False), 1.03),
    (("dorefa", "1/1", "concat", False), 1.03),
    (("dorefa", "1/1", "preactivation", False), 1.03),
)


def aims(document: Row, dtype: str) -> str:
    """Return the table of the aims for a CPU: the bound, and the measured ratios, bold where they miss it.

    At f = 0 the ratio is to plain DoReFa, not to full precision.
    """
    rows = [r for r in document["rows"] if r["dtype"] == dtype and "kind" not in r]
    rows = [r for r in rows if r["network"] == "svhn_convnet" and r["mode"] != "packed"]
    rows = [r for r in rows if r["strategy"] != "apprentice"]
    columns = list(dict.fromkeys(map(_column, rows)))
    found = {(_column(r), r["quantizer"], r["bits"], r["merge"], r["factor_on"]): r for r in rows}
    lines = []
    for (quantizer, bits, merge, on), bound in AIMS:
        plain = merge is not None and not on
        name = f"{quantizer} {bits}"
        if merge is not None:
            name += f", {merge}, {'f > 0' if on else 'f = 0, over plain'}"
        line = [name, "its operations" if bound is None else f"{bound:.2f}"]
        for column in columns:
            row = found[column, quantizer, bits, merge, on]
            unit = found[column, "full_precision", "32/32", None, False]
            ratio = row["ratio"] / (found[column, quantizer, bits, None, False]["ratio"] if plain else 1.0)
            most = row["operations"] / unit["operations"] if bound is None else bound
            text = f"{ratio:.2f}" if round(ratio, 2) <= most else f"**{ratio:.2f}**"
            line.append(text + (f" of {most:.2f}" if bound is None else ""))
        lines.append(line)
    return _table(["", "at most", *columns], lines)


def modes(document: Row, dtype: str) -> str:
    """Return how many times as many images a second each mode trains as eager fp32: DoReFa 1/1.

    ``dtype`` may be "all". The eager step was measured in the same rounds; several trials at once are
    compared with one of them alone.
    """
    found: _Cells = {}
    rows = [row for row in document["rows"] if dtype in ("all", row["dtype"])]
    eager = [row for row in rows if row.get("kind") == "eager fp32"]
    reference = {(_column(row), row["dtype"]): row["ratio"] for row in eager}
    for row in rows:
        if (row["mode"], row["dtype"]) == ("eager", "fp32"):
            continue
        if "kind" in row or (row["quantizer"], row["bits"], row["strategy"]) != ("dorefa", "1/1", "plain"):
            continue
        name = f"{row['mode']} {row['dtype']}"
        if "processes" in row:
            times = row["throughput"]
            name += f", {row['processes']} at once, over one of them"
        else:
            times = reference[_column(row), row["dtype"]] / row["ratio"]
        found.setdefault(name, {})[f"{row['network']} {row['width']:g}x"] = f"{times:.2f}"
    return _crossed("", found)


def memory(document: Row, dtype: str) -> str:
    """Return the table of a step's peak memory in MB (10^6 bytes), a column for each network and mode."""
    cells: _Cells = {}
    for row in document["rows"]:
        if row["dtype"] == dtype and row.get("peak_memory_bytes") and "processes" not in row:
            name = _name(row).removesuffix(", ms")
            cells.setdefault(name, {})[_column(row)] = f"{row['peak_memory_bytes'] / 1e6:.0f}"
    return _crossed("MB", cells)


def _way(row: Row) -> str:
    return f"{row['way']}, {row['bits']}"


def inference(document: Row, batch: str) -> str:
    """Return the table of whole networks, and of ResNet-18's layers together, for images of a batch."""
    rows = [row for row in document["rows"] if str(row["batch_size"]) == batch]
    rows = [row for row in rows if row["layer"] in (None, "all 3x3 layers")]
    columns = list(dict.fromkeys(_what(row) for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        times = f"{row['speedup']:.2f} ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
        cells.setdefault(_way(row), {})[_what(row)] = f"{1e3 * row['seconds']:.1f} ms: {times}"
    return _table(
        ["", *columns], [[name, *(found.get(c, "") for c in columns)] for name, found in cells.items()]
    )


def _what(row: Row) -> str:
    return f"{row['network']}, {row['layer'] or 'whole'}"


def layers(document: Row, batch: str) -> str:
    """Return the table of ResNet-18's layers, a column for each way but float32, for images of a batch."""
    rows = [row for row in document["rows"] if str(row["batch_size"]) == batch and "times" in row]
    columns = [way for way in dict.fromkeys(map(_way, rows)) if not way.startswith("float32")]
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["layer"], {})[_way(row)] = f"{row['speedup']:.2f}"
    return _table(
        ["", *columns], [[name, *(found.get(c, "") for c in columns)] for name, found in cells.items()]
    )


TABLES = {
    "aims": aims,
    "inference": inference,
    "layers": layers,
    "machine": machine,
    "memory": memory,
    "modes": modes,
    "rates": rates,
    "ratios": ratios,
}


def filled(text: str, folder: Path) -> str:
    """Return the page ``text`` with its tables made from the files in ``folder``."""

    def replaced(found: re.Match[str]) -> str:
        document = json.loads((folder / found[2]).read_text(encoding="utf-8"))
        return f"{found[1]}{TABLES[found[3]](document, found[4])}\n{found[5]}"

    return _MARKED.sub(replaced, text)


def main() -> None:
    """Write the tables of the page anew."""
    docs = Path(__file__).parents[1]
    page = docs / "performance.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), docs / "speed"), encoding="utf-8")


if __name__ == "__main__":
    main()
