"""What an experiment file says: its tables checked and read, before anything is expanded.

``ExperimentFile`` holds the defaults, the arms with the axes that they have under the chosen profile and ``--set``, and
the assignments that stand above the arms. What is wrong is added to the list of problems; what is left can be used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import InputError, nearest
from bench.experiments.config import CHOICES, FIELDS, check_field, field_problems, shown
from bench.experiments.overrides import AxisPath, leaves, stack
from bench.experiments.toml_files import NAME, SETTABLE, Problems, check_fields, parse_override
from bench.text import clean

MAX_TRIALS = 20_000  # of an experiment
_PUBLISHED = (
    "table",
    "dataset",
    "network",
    "width",
    "method",
    "w_bits",
    "a_bits",
    "g_bits",
    "metric",
    "kind",
    "source",
)


class _Table(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _ArmTable(_Table):
    """The keys of an arm beside the fields of a trial."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    baseline: str | None = None
    allow_differences: list[str] = []
    grid: dict[str, Any] = {}
    published: dict[str, Any] | None = None


class _ProfileTable(_Table):
    """The keys of a profile beside the fields of a trial."""

    grid: dict[str, Any] = {}
    only: list[str] = []
    defaults: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = {}  # further fields of single arms


class _FileTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[str, Field(max_length=1000)] = ""
    targets: list[str] = []
    defaults: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    arms: list[dict[str, Any]] = []
    profiles: dict[str, dict[str, Any]] = {}


def _tolerant(
    model: type[BaseModel], table: Mapping[str, Any], prefix: str, problems: Problems, **missing: Any
) -> Any:
    """Return ``table`` as ``model``; bad keys are reported and left at their defaults, required ones at ``missing``."""
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        for line in field_problems(error, model.model_fields):
            problems.extend(prefix, line)
        bad = {found["loc"][0] for found in error.errors(include_url=False)}
        kept = {key: value for key, value in table.items() if key not in bad}
        return model.model_validate({**missing, **kept})


def _axes(grid: Mapping[str, Any], prefix: str, problems: Problems) -> dict[AxisPath, list[Any]]:
    """Return the axes of a grid table by path; ``a.b = [...]`` and ``"a.b" = [...]`` are the same axis."""
    found: dict[AxisPath, list[Any]] = {}
    pending: list[tuple[AxisPath, Any]] = [((key,), value) for key, value in grid.items()]
    while pending:
        parts, value = pending.pop(0)
        if isinstance(value, dict):
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
                unique[text] = item
            found[path] = value
    return found


def _comparable(path: AxisPath, value: Any) -> Any:
    if len(path) == 1 and path[0] != "recipe":
        try:
            return check_field(path[0], value)
        except InputError:
            return value
    return (
        float(value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
        else value
    )


@dataclass
class Axis:
    """``values`` for one path, from ``where`` in the file; ``weak``: gives way to what the arm itself says."""

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


@dataclass
class PlannedArm:
    """An arm before its expansion; ``where`` is how messages call it."""

    name: str
    where: str
    baseline: str | None
    published: dict[str, Any] | None
    allow_differences: tuple[str, ...]
    fields: dict[str, Any]
    axes: list[Axis]
    extra: list[Assignment]  # of the profile, for this arm alone
    selected: bool = True


@dataclass
class Profile:
    """A checked profile: what it changes of the axes, the choice of arms, ``[defaults]`` and all or single arms."""

    axes: dict[AxisPath, list[Any]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


class ExperimentFile:
    """The checked content of an experiment file, under a profile, ``--set`` and ``--seeds``."""

    def __init__(
        self,
        document: Mapping[str, Any],
        problems: Problems,
        profile: str | None,
        overrides: Sequence[str],
        seeds: int | None,
    ) -> None:
        self.problems, self.profile_name, self.seeds = problems, profile, seeds
        self._read_tables(document)
        self._read_overrides(overrides)

    def _read_tables(self, document: Mapping[str, Any]) -> None:
        problems = self.problems
        file = _tolerant(_FileTable, document, "", problems)
        if not document.get("arms", []):
            problems.add(
                "arms", "is empty" if "arms" in document else "missing (at least one table [[arms]])"
            )
        self.title, self.targets = file.title, tuple(file.targets)
        for target in file.targets:
            if not NAME.fullmatch(target):
                problems.add("targets", f"{shown(target)} cannot be the name of a table of published numbers")
        self.defaults = dict(file.defaults)
        check_fields(self.defaults, SETTABLE, "defaults.", problems)
        self.grid = _axes(file.grid, "grid.", problems)
        self.arms = self._read_arms(file.arms)
        self.profile = Profile()
        for name, table in file.profiles.items():
            read = self._read_profile(name, table)
            if name == self.profile_name:
                self.profile = read
        if self.profile_name is not None and self.profile_name not in file.profiles:
            known = ", ".join(file.profiles) or "none"
            hint = nearest(self.profile_name, file.profiles)
            problems.add("profiles", f"there is no profile {shown(self.profile_name)}.{hint} Known: {known}.")
        if self.seeds is not None and not 1 <= self.seeds <= MAX_TRIALS:
            problems.add("--seeds", f"{shown(self.seeds)} must be at least 1 and at most {MAX_TRIALS:,}")
            self.seeds = None

    def _read_arms(self, entries: list[dict[str, Any]]) -> list[PlannedArm]:
        problems, arms = self.problems, []
        known = [*_ArmTable.model_fields, *SETTABLE]
        for number, entry in enumerate(entries, 1):
            given = entry.get("name")
            where = f"arm {shown(given)}" if isinstance(given, str) and given else f"arms[{number}]"
            table = _tolerant(_ArmTable, entry, f"{where}.", problems, name=where)
            if table.name != clean(table.name):
                problems.add(f"{where}.name", "has control, invisible or surrounding blank characters")
            fields = {k: v for k, v in entry.items() if k not in _ArmTable.model_fields}
            self._unknown(fields, known, f"{where}.")
            check_fields(fields, SETTABLE, f"{where}.", problems, lists=True)
            axes = [
                Axis(p, v, f"{where}.grid") for p, v in _axes(table.grid, f"{where}.grid.", problems).items()
            ]
            if isinstance(fields.get("bits"), list):
                values = _axes({"bits": fields.pop("bits")}, f"{where}.", problems)
                axes = [Axis(p, v, where) for p, v in values.items()] + axes
            for key, value in (table.published or {}).items():
                if key not in _PUBLISHED:
                    problems.add(
                        f"{where}.published.{key}", f"no column has this name.{nearest(key, _PUBLISHED)}"
                    )
                elif not isinstance(value, str | int | float) or isinstance(value, bool):
                    problems.add(f"{where}.published.{key}", f"expected text or a number, not {shown(value)}")
            for item in table.allow_differences:
                if item.split(".")[0] not in FIELDS:
                    hint = nearest(item, FIELDS)
                    problems.add(f"{where}.allow_differences", f"no field is called {shown(item)}.{hint}")
            if table.allow_differences and table.baseline is None:
                problems.add(f"{where}.allow_differences", "the arm has no baseline to differ from")
            allowed = tuple(table.allow_differences)
            arms.append(
                PlannedArm(table.name, where, table.baseline, table.published, allowed, fields, axes, [])
            )
        self._check_names(arms)
        return arms

    def _unknown(self, fields: dict[str, Any], known: Sequence[str], prefix: str) -> None:
        """Report keys that neither the table nor a trial has, with the nearest of both."""
        for key in [key for key in fields if key not in SETTABLE]:
            self.problems.add(f"{prefix}{key}", f"there is no such key.{nearest(key, known)}")
            del fields[key]

    def _check_names(self, arms: list[PlannedArm]) -> None:
        names = [arm.name for arm in arms]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self.problems.add("arms", f"{names.count(name)} arms are called {shown(name)}")
        parents = {arm.name: arm.baseline for arm in arms}
        for arm in arms:
            baseline = arm.baseline
            if baseline is None:
                continue
            if baseline not in names:
                hint = nearest(baseline, names)
                self.problems.add(f"{arm.where}.baseline", f"there is no arm {shown(baseline)}.{hint}")
                arm.baseline = parents[arm.name] = None
                continue
            seen: set[str] = {arm.name}
            parent: str | None = baseline
            while parent is not None and parent not in seen:
                seen.add(parent)
                parent = parents.get(parent)
            if parent == arm.name:
                what = "itself" if baseline == arm.name else "measured against this arm in turn"
                self.problems.add(f"{arm.where}.baseline", f"{shown(baseline)} is {what}")
                arm.baseline = parents[arm.name] = None

    def _read_profile(self, name: str, table: Mapping[str, Any]) -> Profile:
        where, problems = f"profiles.{name}.", self.problems
        read = _tolerant(_ProfileTable, table, where, problems)
        fields = {k: v for k, v in table.items() if k not in _ProfileTable.model_fields}
        for key in ("bits", "seed", "quantizer"):
            if key in fields:
                advice = (
                    "belongs to the arms"
                    if key == "quantizer"
                    else f"goes into the profile's grid: {key} = [...]"
                )
                problems.add(f"{where}{key}", advice)
                del fields[key]
        self._unknown(fields, [*_ProfileTable.model_fields, *SETTABLE], where)
        check_fields(fields, SETTABLE, where, problems)
        check_fields(read.defaults, SETTABLE, f"{where}defaults.", problems)
        names = [arm.name for arm in self.arms]
        for arm in read.only:
            if arm not in names:
                problems.add(f"{where}only", f"there is no arm {shown(arm)}.{nearest(arm, names)}")
        for arm, extra in read.arms.items():
            if arm not in names:
                problems.add(f"{where}arms", f"there is no arm {shown(arm)}.{nearest(arm, names)}")
            check_fields(extra, SETTABLE, f"{where}arms.{shown(arm)}.", problems)
        return Profile(
            _axes(read.grid, f"{where}grid.", problems), read.only, read.defaults, read.arms, fields
        )

    def _read_overrides(self, overrides: Sequence[str]) -> None:
        """Collect the assignments above the arms (profile, ``--set``) and the axes that they replace."""
        where = f"profiles.{self.profile_name}"
        self.assignments = [Assignment(p, v, where) for p, v in leaves(self.profile.fields)]
        replaced: dict[AxisPath, tuple[list[Any], str]] = {
            path: (values, f"{where}.grid") for path, values in self.profile.axes.items()
        }
        for text in overrides:
            try:
                path, value = parse_override(text)
            except InputError as error:
                self.problems.line(str(error))
                continue
            if path[0] == "grid" and len(path) > 1:
                axes = _axes({".".join(path[1:]): value}, "--set grid.", self.problems)
            elif path == ("bits",) and isinstance(value, list):
                axes = _axes({"bits": value}, "--set ", self.problems)
            else:
                fields = {path[0]: value} if len(path) == 1 else {}
                if path[0] not in SETTABLE:
                    hint = nearest(path[0], SETTABLE)
                    self.problems.add(f"--set {text}", f"no field is called {shown(path[0])}.{hint}")
                elif fields:
                    check_fields(fields, SETTABLE, "--set ", self.problems)
                    self.assignments += [Assignment(p, v, "--set") for p, v in leaves(fields)]
                elif path[0] not in CHOICES:
                    self.problems.add(f"--set {text}", f"'{path[0]}' has no options")
                else:
                    self.assignments.append(Assignment(path, value, "--set"))
                continue
            replaced.update({p: (v, "--set grid") for p, v in axes.items()})
        if self.seeds is not None:
            replaced[("seed",)] = (list(range(self.seeds)), "--seeds")
        self._place_axes(replaced)

    def _place_axes(self, replaced: dict[AxisPath, tuple[list[Any], str]]) -> None:
        self.defaults = stack([self.defaults, self.profile.defaults])
        common = [Axis(path, values, "grid", weak=True) for path, values in self.grid.items()]
        if ("seed",) not in self.grid and "seed" not in self.defaults:
            common.append(Axis(("seed",), [0], "seed", weak=True))
        for path, (values, where) in replaced.items():
            existing = [a for a in (*common, *(a for arm in self.arms for a in arm.axes)) if a.path == path]
            for axis in existing:
                axis.values, axis.where = values, where
            if not existing:
                common.append(Axis(path, values, where))
        self.common = common
        for arm in self.arms:
            own = {axis.path for axis in arm.axes}
            arm.axes = [*(a for a in common if a.path not in own), *arm.axes]
            if isinstance(extra := self.profile.arms.get(arm.name), dict):
                where = f"profiles.{self.profile_name}.arms.{shown(arm.name)}"
                arm.extra = [Assignment(path, value, where) for path, value in leaves(extra)]
