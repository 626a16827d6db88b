"""Run one trial in whatever process this is, whoever placed it, and say how it ended.

No torch is imported before the trial trains.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import InputError, NetworkError
from bench.experiments.config import TrialConfig
from bench.launch.gpu_sharing import layout
from bench.machine.devices import THREADS_PER_TRIAL
from bench.machine.foreign import Grant, current, granted
from bench.records.files import FULL, Damaged, Newer, StoreError, explain
from bench.records.locks import Busy
from bench.records.store import Store
from bench.text import duration, inert, percent
from bench.training.job import Job, function_called

TRAIN = "bench.training.trial:run_trial"


@dataclass(frozen=True)
class Task:
    """Everything that a process needs to run a trial: plain values, which travel to any process or host."""

    id: str
    config: dict[str, Any]
    needs: dict[str, str]
    results: str
    data_dir: str
    device: str = "cpu"
    trials_per_device: int = 1  # how many trials share the device at most
    retry: bool = False  # the trial had failed when this run was planned: try again
    accept_other_hardware: bool = False
    until: int | None = None  # stop at a checkpoint after this epoch: a rung of a search
    bracket: str | None = None  # trials of one bracket compete where Ray Tune's ASHA stops some of them
    function: str = TRAIN
    grant: Grant = field(default_factory=current)  # the user's code that the trial may import


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: done, diverged, failed, rung (far enough) or dropped (by ASHA).

    With nothing written: stopped, busy, refused.
    """

    id: str
    status: str
    reason: str = ""
    accuracy: float | None = None
    seconds: float = 0.0
    trained: bool = True  # False: another runner had finished the trial
    no_space: bool = False
    epoch: int = 0  # of "dropped": the last epoch before ASHA stopped the trial
    held_out: bool = False  # the accuracy is that on held-out training images, not on the test images

    def __str__(self) -> str:
        if self.status == "done":
            took = f" ({duration(self.seconds)})" if self.trained else " (trained by another runner)"
            return percent(self.accuracy) + (" held out" if self.held_out else "") + took
        if self.status == "rung":
            return f"{self.reason}, a rung"
        if self.status == "dropped":
            return self.reason
        return f"{self.status}: {self.reason}" if self.reason else self.status


def execute(
    task: Task,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    isolated: bool = False,
) -> Outcome:
    """Run one trial under its lock and return how it ended. Faults are in the outcome, never raised.

    The trial's output and tracebacks go to its log file. ``isolated`` says that this process does nothing
    else, so that crashes of the interpreter are written there as well.
    """
    store = Store(task.results)
    began = time.monotonic()
    try:
        with store.lock(task.id) as lock:
            settled = outcome_without_training(store, task)
            if settled is not None:
                return settled
            if stop():
                return Outcome(task.id, "stopped")
            reached = False  # whether the trial has recorded the epoch at which it is to stop

            def hear(line: dict[str, Any]) -> None:
                nonlocal reached
                reached = reached or (task.until is not None and line.get("epoch", 0) >= task.until)
                if on_epoch is not None:
                    on_epoch(line)

            with _output_to(store.log(task.id), isolated), granted(task.grant):
                outcome = _train(store, task, lambda: lock.lost or stop() or reached, hear, began)
            if outcome.status == "stopped" and lock.lost:
                reason = "another runner took it over: no sign of life from here"
                return replace(outcome, status="busy", reason=reason)
            if outcome.status == "stopped" and reached:
                return replace(outcome, status="rung", reason=f"trained to epoch {task.until}")
            return outcome
    except Busy as error:
        return Outcome(task.id, "busy", str(error))
    except StoreError as error:
        return Outcome(task.id, "refused", str(error), no_space=error.no_space)
    except InputError as error:
        return Outcome(task.id, "refused", str(error))


def outcome_without_training(store: Store, task: Task) -> Outcome | None:
    """Return how a trial stands that needs no training; else set old records aside and return None.

    What a killed process was writing is removed.
    """
    state = store.inspect(task.id, mine=True)
    store.tidy(task.id, finished=state.status in ("done", "diverged"))
    if state.newer:
        raise Newer(state.reason)
    if state.status == "damaged":  # a torn summary alone loses nothing: the trial goes on from its checkpoint
        try:
            store.summary(task.id)
        except Damaged:
            store.reopen(task.id)
            state = store.inspect(task.id, mine=True)
    if state.status == "damaged":
        store.retire(task.id)
        return None
    if state.status in ("done", "diverged"):
        return Outcome(task.id, state.status, state.reason, state.accuracy, trained=False)
    if task.until is not None and state.status == "unfinished" and state.epochs >= task.until:
        return Outcome(task.id, "rung", f"trained to epoch {state.epochs}", trained=False)
    if state.status == "failed":
        if not task.retry:  # the trial failed elsewhere after this run was planned
            return Outcome(task.id, "failed", state.reason, trained=False)
        store.reopen(task.id)
    return None


def _train(
    store: Store,
    task: Task,
    stop: Callable[[], bool],
    on_epoch: Callable[[dict[str, Any]], None] | None,
    began: float,
) -> Outcome:
    try:
        set_threads(THREADS_PER_TRIAL)
        train = function_called(task.function)
        set_threads(THREADS_PER_TRIAL)
        job = Job(
            TrialConfig.model_validate(task.config),
            task.id,
            task.needs,
            store,
            Path(task.data_dir),
            task.device,
            stop,
            on_epoch,
            task.accept_other_hardware,
            layout(task.trials_per_device),
        )
        status = train(job)
        if status not in ("done", "diverged", "stopped"):
            raise RuntimeError(f"the training function returned {status!r}")
    except NetworkError as error:
        return _failed(store, task.id, str(error), time.monotonic() - began)
    except InputError as error:
        return Outcome(task.id, "refused", str(error), no_space=getattr(error, "no_space", False))
    except BaseException as error:  # SystemExit of some library, too: the other trials go on
        with contextlib.suppress(OSError):  # the log may be on a full disk, too
            traceback.print_exc()
        reason = failure_text(error, task.device)
        if isinstance(error, OSError) and error.errno in FULL:
            return Outcome(task.id, "refused", str(explain(error, store.folder(task.id))), no_space=True)
        return _failed(store, task.id, reason, time.monotonic() - began)
    summary = (store.summary(task.id) or {}) if status != "stopped" else {}
    reason = summary.get("reason") or ""
    held_out = task.config.get("evaluate_test") is False
    accuracy = summary.get("final_val_acc" if held_out else "final_test_acc")
    return Outcome(task.id, status, reason, accuracy, time.monotonic() - began, held_out=held_out)


def _failed(store: Store, id: str, reason: str, seconds: float) -> Outcome:
    """Record that a trial failed after so many seconds; return that outcome."""
    store.write_summary(id, {"status": "failed", "reason": reason, "wall_seconds": round(seconds, 3)})
    return Outcome(id, "failed", reason, seconds=seconds)


def set_threads(count: int) -> None:
    """Give this process ``count`` threads for its arithmetic, before torch is imported and after."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def failure_text(error: BaseException, device: str = "cpu") -> str:
    """Return one line that says why a trial failed."""
    text = inert((str(error).strip().splitlines() or [""])[0])[:300]
    kind = type(error).__name__
    host = isinstance(error, MemoryError) or re.search("(can't allocate|not enough) memory", str(error))
    if kind == "OutOfMemoryError" or host:
        where = "host" if host else device
        return f"out of memory ({where}){': ' + text if text else ''}"
    return f"{kind}: {text}" if text else kind


def _log_mark() -> str:
    """Return the beginning of the suite's own lines in a log file."""
    return f"--- {time.strftime('%Y-%m-%d %H:%M:%S %z')}"


@contextlib.contextmanager
def _output_to(path: Path, isolated: bool) -> Iterator[None]:
    """Send everything this process prints, native code included, to the end of a trial's log file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except OSError as error:
        raise explain(error, path) from error
    saved = [(fd, os.dup(fd)) for fd in (1, 2)]
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("bench")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for fd, _ in saved:
        os.dup2(file.fileno(), fd)
    if isolated:
        faulthandler.enable(file)
    try:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            with contextlib.suppress(OSError):
                print(f"{_log_mark()} {socket.gethostname()}, process {os.getpid()}")
            yield
    finally:
        if isolated:
            faulthandler.disable()
        logger.removeHandler(handler)
        logger.setLevel(level)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)
        with contextlib.suppress(OSError):  # a full disk: what was printed last is lost, no record is
            file.close()


def record_death(task: Task, reason: str, seconds: float) -> Outcome:
    """Record that a trial failed because its process is gone.

    A trial that had just finished keeps its record; a trial that another runner holds is left to that runner.
    """
    store = Store(task.results)
    try:
        with store.lock(task.id):
            state = store.inspect(task.id, mine=True)
            if state.status in ("done", "diverged"):
                return Outcome(task.id, state.status, state.reason, state.accuracy, seconds)
            if state.status == "failed":
                return Outcome(task.id, "failed", state.reason, seconds=seconds)
            outcome = _failed(store, task.id, reason, seconds)
            with contextlib.suppress(OSError), open(store.log(task.id), "a", encoding="utf-8") as file:
                file.write(f"{_log_mark()} {reason}\n")
            return outcome
    except Busy as error:
        return Outcome(task.id, "busy", str(error))
    except StoreError as error:
        return Outcome(task.id, "failed", f"{reason}; {error}", seconds=seconds, no_space=error.no_space)
