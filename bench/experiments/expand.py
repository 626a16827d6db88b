"""An experiment file -> validated, expanded trials.

``load_experiment`` returns every trial that a file asks for, each with its complete configuration and its
identity, or raises one ``InputError`` that names every problem of the file with its key. Nothing of the file
is executed and no torch is imported.

How a trial's fields come about, later ones winning: recipe, ``[defaults]``, ``[grid]``, arm, profile,
``--set``. A table without ``kind`` changes the options it names in the choice beneath it; one with ``kind``,
or a bare name, replaces the choice. An axis of ``[grid]`` applies to the arms that know the option and do not
set it themselves.

The stages: ``read_file`` (tables), ``select`` (arms wanted), ``resolve`` (an arm at a grid point),
``pair_arms`` (baselines), ``assemble`` (identities and index). Each adds what is wrong to one list of
problems.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import nearest, shown
from bench.experiments.arms import PlannedArm
from bench.experiments.axes import MAX_TRIALS
from bench.experiments.claims import Claim, same_value
from bench.experiments.config import READ_BY, TrialConfig, only_with
from bench.experiments.file import ExperimentFile, read_file
from bench.experiments.library import Library
from bench.experiments.options import CHOICES, as_table
from bench.experiments.overrides import default_of, flatten, leaves, option_paths, reaches
from bench.experiments.pairing import assemble, pair_arms
from bench.experiments.resolve import Resolution, Run, resolve
from bench.experiments.shipped import locate
from bench.experiments.toml_files import SETTABLE, Problems, experiment_name, parse_toml, read_text
from bench.experiments.trials import Experiment, IndexLine
from bench.experiments.tuning_table import Dimension, reached_dimensions
from bench.text import clean


def load_experiment(
    path: Path | str,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    data_dir: Path | None = None,
) -> Experiment:
    """Return the experiment file ``path``, or the shipped experiment of this name, checked and expanded.

    Args:
        path: The TOML file, or the name of a shipped experiment.
        profile: The profile asked for, if any.
        overrides: The texts ``dotted.key=value`` of ``--set``.
        only: The arms wanted; their baselines stay.
        seeds: N for the seeds 0 to N-1 in place of the file's.
        data_dir: The folder of the data sets; None: the default one.

    Raises:
        InputError: Every problem found, a line each, with file and key.
    """
    path = locate(path)
    text = read_text(path)
    name = experiment_name(path)
    problems = Problems(clean(path))
    file = read_file(parse_toml(text, path), problems, profile, overrides, seeds)
    library = Library(path.parent, data_dir, problems)
    select(file, only, problems)
    runs = resolve_arms(file, library, problems)
    problems.stop()
    paired = pair_arms([arm for arm in file.arms if arm.selected], runs, problems)
    problems.stop()
    arms, trials, index = assemble(paired, library, profile)
    problems.stop()
    check_where(file.claims, index, problems, whole=not (profile or overrides or only or seeds))
    problems.stop()
    claims = tuple(claim for claim in file.claims if {claim.arm, claim.over} <= {arm.name for arm in arms})
    return Experiment(
        path,
        name,
        file.title,
        file.targets,
        text,
        arms,
        trials,
        index,
        profile,
        tuning=file.tuning,
        claims=claims,
        data_dir=data_dir,
        deviations=file.deviations,
    )


def check_where(claims: Sequence[Claim], index: Sequence[IndexLine], problems: Problems, whole: bool) -> None:
    """Report claims that come twice, and those whose ``where`` fits no run of their arm.

    The second would never have a verdict, and the first would count twice in Holm's correction.
    ``whole``: ``index`` has every grid point of the file, which no profile, ``--set`` or ``--only`` changes.
    """
    for number, claim in enumerate(claims, 1):
        lines = [line for line in index if line.arm == claim.arm]
        place = f"claims, entry {number}: where"
        if claim in claims[: number - 1]:
            problems.add(f"claims, entry {number}", "is the same claim as one before it")
        if not claim.where or not lines:
            continue
        values = [_values(line.trial.config) | line.grid for line in lines]
        unknown = [axis for axis in claim.where if axis == "seed" or not any(axis in v for v in values)]
        for axis in unknown:
            why = f"no axis of arm {shown(claim.arm)} has this name.{nearest(axis, values[0])}"
            problems.add(f"{place}.{axis}", "a claim is about all seeds" if axis == "seed" else why)
        where = sorted(claim.where.items())
        fits = any(all(same_value(axis, v.get(axis), wanted) for axis, wanted in where) for v in values)
        if whole and not fits and not unknown:
            point = ", ".join(f"{axis} = {wanted}" for axis, wanted in where)
            problems.add(place, f"arm {shown(claim.arm)} has no grid point with {point}")


def _values(config: TrialConfig) -> dict[str, Any]:
    fields = config.dump()
    return fields | flatten(fields)


def select(file: ExperimentFile, only: Sequence[str], problems: Problems) -> None:
    """Mark the wanted arms (``only``, else those of the profile, else all) and their baselines."""
    names = [arm.name for arm in file.arms]
    for name in only:
        if name not in names:
            hint = nearest(name, names)
            problems.add("--only", f"there is no arm {shown(name)}.{hint} Arms: {', '.join(names)}.")
    wanted = {name for name in only or file.profile.only if name in names} or set(names)
    parents = {arm.name: arm.baseline for arm in file.arms}
    while more := {parent for name in wanted if (parent := parents.get(name))} - wanted:
        wanted |= more
    for arm in file.arms:
        arm.selected = arm.name in wanted


def resolve_arms(file: ExperimentFile, library: Library, problems: Problems) -> dict[str, list[Run]]:
    """Return the runs of every selected arm, one a grid point; points that come out equal count once.

    Arms that are not selected are looked at in one point, to know which axes and assignments reach them.
    """
    selected = [arm for arm in file.arms if arm.selected]
    count = sum(math.prod(len(axis.values) for axis in arm.axes) for arm in selected)
    if count > MAX_TRIALS:
        problems.add("grid", f"{count:,} trials; an experiment has {MAX_TRIALS:,} at most")
        problems.stop()
    runs: dict[str, list[Run]] = {}
    touched: set[int] = set()
    fields: dict[str, dict[str, Any]] = {}
    missing: dict[str, list[PlannedArm]] = {}
    for arm in file.arms:
        points = itertools.product(*(axis.values for axis in arm.axes))
        unique: dict[str, Run] = {}
        for point in points if arm.selected else itertools.islice(points, 1):
            found = resolve(file, arm, point, library)
            if found is None:
                continue
            touched |= found.stacked.touched
            fields[arm.name] = found.stacked.fields
            if found.run is not None:
                key = json.dumps([str(found.run.recipe), found.run.config.dump()], sort_keys=True)
                unique.setdefault(key, found.run)
            elif arm.selected:
                for line in _report(found, arm, problems):
                    missing.setdefault(line, []).append(arm)
        if arm.selected:
            runs[arm.name] = list(unique.values())
    _report_missing(missing, len(selected), problems)
    if library.recipes_readable:
        _check_touched(file, touched, fields, problems)
    return runs


def _report(resolution: Resolution, arm: PlannedArm, problems: Problems) -> list[str]:
    """Report the error of a resolution under the tables of its fields; return the lines about no table."""
    missing, origin = [], resolution.stacked.origin
    for line in str(resolution.error).splitlines():
        key = tuple(re.split(r"[:\[]", line, maxsplit=1)[0].split("."))
        known = [path for path in origin if path == key[: len(path)]]
        if not known and ": missing (" in line:
            missing.append(line)
            continue
        where = origin[max(known, key=len)] if known else arm.where
        if where == "recipe":
            where = f"{arm.where}, recipe '{resolution.recipe}'"
        elif where == "seed":
            where = "grid"
        problems.extend(f"{where} " if where == "--set" else f"{where}.", line)
    return missing


def _report_missing(missing: Mapping[str, Sequence[PlannedArm]], selected: int, problems: Problems) -> None:
    """Report fields that stand nowhere: once where every selected arm lacks one, else under each arm."""
    for line, arms in missing.items():
        name, _, rest = line.partition(":")
        places = list(dict.fromkeys(arm.where for arm in arms))
        for place in ["defaults"] if len({arm.name for arm in arms}) == selected else places:
            problems.add(f"{place}.{name}", rest.strip())


def _check_touched(
    file: ExperimentFile, touched: set[int], fields: Mapping[str, Mapping[str, Any]], problems: Problems
) -> None:
    """Report axes and assignments that reached no arm: they would silently do nothing."""
    names = {name for arm in file.arms for name in _axis_names(fields.get(arm.name, {}))}
    axes = {id(axis): axis for axis in (*file.common, *(axis for arm in file.arms for axis in arm.axes))}
    for axis in axes.values():
        if id(axis) not in touched and axis.where != "seed":
            key = axis.where if axis.where == "--seeds" else f"{axis.where}.{axis.name}"
            reason = "every arm sets it itself" if axis.name in names else "no arm has such an option"
            problems.add(key, f"this axis touches nothing: {reason}.{_hint(axis.name, names)}")
    for item in (*file.assignments, *(item for arm in file.arms for item in arm.extra)):
        if id(item) not in touched:
            name = ".".join(item.path)
            key = f"{item.where} {name}" if item.where == "--set" else f"{item.where}.{name}"
            problems.add(key, f"touches nothing: no arm has such an option.{_hint(name, names)}")
    _check_read(file, fields, problems)
    space = file.tuning.space if file.tuning else ()
    reached = {d.path for stacked in fields.values() for d in reached_dimensions(space, stacked)}
    for dimension in space:
        if dimension.path not in reached:
            why = f"touches nothing: no arm has such an option.{_hint(dimension.name, names)}"
            problems.add(f"tuning.space.{dimension.name}", why)
        else:
            _check_untouched(file, dimension, problems)


def _check_read(file: ExperimentFile, fields: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """Report fields of another optimizer than that of the arms; silent where the optimizer varies."""
    paths = {axis.path for arm in file.arms for axis in arm.axes}
    paths |= {item.path for item in (*file.assignments, *(item for arm in file.arms for item in arm.extra))}
    paths |= {dimension.path for dimension in (file.tuning.space if file.tuning else ())}
    if paths & {("optimizer",), ("recipe",)}:
        return
    places = [("defaults", file.defaults, file.arms), *((arm.where, arm.fields, (arm,)) for arm in file.arms)]
    for where, table, arms in places:
        for name in READ_BY.keys() & table.keys():
            if not any(reaches(fields.get(arm.name, {}), (name,)) for arm in arms):
                problems.add(f"{where}.{name}", only_with(name))


def _check_untouched(file: ExperimentFile, dimension: Dimension, problems: Problems) -> None:
    """Report values that an arm, the profile or ``--set`` gives a tuned field: the search would replace them.

    A table with ``kind`` says something else as well, and may hold the field.
    """
    why = f"[tuning] chooses '{dimension.name}' for every arm, so this value would do nothing"
    given = [
        *(((name,), value, arm.where) for arm in file.arms for name, value in arm.fields.items()),
        *((i.path, i.value, i.where) for i in (*file.assignments, *(i for a in file.arms for i in a.extra))),
    ]
    for path, value, where in given:
        number = path == ("learning_rate",) and not isinstance(value, dict | str)
        inner_paths = [path] if len(path) > 1 else [found for found, _ in leaves({path[0]: value})]
        for inner in [(*path, "initial")] if number else inner_paths:
            if inner[: len(dimension.path)] == dimension.path:
                name = ".".join(inner)
                problems.add(f"{where} {name}" if where == "--set" else f"{where}.{name}", why)


def _hint(name: str, names: Iterable[str]) -> str:
    return "" if name in names else nearest(name, names)


def _axis_names(fields: Mapping[str, Any]) -> list[str]:
    """Return the dotted names that an axis can have on an arm with these fields."""
    names = [name for name in SETTABLE if reaches(fields, (name,))]
    for name, group in CHOICES.items():
        names += option_paths(group, as_table(group, fields.get(name, default_of(name))), name)
    return names
