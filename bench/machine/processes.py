"""Processes that were started here to do one thing: one way to start them, talk to them and end them.

A process is started anew (not forked, since a forked process would inherit half of torch's and Ray's
threads), has a pipe to the process that started it, and ends with that process. No torch is imported here.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from bench.errors import InputError

CONTEXT: Any = multiprocessing.get_context("spawn")
_STARTING = threading.Lock()  # two threads that start processes would put back each other's main module


class Child:
    """A process that runs ``target(pipe, *arguments)``; ``InputError`` where none can be started."""

    def __init__(self, target: Callable[..., None], *arguments: Any, name: str) -> None:
        self.pipe, far = CONTEXT.Pipe()
        parent = os.getpid() if CONTEXT.get_start_method() == "spawn" else None
        self.process = CONTEXT.Process(target=_begin, args=(parent, target, far, arguments), name=name)
        try:
            with _no_main_module():
                self.process.start()
        except OSError as error:  # no memory, too many processes
            self.pipe.close()
            raise InputError(f"no further process can be started: {error.strerror}") from error
        finally:
            far.close()

    def send(self, value: Any) -> None:
        """Send a value; raises ``OSError`` where the process is gone."""
        self.pipe.send(value)

    def receive(self) -> Any:
        """Wait for a value; raises ``EOFError`` where the process is gone."""
        try:
            return self.pipe.recv()
        except OSError as error:
            raise EOFError(str(error)) from error

    def received(self) -> Iterator[Any]:
        """Yield what the process has sent so far; then raises ``EOFError`` where the process is gone."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except OSError as error:
            raise EOFError(str(error)) from error

    def ask_to_stop(self) -> None:
        """Send SIGTERM: the process stops when it can. Does nothing where the process is gone."""
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self.process.terminate()

    def exit_code(self, patience: float) -> int | None:
        """Return the exit status, -N for the signal N; None if the process outlives ``patience`` seconds."""
        self.process.join(patience)
        code: int | None = self.process.exitcode
        return code

    def end(self, patience: float = 0.0) -> None:
        """Kill the process unless it ends by itself within ``patience`` seconds, and close the pipe."""
        if patience:
            self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Let a process that is started here not run the user's script, which ``multiprocessing`` imports there.

    Nothing of the script is needed there. A script without ``if __name__ == "__main__"`` would start the run
    once more, and a script that came through a pipe has no file to import.
    """
    with _STARTING:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def wait(children: Sequence[Child], timeout: float) -> None:
    """Wait until a process has sent something or is gone, ``timeout`` seconds at most."""
    connection.wait([child.pipe for child in children], timeout=timeout)


def call(function: Callable[..., Any], *arguments: Any, name: str) -> Any:
    """Return what ``function(*arguments)`` returns in a process of its own; raises what it raises there.

    Raises ``EOFError`` where the process dies.
    """
    child = Child(_answer, function, arguments, name=name)
    try:
        raised, value = child.receive()
    finally:
        child.end(patience=5.0)
    if raised:
        raise value
    return value


def portable(error: BaseException) -> BaseException:
    """Return ``error``, or a ``RuntimeError`` with its text where another process could not read it."""
    try:
        copy.copy(error)  # made anew as pickle does: fails where the arguments are not those of its class
        pickle.dumps(error)
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _begin(
    parent: int | None, target: Callable[..., None], pipe: connection.Connection, arguments: Sequence[Any]
) -> None:
    """Run the target; the process ends when ``parent``, the process that started it, ends (Linux)."""
    if parent is not None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    target(pipe, *arguments)


def _answer(pipe: connection.Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Send whether ``function`` raised, and what it returned or raised."""
    try:
        answer = False, function(*arguments)
    except Exception as error:
        answer = True, portable(error)
    pipe.send(answer)
