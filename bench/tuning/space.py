"""The space of a search: points of the unit cube become values of fields, and ranges grow at their edges.

A configuration is a table ``{dotted path: value}`` with a value for each dimension that reaches the arm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.experiments.tuning_table import Dimension

Configuration = Mapping[str, Any]
DIGITS = 6  # significant ones of a value, so that a configuration is readable and its identity is stable
QUARTER = 0.25  # of a range's width: by how much a range without levels grows


def value_at(dimension: Dimension, u: float) -> Any:
    """Return the value of a dimension at ``u`` in [0, 1).

    A range is linear in ``u`` (log: in the logarithm); an int range and a list give each of their n values
    a share 1/n.
    """
    low, high = dimension.values[0], dimension.values[-1]
    if dimension.kind == "list":
        return dimension.values[min(int(u * len(dimension.values)), len(dimension.values) - 1)]
    if dimension.kind == "int":
        return low + min(int(u * (high - low + 1)), high - low)
    if dimension.kind == "log":
        return rounded(math.exp(math.log(low) + u * (math.log(high) - math.log(low))))
    return rounded(low + u * (high - low))


def levels(dimension: Dimension, count: int) -> list[Any]:
    """Return the values of a list, or ``count`` values of a range at equal distances, both ends included."""
    low, high = dimension.values[0], dimension.values[-1]
    if dimension.kind == "list":
        return list(dimension.values)
    if dimension.kind == "int":
        step = max(1.0, (high - low) / max(1, count - 1))
        found = [low + round(k * step) for k in range(count)]
        return list(dict.fromkeys(value for value in found if value <= high))
    if count == 1:
        return [value_at(dimension, 0.5)]
    return [value_at(dimension, k / (count - 1)) for k in range(count)]


def rounded(value: float) -> float:
    """Return ``value`` with 6 significant digits."""
    return float(f"{value:.{DIGITS}g}")


def key(configuration: Configuration) -> str:
    """Return a text that is equal for equal configurations."""
    return json.dumps(dict(configuration), sort_keys=True, default=str)


def projected(configuration: Configuration, reached: Iterable[str]) -> dict[str, Any]:
    """Return the part of a configuration that an arm has."""
    names = set(reached)
    return {name: value for name, value in configuration.items() if name in names}


def edges(
    best: Configuration, tried: Sequence[Configuration], space: Iterable[Dimension]
) -> list[tuple[str, str]]:
    """Return the edges (dotted path, "low" or "high") at which the best configuration lies.

    The best one lies at an edge of a range where no configuration was tried beyond its value, and another
    value was tried at all.
    """
    found = []
    for dimension in space:
        if not dimension.ranged or dimension.name not in best:
            continue
        values = [configuration[dimension.name] for configuration in tried]
        found += [(dimension.name, side) for side in edge_sides(best[dimension.name], values)]
    return found


def edge_sides(value: float, tried: Iterable[float]) -> list[str]:
    """Return the sides, "low" and "high", on which no number beyond ``value`` was tried.

    Where one number alone was tried, it has no such side: nothing was searched.
    """
    numbers = set(tried)
    ends = {"low": min(numbers), "high": max(numbers)} if len(numbers) > 1 else {}
    return [side for side, end in ends.items() if value == end]


def widened(dimension: Dimension, side: str, times: int, part: float = QUARTER) -> Dimension | None:
    """Return the part of a range that its ``times``-th widening adds at one side; None where there is none.

    Each widening adds ``part`` of the range's own width (log: of the width of its logarithm). A range above
    0 stays above 0.
    """
    low, high = dimension.values
    if dimension.kind == "int":
        step = max(1, round(part * (high - low)))
        ends = (
            (high + (times - 1) * step + 1, high + times * step)
            if side == "high"
            else (low - times * step, low - (times - 1) * step - 1)
        )
        return None if low >= 0 > ends[0] else Dimension(dimension.path, "int", ends)
    forward, back = (math.log, math.exp) if dimension.kind == "log" else (float, float)
    a, b = forward(low), forward(high)
    width = part * (b - a)
    first, last = (
        (b + (times - 1) * width, b + times * width)
        if side == "high"
        else (a - times * width, a - (times - 1) * width)
    )
    new_low, new_high = rounded(back(first)), rounded(back(last))
    if dimension.kind == "linear" and low > 0 >= new_low:
        return None
    return Dimension(dimension.path, dimension.kind, (new_low, new_high))
