"""``[[claims]]`` of an experiment file: the comparisons that were declared before the runs.

Declared claims are the primary ones: the report tests them, with Holm's correction over them alone. Every
other gain of the experiment is exploratory and gets an interval without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import InputError, nearest

EQUAL_EPOCHS, EQUAL_OPERATIONS = "equal epochs", "equal operations"
AT = (EQUAL_EPOCHS, EQUAL_OPERATIONS)
DEFAULT_MARGIN = 1.0  # points
_KEYS = ("arm", "over", "at", "margin", "where")


@dataclass(frozen=True)
class Claim:
    """One declared comparison of two arms.

    Attributes:
        arm: The name of the arm that is expected to differ.
        over: The name of the arm that it is compared with; it need not be the arm's ``baseline``.
        at: What the two arms have in common: "equal epochs" or "equal operations" (of training).
        margin: Two mean accuracies within so many points count as equivalent; 0 or more.
        where: The grid points that the claim covers, as (axis, value) pairs. Empty: every grid point of the
            pair, each of which is one claim.
    """

    arm: str
    over: str
    at: Literal["equal epochs", "equal operations"]
    margin: float = DEFAULT_MARGIN
    where: tuple[tuple[str, Any], ...] = ()


def read_claims(content: Mapping[str, Any], arms: Sequence[str], file: str) -> tuple[Claim, ...]:
    """Return the claims of an experiment file.

    Args:
        content: The parsed TOML of the file.
        arms: The names of the arms of the file.
        file: The name of the file, for messages.

    Raises:
        InputError: names every wrong or missing key of every claim at once.
    """
    entries = content.get("claims", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"{file}: claims: expected [[claims]] tables")
    problems = [
        f"{file}: claims, entry {number}: {problem}"
        for number, entry in enumerate(entries, 1)
        for problem in _problems(entry, arms)
    ]
    if problems:
        raise InputError("\n".join(problems))
    return tuple(
        Claim(
            entry["arm"],
            entry["over"],
            entry["at"],
            float(entry.get("margin", DEFAULT_MARGIN)),
            tuple(sorted(entry.get("where", {}).items())),
        )
        for entry in entries
    )


def _problems(entry: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    problems = [f"unknown key '{key}'.{nearest(key, _KEYS)}" for key in entry if key not in _KEYS]
    problems += [f"{key} is missing" for key in ("arm", "over", "at") if key not in entry]
    for key in ("arm", "over"):
        name = entry.get(key)
        if key in entry and name not in arms:
            hint = nearest(name, arms) if isinstance(name, str) else ""
            problems.append(f"{key}: there is no arm {name!r}.{hint}")
    if "arm" in entry and entry.get("arm") == entry.get("over"):
        problems.append("an arm cannot be compared with itself")
    if "at" in entry and entry["at"] not in AT:
        problems.append(f"at: expected one of {', '.join(map(repr, AT))}, not {entry['at']!r}")
    margin = entry.get("margin", DEFAULT_MARGIN)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 100:
        problems.append(f"margin: expected points of accuracy from 0 to 100, not {margin!r}")
    if not isinstance(entry.get("where", {}), Mapping):
        problems.append(f"where: expected a table of grid axes and values, not {entry['where']!r}")
    return problems
