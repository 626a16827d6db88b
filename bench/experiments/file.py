"""What an experiment file says: its tables checked and read, before anything is expanded.

``read_file`` returns the defaults, the arms with the axes that they have under the chosen profile and
``--set``, and the assignments that stand above the arms. Everything wrong is added to a list of problems; the
rest can be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bench.errors import InputError, nearest, shown
from bench.experiments.arms import PlannedArm, read_arms, remove_unknown, tolerant
from bench.experiments.axes import MAX_TRIALS, Assignment, Axis, read_axes
from bench.experiments.claims import Claim, read_claims
from bench.experiments.options import CHOICES
from bench.experiments.overrides import AxisPath, leaves, stack
from bench.experiments.toml_files import NAME, SETTABLE, Problems, check_fields, parse_override
from bench.experiments.tuning_table import Tuning, flattened, read_tuning

# The values of an axis and the place that they come from, by the axis's path.
_Replacements = dict[AxisPath, tuple[list[Any], str]]


class ProfileTable(BaseModel):
    """The keys of a profile beside the fields of a trial."""

    model_config = ConfigDict(extra="allow", strict=True)

    grid: dict[str, Any] = Field({}, description="axes that replace those of the file")
    only: list[str] = Field([], description="the arms that are run, with their baselines")
    defaults: dict[str, Any] = Field({}, description="fields that replace those of [defaults]")
    arms: dict[str, dict[str, Any]] = Field({}, description="further fields of single arms")
    tuning: dict[str, Any] = Field({}, description="keys that replace those of [tuning]")


class FileTable(BaseModel):
    """The tables of an experiment file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str = Field("", max_length=1000, description="the question, in one line")
    targets: list[str] = Field([], description="tables of published numbers to hold it against")
    deviations: list[str] = Field(
        [], description="what still deviates from the code or paper that the experiment reproduces"
    )
    defaults: dict[str, Any] = Field({}, description="fields of every arm")
    grid: dict[str, Any] = Field({}, description="axes of every arm: dotted field = values")
    arms: list[dict[str, Any]] = Field([], description="the lines of the comparison")
    tuning: dict[str, Any] | None = Field(
        None, description="how hyper-parameters are chosen, for every arm alike"
    )
    claims: list[dict[str, Any]] = Field([], description="the comparisons that the experiment is made for")
    profiles: dict[str, dict[str, Any]] = Field({}, description="the same experiment at another budget")


@dataclass
class Profile:
    """A checked profile: what it changes of the axes, the arms, ``[defaults]`` and ``[tuning]``."""

    axes: dict[AxisPath, list[Any]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentFile:
    """The checked content of an experiment file, under a profile, ``--set`` and ``--seeds``.

    ``common`` are the axes of every arm. ``assignments`` (of the profile and ``--set``) stand above every
    arm.
    """

    title: str
    targets: tuple[str, ...]
    defaults: dict[str, Any]
    arms: tuple[PlannedArm, ...]
    common: tuple[Axis, ...]
    assignments: tuple[Assignment, ...]
    profile: Profile
    profile_name: str | None
    tuning: Tuning | None = None
    claims: tuple[Claim, ...] = ()
    deviations: tuple[str, ...] = ()


def read_file(
    document: Mapping[str, Any],
    problems: Problems,
    profile_name: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
) -> ExperimentFile:
    """Return the checked content of a parsed experiment file.

    Args:
        document: The parsed TOML document.
        problems: Where everything wrong is added.
        profile_name: The profile asked for, if any.
        overrides: The texts ``dotted.key=value`` of ``--set``.
        seeds: N for the seeds 0 to N-1 in place of the file's.
    """
    table = tolerant(FileTable, document, "", problems)
    if not document.get("arms", []):
        problems.add("arms", "is empty" if "arms" in document else "missing (at least one table [[arms]])")
    for target in table.targets:
        if not NAME.fullmatch(target):
            problems.add("targets", f"{shown(target)} cannot be the name of a table of published numbers")
    defaults = dict(table.defaults)
    check_fields(defaults, SETTABLE, "defaults.", problems)
    grid = read_axes(table.grid, "grid.", problems)
    arms = read_arms(table.arms, problems)
    names = [arm.name for arm in arms]
    profiles = {name: _read_profile(name, given, names, problems) for name, given in table.profiles.items()}
    profile = _chosen(profiles, profile_name, problems)
    if seeds is not None and not 1 <= seeds <= MAX_TRIALS:
        problems.add("--seeds", f"{shown(seeds)} must be at least 1 and at most {MAX_TRIALS:,}")
        seeds = None
    where = f"profiles.{profile_name}"
    of_tuning = [text for text in overrides if text.lstrip().startswith("tuning.")]
    overrides = [text for text in overrides if text not in of_tuning]
    assignments, replaced = _read_overrides(overrides, problems)
    replaced = {path: (values, f"{where}.grid") for path, values in profile.axes.items()} | replaced
    if seeds is not None:
        replaced[("seed",)] = (list(range(seeds)), "--seeds")
    above = [Assignment(path, value, where) for path, value in leaves(profile.fields)] + assignments
    defaults = stack([defaults, profile.defaults])
    common = _place_axes(grid, arms, replaced, seeded="seed" in defaults)
    for arm in arms:
        if isinstance(extra := profile.arms.get(arm.name), dict):
            place = f"{where}.arms.{shown(arm.name)}"
            arm.extra = [Assignment(path, value, place) for path, value in leaves(extra)]
    return ExperimentFile(
        table.title,
        tuple(table.targets),
        defaults,
        tuple(arms),
        tuple(common),
        tuple(above),
        profile,
        profile_name,
        _read_tuning(table.tuning, profile, of_tuning, problems),
        _read_claims(table.claims, names, problems),
        deviations=tuple(table.deviations),
    )


def _read_tuning(
    table: Mapping[str, Any] | None, profile: Profile, overrides: Sequence[str], problems: Problems
) -> Tuning | None:
    """Return ``[tuning]`` as the profile and ``--set tuning.KEY=VALUE`` change it; None for no table."""
    if table is None:
        for text in overrides:
            problems.add(f"--set {text}", "the file has no table [tuning]")
        if profile.tuning:
            problems.add("profiles", "a profile changes [tuning], which the file does not have")
        return None
    replaced = {**table, **profile.tuning}
    for text in overrides:
        path, value = parse_override(text)
        if len(path) == 2:
            replaced[path[1]] = value
        elif path[1] == "space":
            space = replaced.get("space", {})
            space = dict(flattened(space)) if isinstance(space, Mapping) else {}
            replaced["space"] = {**space, ".".join(path[2:]): value}
        else:
            problems.add(f"--set {text}", f"'{path[1]}' has no keys")
    return read_tuning(replaced, problems)


def _read_claims(tables: list[dict[str, Any]], arms: Sequence[str], problems: Problems) -> tuple[Claim, ...]:
    try:
        return read_claims({"claims": tables}, arms, problems.file)
    except InputError as error:
        problems.report(error)
        return ()


def _chosen(profiles: Mapping[str, Profile], name: str | None, problems: Problems) -> Profile:
    """Return the profile called ``name``, an empty one for None. An unknown name is reported."""
    if name is not None and name not in profiles:
        known = ", ".join(profiles) or "none"
        hint = nearest(name, profiles)
        problems.add("profiles", f"there is no profile {shown(name)}.{hint} Known: {known}.")
    return profiles.get(name, Profile()) if name is not None else Profile()


def _read_profile(name: str, table: Mapping[str, Any], arms: Sequence[str], problems: Problems) -> Profile:
    where = f"profiles.{name}."
    read = tolerant(ProfileTable, table, where, problems)
    fields = {key: value for key, value in table.items() if key not in ProfileTable.model_fields}
    for key in ("bits", "seed", "quantizer"):
        if key in fields:
            grid = f"goes into the profile's grid: {key} = [...]"
            problems.add(f"{where}{key}", "belongs to the arms" if key == "quantizer" else grid)
            del fields[key]
    fields = remove_unknown(fields, [*ProfileTable.model_fields, *SETTABLE], where, problems)
    check_fields(fields, SETTABLE, where, problems)
    check_fields(read.defaults, SETTABLE, f"{where}defaults.", problems)
    for arm in read.only:
        if arm not in arms:
            problems.add(f"{where}only", f"there is no arm {shown(arm)}.{nearest(arm, arms)}")
    for arm, extra in read.arms.items():
        if arm not in arms:
            problems.add(f"{where}arms", f"there is no arm {shown(arm)}.{nearest(arm, arms)}")
        check_fields(extra, SETTABLE, f"{where}arms.{shown(arm)}.", problems)
    axes = read_axes(read.grid, f"{where}grid.", problems)
    return Profile(axes, read.only, read.defaults, read.arms, fields, read.tuning)


def _read_overrides(overrides: Sequence[str], problems: Problems) -> tuple[list[Assignment], _Replacements]:
    """Return the assignments that the ``--set`` texts make, and the axes that they replace."""
    assignments: list[Assignment] = []
    replaced: _Replacements = {}
    for text in overrides:
        try:
            path, value = parse_override(text)
        except InputError as error:
            problems.report(error)
            continue
        if path[0] == "grid" and len(path) > 1:
            axes = read_axes({".".join(path[1:]): value}, "--set grid.", problems)
        elif path == ("bits",) and isinstance(value, list):
            axes = read_axes({"bits": value}, "--set ", problems)
        else:
            assignments += _assignments(text, path, value, problems)
            continue
        replaced.update({path: (values, "--set grid") for path, values in axes.items()})
    return assignments, replaced


def _assignments(text: str, path: AxisPath, value: Any, problems: Problems) -> list[Assignment]:
    """Return what one ``--set`` text assigns; nothing after reporting why it cannot."""
    if path[0] not in SETTABLE:
        hint = nearest(path[0], SETTABLE)
        problems.add(f"--set {text}", f"no field is called {shown(path[0])}.{hint}")
        return []
    if len(path) == 1:
        fields = {path[0]: value}
        check_fields(fields, SETTABLE, "--set ", problems)
        return [Assignment(p, v, "--set") for p, v in leaves(fields)]
    if path[0] not in CHOICES:
        problems.add(f"--set {text}", f"'{path[0]}' has no options")
        return []
    return [Assignment(path, value, "--set")]


def _place_axes(
    grid: Mapping[AxisPath, list[Any]], arms: Sequence[PlannedArm], replaced: _Replacements, seeded: bool
) -> list[Axis]:
    """Give the arms their axes, and return those that all of them share.

    An arm's own axis hides one of the grid. ``replaced`` takes the place of both. The seed is 0 unless the
    grid or the defaults (``seeded``) say otherwise.
    """
    common = [Axis(path, values, "grid", weak=True) for path, values in grid.items()]
    if ("seed",) not in grid and not seeded:
        common.append(Axis(("seed",), [0], "seed", weak=True))
    for path, (values, where) in replaced.items():
        existing = [a for a in (*common, *(a for arm in arms for a in arm.axes)) if a.path == path]
        for axis in existing:
            axis.values, axis.where = values, where
        if not existing:
            common.append(Axis(path, values, where))
    for arm in arms:
        own = {axis.path for axis in arm.axes}
        arm.axes = [*(axis for axis in common if axis.path not in own), *arm.axes]
    return common
