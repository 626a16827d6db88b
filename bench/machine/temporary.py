"""Temporary folders that the next run removes where the process that made them was killed.

The maker holds an advisory lock on a file in the folder for as long as it needs the folder. The system frees
the lock when the process ends, however it ends, so a folder whose lock can be taken belongs to nobody any
more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "bench-"
_OWNER = ".owner"


@contextlib.contextmanager
def temporary_folder(purpose: str, place: Path | None = None) -> Iterator[Path]:
    """Make the folder ``bench-<purpose>-...`` for the block; leftovers of killed processes go first."""
    place = place or Path(tempfile.gettempdir())
    remove_abandoned(place)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=place))
    try:
        with open(folder / f"{_OWNER}.new", "w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            os.rename(folder / f"{_OWNER}.new", folder / _OWNER)  # nobody sees the file before it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path) -> list[Path]:
    """Remove the folders of ``temporary_folder`` in ``place`` whose makers are gone; return their paths."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(place)):
            with contextlib.suppress(OSError):
                if entry.name.startswith(PREFIX) and _abandoned(entry):
                    shutil.rmtree(entry.path, ignore_errors=True)
                    removed.append(Path(entry.path))
    return removed


def _abandoned(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder has an owner's file that no process holds. Raises ``OSError`` where it has
    none.
    """
    if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.getuid():
        return False
    with open(Path(entry.path) / _OWNER) as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
