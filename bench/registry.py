"""Names -> quantizers, networks, strategies, data sets and schedules, without importing torch.

Each module of ``bench/quantizers``, ``bench/networks``, ``bench/strategies``, ``bench/datasets`` says what it
offers in a literal list ``ENTRIES`` at its top, each of ``bench/schedules`` in ``FACTORS`` or
``LEARNING_RATES``. The registry reads that literal from the source text (``ast.literal_eval``) and validates
it: nothing is executed or imported, so that ``bench list``, ``bench show`` and every error about an
experiment file answer at once. A new part is one new file.

A package outside this one adds parts by an entry point in the group ``bench.<group of the registry>``, whose
value is the module with the literal, for instance ``[project.entry-points."bench.quantizers"] twn =
"my_package.twn"``. Its name and version are part of a trial's identity. Its module is imported only with
``--allow-code my_package``.

An entry is a dict with the keys

``name``      the name used in experiment files
``like``      an entry above in the same list, whose keys count where they are left out here (optional)
``factory``   the attribute of the module that ``load`` returns; the name where it is left out
``help``      one line
``title``, ``arxiv``   the paper (optional)
``revision``  a number (default 1), raised when a fix changes the entry's numbers; part of an identity when
              above 1
``options``   ``{option: declaration}``; the keys of a declaration are the fields of ``OptionDeclaration``. An
              option of the text ``"shared"`` is the one of that name in the literal ``OPTIONS`` of the same
              module, else of the group's module ``options``. A list of names stands for shared options alone.
and facts for those who know the group (``FACTS``).
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import InputError, nearest
from bench.machine import foreign

PACKAGE = Path(__file__).parent


class Group(NamedTuple):
    """What a part is called, the folder of its modules, and the name of their literal."""

    noun: str
    folder: str
    literal: str


GROUPS = {
    "quantizers": Group("quantizer", "quantizers", "ENTRIES"),
    "networks": Group("network", "networks", "ENTRIES"),
    "strategies": Group("strategy", "strategies", "ENTRIES"),
    "datasets": Group("dataset", "datasets", "ENTRIES"),
    "factors": Group("factor", "schedules", "FACTORS"),
    "learning_rates": Group("learning rate", "schedules", "LEARNING_RATES"),
}
# Keys of an entry beside those of ``EntryDeclaration``, by group, and what they hold.
FACTS: dict[str, dict[str, str]] = {
    "quantizers": {
        "w_bits": "bit widths of weights that the quantizer takes",
        "a_bits": "bit widths of activations",
        "g_bits": "bit widths of gradients, 32 alone where left out",
    },
    "networks": {
        "input_size": "height and width of the images that the network reads, in pixels; None if its code "
        "decides",
        "macs": "multiply-accumulates of one image at the default options and width 1, with the 10 classes "
        "of small images or the 1,000 of ImageNet: for ranking, without building anything",
        "open": "True: the entry takes options that it does not declare",
    },
    "strategies": {
        "step_cost": "what a step costs with the factor above 0 (in a strategy without a factor: always), "
        "over a step of plain training; see bench/experiments/roles.py"
    },
    "datasets": {
        "num_classes": "number of classes",
        "image_size": "the longer side of an image, in pixels",
        "train_count": "number of training images",
        "test_count": "number of test images",
        "default_recipe": "the recipe of trials that name none",
        "augmentations": "of photographs: the augmentations that they take",
    },
    "factors": {"endless": "True: with keep = true the factor needs no end"},
    "learning_rates": {},
}


class OptionDeclaration(BaseModel):
    """The declaration of one option."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Annotated[
        Literal["float", "int", "bool", "str", "names", "floats", "factor", "factors", "teacher"],
        Field(
            description="'names' and 'floats' are lists, 'factors' is a table of layers, "
            "'teacher' is the configuration of a further network; where none is given, that of the default"
        ),
    ]
    help: Annotated[str, Field(min_length=1, description="one line")]
    default: Annotated[Any, Field(description="without it the option must be given")] = None
    choices: Annotated[list[Any] | None, Field(min_length=1, description="the values it can have")] = None
    min: Annotated[float | None, Field(description="the least number")] = None
    max: Annotated[float | None, Field(description="the greatest number")] = None
    above: Annotated[float | None, Field(description="every number is greater")] = None
    below: Annotated[float | None, Field(description="every number is smaller")] = None
    nullable: Annotated[bool, Field(description="null is a value, as where it is the default")] = False
    repeats: Annotated[bool, Field(description="of a list of names: one can stand there twice")] = False
    only_with: Annotated[
        dict[str, list[Any]],
        Field(description="the option can leave its default only beside these values of other options"),
    ] = {}
    joint_with: Annotated[
        dict[str, list[Any]],
        Field(
            description="of a teacher: it is trained within the trial beside these values of other options"
        ),
    ] = {}
    cost: Annotated[
        dict[Literal["joint", "frozen"], float],
        Field(description="of a teacher: what a step of the trial pays for it, in its own training steps"),
    ] = {}
    copies: Annotated[
        str | None,
        Field(description="of a teacher: the option that says how many of these networks there are"),
    ] = None
    hashed: Annotated[bool, Field(description="part of a trial's identity")] = True
    shown: Annotated[bool, Field(description="part of a label")] = True


class EntryDeclaration(BaseModel):
    """The keys of an entry that every group has."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    help: Annotated[str, Field(min_length=1, pattern=r"^[^\n]*$")]
    title: str = ""
    arxiv: Annotated[str, Field(pattern=r"^(\d{4}\.\d{4,5})?$")] = ""
    revision: Annotated[int, Field(ge=1)] = 1
    options: dict[str, OptionDeclaration] = {}


@dataclass(frozen=True)
class Entry:
    """One registered name; ``module`` and ``factory`` say where its implementation lives.

    ``package`` is the name and version of the package that adds it, "" for the suite's own parts.
    """

    group: str
    name: str
    module: str
    factory: str
    help: str
    title: str = ""
    arxiv: str = ""
    revision: int = 1
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""


def read_entries(group: str, path: Path, module: str, package: str = "") -> list[Entry]:
    """Return the entries that the source file ``path`` declares; nothing of the file is executed.

    Raises ``InputError``, a line a mistake, each with the file and the entry.
    """
    declared = _literal(path, GROUPS[group].literal, [])
    if not isinstance(declared, list):
        raise InputError(f"{path}: {GROUPS[group].literal}: expected a list of entries")
    found: list[Entry] = []
    above: dict[str, dict[str, Any]] = {}
    for number, given in enumerate(declared, 1):
        whole = given
        if isinstance(given, dict):
            base = above.get(str(given.get("like")), {})
            whole = {**base, "factory": given.get("name"), **given}
            if base:
                del whole["like"]
            above[str(given.get("name"))] = whole
        found.append(_validated(group, whole, number, path, module, package))
    return found


def _literal(path: Path, variable: str, absent: Any) -> Any:
    """Return the literal called ``variable`` at the top level of a source file, else ``absent``."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError as error:
                raise InputError(
                    f"{path}: {variable}: is not a literal, so it cannot be read without running it: {error}"
                ) from None
    return absent


def _validated(group: str, given: Any, number: int, path: Path, module: str, package: str) -> Entry:
    """Return one entry; raises ``InputError`` naming everything that is wrong with its declaration."""
    name = given.get("name") if isinstance(given, dict) else None
    where = f"{path}: {GROUPS[group].literal}: {name if isinstance(name, str) else f'entry {number}'}"
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected a table, not {type(given).__name__}")
    given = {**given, "options": _with_types(_with_shared(given.get("options", {}), group, path))}
    facts = {key: value for key, value in given.items() if key not in EntryDeclaration.model_fields}
    problems = [
        f"{where}: like: no entry above is called {given[key]!r}"
        if key == "like"
        else f"{where}: {key}: no entry of {group} has this "
        f"key.{nearest(key, [*EntryDeclaration.model_fields, *FACTS[group]])}"
        for key in facts
        if key not in FACTS[group]
    ]
    try:
        entry = EntryDeclaration.model_validate(given)
    except ValidationError as error:
        problems += [f"{where}: {line}" for line in _mistakes(error)]
        raise InputError("\n".join(problems)) from None
    problems += [f"{where}: {line}" for line in _option_problems(entry)]
    if problems:
        raise InputError("\n".join(problems))
    common = entry.model_dump(include={"name", "factory", "help", "title", "arxiv", "revision"})
    options: Mapping[str, Mapping[str, Any]] = given["options"]
    return Entry(group=group, module=module, options=options, facts=facts, package=package, **common)


def _with_shared(options: Any, group: str, path: Path) -> Any:
    """Return the options with each ``"shared"`` replaced by the declaration that it refers to."""
    if isinstance(options, list):
        options = dict.fromkeys(map(str, options), "shared")
    if not isinstance(options, dict) or "shared" not in options.values():
        return options
    shared: dict[str, Any] = {}
    for file in (PACKAGE / GROUPS[group].folder / "options.py", path):
        if file.exists():
            shared |= _literal(file, "OPTIONS", {})
    missing = [name for name, given in options.items() if given == "shared" and name not in shared]
    if missing:
        raise InputError(f"{path}: options.{missing[0]}: no shared option has this name")
    return {name: shared[name] if given == "shared" else given for name, given in options.items()}


def _with_types(options: Any) -> Any:
    """Return the options; one without a type has that of its default (a number, a bool or text)."""
    if not isinstance(options, dict):
        return options
    typed = {}
    for name, given in options.items():
        kind = type(given.get("default")).__name__ if isinstance(given, dict) else ""
        typed[name] = {"type": kind, **given} if kind in ("float", "int", "bool", "str") else given
    return typed


def _mistakes(error: ValidationError) -> Iterator[str]:
    """Yield a line for each finding of pydantic, beginning with the key."""
    for found in error.errors(include_url=False):
        key = ".".join(map(str, found["loc"]))
        if found["type"] == "extra_forbidden":
            hint = nearest(str(found["loc"][-1]), OptionDeclaration.model_fields)
            yield f"{key}: a declaration has no such key.{hint}"
        elif found["type"] == "missing":
            yield f"{key}: missing"
        else:
            yield f"{key}: {found['msg']}"


def _option_problems(entry: EntryDeclaration) -> Iterator[str]:
    """Yield what is wrong with declarations beyond the types of their keys."""
    for name, spec in entry.options.items():
        if not name.isidentifier() or name in ("kind", "package", "revision"):
            yield f"options.{name}: an option cannot have this name"
        for key, condition in (("only_with", spec.only_with), ("joint_with", spec.joint_with)):
            for other in condition:
                if other not in entry.options:
                    yield f"options.{name}.{key}: there is no option {other}.{nearest(other, entry.options)}"
        if spec.type != "teacher" and (spec.joint_with or spec.cost or spec.copies):
            yield f"options.{name}: joint_with, cost and copies have a meaning only with type 'teacher'"
        if spec.copies is not None and spec.copies not in entry.options:
            hint = nearest(spec.copies, entry.options)
            yield f"options.{name}.copies: there is no option {spec.copies}.{hint}"
        numbers = any(bound is not None for bound in (spec.min, spec.max, spec.above, spec.below))
        if numbers and spec.type not in ("float", "floats", "int"):
            yield f"options.{name}: bounds have a meaning only for numbers, not with type '{spec.type}'"


@functools.cache
def entries(group: str) -> dict[str, Entry]:
    """Return the entries of ``group`` (a key of ``GROUPS``) by name, sorted by name.

    Raises ``InputError`` for a declaration that is wrong, and for a name that is declared twice.
    """
    folder = PACKAGE / GROUPS[group].folder
    declared = [
        entry
        for path in sorted(folder.glob("*.py"))
        for entry in read_entries(group, path, f"bench.{GROUPS[group].folder}.{path.stem}")
    ]
    found: dict[str, Entry] = {}
    for entry in (*declared, *_from_packages(group)):
        if entry.name in found:
            raise InputError(
                f"{group}: '{entry.name}' is declared in {_place(found[entry.name])} and in {_place(entry)}"
            )
        found[entry.name] = entry
    return dict(sorted(found.items()))


def _place(entry: Entry) -> str:
    return f"{entry.module} ({entry.package})" if entry.package else entry.module


def _from_packages(group: str) -> Iterator[Entry]:
    """Yield the entries that installed packages add by entry points; nothing of a package is imported."""
    points = importlib.metadata.entry_points(group=f"bench.{group}")
    modules: dict[str, str] = {}
    for point in sorted(points, key=lambda point: (point.module, point.name)):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        where = f"entry point {point.name!r} of {package} in the group bench.{group}"
        if not re.fullmatch(r"[\w.]+", point.value) or not foreign.is_module(point.module):
            raise InputError(f"{where}: expected the name of a module, not {point.value!r}")
        if point.module in modules:
            continue
        modules[point.module] = package
        path, _ = foreign.find_module(point.module, where)
        found = read_entries(group, path, point.module, package)
        if not found:
            raise InputError(f"{where}: {path} has no entries (a list {GROUPS[group].literal})")
        yield from found


def find(group: str, name: str) -> Entry | None:
    """Return the entry of ``group`` called ``name`` (``python:...``: the entry ``python``), None for none."""
    known = entries(group)
    if group == "networks" and name.startswith("python:") and "python" in known:
        return replace(known["python"], name=name)
    return known.get(name)


def get(group: str, name: str, where: str = "") -> Entry:
    """Return the entry of ``group`` called ``name``.

    Raises ``InputError`` naming ``where`` (file and key), the valid names and the nearest one.
    """
    entry = find(group, name)
    if entry is None:
        known = entries(group)
        prefix = f"{where}: " if where else ""
        raise InputError(
            f"{prefix}no {GROUPS[group].noun} is called {name[:80]!r}.{nearest(name, known)} Known: "
            f"{', '.join(known)}."
        )
    return entry


def check_allowed(entry: Entry, where: str = "") -> None:
    """Raise ``InputError`` unless the entry is the suite's own or the command line allows its package."""
    if entry.package and not foreign.is_allowed(entry.module):
        prefix = f"{where}: " if where else ""
        raise InputError(
            f"{prefix}{GROUPS[entry.group].noun} '{entry.name}' is code of {entry.package}; if you trust "
            f"the package, say --allow-code {entry.module.split('.')[0]} on the command line"
        )


def load(group: str, name: str) -> Any:
    """Import the module of an entry (which may import torch) and return its factory.

    Raises ``InputError`` for an unknown name, and for code of another package that the command line does not
    allow.
    """
    entry = get(group, name)
    check_allowed(entry)
    return getattr(importlib.import_module(entry.module), entry.factory)
