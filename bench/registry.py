"""Names -> quantizers, networks, datasets, strategies and schedules, without importing torch.

Each module of ``bench/quantizers``, ``bench/networks``, ``bench/strategies`` and ``bench/datasets`` says what it
offers in a literal ``ENTRIES`` list at its top (``bench/schedules.py``: ``FACTORS`` and ``LEARNING_RATES``). The
registry reads that literal from the source text (``ast.literal_eval``): nothing is executed or imported, so that
``bench list``, ``bench show`` and every error about an experiment file answer at once. A new quantizer, network,
strategy or dataset is one new file.

An entry is a dict with the keys

``name``      the name used in experiment files
``factory``   the attribute of the module that ``load`` returns
``help``      one line
``title``, ``arxiv``   the paper (optional)
``revision``  a number (default 1), raised when a fix changes the entry's numbers: part of an identity when above 1
``options``   ``{option: {"type": ..., "default": ..., "help": ...}}``; without ``default`` it must be given. Types:
              "float", "int", "bool", "str", "names", "floats" (lists), "factor", "teacher". Further keys: "choices",
              "min", "max", "above", "below", "nullable"; ``"only_with": {other: [values]}``: it can leave its default
              only beside these values of the others; ``"hashed": False``: not part of an identity;
              ``"shown": False``: not part of a label;
              ``"joint_with": {other: [values]}``: a teacher that is then trained within the trial itself
any other key is a fact for those who know the group (``w_bits``, ``num_classes``, ...), kept in ``Entry.facts``. Of a
network: ``input_size``, pixels; ``macs``, multiply-accumulates of one image at the default options and width 1, with the
10 classes of small images or the 1,000 of ImageNet: for ranking, without building anything. ``"open": True`` says that
the entry takes options that it does not declare.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest

PACKAGE = Path(__file__).parent
# group -> (what one is called, the package or module that declares it, the name of the literal)
GROUPS = {
    "quantizers": ("quantizer", "quantizers", "ENTRIES"),
    "networks": ("network", "networks", "ENTRIES"),
    "strategies": ("strategy", "strategies", "ENTRIES"),
    "datasets": ("dataset", "datasets", "ENTRIES"),
    "factors": ("factor", "schedules.py", "FACTORS"),
    "learning_rates": ("learning rate", "schedules.py", "LEARNING_RATES"),
}
_KNOWN = {"name", "factory", "help", "title", "arxiv", "revision", "options"}


@dataclass(frozen=True)
class Entry:
    """One registered name; ``module`` and ``factory`` say where its implementation lives."""

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


def _declared(path: Path, variable: str) -> list[dict[str, Any]]:
    """Return the literal called ``variable`` of a module's source, ``[]`` where it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if node.value is not None and any(
            isinstance(target, ast.Name) and target.id == variable for target in targets
        ):
            return ast.literal_eval(node.value)
    return []


@functools.cache
def entries(group: str) -> dict[str, Entry]:
    """Return the entries of ``group`` (a key of ``GROUPS``) by name, sorted by name.

    Raises ``ValueError`` if two modules declare one name.
    """
    _, where, variable = GROUPS[group]
    place = PACKAGE / where
    files = sorted(place.glob("*.py")) if place.is_dir() else [place]
    found: dict[str, Entry] = {}
    for path in files:
        module = ".".join(("bench", *path.relative_to(PACKAGE).with_suffix("").parts))
        for declared in _declared(path, variable):
            facts = {key: value for key, value in declared.items() if key not in _KNOWN}
            known = {key: value for key, value in declared.items() if key in _KNOWN}
            entry = Entry(group=group, module=module, facts=facts, **known)
            if entry.name in found:
                raise ValueError(
                    f"{group}: '{entry.name}' is declared in {found[entry.name].module} and in {module}"
                )
            found[entry.name] = entry
    return dict(sorted(found.items()))


def find(group: str, name: str) -> Entry | None:
    """Return the entry of ``group`` called ``name``, None where there is none; ``python:...`` is the entry ``python``."""
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
            f"{prefix}no {GROUPS[group][0]} is called {name[:80]!r}.{nearest(name, known)} Known: {', '.join(known)}."
        )
    return entry


def load(group: str, name: str) -> Any:
    """Import the module of an entry (which may import torch) and return its factory."""
    entry = get(group, name)
    return getattr(importlib.import_module(entry.module), entry.factory)
