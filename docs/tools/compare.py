"""Compare a fresh accuracy table with a committed one: ``python -m docs.tools.compare NEW COMMITTED``.

Accuracies differ between processors, so a difference is reported, cell by cell, and is no failure; a missing
table, row or run is.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.errors import InputError
from bench.reporting import statistics as st
from bench.text import clean, signed

KEY = (
    "arm",
    "role",
    "dataset",
    "network",
    "width",
    "quantizer",
    "bits",
    "strategy",
    "settings",
    "epochs",
    "batch_size",
    "precision",
)
_NEEDED = (*KEY, "n", "accuracy", "accuracy_by_seed", "gain", "gain_low", "gain_high")


def compare_tables(new: Path, committed: Path) -> int:
    """Compare two ``accuracy.csv`` (or the report folders that hold them); print a line a cell.

    Returns 0 where both have the same rows and numbers of runs, whatever their accuracies; 1 where the
    structure differs or a table is missing.
    """
    try:
        fresh, old = _read(new), _read(committed)
    except InputError as error:
        print(error)
        return 1
    problems = [f"missing row: {_name(old[key])}" for key in old if key not in fresh]
    problems += [
        f"row that is not in the committed table: {_name(fresh[key])}" for key in fresh if key not in old
    ]
    counts = {"identical": 0, "within noise": 0, "differs": 0, "no interval": 0}
    for key, row in fresh.items():
        if key not in old:
            continue
        word, told = _accuracy(row, old[key])
        counts[word] += 1
        if row["n"] != old[key]["n"]:
            problems.append(f"{_name(row)}: {row['n']} runs, {old[key]['n']} in the committed table")
        gain = _gain(row, old[key])
        print(f"{_name(row)}: {told}{'; ' + gain if gain else ''}")
    print(f"{len(fresh)} cells: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _read(place: Path) -> dict[tuple[str, ...], Mapping[str, str]]:
    path = Path(place) / "accuracy.csv" if Path(place).is_dir() else Path(place)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    missing = [key for key in _NEEDED if key not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path}: no accuracy table: columns {', '.join(missing)} are missing")
    return {tuple(row[key] or "" for key in KEY): row for row in rows}


def _name(row: Mapping[str, str]) -> str:
    parts = [
        row["arm"] or f"({row['role']})",
        row["settings"],
        row["bits"],
        f"width {row['width']}",
        f"{row['epochs']} epochs",
    ]
    return clean(", ".join(part for part in parts if part))


def _values(row: Mapping[str, str]) -> dict[str, float]:
    pairs = (item.partition(":")[::2] for item in row["accuracy_by_seed"].split())
    return {seed: float(value) for seed, value in pairs}


def _accuracy(new: Mapping[str, str], old: Mapping[str, str]) -> tuple[str, str]:
    ours, theirs = _values(new), _values(old)
    if not ours or not theirs:
        return "no interval", f"{new['accuracy'] or 'no run'}, committed {old['accuracy'] or 'no run'}"
    mean, before = sum(ours.values()) / len(ours), sum(theirs.values()) / len(theirs)
    told = f"accuracy {mean:.2f}, committed {before:.2f}"
    if ours == theirs:
        return "identical", f"{told}: identical"
    interval = st.welch(list(ours.values()), list(theirs.values()))
    if interval is None:
        return "no interval", f"{told}: {signed(mean - before)}, no interval"
    word = "within noise" if interval[0] <= 0.0 <= interval[1] else "differs"
    return word, f"{told}: {signed(mean - before)} [{signed(interval[0])}, {signed(interval[1])}], {word}"


def _gain(new: Mapping[str, str], old: Mapping[str, str]) -> str:
    if not new["gain"] or not old["gain"]:
        return ""
    told = f"gain {signed(float(new['gain']))}, committed {signed(float(old['gain']))}"
    if not old["gain_low"]:
        return told
    inside = float(old["gain_low"]) <= float(new["gain"]) <= float(old["gain_high"])
    return f"{told} ({'inside' if inside else 'outside'} its interval)"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print("usage: python -m docs.tools.compare NEW COMMITTED", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(compare_tables(Path(sys.argv[1]), Path(sys.argv[2])))
