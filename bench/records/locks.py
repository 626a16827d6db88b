"""Locks that say who holds them, so that no trial is trained twice at once, on one host or on several.

A lock is a file. Under one kernel its advisory lock (``flock``) is the truth: it ends with its process,
however that dies. Where that is not to be had, the owner's process number and start time decide. Between
kernels (hosts on a shared disk, or this host before it was started anew), where advisory locks may not reach,
the holder signs the file and rewrites it every few seconds; another host takes the file over only after
watching it stay silent. No two clocks are compared, and a file's age alone proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError

HEARTBEAT = 10.0  # seconds between two signs of life in a lock file
# Seconds without a change of its lock file, while we watch, after which an owner on another host is gone.
SILENCE = 45.0
SETTLE = 1.0  # what a write on a shared disk needs to be seen by the others


class Busy(InputError):
    """Another live runner holds the lock; the message says who."""


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (new and renamed files) to disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems have no fsync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


@functools.cache
def _boot_id() -> str:
    """Return what tells this start of this machine's kernel from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return when process ``pid`` started (kernel ticks since boot), None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "?"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


_held_files: set[int] = set()


def _forget_in_child() -> None:
    """Close inherited lock files in a forked child, which must not keep a lock after its parent."""
    for fd in _held_files:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held_files.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: the evidence by which another runner tells a live holder from a dead one."""

    host: str
    pid: int
    boot: str
    started: str
    namespace: str
    token: str
    beat: int = 0

    @classmethod
    def here(cls) -> Owner:
        pid, token = os.getpid(), uuid.uuid4().hex
        return cls(socket.gethostname(), pid, _boot_id(), _start_time(pid) or "?", _namespace(), token)

    @classmethod
    def read(cls, data: bytes) -> Owner | None:
        try:
            value = json.loads(data)
            return cls(**{name: value[name] for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, fd: int) -> None:
        data = json.dumps(self.__dict__).encode().ljust(400)
        os.pwrite(fd, data, 0)
        with contextlib.suppress(OSError):
            os.fsync(fd)

    @property
    def local(self) -> bool:
        """Whether it runs (or ran) under this kernel, where advisory locks are reliable."""
        return self.boot == _boot_id()

    def dead(self) -> bool:
        """Whether evidence says that the process is gone; only for owners under this kernel."""
        if self.namespace != _namespace():
            return False  # its number means another process here
        started = _start_time(self.pid)
        return started is None or (started != self.started and "?" not in (started, self.started))

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"


class Lock:
    """A held trial. ``lost`` turns true when another runner took it over for lack of a sign of life."""

    def __init__(self, path: Path, fd: int, owner: Owner, heartbeat: float) -> None:
        self.path = path
        self.lost = False
        self._fd = fd
        self._owner = owner
        self._heartbeat = heartbeat
        self._done = threading.Event()
        _held_files.add(fd)
        self._thread = threading.Thread(target=self._keep_signing, name=f"heartbeat {path.name}", daemon=True)
        self._thread.start()

    def _still_mine(self) -> bool:
        try:
            seen = Owner.read(self.path.read_bytes())
            return seen is not None and seen.token == self._owner.token
        except FileNotFoundError:
            return False
        except OSError:
            return True  # cannot be read now: no evidence against us

    def _keep_signing(self) -> None:
        beat = 0
        while not self._done.wait(self._heartbeat):
            if not self._still_mine():
                self.lost = True
                return
            beat += 1
            with contextlib.suppress(OSError):
                Owner(**{**self._owner.__dict__, "beat": beat}).write(self._fd)

    def release(self) -> None:
        """Give the trial back."""
        self._done.set()
        self._thread.join()
        if self._still_mine():
            with contextlib.suppress(OSError):
                self.path.unlink()
        _held_files.discard(self._fd)
        os.close(self._fd)


def _same_file(fd: int, path: Path) -> bool:
    try:
        there, here = os.stat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _try_flock(fd: int) -> bool | None:
    """Return True (locked), False (another has it) or None (this file system has no such locks)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            return None
        raise


def _open_lock_file(path: Path) -> tuple[int, bool]:
    """Return the opened lock file, and whether it was created."""
    while True:  # the file may come and go between the two attempts
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_CLOEXEC), False


def acquire(
    path: Path, name: str, heartbeat: float = HEARTBEAT, silence: float = SILENCE, settle: float = SETTLE
) -> Lock:
    """Take the lock file ``path``.

    Args:
        path: The lock file.
        name: The trial, in messages.
        heartbeat, silence, settle: In seconds, as the constants say.

    Raises:
        Busy: Another live runner holds the lock.
    """
    refused = 0
    while True:
        fd, created = _open_lock_file(path)
        try:
            locked = _try_flock(fd)
            if locked is False:
                owner = Owner.read(os.pread(fd, 4096, 0))
                refused += 1
                if refused > 10:  # `bench status` looks at a lock for an instant; a trainer keeps it
                    raise Busy(f"trial {name} is being trained by {owner or 'another runner'}")
                os.close(fd)
                fd = -1
                time.sleep(0.02)
                continue
            if not _same_file(fd, path):
                os.close(fd)
                fd = -1
                continue
            former = Owner.read(os.pread(fd, 4096, 0))
            doubtful = locked is None
            if not created:
                if former is None:  # its creator has not signed it yet, or died before it could
                    if locked is None or not path.read_bytes():
                        time.sleep(settle)
                    former = Owner.read(os.pread(fd, 4096, 0))
                if former is not None and former.local:
                    if locked is None and not former.dead():
                        raise Busy(f"trial {name} is being trained by {former}")
                elif former is not None:
                    _watch_for_silence(path, name, former, heartbeat, silence)
                    doubtful = True
            mine = Owner.here()
            mine.write(fd)
            if created:
                sync_folder(path.parent)
            if doubtful:  # two may have come to the same conclusion: the last to sign has it
                time.sleep(settle)
                now = Owner.read(path.read_bytes())
                if now is None or now.token != mine.token:
                    raise Busy(f"trial {name} is being trained by {now or 'another runner'}")
            lock = Lock(path, fd, mine, heartbeat)
            fd = -1
            return lock
        finally:
            if fd >= 0:
                os.close(fd)


def _watch_for_silence(path: Path, name: str, former: Owner, heartbeat: float, silence: float) -> None:
    """Return after ``silence`` seconds without a sign of life from ``former``, else raise ``Busy``."""
    end = time.monotonic() + silence
    while time.monotonic() < end:
        time.sleep(min(heartbeat / 4, 2.0))
        try:
            now = Owner.read(path.read_bytes())  # opened anew: network file systems look for news at open
        except FileNotFoundError:
            return
        if now is not None and now != former:
            raise Busy(f"trial {name} is being trained by {now}")
