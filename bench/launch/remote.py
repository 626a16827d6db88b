"""A trial on a node of a cluster that shares no disk with the machine whose results folder it belongs to.

At home an actor (``Home``, on the machine of ``bench run``) holds the trial's lock and writes its folder. On
the node the trial runs in a temporary folder that begins as a copy of the one at home (checkpoint, lines, the
weights it needs) and is mirrored back every two seconds, so that a lost node costs what was trained since the
last checkpoint, no more. Nothing of Ray is imported before it is used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments.catalog import require
from bench.experiments.config import TrialConfig
from bench.launch.execute import Outcome, Task, execute, outcome_without_training
from bench.machine.folders import resolve_data_dir
from bench.machine.foreign import granted
from bench.machine.temporary import temporary_folder
from bench.records.files import StoreError, write_atomic
from bench.records.locks import Busy
from bench.records.store import Store

MIRROR_SECONDS = 2.0
# Written home in this order, read on the node in the opposite one: no checkpoint without the lines of the
# epochs before it, no summary without the weights.
_LAST = ("checkpoint.pt", "weights.pt", "summary.json")


def with_local_data(task: Task) -> Task:
    """Return the task with this node's data folder. Raises ``InputError`` where the node lacks the data.

    That is the folder of the machine that sent the task where the data is there, too, else the node's own
    (``$BENCH_DATA`` as it was when Ray was started, or the user's cache folder).
    """
    with granted(task.grant):
        dataset = TrialConfig.model_validate(task.config).dataset
    own = resolve_data_dir()
    problem = ""
    for folder in dict.fromkeys((Path(task.data_dir), own)):
        try:
            require(dataset, folder)
            return replace(task, data_dir=str(folder))
        except InputError as error:
            problem = problem or str(error)
    raise InputError(
        f"node {socket.gethostname()}: {problem}; nor is the data in this node's own folder, {own}. "
        "Put it in either, or set BENCH_DATA where `ray start` is called"
    )


class Home:
    """The body of the Ray actor that keeps a run's results folder for the nodes that do not see it."""

    def __init__(self, root: str, go_on: str) -> None:
        self.store = Store(root)
        self.go_on = Path(go_on)
        self._held: dict[str, tuple[str, contextlib.ExitStack, Any]] = {}
        self._guard = threading.Lock()

    def begin(self, task: Task) -> Outcome | tuple[str, dict[str, bytes]]:
        """Take the trial's lock; return (a token, the files to begin with), or how it stands already."""
        stack = contextlib.ExitStack()
        try:
            lock = stack.enter_context(self.store.lock(task.id))
            settled = outcome_without_training(self.store, task)
            if settled is not None:
                stack.close()
                return settled
            files: dict[str, bytes] = {}
            for id in (task.id, *task.needs.values()):
                folder = self.store.folder(id)
                read = _read(folder, [e.name for e in _files(folder)] if id == task.id else ["weights.pt"])
                files |= {f"trials/{id}/{name}": data for name, data in read.items()}
        except Busy as error:
            return Outcome(task.id, "busy", str(error))
        except (StoreError, InputError, OSError) as error:
            stack.close()
            return Outcome(task.id, "refused", str(error), no_space=getattr(error, "no_space", False))
        token = uuid.uuid4().hex
        with self._guard:
            self._held[task.id] = (token, stack, lock)
        return token, files

    def keep(self, id: str, token: str, files: dict[str, bytes]) -> bool:
        """Write files of a trial's folder; return whether the node is to go on with the trial."""
        with self._guard:
            held = self._held.get(id)
            if held is None or held[0] != token or held[2].lost:
                return False
            for name in sorted(files, key=lambda name: _LAST.index(name) if name in _LAST else -1):
                if Path(name).name == name:
                    write_atomic(self.store.folder(id) / name, files[name])
        return self.go_on.exists()

    def end(self, id: str, token: str, status: str) -> None:
        """Let a trial go: its node is through with it."""
        with self._guard:
            held = self._held.get(id)
            if held is None or held[0] != token:
                return
            del self._held[id]
        self.store.tidy(id, finished=status in ("done", "diverged"))
        held[1].close()

    def abandon(self, id: str) -> None:
        """Let a trial go whose node is gone; what that node may still send is refused."""
        with self._guard:
            held = self._held.pop(id, None)
        if held is not None:
            held[1].close()


def _files(folder: Path) -> list[os.DirEntry[str]]:
    """Return a folder's files but the half-written ones; none where there is no folder."""
    with contextlib.suppress(FileNotFoundError):
        return [e for e in os.scandir(folder) if e.is_file() and not e.name.startswith(".")]
    return []


def _read(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the content of files that are there, by name, reading those of ``_LAST`` first, in reverse."""
    found: dict[str, bytes] = {}
    last = [name for name in reversed(_LAST) if name in names]
    for name in (*last, *sorted(set(names) - set(_LAST))):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (folder / name).read_bytes()
    return found


class _Mirror:
    """Sends home what changed in a trial's folder, every two seconds and when it is over."""

    def __init__(self, store: Store, task: Task, home: Any, token: str) -> None:
        self.folder, self.id, self.home, self.token = store.folder(task.id), task.id, home, token
        self.stopping = False
        self._sent: dict[str, tuple[int, int, int]] = self._signatures()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _signatures(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in _files(self.folder):
                if not entry.name.endswith(".previous"):
                    status = os.stat(entry.path)
                    found[entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found

    def send(self) -> None:
        """Send what changed since it was sent last."""
        import ray

        now = self._signatures()
        changed = {name for name, signature in now.items() if self._sent.get(name) != signature}
        going_on = ray.get(self.home.keep.remote(self.id, self.token, _read(self.folder, changed)))
        self._sent = now
        self.stopping = self.stopping or not going_on

    def _run(self) -> None:
        while not self._over.wait(MIRROR_SECONDS):
            with contextlib.suppress(FileNotFoundError):  # the checkpoint of a finished trial
                self.send()

    def __enter__(self) -> _Mirror:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.send()


def execute_remotely(
    task: Task, home: Any, on_epoch: Callable[[dict[str, Any]], None] | None = None
) -> Outcome:
    """Run one trial here as ``bench.launch.execute.execute``, for the results folder of ``home``."""
    import ray

    begun = ray.get(home.begin.remote(task))
    if isinstance(begun, Outcome):
        return begun
    token, files = begun
    outcome = Outcome(task.id, "stopped")
    try:
        with temporary_folder("remote") as folder:
            store = Store(folder)
            for name, data in files.items():
                write_atomic(store.root / name, data)
            with _Mirror(store, task, home, token) as mirror:
                outcome = execute(
                    replace(task, results=str(folder)), stop=lambda: mirror.stopping, on_epoch=on_epoch
                )
    finally:
        ray.get(home.end.remote(task.id, token, outcome.status))
    return outcome
