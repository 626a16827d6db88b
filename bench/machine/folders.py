"""Where data and what is remembered of it lie: the data folder and the per-user cache folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

from bench.errors import InputError

NAME = "progressive-bench"
_NAME = re.compile(r"[\w.+=@ /-]{1,200}", re.ASCII)


def cache_folder() -> Path:
    """Return the suite's folder among the user's caches, as the platform has it; it need not exist.

    Raises ``InputError`` for a user without a home folder.
    """
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a container's user without a name
        raise InputError("this user has no home folder for caches and data: set $HOME") from None
    return Path(base) / NAME


def resolve_data_dir(argument: str | os.PathLike[str] | None = None) -> Path:
    """Return the data folder: ``argument`` (``--data``), else ``$BENCH_DATA``, else one among the caches.

    The folder need not exist; ``InputError`` is raised where the path is not a folder.
    """
    chosen, origin = (argument, "--data") if argument else (os.environ.get("BENCH_DATA"), "$BENCH_DATA")
    if not chosen:
        return cache_folder() / "data"
    try:
        if "\0" in str(chosen):
            raise ValueError("a NUL in it")
        folder = Path(os.path.abspath(Path(chosen).expanduser()))
        wrong = folder.exists() and not folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{origin}: {str(chosen)[:200]!r} is not a usable path: {error}") from None
    if wrong:
        raise InputError(f"{origin}: {folder} is a file; expected the folder that holds the data sets")
    return folder


def acceptable(name: str) -> bool:
    """Return whether a data set may have this name: a relative path of harmless characters without ``..``."""
    outside = ".." in PurePosixPath(name).parts or PureWindowsPath(name).drive or name.startswith("/")
    return not outside and _NAME.fullmatch(name) is not None


def inside(kind: str, name: str) -> str:
    """Return the name in ``npz:NAME``; raises ``InputError`` where it leads out of the data folder."""
    if not acceptable(name):
        raise InputError(
            f"{kind}:{name[:80]!r} is not a name inside the data folder: letters, digits, spaces and ._+=@/- "
            "make one, of at most 200 characters, without '..' and not from the root"
        )
    return name
