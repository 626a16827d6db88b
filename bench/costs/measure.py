"""Measures the cost of a kind of trial: the time of a few training steps and evaluations, and their memory.

A kind of trial is a configuration without seed and budget. ``bench.training.setup`` builds the measured run,
as it builds that of a trial, so the measured steps are those of a trial.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import datasets
from bench.costs.predict import Calibration, KeptCosts, cost_kind, measured_mode, steps_per_epoch
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.layers.diagnostics import layer_diagnostics
from bench.machine.devices import cpu_count
from bench.randomness import Clock
from bench.training import execution, setup
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run

REPEATS = 5
BUSY = 1.15  # clock seconds over processor seconds; above this ratio other processes use the processor, too


# --- a run to measure ---------------------------------------------------------------------------------------


def synthetic(count: int = 512, size: int = 32) -> datasets.Arrays:
    """Return ``count`` training and test images of random uint8 pixels, 10 classes."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    return datasets.Arrays(pixels, labels, pixels, labels, 10)


def make_run(config: TrialConfig, arrays: datasets.Loaded, device: str, mode: str = "eager") -> Run:
    """Return a ``Run`` of ``config`` at its first step, with untrained teachers, to measure costs."""
    execution.apply({**execution.decide(config, 0, device), "mode": mode})
    clock = Clock(config.seed, device)
    data = setup.make_batches(config, arrays, clock)
    weights = setup.untrained_weights(config, data.num_classes, clock)
    return setup.make_run(config, data, clock, weights=weights, mode=mode)


def on_and_off(run: Run) -> tuple[int | None, int | None]:
    """Return a step of ``run`` with a factor above 0 and one with the factor 0; None where there is none."""
    on = off = None
    for step in (0, run.total_steps - 1):  # the last one counts: FitNets' first stage is cheaper
        if run.strategy.factor(step) > 0:
            on = step
        else:
            off = step
    return on, off


def step_at(run: Run, step: int) -> Callable[[], None]:
    """Return an action that does the training step ``step`` of ``run``."""

    def action() -> None:
        run.step = step
        run.train_step()

    return action


# --- measuring ----------------------------------------------------------------------------------------------


def _seconds_now(device: str) -> float:
    """Return the processor seconds of this process; on a GPU the clock's seconds, once its work is done."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(action: Callable[[], object], device: str, repeats: int = REPEATS) -> tuple[float, float]:
    """Return (median seconds of ``action``, seconds of its first call, which the median leaves out)."""
    marks = [_seconds_now(device)]
    for _ in range(repeats + 1):
        action()
        marks.append(_seconds_now(device))
    first, *taken = (end - begin for begin, end in itertools.pairwise(marks))
    return statistics.median(taken), first


def calibrate(
    config: TrialConfig, load: Callable[[], datasets.Loaded], device: str, mode: str = "eager"
) -> Calibration:
    """Measure ``config`` on ``device``: the preparation, a few steps and evaluations, and the memory.

    ``load`` returns the data, as a trial loads it. On a GPU this process should do nothing else.
    """
    cuda = device.startswith("cuda")
    if cuda:
        torch.zeros(1, device=device)  # opens the context, whose memory is not the trial's
        free = torch.cuda.mem_get_info(device)[0]
    execution.reset_peak_memory(device)
    begin = _seconds_now(device)
    run = make_run(config, load(), device, mode)
    setup = _seconds_now(device) - begin
    on, off = on_and_off(run)
    steps: dict[bool, float] = {}
    epochs: dict[bool, float] = {}
    data, classes = run.data, run.data.num_classes
    images = next(iter(data.test_batches(EVALUATION_BATCH)))
    count = len(images[1])

    def evaluation(factor: float) -> float:
        run.clock.set_factor(factor)
        return _timed(lambda: evaluate(run.network, [images], classes), device, 3)[0] / count  # an image

    for step in (on, off):  # in the order of training: first with the branch, then without
        if step is None:
            continue
        factor = run.strategy.factor(step)
        steps[factor > 0], first = _timed(step_at(run, step), device)
        setup += max(0.0, first - steps[factor > 0])
        deployed = evaluation(0.0)
        tested = data.test_count if config.evaluate_test else 0
        epochs[factor > 0] = tested * (deployed + (evaluation(factor) if factor > 0 else 0.0))
        epochs[factor > 0] += (config.holdout + config.eval_bn * config.batch_size) * deployed
        epochs[factor > 0] += _timed(lambda: layer_diagnostics(run.network, images[0]), device, 1)[0]
    peak = torch.cuda.max_memory_reserved(device) if cuda else execution.peak_memory(device)
    context = 0
    if cuda:  # memory that libraries took beside the allocator, and that of the context
        grown = free - torch.cuda.mem_get_info(device)[0] - torch.cuda.memory_reserved(device)
        context = max(0, grown) + _context_bytes(device)
    some_step, some_epoch = next(iter(steps.values())), next(iter(epochs.values()))
    return Calibration(
        setup=setup,
        step_on=steps.get(True, some_step),
        step_off=steps.get(False, some_step),
        epoch_on=epochs.get(True, some_epoch),
        epoch_off=epochs.get(False, some_epoch),
        memory=peak,
        context=context,
    )


_CONTEXT = "import sys, torch; torch.zeros(1, device=sys.argv[1]); print(flush=True); sys.stdin.read()"


def _context_bytes(device: str) -> int:
    """Return the bytes of GPU memory that another process takes by opening a context, and nothing else."""
    before = torch.cuda.mem_get_info(device)[0]
    with subprocess.Popen(
        [sys.executable, "-c", _CONTEXT, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        after = torch.cuda.mem_get_info(device)[0]
        process.stdin.close()
    return max(0, before - after)


class Meter:
    """Measures each kind of trial once on one device; keeps the measurements taken on a quiet machine."""

    def __init__(self, device: str, data_dir: Path) -> None:
        self.device, self.data_dir, self.kept = device, data_dir, KeptCosts(device)
        self.busy = 1.0  # clock seconds over processor seconds: the largest ratio seen while measuring
        self._measured: dict[str, Calibration] = {}  # by this object, by kind: on a busy machine, too

    def of(self, config: TrialConfig, total_steps: int) -> Calibration:
        """Return the cost of trials like ``config``."""
        mode = measured_mode(config, total_steps, self.device)
        kind = json.dumps([cost_kind(config), mode], sort_keys=True)
        known = self.kept.find(config, mode) or self._measured.get(kind)
        if known is not None:
            return known
        found, quiet = self._measure_watched(
            lambda: calibrate(config, lambda: datasets.load(config.dataset, self.data_dir), self.device, mode)
        )
        gc.collect()
        self._measured[kind] = found
        if quiet:
            self.kept.remember(config, mode, found)
        return found

    def number(self, name: str, measure: Callable[[], float]) -> float:
        """Return the number kept under ``name``; where there is none, the result of ``measure``."""
        known = self.kept.number(name)
        if known is not None:
            return known
        found, quiet = self._measure_watched(measure)
        if quiet:
            self.kept.keep(name, found)
        return found

    def _measure_watched(self, measure: Callable[[], Any]) -> tuple[Any, bool]:
        """Return (the result of ``measure``, whether the machine was quiet meanwhile)."""
        begin, work = time.perf_counter(), _processor_seconds()
        found = measure()
        if self.device.startswith("cuda"):
            busy = os.getloadavg()[0] / cpu_count() if hasattr(os, "getloadavg") else 0.0
        else:
            busy = (time.perf_counter() - begin) / max(_processor_seconds() - work, 1e-9)
        self.busy = max(self.busy, busy)
        return found, busy <= BUSY


def _processor_seconds() -> float:
    """Return the processor seconds of this process and of its finished children."""
    return sum(os.times()[:4])


def start_seconds() -> float:
    """Return the processor seconds of starting a process that can train."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", "import bench.training.trial"], check=True, cwd=Path(__file__).parents[2]
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


# --- what trials need of a GPU ------------------------------------------------------------------------------


def device_needs(
    configs: Mapping[str, dict[str, Any]], data_dir: str, devices: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (bytes of GPU memory that each trial needs, its process included; free bytes of each device).

    Call this function in a process of its own, which then frees all its memory. Each trial's bytes include
    those of a context.
    """
    torch.zeros(1, device=devices[0])
    free = {device: float(torch.cuda.mem_get_info(device)[0]) for device in devices}
    meter = Meter(devices[0], Path(data_dir))
    needs = {}
    for id, dumped in configs.items():
        config = TrialConfig.model_validate(dumped)
        count = catalog.facts(config.dataset, meter.data_dir).train_count or len(
            datasets.load(config.dataset, meter.data_dir).y_train
        )
        measured = meter.of(config, config.epochs * steps_per_epoch(config, count))
        needs[id] = float(measured.memory + measured.context)
        torch.cuda.empty_cache()
    return needs, free
