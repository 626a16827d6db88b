"""Trials in processes of this machine: a process runs trials in turn, and dies without the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.launch.execute import Outcome, Task, execute
from bench.launch.session import Session
from bench.machine.processes import Child, wait

EXIT_PATIENCE = 120.0  # seconds; for a process that has closed its pipe and hangs: a busy machine needs less


class TrialProcess(Child):
    """A process that runs trials on one device, one after another."""

    def __init__(self, device: str) -> None:
        super().__init__(_run_trials, name="bench-trial")
        self.device = device
        self.task: Task | None = None
        self.began = 0.0

    def start_trial(self, task: Task) -> None:
        """Start a trial; raises ``OSError`` where the process is gone."""
        self.task = replace(task, device=self.device)
        self.began = time.monotonic()
        self.send(self.task)


class Pool:
    """Runs a session's trials in processes, ``jobs`` at once, each in a slot of ``session.slots``.

    A session without slots of its own gets ``jobs`` slots, shared out evenly among ``devices``. A process is
    started when it is needed and kept for further trials of its device; a process that died, or whose trial
    failed, is replaced.
    """

    def __init__(self, session: Session, devices: Sequence[str], jobs: int) -> None:
        self.session = session
        if not session.slots.per_device:
            session.slots.per_device = dict.fromkeys(devices, -(-jobs // len(devices)))
            session.slots.total = jobs
        self.processes: list[TrialProcess] = []
        self._memory_kills = _out_of_memory_kills()

    def run(self) -> None:
        """Run the trials until none can start or a stop was asked for; a second Ctrl-C kills them."""
        session = self.session
        session.stop.hooks.append(self._ask_to_stop)
        try:
            while True:
                self.dispatch()
                if any(process.task is not None for process in self.processes):
                    self.collect()
                elif session.waiting():
                    time.sleep(0.5)
                else:
                    break
                session.tick()
        except KeyboardInterrupt:
            for process in self.processes:
                process.process.kill()
        finally:
            session.stop.hooks.remove(self._ask_to_stop)
            unfinished = any(process.task is not None for process in self.processes)
            for process in list(self.processes):
                self._end_process(process, kill=session.stop.is_set() and unfinished)

    def dispatch(self) -> None:
        """Start the trials that can start, strictly in turn: small ones never pass a large one by."""
        while (task := self.session.next_task()) is not None:
            device = self.session.slots.device_for(task.id)
            process = self._idle_process(device) if device is not None else None
            if process is None:  # idle processes keep memory of a GPU that the waiting trial may need
                for idle in [p for p in self.processes if p.task is None and p.device.startswith("cuda")]:
                    self._end_process(idle)
                return
            try:
                process.start_trial(task)
            except OSError:  # the process died while it was idle: no trial is affected
                self._end_process(process, kill=True)
                continue
            self.session.started(task.id, process.device)
            if self.session.stop.is_set():
                self._ask_to_stop()

    def collect(self) -> None:
        """Wait a moment for news of the running trials and pass the news on to the session."""
        busy = [process for process in self.processes if process.task is not None]
        wait(busy, timeout=0.5)
        for process in busy:
            try:
                for message in process.received():
                    if not isinstance(message, Outcome):
                        self.session.epoch(*message)
                        continue
                    process.task = None
                    self.session.finished(message)
                    if message.status in ("failed", "refused", "stopped"):
                        self._end_process(process)  # the state of its memory and device is doubtful
                        break
            except EOFError:
                self.reap(process)

    def reap(self, process: TrialProcess) -> None:
        """Record what became of the trial of a process that is gone."""
        assert process.task is not None
        id, seconds = process.task.id, time.monotonic() - process.began
        process.task = None
        code = process.exit_code(EXIT_PATIENCE)
        self._end_process(process, kill=True)
        if code == -signal.SIGTERM and self.session.stop.is_set():  # asked to stop before it could listen
            self.session.finished(Outcome(id, "stopped"))
        else:
            self.session.died(id, self._cause_of_death(code), seconds)

    def _idle_process(self, device: str) -> TrialProcess | None:
        """Return an idle or a new process of ``device``, None without; ``InputError`` for not even one."""
        for process in self.processes:
            if process.task is None and process.device == device:
                return process
        try:
            process = TrialProcess(device)
        except InputError:
            if not self.processes:
                raise
            return None
        self.processes.append(process)
        return process

    def _ask_to_stop(self) -> None:
        """Ask every process to stop at a checkpoint. Signal handlers and the timer's thread call this."""
        for process in list(self.processes):
            process.ask_to_stop()

    def _end_process(self, process: TrialProcess, *, kill: bool = False) -> None:
        self.processes.remove(process)
        if not kill:
            with contextlib.suppress(OSError):
                process.send(None)
        process.end(patience=0.0 if kill else 5.0)

    def _cause_of_death(self, code: int | None) -> str:
        """Return why a process with this exit status ended."""
        before, self._memory_kills = self._memory_kills, _out_of_memory_kills()
        if code is None or code >= 0:
            return f"its process died (exit status {code})"
        of_memory = code == -signal.SIGKILL and self._memory_kills > before
        return f"its process died (signal {-code}{', the system was out of memory' if of_memory else ''})"


def _run_trials(pipe: connection.Connection) -> None:
    """Run the trials that arrive through the pipe until None arrives: what a trial process does."""
    asked: list[int] = []  # no Event: a second signal in the middle of its set() would wait for itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher decides
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    launcher = multiprocessing.parent_process()

    def stop() -> bool:
        if launcher is not None and os.getppid() != launcher.pid:
            os._exit(1)  # the launcher is gone; the last checkpoint stands
        return bool(asked)

    def send_epoch(line: dict[str, Any]) -> None:
        pipe.send((task.id, line))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (task := pipe.recv()) is not None:
            pipe.send(execute(task, stop=stop, on_epoch=send_epoch, isolated=True))
            if "torch" in sys.modules and task.device.startswith("cuda"):
                sys.modules["torch"].cuda.empty_cache()


def _out_of_memory_kills() -> int:
    """Return the processes that the kernel has killed for lack of memory, 0 where it does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
