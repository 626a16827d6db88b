"""Code of others: what the command line allows, and where it lies. Nothing is imported here. No torch.

``--allow-code a`` allows ``a`` and what lies in it (``a.b``, ``a.b.c``); ``--allow-code a.b`` does not allow
``a.c``, but importing ``a.b`` runs ``a/__init__.py``: that is how Python imports. Modules are looked for
where Python looks, and then in the folder that the command was given in. The grant is a state of the process
(``granted``) and travels with each trial to the process that trains it. A file can never grant anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import keyword
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError

MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class Grant:
    """Modules that may be imported, and the folder in which they are looked for last."""

    modules: tuple[str, ...] = ()
    folder: str = ""


_grants: list[Grant] = [Grant()]


def current() -> Grant:
    """Return what this process is allowed."""
    return _grants[-1]


@contextlib.contextmanager
def granted(grant: Grant) -> Iterator[None]:
    """Allow what ``grant`` says, and nothing else, within the block."""
    _grants.append(grant)
    try:
        yield
    finally:
        _grants.pop()


def adopt(grant: Grant) -> None:
    """Allow what ``grant`` says for good: in a process that was started for work which has it."""
    _grants[:] = [grant]


def from_command_line(modules: Iterable[str]) -> Grant:
    """Return the grant of ``--allow-code``; the folder is the current one."""
    modules = tuple(modules)
    for module in modules:
        if not is_module(module):
            raise InputError(
                f"--allow-code: {module[:80]!r} is no module; expected a name such as mymodels or my.models"
            )
    return Grant(modules, os.getcwd() if modules else "")


def is_module(name: str) -> bool:
    """Return whether ``name`` is the dotted name of a module, whether or not there is one."""
    return (
        len(name) <= 200 and bool(MODULE.fullmatch(name)) and not any(map(keyword.iskeyword, name.split(".")))
    )


def is_allowed(module: str) -> bool:
    """Return whether the command line allows importing ``module``, by its own or its package's name."""
    parts = module.split(".")
    return bool({".".join(parts[:i]) for i in range(1, len(parts) + 1)} & set(current().modules))


def find_module(module: str, where: str) -> tuple[Path, Path | None]:
    """Return the file of a module, and the folder of the package that it is in; nothing is imported."""
    importlib.invalidate_caches()
    path: list[str] | None = [*sys.path, *filter(None, [current().folder])]
    package, spec = None, None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: i + 1]), path)
        if spec is None:
            break
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if i == 0 and path:
            package = Path(path[0])
        if path is None and i + 1 < len(parts):
            spec = None
            break
    if spec is None:
        raise InputError(
            f"{where}: there is no module {module}; it is looked for where Python looks (PYTHONPATH) and in "
            f"{current().folder or 'the current folder'}"
        )
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"{where}: {module} is not a file of Python source")
    return Path(spec.origin), package


def source_places() -> list[Path]:
    """Return the files and packages that this process may import, which another machine would need."""
    found = []
    for module in current().modules:
        file, package = find_module(module, "--allow-code")
        found.append(package or file)
    return list(dict.fromkeys(found))
