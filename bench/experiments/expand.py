"""An experiment file -> validated, expanded trials.

``load_experiment`` returns every trial that a file asks for, each with its complete configuration and its identity, or
raises one ``InputError`` that names every problem of the file with its key. Nothing of the file is executed and no
torch is imported.

How a trial's fields come about, later ones winning: recipe, ``[defaults]``, ``[grid]``, arm, profile, ``--set``.
A table without ``kind`` changes the options it names in the choice beneath it; one with ``kind``, or a bare name,
replaces the choice. An axis of ``[grid]`` applies to the arms that know the option and do not set it themselves.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import registry, schedules
from bench.errors import InputError, nearest
from bench.experiments import permission
from bench.experiments.config import (
    CHOICES,
    TrialConfig,
    applies,
    as_table,
    identity,
    identity_document,
    label,
    make_config,
    short_bits,
    shown,
)
from bench.experiments.file import MAX_TRIALS, ExperimentFile, PlannedArm
from bench.experiments.overrides import (
    AxisPath,
    assign,
    default_of,
    differences,
    entry_of,
    explicit,
    listed,
    option_paths,
    reaches,
    stack,
)
from bench.experiments.toml_files import (
    SETTABLE,
    Problems,
    experiment_name,
    load_recipe,
    parse_toml,
    read_text,
)
from bench.text import clean


@dataclass(frozen=True)
class Trial:
    """One training run. ``id`` is None while its data is absent; ``needs`` maps a role to the trial it needs."""

    id: str | None
    config: TrialConfig
    needs: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class IndexLine:
    """A trial that the experiment wants, and why: a line of ``index.jsonl`` (see ``as_dict``).

    ``grid`` holds the values of the arm's own axes and of its baseline's. A teacher or a start has ``arm`` None and its
    ``role``. ``baseline_trial`` is the run of the baseline that this one is paired with.
    """

    arm: str | None
    baseline: str | None
    grid: dict[str, Any]
    trial: Trial
    baseline_trial: Trial | None = None
    role: str | None = None
    profile: str | None = None

    @property
    def id(self) -> str | None:
        """The trial's identity."""
        return self.trial.id

    @property
    def baseline_id(self) -> str | None:
        """The identity of the paired run of the baseline."""
        return self.baseline_trial.id if self.baseline_trial else None

    def as_dict(self) -> dict[str, Any]:
        """Return the line as it stands in ``index.jsonl``."""
        return {
            "arm": self.arm,
            "baseline": self.baseline,
            "grid": self.grid,
            "id": self.id,
            "baseline_id": self.baseline_id,
            "role": self.role,
            "profile": self.profile,
        }


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. ``axes`` are its own: dotted field -> how many values."""

    name: str
    baseline: str | None = None
    published: dict[str, Any] | None = None
    allow_differences: tuple[str, ...] = ()
    axes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A validated, expanded experiment file. ``trials`` are unique, the needed ones before those that need them."""

    path: Path
    name: str
    title: str
    targets: tuple[str, ...]
    text: str
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    index: tuple[IndexLine, ...]
    profile: str | None = None

    def lines(self, arm: str | None) -> list[IndexLine]:
        """Return the index lines of one arm (None: of the teachers and starts)."""
        return [line for line in self.index if line.arm == arm]


def load_experiment(
    path: Path | str,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    data_dir: Path | None = None,
) -> Experiment:
    """Read, check and expand an experiment file.

    ``overrides`` are the ``--set`` texts ``dotted.key=value``; ``only`` the arms wanted, whose baselines stay;
    ``seeds`` N means the seeds 0 .. N-1; ``data_dir`` is where the data lies (None: where it lies by default).

    Raises ``InputError`` naming every problem found, a line each, with file and key.
    """
    path = Path(path)
    text = read_text(path)
    name = experiment_name(path)
    problems = Problems(clean(path))
    document = parse_toml(text, path)
    file = ExperimentFile(document, problems, profile, overrides, seeds)
    arms, trials, index = _Expansion(path, file, problems, only, data_dir).expand()
    return Experiment(path, name, file.title, file.targets, text, arms, trials, index, profile)


@dataclass
class _Run:
    """A resolved trial of an arm at a grid point."""

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


class _Expansion:
    """The expansion of one file: each method a stage, all of them adding to the same list of problems."""

    def __init__(
        self, path: Path, file: ExperimentFile, problems: Problems, only: Sequence[str], data_dir: Path | None
    ) -> None:
        self.path, self.file, self.problems, self.only, self.data_dir = path, file, problems, only, data_dir
        self.arms, self.common, self.assignments = file.arms, file.common, file.assignments
        self.touched: set[int] = set()  # ids of the axes and assignments that reached an arm
        self.recipes: dict[str, dict[str, Any] | None] = {}
        self.data: dict[str, tuple[str | None, int | None]] = {}
        self.missing: dict[str, set[str]] = {}  # message -> arms
        self.fields: dict[str, dict[str, Any]] = {}  # of an arm at the last point looked at

    def _select(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in self.only:
            if name not in names:
                self.problems.add(
                    "--only",
                    f"there is no arm {shown(name)}.{nearest(name, names)} Arms: {', '.join(names)}.",
                )
        wanted = {name for name in self.only or self.file.profile.only if name in names} or set(names)
        parents = {arm.name: arm.baseline for arm in self.arms}
        while more := {parent for name in wanted if (parent := parents.get(name))} - wanted:
            wanted |= more
        for arm in self.arms:
            arm.selected = arm.name in wanted

    # --- the grid points of an arm ---

    def expand(self) -> tuple[tuple[Arm, ...], tuple[Trial, ...], tuple[IndexLine, ...]]:
        """Return arms, trials and index; what is wrong is in ``problems``."""
        self._select()
        runs: dict[str, list[_Run]] = {}
        selected = [arm for arm in self.arms if arm.selected]
        count = sum(math.prod(len(axis.values) for axis in arm.axes) for arm in selected)
        if count > MAX_TRIALS:
            self.problems.add("grid", f"{count:,} trials; an experiment has {MAX_TRIALS:,} at most")
            self.problems.stop()
        for arm in self.arms:
            if arm.selected:
                runs[arm.name] = self._points(arm)
            else:
                self._resolve(arm, [axis.values[0] for axis in arm.axes])  # notes which axes reach it
        for key, arms in self.missing.items():
            field_name, _, rest = key.partition(":")
            places = (
                ["defaults"] if len(arms) == len(selected) else [a.where for a in selected if a.name in arms]
            )
            for place in places:
                self.problems.add(f"{place}.{field_name}", rest.strip())
        if None not in self.recipes.values():
            self._check_touched()
        self.problems.stop()
        return self._assemble(selected, runs)

    def _check_touched(self) -> None:
        """Report axes and assignments that reached no arm: they would silently do nothing."""
        paths = {path for arm in self.arms for path in self._known_paths(arm)}
        axes = {id(axis): axis for axis in (*self.common, *(axis for arm in self.arms for axis in arm.axes))}
        for axis in axes.values():
            if id(axis) not in self.touched and axis.where != "seed":
                key = axis.where if axis.where == "--seeds" else f"{axis.where}.{axis.name}"
                reason = "every arm sets it itself" if axis.name in paths else "no arm has such an option"
                self.problems.add(key, f"this axis touches nothing: {reason}.{self._hint(axis.name, paths)}")
        for item in (*self.assignments, *(item for arm in self.arms for item in arm.extra)):
            if id(item) not in self.touched:
                name = ".".join(item.path)
                self.problems.add(f"{item.where} {name}" if item.where == "--set" else f"{item.where}.{name}",
                                  f"touches nothing: no arm has such an option.{self._hint(name, paths)}")  # fmt: skip

    @staticmethod
    def _hint(name: str, paths: set[str]) -> str:
        return "" if name in paths else nearest(name, paths)

    def _known_paths(self, arm: PlannedArm) -> list[str]:
        """Return the dotted names that an axis can have on this arm."""
        fields, names = self.fields.get(arm.name, {}), list(SETTABLE)
        for name, group in CHOICES.items():
            table = as_table(group, fields.get(name, default_of(name)))
            names += option_paths(group, table, name)
        return names

    def _points(self, arm: PlannedArm) -> list[_Run]:
        """Return the resolved runs of an arm, one a grid point; points that come out equal count once."""
        runs: dict[str, _Run] = {}
        for point in itertools.product(*(axis.values for axis in arm.axes)):
            run = self._resolve(arm, point)
            if run is not None:
                key = json.dumps([str(run.recipe), run.config.dump()], sort_keys=True)
                runs.setdefault(key, run)
        return list(runs.values())

    def _stacked(
        self, arm: PlannedArm, point: Sequence[Any], recipe: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], dict[AxisPath, str], list[AxisPath]]:
        """Return the fields of ``arm`` at ``point``, where each came from, and the axes that applied."""
        fields: dict[str, Any] = {}
        origin: dict[AxisPath, str] = {}

        def put(path: AxisPath, value: Any, where: str) -> None:
            assign(fields, path, value)
            for deeper in [key for key in origin if key[: len(path)] == path]:
                del origin[deeper]
            origin[path] = where

        for table, where in (
            (recipe or {}, "recipe"),
            (self.file.defaults, "defaults"),
            (arm.fields, arm.where),
        ):
            for key, value in table.items():
                put((key,), value, where)
        above = [*self.assignments, *arm.extra]
        above = [item for item in above if item.where != "--set"] + [
            item for item in above if item.where == "--set"
        ]
        applied: list[AxisPath] = []
        for axis, value in sorted(zip(arm.axes, point, strict=True), key=lambda pair: _turn(pair[0].path)):
            if axis.weak and explicit(arm.fields, axis.path):
                continue
            if not reaches(fields, axis.path):
                continue
            self.touched.add(id(axis))
            if not any(
                item.path == axis.path[: len(item.path)] and reaches(fields, item.path) for item in above
            ):
                put(axis.path, value, axis.where)
                applied.append(axis.path)
        for item in above:
            if reaches(fields, item.path):
                put(item.path, item.value, item.where)
                self.touched.add(id(item))
        order = [axis.path for axis in arm.axes]
        return fields, origin, sorted(applied, key=order.index)

    def _resolve(self, arm: PlannedArm, point: Sequence[Any]) -> _Run | None:
        """Return the run of ``arm`` at ``point``, or None after noting what is wrong with it."""
        fields, origin, _ = self._stacked(arm, point, None)
        name = fields.get("recipe")
        if name is None:
            name = _default_recipe(fields.get("dataset"))
        recipe: dict[str, Any] | None = {}
        if name is not None:
            recipe = self._recipe(name, origin.get(("recipe",)), arm)
        if recipe is None:
            return None
        fields, origin, applied = self._stacked(arm, point, recipe)
        self.fields[arm.name] = fields
        fields.pop("recipe", None)
        try:
            if "bits" not in fields and reaches(fields, ("bits",)):
                raise InputError('bits: missing (this quantizer needs "W/A", for instance "1/2")')
            config = _sealed(make_config(fields))
            config, needs = self._with_teachers(config)
            self._check_steps(config)
        except InputError as error:
            if arm.selected:
                self._note(error, arm, origin, name)
            return None
        return _Run(arm.name, config, name, tuple(applied), needs)

    def _note(
        self, error: InputError, arm: PlannedArm, origin: Mapping[AxisPath, str], recipe: str | None
    ) -> None:
        """Add the lines of ``error``, each under the table that its field came from."""
        for line in str(error).splitlines():
            key = tuple(re.split(r"[:\[]", line, maxsplit=1)[0].split("."))
            known = [path for path in origin if path == key[: len(path)]]
            if not known and ": missing (" in line:
                self.missing.setdefault(line, set()).add(arm.name)
                continue
            where = origin[max(known, key=len)] if known else arm.where
            if where == "recipe":
                where = f"{arm.where}, recipe '{recipe}'"
            elif where == "seed":
                where = "grid"
            self.problems.extend(f"{where} " if where == "--set" else f"{where}.", line)

    def _recipe(self, name: str, where: str | None, arm: PlannedArm) -> dict[str, Any] | None:
        """Return a recipe's fields, or None after noting what is wrong with it (once)."""
        if name not in self.recipes:
            try:
                place = f"{where}.recipe" if where else f"{arm.where}.recipe (the data set's default)"
                self.recipes[name] = load_recipe(name, self.path.parent, f"{self.problems.file}: {place}")
            except InputError as error:
                self.recipes[name] = None
                for line in str(error).splitlines():
                    self.problems.line(line)
        return self.recipes[name]

    # --- teachers and steps ---

    def _with_teachers(self, config: TrialConfig) -> tuple[TrialConfig, dict[str, TrialConfig]]:
        """Complete the strategy's teachers; return the configuration and those that are trials of their own."""
        strategy, needs = dict(config.strategy), {}
        for role, spec in registry.get("strategies", strategy["kind"]).options.items():
            if spec["type"] != "teacher" or not applies(spec, strategy):
                continue
            teacher = self._teacher(config, strategy[role], f"strategy.{role}")
            strategy[role] = teacher.dump()
            joint = spec.get("joint_with", {})
            if not joint or any(strategy.get(name) not in values for name, values in joint.items()):
                needs[role] = teacher
        return (
            config.model_copy(update={"strategy": strategy}) if strategy != config.strategy else config
        ), needs

    def _teacher(self, config: TrialConfig, table: Mapping[str, Any], where: str) -> TrialConfig:
        """Return the teacher: the arm's configuration in full precision, trained plainly, then the table's fields."""
        fields = config.dump() | {"quantizer": "full_precision", "bits": "32/32", "strategy": "plain"}
        table = dict(table)
        found = []
        for key in list(table):
            if key not in SETTABLE:
                found.append(f"{where}.{key}: there is no such key.{nearest(key, SETTABLE)}")
            elif key == "dataset":
                found.append(f"{where}.dataset: is that of the arm, always")
            elif key == "recipe" and not isinstance(table[key], str):
                found.append(f"{where}.recipe: expected the name of a recipe, not {shown(table[key])}")
        if found:
            raise InputError("\n".join(found))
        if "recipe" in table:
            try:
                recipe = load_recipe(table.pop("recipe"), self.path.parent)
            except InputError as error:
                raise InputError("\n".join(f"{where}.{line}" for line in str(error).splitlines())) from None
            table = stack([recipe, table])
        for key, value in table.items():
            assign(fields, (key,), value)
        try:
            teacher = _sealed(make_config(fields))
            self._check_steps(teacher)
        except InputError as error:
            raise InputError("\n".join(f"{where}.{line}" for line in str(error).splitlines())) from None
        options = registry.get("strategies", teacher.strategy["kind"]).options
        if any(spec["type"] == "teacher" for spec in options.values()):
            raise InputError(f"{where}.strategy: a teacher has no teacher of its own")
        return teacher

    def _check_steps(self, config: TrialConfig) -> None:
        """Raise where the data set is too small for the recipe, or a factor does not end at 0 in these steps."""
        from bench.datasets import catalog

        _, total = self._data(config)
        steps = None
        if total is not None:
            count = catalog.split(
                total, batch_size=config.batch_size, train_size=config.train_size, holdout=config.holdout
            )
            steps = count // config.batch_size
        for option, spec in registry.get("strategies", config.strategy["kind"]).options.items():
            if spec["type"] == "factor":
                reason = schedules.never_removed(config.strategy[option], config.epochs, steps)
                if reason:
                    raise InputError(f"strategy.{option}: {reason}")

    def _data(self, config: TrialConfig) -> tuple[str | None, int | None]:
        """Return the checksum of the trial's data and its number of training images; None where they cannot be told."""
        from bench.datasets import catalog

        key = json.dumps(config.dataset, sort_keys=True)
        if key not in self.data:
            self.data[key] = None, None
            try:
                folder = catalog.resolve_data_dir(self.data_dir)
                facts = catalog.facts(config.dataset, folder)
                self.data[key] = catalog.checksum(config.dataset, folder), facts.train_count
            except InputError as error:
                self.problems.extend("dataset: ", error)
        return self.data[key]

    # --- pairs, identities, index ---

    def _assemble(
        self, selected: list[PlannedArm], runs: Mapping[str, list[_Run]]
    ) -> tuple[tuple[Arm, ...], tuple[Trial, ...], tuple[IndexLine, ...]]:
        axes = {
            arm.name: [a.path for a in arm.axes if any(a.path in run.axes for run in runs[arm.name])]
            for arm in selected
        }
        partners = {
            arm.name: self._pair(arm, runs[arm.name], runs[arm.baseline], axes[arm.baseline])
            for arm in selected
            if arm.baseline is not None
        }
        self.problems.stop()
        trials: dict[str, Trial] = {}
        extra: dict[tuple[str, str], IndexLine] = {}
        made: dict[int, Trial] = {}
        for arm in selected:
            for run in runs[arm.name]:
                needs = {}
                for role, config in run.needs.items():
                    needed = self._trial(trials, config, {})
                    needs[role] = needed.id
                    line = IndexLine(
                        None, None, {"seed": config.seed}, needed, role=role, profile=self.file.profile_name
                    )
                    extra.setdefault((role, _document(config)), line)
                made[id(run)] = self._trial(trials, run.config, needs)
        self.problems.stop()
        index = []
        for arm in selected:
            names = [*axes[arm.name]]
            if arm.baseline:
                names += [path for path in axes[arm.baseline] if path not in names]
            seen = set()
            for position, run in enumerate(runs[arm.name]):
                partner = partners[arm.name][position] if arm.name in partners else None
                grid = {
                    ".".join(path): run.value(path)
                    for path in [*names, ("seed",)]
                    if path in names or path[0] == "seed"
                }
                line = IndexLine(
                    arm.name,
                    arm.baseline,
                    grid,
                    made[id(run)],
                    made[id(partner)] if partner else None,
                    profile=self.file.profile_name,
                )
                key = (_document(run.config), json.dumps(grid, sort_keys=True, default=str))
                if key not in seen:
                    seen.add(key)
                    index.append(line)
        described = tuple(
            Arm(
                arm.name,
                arm.baseline,
                arm.published,
                tuple(arm.allow_differences),
                {".".join(a.path): len(a.values) for a in arm.axes if a.path in axes[arm.name]},
            )
            for arm in selected
        )
        return described, tuple(trials.values()), (*index, *extra.values())

    def _pair(
        self, arm: PlannedArm, runs: list[_Run], others: list[_Run], axes: list[AxisPath]
    ) -> list[_Run | None]:
        """Return each run's partner in the baseline, paired on the baseline's axes, after checking their parity."""
        allowed = arm.allow_differences
        free = [path for path in axes if listed(".".join(path), allowed)]
        fixed = [path for path in dict.fromkeys((*axes, ("seed",))) if path not in free]
        table: dict[str, list[_Run]] = {}
        for other in others:
            table.setdefault(_key(other, fixed), []).append(other)
        partners: list[_Run | None] = []
        for run in runs:
            found = table.get(_key(run, fixed), [])
            if len(found) > 1:
                found = [other for other in found if _key(other, free) == _key(run, free)]
            point = ", ".join(
                f"{'.'.join(path)} = {run.value(path)}" for path in (fixed if len(fixed) > 1 else axes)
            )
            if len(found) != 1:
                many = "several runs" if table.get(_key(run, fixed)) else "no run"
                self.problems.add(
                    f"{arm.where}.baseline", f"{many} of {shown(arm.baseline)} to pair with at {clean(point)}"
                )
                partners.append(None)
                continue
            self._check_parity(arm, run, found[0])
            partners.append(found[0] if found[0].config.precision == run.config.precision else None)
        return partners

    def _check_parity(self, arm: PlannedArm, run: _Run, other: _Run) -> None:
        allowed = [
            *arm.allow_differences,
            "quantizer",
            "strategy",
            "activation_checkpointing",
        ]  # the last: exact
        if _bits_forced(run.config, other.config):
            allowed.append("bits")
        for key, (mine, theirs) in differences(run.config, other.config).items():
            if not listed(key, allowed):
                self.problems.add(
                    f"{arm.where}.{key}",
                    f"{shown(mine)}, but {shown(theirs)} in the baseline {shown(other.arm)}: make them equal, or list "
                    f"'{key.split('.')[0]}' in allow_differences",
                )

    def _trial(self, trials: dict[str, Trial], config: TrialConfig, needs: dict[str, str | None]) -> Trial:
        key = _document(config)
        if key not in trials:
            trials[key] = Trial(identity(config, self._data(config)[0]), config, needs)
        return trials[key]


def _sealed(config: TrialConfig) -> TrialConfig:
    """Return ``config`` with the checksum of the code that its network is; raises where that code is not allowed."""
    network = permission.sealed(config.network)
    return config if network == config.network else config.model_copy(update={"network": network})


def _turn(path: AxisPath) -> tuple[int, bool, bool]:
    """Return when an axis is applied: options after the choices that have them, bit widths after the quantizer."""
    return len(path), path[-1] != "kind", path == ("bits",)


def _default_recipe(dataset: Any) -> str | None:
    entry = entry_of("datasets", as_table("datasets", dataset))
    return entry.facts.get("default_recipe") if entry else None


def _bits_forced(first: TrialConfig, second: TrialConfig) -> bool:
    """Return whether one's bit widths are impossible for the other's quantizer."""

    def takes(quantizer: str, widths: tuple[int, int, int]) -> bool:
        facts = registry.get("quantizers", quantizer).facts
        return all(
            bits in facts.get(key, [32])
            for key, bits in zip(("w_bits", "a_bits", "g_bits"), widths, strict=True)
        )

    return not (
        takes(first.quantizer["kind"], second.bit_widths)
        and takes(second.quantizer["kind"], first.bit_widths)
    )


def _key(run: _Run, paths: Iterable[AxisPath]) -> str:
    return json.dumps([run.value(path) for path in paths], sort_keys=True, default=str)


def _document(config: TrialConfig) -> str:
    return json.dumps(identity_document(config), sort_keys=True)
