"""The results folder: records of trials and of experiments, and who trains a trial now.

``<root>/trials/<id>/`` holds a trial: ``trial.json``, ``epochs.jsonl``, ``summary.json`` (last and atomic),
``resumes.jsonl``, ``log.txt``, ``checkpoint.pt``, ``diagnostics.npz``. ``<root>/<experiment>/`` holds the
experiment file as run and its ``index.jsonl``. ``<root>/.locks/`` holds a file for each trial that somebody
trains now. No torch is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments.config import SCHEMA
from bench.records.experiments import ID, Experiments
from bench.records.files import (
    Damaged,
    Newer,
    StoreError,
    append,
    explained,
    json_document,
    json_line,
    read_document,
    read_lines,
    write_atomic,
)
from bench.records.locks import HEARTBEAT, SETTLE, SILENCE, Lock, Owner, acquire, sync_folder
from bench.text import command

SUMMARY_KEYS = tuple(
    """
    schema status reason final_test_acc final_test_acc_top5 final_val_acc selected_test_acc selected_epoch
    best_test_acc best_epoch wall_seconds peak_memory_bytes model_bits bit_operations train_flops
    """.split()
)


@dataclass(frozen=True)
class State:
    """Where a trial stands: one of the statuses, why, and how many epochs are recorded."""

    status: str  # done, failed, diverged, running, unfinished, missing, damaged
    reason: str = ""
    epochs: int = 0
    accuracy: float | None = None
    newer: bool = False  # "damaged" because a newer version wrote it: to be left alone
    last: Mapping[str, Any] | None = None  # the last recorded epoch of a trial that runs


class Store(Experiments):
    """The results folder ``root``. Nothing is created before something is written."""

    heartbeat = HEARTBEAT
    silence = SILENCE
    settle = SETTLE

    # -- places

    def folder(self, id: str) -> Path:
        """Return ``<root>/trials/<id>``; raises ``InputError`` for anything but 16 hexadecimal digits."""
        if not isinstance(id, str) or not ID.fullmatch(id):
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
        """Return the ids of all trials with a folder, sorted, without the retired (``<id>.old-<n>``)."""
        with explained(self.root):
            try:
                return sorted(
                    e.name for e in os.scandir(self.root / "trials") if ID.fullmatch(e.name) and e.is_dir()
                )
            except FileNotFoundError:
                return []

    def find(self, text: str) -> str:
        """Return the id meant by an id, its unique beginning (4 digits or more) or a path to its folder."""
        name = Path(text).name if os.sep in text else text
        if ID.fullmatch(name) and self.folder(name).is_dir():
            return name
        found = [id for id in self.ids() if re.fullmatch(r"[0-9a-f]{4,16}", name) and id.startswith(name)]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} trials begin so: {', '.join(found[:5])}" if found else "no such trial"
        raise InputError(
            f"{self.root / 'trials'}: {text[:80]!r}: {what}. `{command('status', '--results', self.root)}` "
            "names the experiments, bench show lists the ids of one; the first digits are enough, 4 or more."
        )

    # -- records

    def read_trial(self, id: str) -> dict[str, Any] | None:
        """Return ``trial.json``, None where there is none; raises ``Damaged`` or ``Newer``."""
        return read_document(self.folder(id) / "trial.json")

    def write_trial(self, id: str, record: dict[str, Any]) -> None:
        """Write ``trial.json`` (``schema`` and ``id`` are added)."""
        write_atomic(self.folder(id) / "trial.json", json_document({"schema": SCHEMA, "id": id, **record}))

    def epochs(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``epochs.jsonl`` without a torn last one; other damage raises ``Damaged``."""
        return read_lines(
            self.folder(id) / "epochs.jsonl",
            check=lambda number, line: (
                None
                if type(line.get("epoch")) is int and line["epoch"] == number
                else f"expected epoch {number}, found {str(line.get('epoch'))[:80]!r}"
            ),
        )

    def append_epoch(self, id: str, line: dict[str, Any]) -> None:
        """Append one epoch; on return it is on the disk."""
        append(self.folder(id) / "epochs.jsonl", line)

    def write_epochs(self, id: str, lines: list[dict[str, Any]]) -> None:
        """Replace all epochs at once (when a resume goes back to its checkpoint)."""
        write_atomic(self.folder(id) / "epochs.jsonl", b"".join(map(json_line, lines)))

    def append_resume(self, id: str, line: dict[str, Any]) -> None:
        """Append one line to ``resumes.jsonl``."""
        append(self.folder(id) / "resumes.jsonl", line)

    def resumes(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``resumes.jsonl``."""
        return read_lines(self.folder(id) / "resumes.jsonl")

    def append_export(self, id: str, line: dict[str, Any]) -> None:
        """Append one line to ``exports.jsonl``: a file of the deployed network, and how it was checked."""
        append(self.folder(id) / "exports.jsonl", line)

    def exports(self, id: str) -> list[dict[str, Any]]:
        """Return the lines of ``exports.jsonl``."""
        return read_lines(self.folder(id) / "exports.jsonl")

    def summary(self, id: str) -> dict[str, Any] | None:
        """Return ``summary.json``, None where there is none; raises ``Damaged`` or ``Newer``."""
        path = self.folder(id) / "summary.json"
        value = read_document(path)
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
        """Write ``summary.json``, a trial's last record; keys of the contract not given are null."""
        write_atomic(
            self.folder(id) / "summary.json",
            json_document({**dict.fromkeys(SUMMARY_KEYS), "schema": SCHEMA, **record}),
        )

    def reopen(self, id: str) -> None:
        """Keep a failed or damaged summary as ``summary.old-<n>.json``, so that the trial can go on."""
        path = self.folder(id) / "summary.json"
        with explained(path), contextlib.suppress(FileNotFoundError):
            os.replace(path, _free_name(path, "summary.old-{}.json"))
            sync_folder(path.parent)

    def leftovers(self, id: str, *, finished: bool = False) -> list[Path]:
        """Return half-written files of killed processes, and checkpoints of a ``finished`` trial."""
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
        with explained(path):
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
        """Return where a trial stands and why, from all its files; ``mine``: the caller has its lock."""
        folder = self.folder(id)
        owner = None if mine else self.holder(id)
        try:
            summary = self.summary(id)
            trial = self.read_trial(id)
            epochs = self.epochs(id)
            if trial is not None and trial.get("id") != id:
                raise Damaged(f"{folder / 'trial.json'}: is the record of trial {trial.get('id')!r}")
            if summary is not None and summary["status"] in ("done", "diverged"):
                _check_complete(folder, trial, epochs, summary["status"])
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
            return State("running", str(owner), len(epochs), last=epochs[-1] if epochs else None)
        if summary is not None:
            return State("failed", summary.get("reason") or "no reason recorded", len(epochs))
        if trial is None and not epochs:
            return State("missing")
        return State("unfinished", "", len(epochs))

    def status(self, id: str) -> str:
        """Return done, failed, diverged, running, unfinished, missing or damaged."""
        return self.inspect(id).status

    def retire(self, id: str) -> Path:
        """Move a trial's folder to ``<id>.old-<n>`` and return the new path. The caller holds the lock."""
        folder = self.folder(id)
        with explained(folder):
            aside = _free_name(folder, f"{id}.old-{{}}")
            os.rename(folder, aside)
            sync_folder(folder.parent)
        return aside

    def check_writable(self) -> None:
        """Raise ``InputError`` unless records can be written here; a missing folder is created."""
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"--results {self.root}: is a file, not a folder")
        probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
        write_atomic(probe, b"")
        with contextlib.suppress(OSError):
            probe.unlink()


def _check_complete(
    folder: Path, trial: dict[str, Any] | None, epochs: list[dict[str, Any]], status: str
) -> None:
    """Raise ``Damaged`` where a finished trial lacks what was recorded before its summary: a partial copy."""
    if trial is None:
        raise Damaged(f"{folder}: summary.json without trial.json")
    config = trial.get("config")
    wanted = config.get("epochs") if isinstance(config, dict) else None
    if status == "done" and isinstance(wanted, int) and len(epochs) < wanted:
        raise Damaged(
            f"{folder / 'epochs.jsonl'}: {len(epochs)} of the {wanted} epochs of a trial that is done"
        )


def _free_name(path: Path, pattern: str) -> Path:
    """Return the path beside ``path`` named by ``pattern`` with the first number that is free."""
    names = (path.with_name(pattern.format(number)) for number in itertools.count(1))
    return next(name for name in names if not name.exists())
