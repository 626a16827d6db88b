"""Networks of the user's own: ``network = "python:module.factory"``, a function of a module. No torch.

A file can ask for such a network; only ``--allow-code module`` on the command line grants it
(``bench.machine.foreign``). Until then nothing is imported, and reading records never does.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import InputError
from bench.machine.foreign import current, find_module, is_allowed, is_module

PREFIX = "python:"


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
    if not is_allowed(module):
        raise InputError(
            f"{where}: {kind} would run code of its own, which a file cannot ask for; "
            f"if you trust it, say --allow-code {module} on the command line"
        )


def sealed(choice: Mapping[str, Any], where: str = "network") -> dict[str, Any]:
    """Return a network's choice; where it is the user's own code, with the checksum of its source.

    The checksum makes edited code another trial. Raises ``InputError`` where the code is not allowed or not
    there, or where the choice has another checksum already. Nothing is imported.
    """
    if not is_own(choice["kind"]):
        return dict(choice)
    check(choice["kind"], where)
    found = checksum(choice["kind"], where)
    if choice.get("source") not in (None, found):
        raise InputError(
            f"{where}.source: the code of {choice['kind']} is not what it was: checksum {choice['source']} "
            f"then, {found} now; edited code is another trial"
        )
    return {**choice, "source": found}


def checksum(kind: str, where: str = "network") -> str:
    """Return 16 hexadecimal digits of the source: a module's file, or every ``*.py`` of its package."""
    module, _ = split(kind, where)
    file, package = find_module(module, where)
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


def load(choice: Mapping[str, Any], where: str = "network") -> Callable[..., Any]:
    """Import the module of a sealed choice and return its factory.

    Raises ``InputError`` where it is not allowed, where its source is not that of the choice, or where there
    is no such function; whatever the module itself raises passes.
    """
    kind = choice["kind"]
    check(kind, where)
    found = checksum(kind, where)
    if choice.get("source") != found:
        raise InputError(
            f"{where}: the code of {kind} has changed: checksum {choice.get('source')} when the trial was "
            f"made, {found} now"
        )
    module, factory = split(kind, where)
    folder = current().folder
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last: nothing in it takes the place of an installed module
    made = getattr(importlib.import_module(module), factory, None)
    if not callable(made):
        raise InputError(f"{where}: {module} has no function {factory}")
    return made
