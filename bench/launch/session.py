"""The queue of one run: which trial may start, what became of each, and when to stop.

A session knows nothing of processes: the pool, Ray and ``torchrun`` take trials from it and tell it how they
ended.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.launch.execute import Outcome, Task, record_death
from bench.launch.gpu_sharing import DeviceSlots, crowded_out
from bench.launch.plan import startable
from bench.launch.progress import Progress
from bench.records.store import Store


class Stop:
    """Whether to stop at the next checkpoint: set by Ctrl-C, SIGTERM, ``--max-minutes`` or a full disk."""

    def __init__(self) -> None:
        self.reason = ""
        # How the placement tells its processes; called from signal handlers and from the timer's thread.
        self.hooks: list[Callable[[], None]] = []

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
        """Listen to Ctrl-C, SIGTERM and the clock; a second Ctrl-C raises ``KeyboardInterrupt``."""

        def on_signal(number: int, frame: Any) -> None:
            if self.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.set("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

        # Python hears signals in its main thread alone: a run in another thread is stopped by its caller.
        main = threading.current_thread() is threading.main_thread()
        heard = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, on_signal) for number in heard}
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


@dataclass
class Session:
    """The queue of one ``bench run``, and what became of each trial."""

    tasks: dict[str, Task]
    priorities: dict[str, float]  # by id; the highest starts first
    known: dict[str, str]  # id -> status of the trials that are not to be run: done, diverged, ...
    store: Store
    progress: Progress
    stop: Stop
    slots: DeviceSlots = field(default_factory=lambda: DeviceSlots({}))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)  # the notes of trials that were shown
    running: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)  # id -> who trains it elsewhere
    reduction: int = 3  # the factor of ASHA's rungs
    feed: Callable[[], None] | None = None  # adds the trials that become known as others end
    _held_checked: float = 0.0
    _stopping_said: bool = False

    def add(self, task: Task, label: str, epochs: int, cost: float, priority: float) -> None:
        """Put a trial into the queue; a trial that has ended at a rung may come again, to go on from there.

        Args:
            task: The trial.
            label: The trial in messages.
            epochs: The number of epochs that the trial has at the end.
            cost: Seconds, or a relative cost.
            priority: The highest is trained first.
        """
        self.outcomes.pop(task.id, None)
        self.tasks[task.id] = task
        self.priorities[task.id] = priority
        self.progress.add(task.id, label, epochs, cost)

    def _status(self, id: str) -> str | None:
        """Return how a trial ended, or its status where it is not to run; None while it may run here."""
        outcome = self.outcomes.get(id)
        return outcome.status if outcome else self.known.get(id)

    def _queued(self) -> list[Task]:
        return [
            task
            for id, task in self.tasks.items()
            if not (id in self.outcomes or id in self.running or id in self.held)
        ]

    def ready(self) -> list[Task]:
        """Return the trials that can start now, longest first, those that want a whole device last."""
        if self.stop.is_set():
            return []
        self._check_held()
        while any(self._given_up(task) for task in self._queued()):
            pass  # a trial that was given up may have been needed by another
        needs = {task.id: task.needs.values() for task in self._queued()}
        order = startable(needs, lambda id: self._status(id) == "done", self.priorities, self.slots.alone)
        return [self.tasks[id] for id in order]

    def _given_up(self, task: Task) -> bool:
        """Give a trial up where one that it needs cannot be had any more; return whether it was given up."""
        for role, id in task.needs.items():
            status = self._status(id)
            if status in ("failed", "diverged", "refused"):
                reason = f"not trained: its {role} {id} "
                if status == "refused":  # nothing was tried, so nothing is recorded
                    self.finished(Outcome(task.id, "refused", f"{reason}was refused"))
                else:
                    self.finished(record_death(task, reason + status, 0.0))
                return True
        return False

    def next_task(self) -> Task | None:
        """Return the next trial to start, None where there is none now."""
        return next(iter(self.ready()), None)

    def waiting(self) -> bool:
        """Return whether queued trials wait for a trial that another runner trains."""
        return not self.stop.is_set() and bool(self.held) and bool(self._queued())

    def started(self, id: str, device: str = "") -> None:
        """Note that a trial begins, on ``device`` where the placement knows the device."""
        self.running.add(id)
        self.slots.begin(id, device)
        self.progress.started(id)

    def epoch(self, id: str, line: Mapping[str, Any]) -> None:
        """Show the epoch that a running trial recorded, or its ``note``, each different note once."""
        if "note" not in line:
            self.progress.epoch(id, line)
        elif line["note"] not in self.said:
            self.said.add(line["note"])
            self.progress.note(f"{self.progress.labels.get(id, id)}: {line['note']}")

    def finished(self, outcome: Outcome) -> None:
        """Note how a trial ended."""
        self.running.discard(outcome.id)
        accompanied = self.slots.end(outcome.id)
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
        if self.feed is not None and not self.stop.is_set():
            self.feed()

    def _again_alone(self, outcome: Outcome) -> None:
        """Queue a trial that failed for lack of memory once more, with a device to itself."""
        self.slots.alone.add(outcome.id)
        self.tasks[outcome.id] = replace(self.tasks[outcome.id], retry=True, trials_per_device=1)
        self.progress.paused(outcome.id)
        label = self.progress.labels.get(outcome.id, outcome.id)
        self.progress.note(f"{label}: {outcome.reason}, beside other trials; tried again alone")

    def died(self, id: str, reason: str, seconds: float = 0.0) -> None:
        """Record that the process that ran a trial is gone."""
        self.finished(record_death(self.tasks[id], reason, seconds))

    def _check_held(self) -> None:
        """Find out what other runners made of the trials that they hold."""
        if not self.held or time.monotonic() - self._held_checked < 1.0:
            return
        self._held_checked = time.monotonic()
        for id in list(self.held):
            state = self.store.inspect(id)
            if state.status in ("done", "diverged", "failed"):
                self.finished(Outcome(id, state.status, state.reason, state.accuracy, trained=False))
            elif state.status != "running":
                del self.held[id]  # the other runner gave the trial up: back into the queue

    def tick(self) -> None:
        """Update the progress shown; say once that the run is being stopped."""
        if self.stop.is_set() and not self._stopping_said:
            self._stopping_said = True
            more = "; Ctrl-C once more stops at once" if self.running else ""
            self.progress.note(f"stopping at a checkpoint ({self.stop.reason}){more}")
        self.progress.tick()

    def close(self) -> None:
        """Give every trial without an outcome one."""
        for id in self.tasks:
            if id not in self.outcomes:
                held = self.held.get(id)
                status, reason = ("busy", held) if held else ("stopped", self.stop.reason)
                self.outcomes[id] = Outcome(id, status, reason)


def exit_status(outcomes: Iterable[Outcome]) -> int:
    """Return 2 where input was wrong, 3 where something is left to do, 1 where a trial failed, else 0."""
    outcomes = list(outcomes)
    statuses = {o.status for o in outcomes}
    if any(o.status == "refused" and not o.no_space for o in outcomes):
        return 2
    if any(o.no_space for o in outcomes):
        return 1
    return 3 if statuses & {"stopped", "busy"} else 1 if "failed" in statuses else 0
