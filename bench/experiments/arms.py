"""The arms of an experiment file: their tables read and checked, before anything is expanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import nearest, shown
from bench.experiments.axes import Assignment, Axis, read_axes
from bench.experiments.config import FIELDS, field_error
from bench.experiments.toml_files import SETTABLE, Problems, check_fields
from bench.text import clean

# The columns of tables of published numbers that ``published`` can name.
PUBLISHED_KEYS = tuple("table dataset network width method w_bits a_bits g_bits metric kind source".split())


class ArmTable(BaseModel):
    """The keys of an arm beside the fields of a trial."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(min_length=1, max_length=120, description="what tables call the arm")
    baseline: str | None = Field(None, description="the arm that the gain is measured against")
    allow_differences: list[str] = Field(
        [], description="fields in which the arm may differ from its baseline"
    )
    grid: dict[str, Any] = Field({}, description="axes of this arm alone: dotted field = values")
    published: dict[str, Any] | None = Field(
        None, description="the published rows that this arm is held against"
    )


@dataclass
class PlannedArm:
    """An arm before its expansion.

    ``where`` is how messages call the arm, ``axes`` are its own and those of the file's grid, ``extra`` are
    the assignments of the profile for this arm alone.
    """

    name: str
    where: str
    baseline: str | None
    published: dict[str, Any] | None
    allow_differences: tuple[str, ...]
    fields: dict[str, Any]
    axes: list[Axis]
    extra: list[Assignment]
    selected: bool = True


def tolerant(
    model: type[BaseModel], table: Mapping[str, Any], prefix: str, problems: Problems, **missing: Any
) -> Any:
    """Return ``table`` as ``model``, whatever is wrong with it.

    Args:
        model: The model; bad keys keep its defaults.
        table: The table, as parsed.
        prefix: Put before a key in a message.
        problems: Where bad keys are added.
        **missing: Values for required keys that are bad or missing.
    """
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        problems.extend(prefix, field_error(error, model.model_fields))
        bad = {found["loc"][0] for found in error.errors(include_url=False)}
        kept = {key: value for key, value in table.items() if key not in bad}
        return model.model_validate({**missing, **kept})


def remove_unknown(
    fields: dict[str, Any], known: Sequence[str], prefix: str, problems: Problems
) -> dict[str, Any]:
    """Return ``fields`` without keys that no trial has; each is reported with the nearest of ``known``."""
    for key in fields:
        if key not in SETTABLE:
            problems.add(f"{prefix}{key}", f"there is no such key.{nearest(key, known)}")
    return {key: value for key, value in fields.items() if key in SETTABLE}


def read_arms(tables: Sequence[Mapping[str, Any]], problems: Problems) -> list[PlannedArm]:
    """Return the arms that the tables ``[[arms]]`` describe; what is wrong is added to ``problems``."""
    arms = [_read_arm(number, table, problems) for number, table in enumerate(tables, 1)]
    _check_names(arms, problems)
    return arms


def _read_arm(number: int, given: Mapping[str, Any], problems: Problems) -> PlannedArm:
    name = given.get("name")
    where = f"arm {shown(name)}" if isinstance(name, str) and name else f"arms[{number}]"
    table = tolerant(ArmTable, given, f"{where}.", problems, name=where)
    if table.name != clean(table.name):
        problems.add(f"{where}.name", "has control, invisible or surrounding blank characters")
    fields = {key: value for key, value in given.items() if key not in ArmTable.model_fields}
    fields = remove_unknown(fields, [*ArmTable.model_fields, *SETTABLE], f"{where}.", problems)
    check_fields(fields, SETTABLE, f"{where}.", problems, lists=True)
    own = read_axes(table.grid, f"{where}.grid.", problems)
    axes = [Axis(path, values, f"{where}.grid") for path, values in own.items()]
    if isinstance(fields.get("bits"), list):
        bits = read_axes({"bits": fields.pop("bits")}, f"{where}.", problems)
        axes = [Axis(path, values, where) for path, values in bits.items()] + axes
    _check_published(table.published or {}, where, problems)
    for item in table.allow_differences:
        if item.split(".")[0] not in FIELDS:
            hint = nearest(item, FIELDS)
            problems.add(f"{where}.allow_differences", f"no field is called {shown(item)}.{hint}")
    if table.allow_differences and table.baseline is None:
        problems.add(f"{where}.allow_differences", "the arm has no baseline to differ from")
    allowed = tuple(table.allow_differences)
    return PlannedArm(table.name, where, table.baseline, table.published, allowed, fields, axes, [])


def _check_published(published: Mapping[str, Any], where: str, problems: Problems) -> None:
    for key, value in published.items():
        place = f"{where}.published.{key}"
        if key not in PUBLISHED_KEYS:
            problems.add(place, f"no column has this name.{nearest(key, PUBLISHED_KEYS)}")
        elif not isinstance(value, str | int | float) or isinstance(value, bool):
            problems.add(place, f"expected text or a number, not {shown(value)}")


def _check_names(arms: Sequence[PlannedArm], problems: Problems) -> None:
    """Report names given twice, and report and drop baselines that do not exist or form a circle."""
    names = [arm.name for arm in arms]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.add("arms", f"{names.count(name)} arms are called {shown(name)}")
    parents = {arm.name: arm.baseline for arm in arms}
    for arm in arms:
        if arm.baseline is None:
            continue
        if arm.baseline not in names:
            hint = nearest(arm.baseline, names)
            problems.add(f"{arm.where}.baseline", f"there is no arm {shown(arm.baseline)}.{hint}")
            arm.baseline = parents[arm.name] = None
            continue
        seen: set[str] = {arm.name}
        parent: str | None = arm.baseline
        while parent is not None and parent not in seen:
            seen.add(parent)
            parent = parents.get(parent)
        if parent == arm.name:
            what = "itself" if arm.baseline == arm.name else "measured against this arm in turn"
            problems.add(f"{arm.where}.baseline", f"{shown(arm.baseline)} is {what}")
            arm.baseline = parents[arm.name] = None
