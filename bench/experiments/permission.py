"""Code of the user's own: what the command line allows, where it lies, and what it stands for. No torch.

``network = "python:module.factory"`` names a function in a module of the user's. A file can ask for it; only
``--allow-code module`` on the command line grants it. Until then nothing is imported, and reading records never does.
The grant is a state of the process (``granted``) and travels with each trial to the process that trains it.

``--allow-code a`` allows ``a`` and what lies in it (``a.b``, ``a.b.c``); ``--allow-code a.b`` does not allow ``a.c``, but
importing ``a.b`` runs ``a/__init__.py``: that is how Python imports. Modules are looked for where Python looks, and then
in the folder that the command was given in.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError

PREFIX = "python:"
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


def is_own(kind: Any) -> bool:
    """Return whether the kind of a network asks for code of the user's."""
    return isinstance(kind, str) and kind.startswith(PREFIX)


def split(kind: str, where: str = "network") -> tuple[str, str]:
    """Return (module, factory) of ``"python:module.factory"``; raises ``InputError`` for what is none."""
    module, dot, factory = kind.removeprefix(PREFIX).rpartition(".")
    if not dot or not is_module(f"{module}.{factory}"):
        raise InputError(
            f'{where}: {kind[:80]!r}: expected "python:module.factory", for instance "python:mymodels.tiny"'
        )
    return module, factory


def check(kind: str, where: str = "network") -> None:
    """Raise ``InputError`` unless the command line allows the module of ``kind``."""
    module, _ = split(kind, where)
    parts = module.split(".")
    if not {".".join(parts[:i]) for i in range(1, len(parts) + 1)} & set(current().modules):
        raise InputError(
            f"{where}: {kind} would run code of its own, which a file cannot ask for; "
            f"if you trust it, say --allow-code {module} on the command line"
        )


def sealed(choice: Mapping[str, Any], where: str = "network") -> dict[str, Any]:
    """Return a network's choice with the checksum of its source, where it is code of the user's; any other unchanged.

    The checksum makes edited code another trial. Raises ``InputError`` where the code is not allowed or not there, or
    where the choice has another checksum already. Nothing is imported.
    """
    if not is_own(choice["kind"]):
        return dict(choice)
    check(choice["kind"], where)
    found = checksum(choice["kind"], where)
    if choice.get("source") not in (None, found):
        raise InputError(
            f"{where}.source: the code of {choice['kind']} is not what it was: checksum {choice['source']} then, "
            f"{found} now; edited code is another trial"
        )
    return {**choice, "source": found}


def checksum(kind: str, where: str = "network") -> str:
    """Return 16 hexadecimal digits of the source: of a module's file, or of every ``*.py`` of the package it lies in."""
    module, _ = split(kind, where)
    file, package = _find(module, where)
    files = (
        {file.name: file}
        if package is None
        else {p.relative_to(package).as_posix(): p for p in package.rglob("*.py")}
    )
    total = hashlib.sha256()
    try:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            total.update(f"{name}\0{len(content)}\0".encode() + content)
    except OSError as error:
        raise InputError(f"{where}: {kind}: {error.filename}: {error.strerror}") from None
    return total.hexdigest()[:16]


def _find(module: str, where: str) -> tuple[Path, Path | None]:
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
    """Return the files and packages that this process may import, those that a machine elsewhere would need."""
    found = []
    for module in current().modules:
        file, package = _find(module, "--allow-code")
        found.append(package or file)
    return list(dict.fromkeys(found))


def load(choice: Mapping[str, Any], where: str = "network") -> Callable[..., Any]:
    """Import the module of a sealed choice and return its factory.

    Raises ``InputError`` where it is not allowed, where its source is not that of the choice, or where there is no such
    function; whatever the module itself raises passes.
    """
    kind = choice["kind"]
    check(kind, where)
    found = checksum(kind, where)
    if choice.get("source") != found:
        raise InputError(
            f"{where}: the code of {kind} has changed: checksum {choice.get('source')} when the trial was made, {found} now"
        )
    module, factory = split(kind, where)
    folder = current().folder
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last: nothing in it takes the place of an installed module
    made = getattr(importlib.import_module(module), factory, None)
    if not callable(made):
        raise InputError(f"{where}: {module} has no function {factory}")
    return made
