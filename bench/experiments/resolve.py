"""One arm at one grid point: its fields stacked, checked and completed to the configuration of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry, schedules
from bench.errors import InputError, nearest, shown
from bench.experiments import permission
from bench.experiments.arms import PlannedArm
from bench.experiments.config import READ_BY, TrialConfig, make_config, only_with, short_bits
from bench.experiments.file import ExperimentFile
from bench.experiments.labels import label
from bench.experiments.library import Library
from bench.experiments.options import CHOICES, as_table
from bench.experiments.overrides import AxisPath, assign, default_of, entry_of, explicit, reaches, stack
from bench.experiments.roles import role_names, roles
from bench.experiments.toml_files import SETTABLE, load_recipe


@dataclass(frozen=True)
class Run:
    """A resolved trial of an arm at a grid point; ``needs`` maps a role to the further trial it needs."""

    arm: str
    config: TrialConfig
    recipe: str | None
    axes: tuple[AxisPath, ...]
    needs: dict[str, TrialConfig]

    def value(self, path: AxisPath) -> Any:
        """Return the resolved value at ``path`` as tables show it; None where this run has no such option."""
        if path == ("recipe",):
            return self.recipe
        if path == ("bits",):
            return short_bits(self.config.bits)
        value: Any = getattr(self.config, path[0])
        for i, part in enumerate(path[1:], 1):
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
            if isinstance(value, dict) and i == len(path) - 1:
                return label("factors", value) if part == "factor" else value
        if isinstance(value, dict):
            return label(CHOICES[path[0]], value)
        return value


@dataclass(frozen=True)
class Stacked:
    """The fields of an arm at a grid point, before they are checked.

    ``origin`` says where the value at each path came from. ``applied`` are the axes that decided a value,
    ``touched`` the axes and assignments (by ``id``) that reached the arm, though another may stand above
    them.
    """

    fields: dict[str, Any]
    origin: dict[AxisPath, str]
    applied: tuple[AxisPath, ...]
    touched: frozenset[int]


@dataclass(frozen=True)
class Resolution:
    """What became of an arm at a grid point: its run, or None and the error that says why."""

    stacked: Stacked
    recipe: str | None
    run: Run | None
    error: InputError | None = None


def stack_fields(
    file: ExperimentFile, arm: PlannedArm, point: Sequence[Any], recipe: Mapping[str, Any]
) -> Stacked:
    """Return the fields of ``arm`` at ``point``, in the order that ``bench.experiments.expand`` describes."""
    fields: dict[str, Any] = {}
    origin: dict[AxisPath, str] = {}

    def set_at(path: AxisPath, value: Any, where: str) -> None:
        assign(fields, path, value)
        for deeper in [key for key in origin if key[: len(path)] == path]:
            del origin[deeper]
        origin[path] = where

    for table, where in ((recipe, "recipe"), (file.defaults, "defaults"), (arm.fields, arm.where)):
        for key, value in table.items():
            set_at((key,), value, where)
    above = sorted(
        (*file.assignments, *arm.extra), key=lambda item: (item.where == "--set", item.path[0] in READ_BY)
    )
    applied: list[AxisPath] = []
    touched: set[int] = set()
    for axis, value in sorted(zip(arm.axes, point, strict=True), key=lambda pair: _axis_order(pair[0].path)):
        if (axis.weak and explicit(arm.fields, axis.path)) or not reaches(fields, axis.path):
            continue
        touched.add(id(axis))
        if not any(item.path == axis.path[: len(item.path)] and reaches(fields, item.path) for item in above):
            set_at(axis.path, value, axis.where)
            applied.append(axis.path)
    for item in above:
        if reaches(fields, item.path):
            set_at(item.path, item.value, item.where)
            touched.add(id(item))
    order = [axis.path for axis in arm.axes]
    return Stacked(fields, origin, tuple(sorted(applied, key=order.index)), frozenset(touched))


def _axis_order(path: AxisPath) -> tuple[int, bool, bool]:
    """Return when an axis is applied: options after their choice, what a field reads before the field."""
    return len(path), path[-1] != "kind", path == ("bits",) or path[0] in READ_BY


def resolve(
    file: ExperimentFile, arm: PlannedArm, point: Sequence[Any], library: Library
) -> Resolution | None:
    """Return what becomes of ``arm`` at ``point`` (a value an axis); None where its recipe cannot be read."""
    stacked = stack_fields(file, arm, point, {})
    name = stacked.fields.get("recipe")
    if name is None:
        dataset = entry_of("datasets", as_table("datasets", stacked.fields.get("dataset")))
        name = dataset.facts.get("default_recipe") if dataset else None
    recipe: dict[str, Any] | None = {}
    if name is not None:
        where = stacked.origin.get(("recipe",))
        place = f"{where}.recipe" if where else f"{arm.where}.recipe (the data set's default)"
        recipe = library.recipe(name, place)
    if recipe is None:
        return None
    stacked = stack_fields(file, arm, point, {"optimizer": default_of("optimizer"), **recipe})
    fields = {key: value for key, value in stacked.fields.items() if key != "recipe"}
    try:
        if "bits" not in fields and reaches(fields, ("bits",)):
            raise InputError('bits: missing (this quantizer needs "W/A", for instance "1/2")')
        config, needs = with_teachers(library.with_start(sealed(make_config(fields))), library)
        check_steps(config, library)
    except InputError as error:
        return Resolution(stacked, name, None, error)
    return Resolution(stacked, name, Run(arm.name, config, name, stacked.applied, needs))


def sealed(config: TrialConfig) -> TrialConfig:
    """Return ``config`` with the checksum of its network's code; raises where code is not allowed."""
    for name, group in CHOICES.items():
        _check_allowed(group, getattr(config, name), name)
    network = permission.sealed(config.network)
    return config if network == config.network else config.model_copy(update={"network": network})


def _check_allowed(group: str, choice: Mapping[str, Any], where: str) -> None:
    entry = registry.get(group, choice["kind"])
    registry.check_allowed(entry, where)
    for option, spec in entry.options.items():
        for name, factor in _factors(spec, option, choice.get(option)).items():
            _check_allowed("factors", factor, f"{where}.{name}")


def _factors(spec: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    """Return the factors that an option holds, by their place in the strategy."""
    if value is None or spec["type"] not in ("factor", "factors"):
        return {}
    if spec["type"] == "factor":
        return {option: value}
    return {f"{option}.{layer}": factor for layer, factor in value.items()}


def check_steps(config: TrialConfig, library: Library) -> None:
    """Raise where the data set is too small for the recipe, or the strategy does not end in these steps.

    A factor ends at 0. An option ``until`` below 1 is a share of all steps, with a last stage behind it;
    ``staged`` without stages has no use for it.
    """
    steps = library.steps_per_epoch(config)
    options = registry.get("strategies", config.strategy["kind"]).options
    for option, spec in options.items():
        for name, factor in _factors(spec, option, config.strategy[option]).items():
            reason = schedules.never_removed(factor, config.epochs, steps)
            if reason:
                raise InputError(f"strategy.{name}: {reason}")
    is_share = options.get("until", {}).get("below") == 1
    if is_share and steps is not None and config.strategy.get("stages", ()) is not None:
        reason = schedules.no_step_behind(config.strategy["until"], config.epochs, steps)
        if reason:
            raise InputError(f"strategy.until: {reason}")


def with_teachers(config: TrialConfig, library: Library) -> tuple[TrialConfig, dict[str, TrialConfig]]:
    """Complete the strategy's networks; return the configuration and, by role, those that are trials."""
    strategy, needs = dict(config.strategy), {}
    for role in roles(config.strategy):
        teacher = _teacher(config, strategy[role.name], f"strategy.{role.name}", library)
        strategy[role.name] = teacher.dump()
        if not role.joint:
            needs[role.name] = teacher
    if strategy == config.strategy:
        return config, needs
    return config.model_copy(update={"strategy": strategy}), needs


def _teacher(config: TrialConfig, table: Mapping[str, Any], where: str, library: Library) -> TrialConfig:
    """Return the teacher: the arm in full precision, trained plainly, with the fields of ``table``."""
    _check_teacher_keys(table, where)
    try:
        given = dict(table)
        if "recipe" in given:
            given = stack([load_recipe(given.pop("recipe"), library.folder), given])
        plain = {"quantizer": "full_precision", "bits": "32/32", "strategy": "plain", "start": None}
        fields = config.dump() | plain
        for key, value in given.items():
            assign(fields, (key,), value)
        unread = [key for key in table if not reaches(fields, (key,)) and key in READ_BY]
        if unread:
            raise InputError(f"{unread[0]}: {only_with(unread[0])}")
        teacher = library.with_start(sealed(make_config(fields)))
        check_steps(teacher, library)
    except InputError as error:
        raise InputError("\n".join(f"{where}.{line}" for line in str(error).splitlines())) from None
    if role_names(teacher.strategy["kind"]):
        raise InputError(f"{where}.strategy: a teacher has no teacher of its own")
    return teacher


def _check_teacher_keys(table: Mapping[str, Any], where: str) -> None:
    found = []
    for key, value in table.items():
        if key not in SETTABLE:
            found.append(f"{where}.{key}: there is no such key.{nearest(key, SETTABLE)}")
        elif key == "dataset":
            found.append(f"{where}.dataset: is that of the arm, always")
        elif key == "recipe" and not isinstance(value, str):
            found.append(f"{where}.recipe: expected the name of a recipe, not {shown(value)}")
    if found:
        raise InputError("\n".join(found))
