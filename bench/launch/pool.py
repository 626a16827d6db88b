"""Which trials run, in which order, and one function that runs one, whoever placed it.

``plan`` looks at the records; ``Session`` keeps the queue (needed trials before those that need them, the longest
first); ``execute`` runs one trial in whatever process it finds itself; ``run_pool`` gives trials to worker processes
of this machine, ``bench.launch.ray_tune.run_ray`` to Ray's. No torch is imported before a worker trains.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.permission import Grant, current, granted
from bench.launch.gpu_sharing import Room, crowded_out, layout
from bench.progress import Progress, duration, inert, percent
from bench.records.locks import Busy
from bench.records.store import FULL, Damaged, Newer, State, Store, StoreError, explain

TRAIN = "bench.training.trial:run_trial"
MACS = 100e6  # multiply-accumulates of an image, of a network that does not say


class TrialLike(Protocol):
    """What is read of ``bench.experiments.expand.Trial``."""

    @property
    def id(self) -> str | None: ...

    @property
    def config(self) -> TrialConfig: ...

    @property
    def needs(self) -> Mapping[str, str | None]: ...


@dataclass(frozen=True)
class Task:
    """Everything a worker needs to run a trial: plain values, so that it travels to any process or host."""

    id: str
    config: dict[str, Any]
    needs: dict[str, str]
    results: str
    data_dir: str
    device: str = "cpu"
    threads: int = 1
    pack: int = 1  # how many trials share its device at most
    retry: bool = False  # it had failed when this run was planned: try it again
    accept_other_hardware: bool = False
    function: str = TRAIN
    grant: Grant = field(default_factory=current)  # code of the user's that it may import


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: done, diverged, failed; or, with nothing written: stopped, busy, refused."""

    id: str
    status: str
    reason: str = ""
    accuracy: float | None = None
    seconds: float = 0.0
    trained: bool = True  # False: somebody else had finished it
    no_space: bool = False

    def __str__(self) -> str:
        if self.status == "done":
            took = f" ({duration(self.seconds)})" if self.trained else " (trained by another runner)"
            return percent(self.accuracy) + took
        return f"{self.status}: {self.reason}" if self.reason else self.status


# --- planning --------------------------------------------------------------------------------------------------------

ACTIONS = {
    "missing": "train",
    "unfinished": "continue",
    "failed": "retry",
    "damaged": "redo",
    "done": "keep",
    "diverged": "leave",
    "running": "busy",
}


@dataclass(frozen=True)
class Planned:
    """A wanted trial, where it stands, and what a run does with it."""

    id: str
    config: TrialConfig
    needs: dict[str, str]
    state: State
    action: str  # train, continue, retry, redo; keep, leave, busy, refused


def plan(trials: Iterable[TrialLike], store: Store) -> list[Planned]:
    """Return what a run would do with each trial, in the order given. Every trial must have an id."""
    planned = []
    for trial in trials:
        if trial.id is None:
            raise InputError("a trial without its data has no identity; fetch the data first")
        needs = {role: needed for role, needed in trial.needs.items() if needed is not None}
        state = store.inspect(trial.id)
        action = "refused" if state.newer else ACTIONS[state.status]
        planned.append(Planned(trial.id, trial.config, needs, state, action))
    return planned


def relative_cost(config: TrialConfig) -> float:
    """Return about how long a trial takes, in no particular unit: enough to start the longest first."""
    facts = registry.get("datasets", config.dataset["kind"]).facts
    images = config.train_size or facts.get("train_count") or 50_000
    per_image = _step_cost(config)
    strategy = config.strategy
    if strategy["kind"] == "progressive":
        per_image *= {"concat": 1.9, "preactivation": 1.2}.get(strategy.get("merge", ""), 1.5)
    elif strategy["kind"] == "apprentice" and strategy.get("teacher"):
        teacher = _step_cost(TrialConfig.model_validate(strategy["teacher"]))
        per_image += teacher * (
            1.0 if strategy.get("scheme") == "A" else 1 / 3
        )  # trained with it, or forward alone
    return config.epochs * images * per_image


def _step_cost(config: TrialConfig) -> float:
    """Return the multiply-accumulates of an image at this width: the layers between first and last grow with its square."""
    entry = registry.entries("networks").get(config.network["kind"])
    macs = entry.facts.get("macs") if entry is not None else None
    return (macs or MACS) * (0.05 + config.width) * config.width


def costs(planned: Sequence[Planned], measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return how long each trial takes: the seconds that were ``measured`` of its kind, else its share of operations.

    The second are brought to seconds by the median over the trials of which both are known, where there are any.
    """
    relative = {p.id: relative_cost(p.config) for p in planned}
    known = {id: seconds for id, seconds in (measured or {}).items() if id in relative}
    scale = statistics.median(seconds / relative[id] for id, seconds in known.items()) if known else 1.0
    return {id: known.get(id, scale * cost) for id, cost in relative.items()}


def priorities(planned: Sequence[Planned], measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return each trial's cost plus that of the longest chain of trials that wait for it."""
    taken = costs(planned, measured)
    waiting: dict[str, list[str]] = {}
    for p in planned:
        for needed in p.needs.values():
            waiting.setdefault(needed, []).append(p.id)
    ranks: dict[str, float] = {}

    def rank(id: str) -> float:
        if id not in ranks:
            ranks[id] = taken[id]  # stands while it is computed: a cycle must not hang us
            ranks[id] += max((rank(other) for other in waiting.get(id, ()) if other in taken), default=0.0)
        return ranks[id]

    return {id: rank(id) for id in taken}


# --- one trial -------------------------------------------------------------------------------------------------------


def execute(
    task: Task,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    isolated: bool = False,
) -> Outcome:
    """Run one trial under its lock and return how it ended; whatever goes wrong is in the outcome, nothing is raised.

    The trial's output and tracebacks go to its log file. ``isolated`` says that this process does nothing else, so
    that crashes of the interpreter are written there as well.
    """
    store = Store(task.results)
    began = time.monotonic()
    try:
        with store.lock(task.id) as lock:
            store.tidy(task.id)  # what a killed process was writing
            settled = settle(store, task)
            if settled is not None:
                store.tidy(task.id, finished=settled.status in ("done", "diverged"))
                return settled
            if stop():
                return Outcome(task.id, "stopped")
            with _logged(store.log(task.id), isolated), granted(task.grant):
                outcome = _train(store, task, lambda: lock.lost or stop(), on_epoch, began)
            if outcome.status == "stopped" and lock.lost:
                return replace(
                    outcome, status="busy", reason="another runner took it over: no sign of life from here"
                )
            return outcome
    except Busy as error:
        return Outcome(task.id, "busy", str(error))
    except StoreError as error:
        return Outcome(task.id, "refused", str(error), no_space=error.no_space)
    except InputError as error:
        return Outcome(task.id, "refused", str(error))


def settle(store: Store, task: Task) -> Outcome | None:
    """Return the outcome of a trial that needs no training; make way for the training of one that does."""
    state = store.inspect(task.id, mine=True)
    if state.newer:
        raise Newer(state.reason)
    if state.status == "damaged":  # a torn summary alone costs nothing: the trial goes on from its checkpoint
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
    if state.status == "failed":
        if not task.retry:  # it failed elsewhere after this run was planned
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
        set_threads(task.threads)
        module, _, name = task.function.partition(":")
        train = getattr(importlib.import_module(module), name)
        set_threads(task.threads)
        status = train(
            TrialConfig.model_validate(task.config),
            task.id,
            task.needs,
            store,
            Path(task.data_dir),
            task.device,
            stop=stop,
            on_epoch=on_epoch,
            accept_other_hardware=task.accept_other_hardware,
            pack=layout(task.pack),
        )
        if status not in ("done", "diverged", "stopped"):
            raise RuntimeError(f"the training function returned {status!r}")
    except InputError as error:
        return Outcome(task.id, "refused", str(error), no_space=getattr(error, "no_space", False))
    except BaseException as error:  # SystemExit of some library, too: the others go on
        with contextlib.suppress(OSError):  # the log, too, may be on a full disk
            traceback.print_exc()
        reason = describe(error, task.device)
        if isinstance(error, OSError) and error.errno in FULL:
            return Outcome(task.id, "refused", str(explain(error, store.folder(task.id))), no_space=True)
        seconds = time.monotonic() - began
        store.write_summary(
            task.id, {"status": "failed", "reason": reason, "wall_seconds": round(seconds, 3)}
        )
        return Outcome(task.id, "failed", reason, seconds=seconds)
    summary = (store.summary(task.id) or {}) if status != "stopped" else {}
    reason = summary.get("reason") or ""
    return Outcome(task.id, status, reason, summary.get("final_test_acc"), time.monotonic() - began)


def set_threads(count: int) -> None:
    """Give this process ``count`` threads for its arithmetic, before torch is imported and after."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def describe(error: BaseException, device: str = "cpu") -> str:
    """Return one line that says why a trial failed."""
    text = inert((str(error).strip().splitlines() or [""])[0])[:300]
    kind = type(error).__name__
    host = (
        isinstance(error, MemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
    if kind == "OutOfMemoryError" or host:
        where = "host" if host else device
        return f"out of memory ({where}){': ' + text if text else ''}"
    return f"{kind}: {text}" if text else kind


@contextlib.contextmanager
def _logged(path: Path, isolated: bool) -> Iterator[None]:
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
                print(
                    f"--- {time.strftime('%Y-%m-%d %H:%M:%S %z')} {socket.gethostname()}, process {os.getpid()}"
                )
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


def bury(task: Task, reason: str, seconds: float) -> Outcome:
    """Write the record of a trial whose process is gone; where it had just finished, or another has it, say that."""
    store = Store(task.results)
    try:
        with store.lock(task.id):
            state = store.inspect(task.id, mine=True)
            if state.status in ("done", "diverged"):
                return Outcome(task.id, state.status, state.reason, state.accuracy, seconds)
            if state.status == "failed":
                return Outcome(task.id, "failed", state.reason, seconds=seconds)
            store.write_summary(
                task.id, {"status": "failed", "reason": reason, "wall_seconds": round(seconds, 3)}
            )
            with contextlib.suppress(OSError), open(store.log(task.id), "a", encoding="utf-8") as file:
                file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S %z')} {reason}\n")
            return Outcome(task.id, "failed", reason, seconds=seconds)
    except Busy as error:
        return Outcome(task.id, "busy", str(error))
    except StoreError as error:
        return Outcome(task.id, "failed", f"{reason}; {error}", seconds=seconds, no_space=error.no_space)


# --- stopping --------------------------------------------------------------------------------------------------------


class Stop:
    """Whether to stop at the next checkpoint: set by Ctrl-C, SIGTERM, ``--max-minutes`` or a full disk."""

    def __init__(self) -> None:
        self.reason = ""
        self.hooks: list[
            Callable[[], None]
        ] = []  # how the placement tells its workers; called from signal handlers

    def set(self, reason: str) -> None:
        """Stop; the first reason is kept."""
        if not self.reason:
            self.reason = reason
            for hook in self.hooks:
                hook()

    def is_set(self) -> bool:
        """Return whether to stop."""
        return bool(self.reason)

    @contextlib.contextmanager
    def watching(self, max_minutes: float | None = None) -> Iterator[Stop]:
        """Listen to Ctrl-C, SIGTERM and the clock. A second Ctrl-C raises ``KeyboardInterrupt``: stop at once."""

        def hear(number: int, frame: Any) -> None:
            if self.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.set("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        timer = None
        if max_minutes is not None:
            timer = threading.Timer(min(max_minutes * 60, threading.TIMEOUT_MAX), self.set, ["--max-minutes"])
            timer.daemon = True
            timer.start()
        try:
            yield self
        finally:
            if timer is not None:
                timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)


# --- many trials -----------------------------------------------------------------------------------------------------


@dataclass
class Session:
    """The queue of one ``bench run``, and what became of each trial."""

    tasks: dict[str, Task]
    ranks: Mapping[str, float]
    known: dict[str, str]  # status of trials that are not to be run: done, diverged, ...
    store: Store
    progress: Progress
    stop: Stop
    room: Room = field(default_factory=lambda: Room({}))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)  # notes of trials
    running: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)  # id -> who trains it elsewhere
    _looked: float = 0.0
    _said: bool = False

    def _status(self, id: str) -> str | None:
        """Return done, diverged, failed, ... of a trial that will not run any more here, None while it may."""
        outcome = self.outcomes.get(id)
        return outcome.status if outcome else self.known.get(id)

    def _queued(self) -> list[Task]:
        out = [
            t
            for id, t in self.tasks.items()
            if not (id in self.outcomes or id in self.running or id in self.held)
        ]
        alone = self.room.alone
        return sorted(out, key=lambda task: (task.id in alone, -self.ranks.get(task.id, 0.0)))

    def ready(self) -> list[Task]:
        """Return the trials that can start now, the longest first; last those that want a device to themselves."""
        if self.stop.is_set():
            return []
        self._look_at_held()
        found = []
        for task in self._queued():
            lacking = {role: s for role, id in task.needs.items() if (s := self._status(id)) != "done"}
            dead = {role: s for role, s in lacking.items() if s in ("failed", "diverged", "refused")}
            if dead:
                role, status = next(iter(dead.items()))
                reason = f"not trained: its {role} {task.needs[role]} "
                if status == "refused":  # nothing was tried, so nothing is recorded
                    self.finished(Outcome(task.id, "refused", f"{reason}was refused"))
                else:
                    self.finished(bury(task, reason + status, 0.0))
            elif not lacking:
                found.append(task)
        return found if not any(t.id in self.outcomes for t in found) else self.ready()

    def take(self) -> Task | None:
        """Return the next trial to start, None where there is none now."""
        return next(iter(self.ready()), None)

    def waiting(self) -> bool:
        """Return whether trials of ours wait for one that is being trained elsewhere."""
        return not self.stop.is_set() and bool(self.held) and bool(self._queued())

    def started(self, id: str, device: str = "") -> None:
        """A worker begins a trial on ``device`` (where the placement knows it)."""
        self.running.add(id)
        self.room.begin(id, device)
        self.progress.started(id)

    def epoch(self, id: str, line: Mapping[str, Any]) -> None:
        """A running trial recorded an epoch, or has a ``note``, which is said once, whichever trial has it first."""
        if "note" not in line:
            self.progress.epoch(id, line)
        elif line["note"] not in self.said:
            self.said.add(line["note"])
            self.progress.note(f"{self.progress.labels.get(id, id)}: {line['note']}")

    def finished(self, outcome: Outcome) -> None:
        """A worker is through with a trial."""
        self.running.discard(outcome.id)
        accompanied = self.room.end(outcome.id)
        if accompanied and outcome.status == "failed" and outcome.trained and crowded_out(outcome.reason):
            return self._again_alone(outcome)
        if outcome.status == "busy":
            self.held[outcome.id] = outcome.reason
            return self.progress.paused(outcome.id)
        self.held.pop(outcome.id, None)
        self.outcomes[outcome.id] = outcome
        if outcome.status == "stopped":
            return self.progress.paused(outcome.id)
        self.progress.finished(outcome.id, str(outcome))
        if outcome.no_space:
            self.stop.set("no space left for records")

    def _again_alone(self, outcome: Outcome) -> None:
        """Put a trial that failed for lack of room back into the queue: once more, with its device to itself."""
        self.room.alone.add(outcome.id)
        self.tasks[outcome.id] = replace(self.tasks[outcome.id], retry=True, pack=1)
        self.progress.paused(outcome.id)
        label = self.progress.labels.get(outcome.id, outcome.id)
        self.progress.note(f"{label}: {outcome.reason}, beside other trials; tried again alone")

    def died(self, id: str, reason: str, seconds: float = 0.0) -> None:
        """The process that ran a trial is gone."""
        self.finished(bury(self.tasks[id], reason, seconds))

    def _look_at_held(self) -> None:
        """Find out what other runners made of the trials they hold."""
        if not self.held or time.monotonic() - self._looked < 1.0:
            return
        self._looked = time.monotonic()
        for id in list(self.held):
            state = self.store.inspect(id)
            if state.status in ("done", "diverged", "failed"):
                self.finished(Outcome(id, state.status, state.reason, state.accuracy, trained=False))
            elif state.status != "running":
                del self.held[id]  # its runner gave it up: back into the queue

    def tick(self) -> None:
        """Show how it goes; say once that it is being stopped."""
        if self.stop.is_set() and not self._said:
            self._said = True
            more = "; Ctrl-C once more stops at once" if self.running else ""
            self.progress.note(f"stopping at a checkpoint ({self.stop.reason}){more}")
        self.progress.tick()

    def close(self) -> None:
        """Give every trial without an outcome one."""
        for id in self.tasks:
            if id not in self.outcomes:
                held = self.held.get(id)
                self.outcomes[id] = (
                    Outcome(id, "busy", held) if held else Outcome(id, "stopped", self.stop.reason)
                )


def exit_status(outcomes: Iterable[Outcome]) -> int:
    """Return 2 where input was wrong, 3 where something is left to do, 1 where a trial failed, else 0."""
    outcomes = list(outcomes)
    statuses = {o.status for o in outcomes}
    if any(o.status == "refused" and not o.no_space for o in outcomes):
        return 2
    if any(o.no_space for o in outcomes):
        return 1
    return 3 if statuses & {"stopped", "busy"} else 1 if "failed" in statuses else 0


# --- worker processes of this machine --------------------------------------------------------------------------------

_SPAWN = multiprocessing.get_context(
    "spawn"
)  # a forked process would inherit half of torch's and Ray's threads


def _die_with(parent: int) -> None:
    """End this process when its launcher ends, however that ends (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _serve(pipe: connection.Connection, parent: int) -> None:
    """Run trials until the launcher says no more: what a worker process does."""
    asked: list[int] = []  # no Event: a second signal in the middle of its set() would wait for itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    _die_with(parent)

    def stop() -> bool:
        if os.getppid() != parent:
            os._exit(1)  # the launcher is gone; the last checkpoint stands
        return bool(asked)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (task := pipe.recv()) is not None:
            pipe.send(
                execute(task, stop=stop, on_epoch=functools.partial(_send, pipe, task.id), isolated=True)
            )
            if "torch" in sys.modules and task.device.startswith("cuda"):
                sys.modules["torch"].cuda.empty_cache()


def _send(pipe: connection.Connection, id: str, line: dict[str, Any]) -> None:
    pipe.send((id, line))


class _Worker:
    """A process that runs one trial after another, each with a pipe of its own: one that dies takes nothing along."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.task: Task | None = None
        self.began = 0.0
        self.pipe, far = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(far, os.getpid()), name="bench-trial")
        self.process.start()
        far.close()

    def give(self, task: Task) -> None:
        """Start a trial."""
        self.task = replace(task, device=self.device)
        self.began = time.monotonic()
        self.pipe.send(self.task)

    def messages(self) -> Iterator[Any]:
        """Yield what the worker sent, an ``EOFError`` instance last where it is gone."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError) as error:
            yield EOFError(str(error))

    def close(self, *, kill: bool = False) -> None:
        """End the process."""
        if not kill:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _out_of_memory_kills() -> int:
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def run_pool(session: Session, devices: Sequence[str], jobs: int) -> None:
    """Run the session's trials in worker processes, ``jobs`` at once, each where ``session.room`` has a place for it.

    Without a room of its own the session shares ``jobs`` out evenly among ``devices``. A worker is started when it is
    needed and kept for further trials of its device; one that died, or whose trial failed, is replaced. A second Ctrl-C
    kills all of them; every trial then goes on from its last checkpoint at the next run.
    """
    room = session.room
    if not room.slots:
        room.slots, room.total = dict.fromkeys(devices, -(-jobs // len(devices))), jobs
    workers: list[_Worker] = []
    kills = _out_of_memory_kills()

    def tell() -> None:
        for worker in list(
            workers
        ):  # a copy: this is called from signal handlers and from the timer's thread
            with contextlib.suppress(OSError, AttributeError, ValueError):
                worker.process.terminate()  # SIGTERM: the worker stops at a checkpoint

    session.stop.hooks.append(tell)

    def drop(worker: _Worker, *, kill: bool) -> None:
        workers.remove(worker)
        worker.close(kill=kill)

    def worker_for(device: str) -> _Worker | None:
        """Return an idle worker of ``device`` or a new one; None where no further process can be started."""
        for worker in workers:
            if worker.task is None and worker.device == device:
                return worker
        try:
            worker = _Worker(device)
        except OSError as error:  # no memory, too many processes: go on with those there are
            if not workers:
                raise InputError(f"no worker process can be started: {error.strerror}") from error
            return None
        workers.append(worker)
        return worker

    try:
        while True:
            waits = False
            while (
                task := session.take()
            ) is not None:  # strictly in turn: a large trial is not passed by for ever
                device = room.device_for(task.id)
                worker = worker_for(device) if device is not None else None
                if worker is None:
                    waits = True
                    break
                try:
                    worker.give(task)
                except OSError:  # died while idle: nobody's trial
                    drop(worker, kill=True)
                    continue
                session.started(task.id, worker.device)
                if session.stop.is_set():
                    tell()
            if waits:  # what an idle process keeps of a GPU's memory is not there for the trial that waits
                for worker in [w for w in workers if w.task is None and w.device.startswith("cuda")]:
                    drop(worker, kill=False)
            busy = [worker for worker in workers if worker.task is not None]
            if not busy:
                if session.waiting():
                    time.sleep(0.5)
                    session.tick()
                    continue
                break
            connection.wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                for message in worker.messages():
                    if isinstance(message, tuple):
                        session.epoch(*message)
                    elif isinstance(message, Outcome):
                        worker.task = None
                        session.finished(message)
                        if message.status in ("failed", "refused", "stopped"):
                            drop(worker, kill=False)  # its memory, its device's state: better a new one
                            break
                    else:
                        assert worker.task is not None
                        id, worker.task = worker.task.id, None
                        worker.process.join(5)
                        code, seconds = worker.process.exitcode, time.monotonic() - worker.began
                        drop(worker, kill=True)
                        if code == -signal.SIGTERM and session.stop.is_set():  # asked before it could listen
                            session.finished(Outcome(id, "stopped"))
                        else:
                            session.died(id, _death(code, kills), seconds)
                            kills = _out_of_memory_kills()
                        break
            session.tick()
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
    finally:
        session.stop.hooks.remove(tell)
        alive = session.stop.is_set() and any(worker.task is not None for worker in workers)
        for worker in list(workers):
            worker.close(kill=alive)


def _death(code: int | None, kills: int) -> str:
    if code is not None and code < 0:
        memory = (
            ", the system was out of memory"
            if code == -signal.SIGKILL and _out_of_memory_kills() > kills
            else ""
        )
        return f"worker died (signal {-code}{memory})"
    return f"worker died (exit status {code})"
