"""Records: written so that nothing measured is lost, read so that damage is named, locked so that nothing
runs twice.

``<root>/trials/<id>/`` holds a trial: ``trial.json``, ``epochs.jsonl``, ``summary.json`` (last and atomic),
``resumes.jsonl``, ``log.txt``, ``checkpoint.pt``, ``diagnostics.npz``. ``<root>/<experiment>/`` holds the
experiment file as run and its ``index.jsonl``. ``<root>/.locks/`` holds a file for each trial that somebody
trains now.

A whole file is written under a temporary name, flushed to disk and renamed; an epoch is one appended line,
flushed to disk. So a process killed at any instant leaves at most a half-written last line, which reading
drops. Everything else that cannot be read is ``Damaged``, with file and line. No torch is imported.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments.config import SCHEMA
from bench.records.locks import HEARTBEAT, SETTLE, SILENCE, Lock, Owner, acquire, sync_folder
from bench.text import command

SUMMARY_KEYS = (
    "schema",
    "status",
    "reason",
    "final_test_acc",
    "final_test_acc_top5",
    "final_val_acc",
    "selected_test_acc",
    "selected_epoch",
    "best_test_acc",
    "best_epoch",
    "wall_seconds",
    "peak_memory_bytes",
    "model_bits",
    "bit_operations",
    "train_flops",
)
_ID = re.compile(r"[0-9a-f]{16}")
FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room on the disk, or none left to us
_RESERVED = {"trials", "report"}  # folders of the results that are no experiment's


class StoreError(InputError):
    """A results folder cannot be read or written: the message says which file, and what to do."""

    def __init__(self, message: str, *, no_space: bool = False) -> None:
        super().__init__(message)
        self.no_space = no_space


class Damaged(StoreError):
    """A record cannot be read; the message names the file and the line."""


class Newer(StoreError):
    """A record was written by a newer version of the suite. It is left as it is."""


def explain(error: OSError, path: Path) -> StoreError:
    """Return the error that says what to do about ``error``, which came up with ``path`` or the file it names
    itself.
    """
    where = error.filename or path
    if error.errno in FULL:
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        message = f"{where}: {what}. What was measured is kept; make room and run the same command again."
        return StoreError(message, no_space=True)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"{where}: {error.strerror}. Give --results a folder that can be written.")
    return StoreError(f"{where}: {error.strerror or error}")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``StoreError`` that says what to do."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file so that, whenever the machine stops, either the old or the new content is there.

    A temporary name in the same folder (created where it is missing), flush, fsync, rename, fsync of the
    folder. Raises ``StoreError`` where the disk is full or the folder cannot be written; the old content is
    then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def plain(value: Any) -> Any:
    """Return ``value`` as strict JSON allows it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | str):
        return value
    if not isinstance(value, int | float) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, int) else str(value)


def _document(value: dict[str, Any]) -> bytes:
    return (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n").encode()


def _parse(data: bytes) -> Any:
    """Parse strict JSON; raises ``ValueError`` for whatever is wrong."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=lambda name: _refuse(f"{name} is not JSON"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _refuse(message: str) -> Any:
    raise ValueError(message)


def _read(path: Path) -> bytes | None:
    try:
        with _explained(path):
            return path.read_bytes()
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def _read_document(path: Path) -> dict[str, Any] | None:
    data = _read(path)
    if data is None:
        return None
    try:
        value = _parse(data)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise Damaged(f"{path}, line {line}: not JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path}, line 1: expected an object, not {type(value).__name__}")
    schema = value.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise Damaged(f"{path}: 'schema' must be a number from 1 to {SCHEMA}, not {schema!r}")
    if schema > SCHEMA:
        raise Newer(
            f"{path}: schema {schema} was written by a newer version; this one reads schemas up to {SCHEMA}. "
            "Update the suite, or give --results another folder. The record was left as it is."
        )
    return value


def _read_lines(path: Path, *, check: Any = None) -> list[dict[str, Any]]:
    """Return the objects of a file of lines; a last line without its line feed that is no object is dropped."""
    data = _read(path)
    if not data:
        return []
    found = []
    *whole, last = data.split(b"\n")
    for number, text in enumerate([*whole, last] if last else whole, start=1):
        complete = number <= len(whole)
        try:
            value = _parse(text)
        except ValueError as error:
            if not complete:
                break
            raise Damaged(f"{path}, line {number}: not JSON ({_first_line(error)})") from None
        if not isinstance(value, dict):
            if not complete:
                break
            raise Damaged(f"{path}, line {number}: expected an object, not {type(value).__name__}")
        if check is not None and (problem := check(number, value)):
            raise Damaged(f"{path}, line {number}: {problem}")
        found.append(value)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _append(path: Path, value: dict[str, Any]) -> None:
    """Append one line with one write, flushed to disk; what an interrupted write left behind is cut off
    first.
    """
    line = _line(value)
    with _explained(path):
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            end = os.lseek(fd, 0, os.SEEK_END)
            if end and os.pread(fd, 1, end - 1) != b"\n":
                data = path.read_bytes()
                start = data.rfind(b"\n") + 1
                try:
                    isinstance(_parse(data[start:]), dict) or _refuse("no object")
                    line = b"\n" + line  # only the line feed is missing
                except ValueError:
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
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a short lock while several files are read and rewritten together."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@dataclass(frozen=True)
class State:
    """Where a trial stands: one of the statuses, why, and how many epochs are recorded."""

    status: str  # done, failed, diverged, running, unfinished, missing, damaged
    reason: str = ""
    epochs: int = 0
    accuracy: float | None = None
    newer: bool = False  # "damaged" because a newer version wrote it: to be left alone


def _odd_index_line(line: dict[str, Any]) -> str | None:
    """Return what is wrong with a line of an index, None where nothing is."""
    if not isinstance(line.get("id"), str) or not _ID.fullmatch(line["id"]):
        return f"'id' must have 16 hexadecimal digits, not {str(line.get('id'))[:80]!r}"
    for key in ("arm", "baseline", "baseline_id", "role", "profile"):
        if not isinstance(line.get(key), str | None):
            return f"'{key}' must be text or null, not {str(line[key])[:80]!r}"
    if not isinstance(line.get("grid", {}), dict):
        return f"'grid' must be an object, not {str(line['grid'])[:80]!r}"
    return None


def _tuning_place(line: dict[str, Any]) -> str:
    """Return the profile, arm and grid point of a line of ``tuning.jsonl`` as one text."""
    return json.dumps([line.get("profile"), line.get("arm"), line.get("grid")], sort_keys=True, default=str)


class Store:
    """The results folder ``root``. Nothing is created before something is written."""

    heartbeat = HEARTBEAT
    silence = SILENCE
    settle = SETTLE

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # -- places

    def folder(self, id: str) -> Path:
        """Return ``<root>/trials/<id>``; raises ``InputError`` for anything but 16 hexadecimal digits."""
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise InputError(f"a trial's id has 16 hexadecimal digits; this is none: {str(id)[:80]!r}")
        return self.root / "trials" / id

    def checkpoint(self, id: str) -> Path:
        """Return where the trial's checkpoint lies."""
        return self.folder(id) / "checkpoint.pt"

    def log(self, id: str) -> Path:
        """Return where the trial's output and tracebacks go."""
        return self.folder(id) / "log.txt"

    def diagnostics(self, id: str) -> Path:
        """Return where the per-layer diagnostics go."""
        return self.folder(id) / "diagnostics.npz"

    def ids(self) -> list[str]:
        """Return the ids of all trials that have a folder, sorted; retired ones (``<id>.old-<n>``) are none."""
        with _explained(self.root):
            try:
                return sorted(
                    e.name for e in os.scandir(self.root / "trials") if _ID.fullmatch(e.name) and e.is_dir()
                )
            except FileNotFoundError:
                return []

    def find(self, text: str) -> str:
        """Return the id meant by an id, its unique beginning (4 digits or more) or a path to its folder."""
        name = Path(text).name if os.sep in text else text
        if _ID.fullmatch(name) and self.folder(name).is_dir():
            return name
        found = [id for id in self.ids() if re.fullmatch(r"[0-9a-f]{4,16}", name) and id.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} trials begin so: {', '.join(found[:5])}" if found else "no such trial"
        raise InputError(
            f"{self.root / 'trials'}: {text[:80]!r}: {what}. "
            f"`{command('status', '--results', self.root)}` lists them."
        )

    # -- records

    def read_trial(self, id: str) -> dict[str, Any] | None:
        """Return ``trial.json``, None where there is none; raises ``Damaged`` or ``Newer``."""
        return _read_document(self.folder(id) / "trial.json")

    def write_trial(self, id: str, record: dict[str, Any]) -> None:
        """Write ``trial.json`` (``schema`` and ``id`` are added)."""
        write_atomic(self.folder(id) / "trial.json", _document({"schema": SCHEMA, "id": id, **record}))

    def epochs(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``epochs.jsonl``; a half-written last one is dropped, other damage raises
        ``Damaged``.
        """
        return _read_lines(
            self.folder(id) / "epochs.jsonl",
            check=lambda number, line: (
                None
                if type(line.get("epoch")) is int and line["epoch"] == number
                else f"expected epoch {number}, found {str(line.get('epoch'))[:80]!r}"
            ),
        )

    def append_epoch(self, id: str, line: dict[str, Any]) -> None:
        """Append one epoch; on return it is on the disk."""
        _append(self.folder(id) / "epochs.jsonl", line)

    def write_epochs(self, id: str, lines: list[dict[str, Any]]) -> None:
        """Replace all epochs at once (when a resume goes back to its checkpoint)."""
        write_atomic(self.folder(id) / "epochs.jsonl", b"".join(map(_line, lines)))

    def append_resume(self, id: str, line: dict[str, Any]) -> None:
        """Append one line to ``resumes.jsonl``."""
        _append(self.folder(id) / "resumes.jsonl", line)

    def resumes(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``resumes.jsonl``."""
        return _read_lines(self.folder(id) / "resumes.jsonl")

    def append_export(self, id: str, line: dict[str, Any]) -> None:
        """Append one line to ``exports.jsonl``: a file of the deployed network, and how it was checked."""
        _append(self.folder(id) / "exports.jsonl", line)

    def exports(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``exports.jsonl``."""
        return _read_lines(self.folder(id) / "exports.jsonl")

    def summary(self, id: str) -> dict[str, Any] | None:
        """Return ``summary.json``, None where there is none; raises ``Damaged`` or ``Newer``."""
        path = self.folder(id) / "summary.json"
        value = _read_document(path)
        if value is None:
            return None
        if value.get("status") not in ("done", "failed", "diverged"):
            found = str(value.get("status"))[:80]
            raise Damaged(f"{path}: 'status' must be done, failed or diverged, not {found!r}")
        for key in ("final_test_acc", "final_val_acc", "selected_test_acc", "best_test_acc"):
            number = value.get(key)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 100:
                raise Damaged(f"{path}: '{key}' must be percent or null, not {str(number)[:80]!r}")
        return value

    def write_summary(self, id: str, record: dict[str, Any]) -> None:
        """Write ``summary.json``, the last thing a trial does; keys of the contract that are not given are
        null.
        """
        write_atomic(
            self.folder(id) / "summary.json",
            _document({**dict.fromkeys(SUMMARY_KEYS), "schema": SCHEMA, **record}),
        )

    def reopen(self, id: str) -> None:
        """Take a failed or damaged summary away (kept as ``summary.old-<n>.json``) so that the trial can go
        on.
        """
        path = self.folder(id) / "summary.json"
        with _explained(path):
            n = 1
            while (aside := path.with_name(f"summary.old-{n}.json")).exists():
                n += 1
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, aside)
                sync_folder(path.parent)

    def leftovers(self, id: str, *, finished: bool = False) -> list[Path]:
        """Return what killed processes left in a trial's folder: half-written files; of a finished one its
        checkpoints.
        """
        try:
            names = [entry.name for entry in os.scandir(self.folder(id))]
        except OSError:
            return []
        obsolete = ("checkpoint.pt", "checkpoint.pt.previous", "weights.pt.previous") if finished else ()
        found = [
            name for name in names if (name.startswith(".") and name.endswith(".tmp")) or name in obsolete
        ]
        return [self.folder(id) / name for name in found]

    def tidy(self, id: str, *, finished: bool = False) -> None:
        """Remove the leftovers. The caller holds the lock, so nobody is writing them."""
        for path in self.leftovers(id, finished=finished):
            with contextlib.suppress(OSError):
                path.unlink()

    # -- who trains it

    @contextlib.contextmanager
    def lock(self, id: str) -> Iterator[Lock]:
        """Hold a trial; raises ``Busy``, which says who has it, when another live runner does."""
        self.folder(id)
        path = self.root / ".locks" / id
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = acquire(path, id, self.heartbeat, self.silence, self.settle)
        try:
            yield lock
        finally:
            lock.release()

    def holder(self, id: str) -> Owner | None:
        """Return who seems to train the trial now, None where nobody does. For display: ``lock`` decides."""
        self.folder(id)
        try:
            fd = os.open(self.root / ".locks" / id, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            owner = Owner.read(os.pread(fd, 4096, 0))
            if owner is not None and not owner.local:
                return owner if time.time() - os.fstat(fd).st_mtime < 4 * self.silence else None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return owner or Owner("this machine", 0, "", "?", "", "")
            except OSError:
                return owner if owner is not None and not owner.dead() else None
            return None
        finally:
            os.close(fd)

    def inspect(self, id: str, *, mine: bool = False) -> State:
        """Return where a trial stands, with the reason. Reads everything, so that damage does not stay
        hidden.

        ``mine`` says that the caller holds the lock, so that it does not see itself as running.
        """
        folder = self.folder(id)
        owner = None if mine else self.holder(id)
        try:
            summary = self.summary(id)
            trial = self.read_trial(id)
            epochs = self.epochs(id)
            if trial is not None and trial.get("id") != id:
                raise Damaged(f"{folder / 'trial.json'}: is the record of trial {trial.get('id')!r}")
        except Newer as error:
            return State("damaged", str(error), newer=True)
        except StoreError as error:
            if owner is not None:
                return State("running", str(owner))
            return State("damaged", str(error))
        if summary is not None and summary["status"] in ("done", "diverged"):
            return State(
                summary["status"], summary.get("reason") or "", len(epochs), summary.get("final_test_acc")
            )
        if owner is not None:
            return State("running", str(owner), len(epochs))
        if summary is not None:
            return State("failed", summary.get("reason") or "no reason recorded", len(epochs))
        if trial is None and not epochs:
            return State("missing")
        return State("unfinished", "", len(epochs))

    def status(self, id: str) -> str:
        """Return done, failed, diverged, running, unfinished, missing or damaged."""
        return self.inspect(id).status

    def retire(self, id: str) -> Path:
        """Move a trial's folder to ``<id>.old-<n>`` and return that; nothing is deleted. The caller holds the
        lock.
        """
        folder = self.folder(id)
        with _explained(folder):
            n = 1
            while (aside := folder.with_name(f"{id}.old-{n}")).exists():
                n += 1
            os.rename(folder, aside)
            sync_folder(folder.parent)
        return aside

    # -- experiments

    def experiment_folder(self, name: str) -> Path:
        """Return ``<root>/<name>``; raises ``InputError`` for names that are none or reserved."""
        bad = (
            not name
            or name.startswith(".")
            or "/" in name
            or not name.isprintable()
            or len(name.encode()) > 200
        )
        if bad or name in _RESERVED:
            why = (
                f"the results folder keeps {', '.join(sorted(_RESERVED))} for itself"
                if name in _RESERVED
                else "rename it"
            )
            raise InputError(f"an experiment file cannot be called {name[:80]!r}: {why}")
        return self.root / name

    def write_index(
        self,
        name: str,
        text: str,
        lines: list[dict[str, Any]],
        *,
        file: str | None = None,
        stale: Callable[[dict[str, Any]], bool] = lambda line: False,
    ) -> None:
        """Write the experiment file as run (``file``, else ``<name>.toml``) and merge ``lines`` into
        ``index.jsonl``.

        Lines of other profiles and overrides stay (other ids); those of an arm that the file no longer has
        go, and so do those that are ``stale``.
        """
        folder = self.experiment_folder(name)
        try:
            arms = {arm.get("name") for arm in tomllib.loads(text).get("arms", [])}
        except (ValueError, RecursionError, AttributeError, TypeError):
            arms = None
        with _exclusive(self.root / ".locks" / f"index-{name}"):
            merged = {}
            kept = [line for line in self.index(name) if not stale(line)]
            for line in [*kept, *(plain(line) for line in lines)]:
                if arms is None or line.get("arm") is None or line["arm"] in arms:
                    key = {k: v for k, v in line.items() if k != "baseline"}
                    merged[json.dumps(key, sort_keys=True)] = line
            write_atomic(folder / (file or f"{name}.toml"), text.encode())
            write_atomic(folder / "index.jsonl", b"".join(map(_line, merged.values())))

    def write_tuning(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Merge ``lines`` into the experiment's ``tuning.jsonl``; lines about other points and profiles stay."""
        path = self.experiment_folder(name) / "tuning.jsonl"
        with _exclusive(self.root / ".locks" / f"index-{name}"):
            new = {_tuning_place(line) for line in lines}
            kept = [line for line in _read_lines(path) if _tuning_place(line) not in new]
            write_atomic(path, b"".join(map(_line, [*kept, *lines])))

    def tuning(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of an experiment's ``tuning.jsonl``, ``[]`` where there is none."""
        return _read_lines(self.experiment_folder(name) / "tuning.jsonl")

    def index(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of an experiment's ``index.jsonl``, ``[]`` where there is none."""
        return _read_lines(
            self.experiment_folder(name) / "index.jsonl", check=lambda _, line: _odd_index_line(line)
        )

    def experiments(self) -> list[str]:
        """Return the names of the experiments that have an index here, sorted."""
        with _explained(self.root):
            try:
                found = [entry.name for entry in os.scandir(self.root) if not entry.name.startswith(".")]
            except FileNotFoundError:
                return []
        return sorted(name for name in found if (self.root / name / "index.jsonl").is_file())

    def check_writable(self) -> None:
        """Raise ``InputError`` unless records can be written here (the folder is created where it is
        missing).
        """
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--results {self.root}: is a file, not a folder")
        probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
        write_atomic(probe, b"")
        with contextlib.suppress(OSError):
            probe.unlink()
