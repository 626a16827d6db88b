"""``[[claims]]`` of an experiment file: the comparisons that were declared before the runs.

Declared claims are the primary ones: the report tests them, with Holm's correction over them alone. Every
other gain of the experiment is exploratory and gets an interval without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import InputError, nearest, shown
from bench.experiments.config import parse_bits
from bench.experiments.toml_files import Problems, read_table

At = Literal["equal epochs", "equal operations"]
EQUAL_EPOCHS, EQUAL_OPERATIONS = get_args(At)


class Claim(BaseModel):
    """One declared comparison of two arms: a table ``[[claims]]``.

    ``over`` need not be the arm's ``baseline``. ``where`` covers every grid point of the pair that has these
    values, each of which is one claim.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    arm: str = Field(description="the arm that is expected to differ")
    over: str = Field(description="the arm that it is compared with")
    at: At = Field(description="what the two arms have in common")
    margin: float = Field(
        1.0, ge=0, lt=100, description="points within which two mean accuracies are equivalent"
    )
    where: dict[str, Any] = Field({}, description="axes of the grid and the values that the claim covers")


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
        if (read := read_table(Claim, entry, place, problems)) is not None:
            claims.append(read)
    problems.stop()
    return tuple(claims)
