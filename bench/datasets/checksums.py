"""SHA-256 of files, computed once. The user's cache keeps them by path, size and time of the last change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from bench.errors import InputError, readable
from bench.machine.folders import cache_folder
from bench.records.files import StoreError, write_atomic


def of_file(path: Path) -> str:
    """Return ``"sha256:<hex>"`` of a file: from the cache where size and time are unchanged."""
    with readable(path), path.open("rb") as stream:
        state = _state(path, stream)
        return _cached(path, state) or _store(path, state, compute(stream))


def check(path: Path, stream: BinaryIO) -> str:
    """Return the checksum of the open file, computed now.

    Raises ``InputError`` where the cache has another checksum for the same size and time: the bytes changed,
    but not the time.
    """
    state = _state(path, stream)
    known, found = _cached(path, state), compute(stream)
    _store(path, state, found)
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
    state: list[str | int] = [str(key.resolve()), signature]
    return _cached(key, state) or _store(key, state, compute())


def compute(stream: BinaryIO) -> str:
    """Return the checksum of an open file from its start."""
    stream.seek(0)
    return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def md5(stream: BinaryIO) -> str:
    """Return the MD5 of an open file from its start, in hexadecimal."""
    stream.seek(0)
    digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))  # type: ignore[arg-type]
    return digest.hexdigest()


def _state(path: Path, stream: BinaryIO) -> list[str | int]:
    """Return what changes with a file: its path, size and time of the last change."""
    status = os.fstat(stream.fileno())
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _cached(path: Path, state: list[str | int]) -> str | None:
    """Return the checksum that the cache has for a file in this state, or None."""
    try:
        known = json.loads(_cache_file(path).read_text(encoding="utf-8"))
        checksum = known["checksum"] if known["file"] == state else None
        return checksum if isinstance(checksum, str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _store(path: Path, state: list[str | int], checksum: str) -> str:
    """Write the checksum into the cache, whole or not at all; a cache that cannot be written is ignored."""
    with contextlib.suppress(StoreError):
        write_atomic(_cache_file(path), json.dumps({"file": state, "checksum": checksum}).encode())
    return checksum


def _cache_file(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "checksums" / f"{name}.json"
