"""SHA-256 of files, computed once. The user's cache keeps them by path, size and time of the last change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import InputError, readable
from bench.machine.folders import cache_folder


def of_file(path: Path) -> str:
    """Return ``"sha256:<hex>"`` of a file: from the cache where size and time are unchanged."""
    with readable(path), path.open("rb") as stream:
        return remembered(path, stream) or _remember(path, stream, compute(stream))


def check(path: Path, stream: BinaryIO) -> str:
    """Return the checksum of the open file, computed now.

    Raises ``InputError`` where the cache has another checksum for the same size and time: the bytes changed,
    but not the time.
    """
    known, found = remembered(path, stream), compute(stream)
    _remember(path, stream, found)
    if known is not None and known != found:
        raise InputError(
            f"{path} changed although its size and time did not: checksum {found}, before {known}. "
            "If that was meant, run the command again: the new checksum has been noted."
        )
    return found


def of_many(key: Path, signature: str, compute: Callable[[], str]) -> str:
    """Return the checksum of the files under ``key``: from the cache, or else the result of ``compute``.

    The cache is used where ``signature``, the names, sizes and times of the files, is unchanged.
    """
    known = _noted(key)
    mark: list[str | int] = [str(key.resolve()), signature]
    if known is not None and known["file"] == mark:
        return known["checksum"]
    return _write(key, mark, compute())


def compute(stream: BinaryIO) -> str:
    """Return the checksum of an open file from its start."""
    stream.seek(0)
    return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def remembered(path: Path, stream: BinaryIO) -> str | None:
    """Return the cache's checksum for the file's path, size and time, or None."""
    known = _noted(path)
    return known["checksum"] if known is not None and known["file"] == _signature(path, stream) else None


def _noted(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(_note(path).read_text(encoding="utf-8"))
        return known if isinstance(known["checksum"], str) and isinstance(known["file"], list) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remember(path: Path, stream: BinaryIO, checksum: str) -> str:
    return _write(path, _signature(path, stream), checksum)


def _write(path: Path, mark: list[str | int], checksum: str) -> str:
    """Write the checksum into the cache, whole or not at all; a cache that cannot be written is ignored."""
    note = _note(path)
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=note.parent, prefix=note.name)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump({"file": mark, "checksum": checksum}, out)
        os.replace(temporary, note)
    return checksum


def _note(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "checksums" / f"{name}.json"


def _signature(path: Path, stream: BinaryIO) -> list[str | int]:
    status = os.fstat(stream.fileno())
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
