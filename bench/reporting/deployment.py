"""The table of the files that `bench export` wrote.

A row has the size of a file, its speed, and what the file answered when it was read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.records import Records
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tables import cell_columns, cell_data

_NOTES = [
    "Bits: of the deployed network, without branch and latent weights. Accuracy: of the file, read again by "
    "the program that runs it, on all test images. Equal: a check mark where that accuracy is exactly the "
    "accuracy of the trained network in the record, and no prediction differs. Latency: median of one image "
    "on one thread, ± half the distance of the quartiles, on the processor named."
]


def deployment_table(records: Records, cells: Sequence[Cell]) -> Table | None:
    """Return one row an exported file, the last of each trial and format; None where nothing was exported."""
    last: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for line in records.exports:
        last[line["id"], line.get("format")] = line
    entries = [
        (cell, trial, line)
        for cell in cells
        for trial in cell.trials
        for (id, _), line in sorted(last.items(), key=lambda item: tuple(map(str, item[0])))
        if id == trial["id"]
    ]
    if not entries:
        return None
    lines = [line for _, _, line in entries]
    columns = [
        *cell_columns([cell for cell, _, _ in entries]),
        Column("Seed", [str(trial["seed"]) for _, trial, _ in entries], "r"),
        Column("Format", [str(line.get("format")) for line in lines]),
        Column("Bits", [_count(trial["model_bits"]) for _, trial, _ in entries], "r"),
        Column("Bytes of the bits", [_count(trial["model_bits"], 8) for _, trial, _ in entries], "r"),
        Column("Bytes of tensors", [_count(line.get("tensor_bytes")) for line in lines], "r"),
        Column("Bytes on disk", [_count(line.get("file_bytes")) for line in lines], "r"),
        Column("Bit-operations", [_count(trial["bit_operations"]) for _, trial, _ in entries], "r"),
        Column("Latency, ms", [_latency(line) for line in lines], "r"),
        Column("Processor", [str(line.get("processor", "")) for line in lines], common=True),
        *_on_integers(lines),
        Column("Accuracy, %", [_percent(line.get("accuracy")) for line in lines], "r"),
        Column("Equal", [_mark(line, trial) for _, trial, line in entries]),
    ]
    data = [
        {
            **cell_data(records, cell),
            "seed": trial["seed"],
            "run": trial["id"],
            "model_bits": trial["model_bits"],
            "bit_operations": trial["bit_operations"],
            "trained_accuracy": trial["accuracy"],
            **{key: line.get(key) for key in (*_KEYS, *(_INTEGER_KEYS if _any_on_integers(lines) else ()))},
        }
        for cell, trial, line in entries
    ]
    title = f"{records.title}: the networks that ship"
    return Table("deployment", title, columns, data, _NOTES, cells=[cell for cell, _, _ in entries])


_KEYS = tuple(
    """
    format file sha256 file_bytes tensor_bytes accuracy correct seen equal_logits other_predictions moved
    wrong difference latency_ms latency_spread_ms processor
    """.split()
)


_INTEGER_KEYS = ("layers", "integer_layers", "instructions")


def _any_on_integers(lines: Sequence[Mapping[str, Any]]) -> bool:
    return any(_is_number(line.get("integer_layers")) for line in lines)


def _on_integers(lines: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the column of layers on integers, where a file was run so."""
    if not _any_on_integers(lines):
        return []
    cells = [
        f"{line['integer_layers']} of {line.get('layers')}, {line.get('instructions') or NONE}"
        if _is_number(line.get("integer_layers"))
        else NONE
        for line in lines
    ]
    return [Column("Layers on integers", cells)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not pd.isna(value)


def _count(value: Any, unit: int = 1) -> str:
    return f"{value / unit:,.0f}" if _is_number(value) else NONE


def _percent(value: Any) -> str:
    return f"{value:.2f}" if _is_number(value) else "not checked"


def _latency(line: Mapping[str, Any]) -> str:
    middle, spread = line.get("latency_ms"), line.get("latency_spread_ms")
    return f"{middle:.2f} ± {spread:.2f}" if _is_number(middle) and _is_number(spread) else NONE


def _mark(line: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """Return a check mark where the file's accuracy on all images is exactly that of the record.

    A file that answers an image otherwise has no mark, even where as many answers are right.
    """
    if line.get("other_predictions"):
        return ""
    same = line.get("correct"), line.get("seen"), line.get("accuracy")
    return "✓" if None not in same and same == (trial["correct"], trial["seen"], trial["accuracy"]) else ""
