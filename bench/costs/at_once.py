"""Measures how much trials slow each other down when several share a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from bench.costs.measure import make_run, step_at, synthetic
from bench.experiments.config import TrialConfig
from bench.machine.foreign import Grant, adopt, current
from bench.machine.processes import Child
from bench.training import execution

SECONDS = 0.5  # of one measurement, by the clock


@dataclass(frozen=True)
class AtOnce:
    """Seconds of a step, by clock and by processor: of one process alone, and of several at once."""

    alone: tuple[float, ...]
    alone_work: tuple[float, ...]
    together: tuple[tuple[float, ...], ...]  # a round, each process
    together_work: tuple[tuple[float, ...], ...]
    memory: tuple[int, ...]  # peak bytes of each

    def slowdown(self, device: str) -> float:
        """Return how many times longer a step takes beside other processes, at least 1.

        The seconds are those of ``Calibration``: of the processor on a CPU, of the clock on a GPU.
        """
        alone, together = (
            (self.alone, self.together)
            if device.startswith("cuda")
            else (self.alone_work, self.together_work)
        )
        return max(1.0, statistics.median(map(statistics.mean, together)) / statistics.median(alone))


def at_once(
    configs: Sequence[TrialConfig], count: int, device: str, mode: str = "eager", rounds: int = 3
) -> list[AtOnce]:
    """Return, for each config, the seconds of a step in one process alone and in ``count`` processes at once.

    Each process holds a run of every config, on synthetic images. A round measures the configs in turn, each
    of them first in one process alone, then in all processes at the same time.

    Args:
        configs: The trials whose steps are measured.
        count: The number of processes.
        device: "cpu" or "cuda:N", shared by all processes.
        mode: "eager", "compiled" or "captured".
        rounds: The number of measurements of each config.

    Raises:
        EOFError: A process died, perhaps because memory ran out.
    """
    children: list[Child] = []
    try:
        for _ in range(count):
            children.append(
                Child(_measure_asked, list(configs), device, mode, current(), name="bench-measure")
            )
        for child in children:
            child.receive()  # ready

        def measured(number: int, who: Sequence[Child]) -> list[tuple[float, float]]:
            for child in who:
                child.send(number)
            return [child.receive() for child in who]

        rows: list[tuple[list, list, list, list]] = [([], [], [], []) for _ in configs]
        for _ in range(rounds):
            for number, (alone, alone_work, together, together_work) in enumerate(rows):
                ((wall, work),) = measured(number, children[:1])
                alone.append(wall)
                alone_work.append(work)
                walls, works = zip(*measured(number, children), strict=True)
                together.append(walls)
                together_work.append(works)
        memory = []
        for child in children:
            child.send(None)
            memory.append(child.receive())
    finally:
        for child in children:
            child.end(patience=5.0)
    return [AtOnce(tuple(a), tuple(aw), tuple(t), tuple(tw), tuple(memory)) for a, aw, t, tw in rows]


def _measure_asked(
    pipe: Connection, configs: Sequence[TrialConfig], device: str, mode: str, grant: Grant
) -> None:
    """Run one of the processes of ``at_once``: train steps of the config asked for, for ``SECONDS``."""
    adopt(grant)
    arrays = synthetic(4 * max(config.batch_size for config in configs))
    runs = [make_run(config, arrays, device, mode) for config in configs]
    for run in runs:
        for _ in range(3):
            step_at(run, 0)()
    pipe.send(None)
    while (number := pipe.recv()) is not None:
        action, steps = step_at(runs[number], 0), 0
        begin, work = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < SECONDS:
            action()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            steps += 1
        pipe.send(((time.perf_counter() - begin) / steps, (time.process_time() - work) / steps))
    pipe.send(
        torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else execution.peak_memory(device)
    )
