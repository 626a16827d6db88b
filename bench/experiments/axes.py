"""Axes of a grid and assignments above the arms, as an experiment file writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import InputError, nearest, shown
from bench.experiments.config import check_field
from bench.experiments.overrides import AxisPath
from bench.experiments.toml_files import SETTABLE, Problems, check_fields

MAX_TRIALS = 20_000  # of an experiment


@dataclass
class Axis:
    """The ``values`` of one path, from ``where`` in the file. A ``weak`` axis gives way to the arm's own."""

    path: AxisPath
    values: list[Any]
    where: str
    weak: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path)


@dataclass
class Assignment:
    """``path = value``, from ``where``."""

    path: AxisPath
    value: Any
    where: str


def read_axes(grid: Mapping[str, Any], prefix: str, problems: Problems) -> dict[AxisPath, list[Any]]:
    """Return the axes of a grid table by path; ``a.b = [...]`` and ``"a.b" = [...]`` are the same axis."""
    found: dict[AxisPath, list[Any]] = {}
    pending: list[tuple[AxisPath, Any]] = [((key,), value) for key, value in grid.items()]
    while pending:
        parts, value = pending.pop(0)
        if isinstance(value, dict) and value:
            pending = [((*parts, key), inner) for key, inner in value.items()] + pending
            continue
        name = ".".join(parts)
        path = tuple(part.strip() for part in name.split("."))
        key = f"{prefix}{name}"
        if path[0] not in SETTABLE:
            problems.add(key, f"no field is called {shown(path[0])}.{nearest(path[0], SETTABLE)}")
        elif not isinstance(value, list):
            problems.add(key, f"an axis is a list of values, not {shown(value)}")
        elif not value:
            problems.add(key, "an axis needs a value")
        elif len(value) > MAX_TRIALS:
            problems.add(key, f"{len(value):,} values; {MAX_TRIALS:,} at most")
        elif path in found:
            problems.add(key, "the axis is given twice")
        else:
            unique: dict[str, Any] = {}
            for item in value:
                fields = {path[0]: item}
                if len(path) == 1:
                    check_fields(fields, SETTABLE, prefix, problems)
                text = json.dumps(_comparable(path, item), sort_keys=True, default=str)
                if text in unique and fields:
                    problems.add(key, f"lists {shown(item)} twice")
                if fields:  # a name that is no text could not even be looked up
                    unique[text] = item
            found[path] = list(unique.values())
    return found


def _comparable(path: AxisPath, value: Any) -> Any:
    if len(path) == 1 and path[0] != "recipe":
        try:
            return check_field(path[0], value)
        except InputError:
            return value
    exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if exact else value
