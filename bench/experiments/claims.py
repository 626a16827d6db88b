"""``[[claims]]`` of an experiment file: the comparisons that were declared before the runs.

Declared claims are the primary ones: the report tests them, with Holm's correction over them alone. Every
other gain of the experiment is exploratory and gets an interval without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import InputError, nearest, shown
from bench.experiments.config import parse_bits
from bench.experiments.toml_files import Problems, read_table

At = Literal["equal epochs", "equal operations"]
EQUAL_EPOCHS, EQUAL_OPERATIONS = get_args(At)
DEFAULT_MARGIN = 1.0  # points


class ClaimTable(BaseModel):
    """The keys of a table ``[[claims]]``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    arm: str = Field(description="the arm that is expected to differ")
    over: str = Field(description="the arm that it is compared with")
    at: At = Field(description="what the two arms have in common")
    margin: float = Field(
        DEFAULT_MARGIN, ge=0, lt=100, description="points within which two mean accuracies are equivalent"
    )
    where: dict[str, Any] = Field({}, description="axes of the grid and the values that the claim covers")


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
    at: At
    margin: float = DEFAULT_MARGIN
    where: tuple[tuple[str, Any], ...] = ()


def same_value(axis: str, ours: Any, wanted: Any) -> bool:
    """Return whether a value of an axis is the one that a claim names, in whatever spelling."""
    if axis == "bits":
        try:
            text = ours if isinstance(ours, str) else "/".join(map(str, ours))
            return parse_bits(text) == parse_bits(wanted)
        except (InputError, TypeError):
            return False
    if isinstance(ours, Mapping) and isinstance(wanted, str):
        ours = ours.get("kind")
    return bool(ours == wanted) or str(ours) == str(wanted)


def read_claims(content: Mapping[str, Any], arms: Sequence[str], file: str) -> tuple[Claim, ...]:
    """Return the claims of an experiment file.

    ``content`` is the parsed file, ``arms`` are the names of its arms, ``file`` is its name in messages.
    Raises ``InputError``, which names every wrong or missing key of every claim at once.
    """
    entries = content.get("claims", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(f"{file}: claims: expected [[claims]] tables")
    problems, claims = Problems(file), []
    for number, entry in enumerate(entries, 1):
        place = f"claims, entry {number}: "
        for key in ("arm", "over"):
            name = entry.get(key)
            if isinstance(name, str) and name not in arms:
                problems.extend(place, f"{key}: there is no arm {shown(name)}.{nearest(name, arms)}")
        if "arm" in entry and entry["arm"] == entry.get("over"):
            problems.extend(place, "an arm cannot be compared with itself")
        if (read := read_table(ClaimTable, entry, place, problems)) is not None:
            where = tuple(sorted(read.where.items()))
            claims.append(Claim(read.arm, read.over, read.at, read.margin, where))
    problems.stop()
    return tuple(claims)
