"""Processes forked from one that imported the suite and computed nothing.

A process that is started anew imports torch for seconds of a core; a forked one begins at once. Tests that
are about processes start the real command (``python -m bench``), whose processes are started anew.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]


@functools.cache
def context() -> Any:
    """Return multiprocessing's context that forks from a server, which is started here."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.forking_preload"])
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, places))):
        forkserver.ensure_running()  # the server finds modules by the environment alone
    return forking


class Forking:
    """A context for ``bench.machine.processes`` whose processes have the environment of their starter."""

    def get_start_method(self) -> str:
        """Return the name of the method, which is not "spawn": no process is the child of its starter."""
        return "forkserver"

    def Pipe(self) -> Any:
        """Return the two ends of a pipe."""
        return multiprocessing.Pipe()

    def Process(self, target: Callable[..., None], args: Sequence[Any], name: str) -> Any:
        """Return a process that was not started yet."""
        return context().Process(target=_begin, args=(dict(os.environ), target, args), name=name)


def _begin(environment: Mapping[str, str], target: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.parent_process = lambda: None  # the server is no launcher to end with
    target(*arguments)
