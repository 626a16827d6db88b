"""Files of records: written so that nothing measured is lost, read so that damage is named.

A whole file is written under a temporary name, flushed to disk and renamed. A line is appended with one write
and flushed to disk. So a process that is killed at any instant leaves at most a half-written last line, which
reading drops. Everything else that cannot be read is ``Damaged``, with file and line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments.config import SCHEMA
from bench.records.locks import sync_folder

FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room on the disk, or none left to us


class StoreError(InputError):
    """A results folder cannot be read or written: the message says which file, and what to do."""

    def __init__(self, message: str, *, no_space: bool = False) -> None:
        super().__init__(message)
        self.no_space = no_space


class Damaged(StoreError):
    """A record cannot be read; the message names the file and the line."""


class Newer(StoreError):
    """A record was written by a newer version of the suite. It is left as it is."""


def explain(error: OSError, path: Path, option: str = "--results") -> StoreError:
    """Return the error that says what to do about ``error`` with its own file, or else with ``path``.

    ``option`` chooses another folder on the command line.
    """
    where = error.filename2 or error.filename or path  # of a renaming that fails, not the temporary name
    if error.errno in FULL:
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        message = f"{where}: {what}. What was measured is kept; make room and run the same command again."
        return StoreError(message, no_space=True)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"{where}: {error.strerror}. Give {option} a folder that can be written.")
    return StoreError(f"{where}: {error.strerror or error}")


@contextlib.contextmanager
def explained(path: Path, option: str = "--results") -> Iterator[None]:
    """Turn an ``OSError`` into a ``StoreError`` that says what to do."""
    try:
        yield
    except OSError as error:
        raise explain(error, path, option) from error


def write_atomic(path: Path, data: bytes, option: str = "--results") -> None:
    """Write a whole file so that, whenever the machine stops, either the old or the new content is there.

    Raises ``StoreError`` where the disk is full or the folder cannot be written; the old content is then
    untouched. ``option`` of the command line names the folder.
    """
    write_together({Path(path): data}, option)


def write_together(files: Mapping[Path, bytes], option: str = "--results") -> None:
    """Write whole files as ``write_atomic`` does; a full disk leaves the old content of all of them.

    Each under a temporary name in its folder (created where it is missing), flush, fsync; then all are
    renamed, in their order, and the folders are fsynced.
    """
    pending: list[tuple[Path, Path]] = []
    try:
        for path, data in files.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
            pending.append((temporary, path))
            with explained(path, option):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        for temporary, path in pending:
            with explained(path, option):
                os.replace(temporary, path)
    except BaseException:
        for temporary, _ in pending:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise
    for folder in dict.fromkeys(path.parent for path in files):
        with explained(folder, option):
            sync_folder(folder)


def strict_json(value: Any) -> Any:
    """Return ``value`` as strict JSON allows it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if not isinstance(value, int | float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, int) else str(value)


def json_document(value: dict[str, Any]) -> bytes:
    return (json.dumps(strict_json(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def json_line(value: dict[str, Any]) -> bytes:
    return (json.dumps(strict_json(value), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _object(path: Path, data: bytes, line: int = 1) -> dict[str, Any]:
    """Return the JSON object that starts at ``line`` of a file; raises ``Damaged`` for anything else."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise Damaged(f"{path}, line {line}: not JSON ({reason})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path}, line {line}: expected an object, not {type(value).__name__}")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _read(path: Path) -> bytes | None:
    try:
        with explained(path):
            return path.read_bytes()
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def read_document(path: Path) -> dict[str, Any] | None:
    data = _read(path)
    if data is None:
        return None
    value = _object(path, data)
    schema = value.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise Damaged(f"{path}: 'schema' must be a number from 1 to {SCHEMA}, not {schema!r}")
    if schema > SCHEMA:
        raise Newer(
            f"{path}: schema {schema} was written by a newer version; this one reads schemas up to {SCHEMA}. "
            "Update the suite, or give --results another folder. The record was left as it is."
        )
    return value


def read_lines(path: Path, *, check: Any = None) -> list[dict[str, Any]]:
    """Return the objects of a file of lines; a torn last line (no object, no line feed) is dropped."""
    data = _read(path)
    if not data:
        return []
    found = []
    *whole, last = data.split(b"\n")
    for number, text in enumerate([*whole, last] if last else whole, start=1):
        try:
            value = _object(path, text, number)
        except Damaged:
            if number > len(whole):
                break
            raise
        if check is not None and (problem := check(number, value)):
            raise Damaged(f"{path}, line {number}: {problem}")
        found.append(value)
    return found


def cut_off(path: Path) -> bool:
    """Return whether a file of lines that is always written whole ends within a line."""
    data = _read(path) or b"\n"
    return not data.endswith(b"\n")


def append(path: Path, value: dict[str, Any]) -> None:
    """Append one line with one write, flushed to disk, after cutting off what a torn write left."""
    line = json_line(value)
    with explained(path):
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # of a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)  # two commands may append to one file: `bench export` twice
            end = os.lseek(fd, 0, os.SEEK_END)
            if end and os.pread(fd, 1, end - 1) != b"\n":
                data = path.read_bytes()
                start = data.rfind(b"\n") + 1
                try:
                    _object(path, data[start:])
                    line = b"\n" + line  # only the line feed is missing
                except Damaged:
                    os.ftruncate(fd, start)
                    end = start
            written = 0
            try:
                while written < len(line):
                    written += os.pwrite(fd, line[written:], end + written)
                os.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)
        if new:
            sync_folder(path.parent)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a short lock while several files are read and rewritten together."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with _flocked(descriptor):
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path, option: str = "--results") -> Iterator[None]:
    """Hold a folder, which is made where it is missing, while files in it are written and removed together.

    Nothing is written into the folder for the lock. Raises ``StoreError`` where the folder cannot be made;
    ``option`` of the command line names the folder.
    """
    with explained(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    with _flocked(descriptor):
        yield


@contextlib.contextmanager
def _flocked(descriptor: int) -> Iterator[None]:
    """Hold an open file or folder, and close it. A file system without locks holds nothing."""
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
