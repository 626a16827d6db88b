"""What an experiment will cost, from a short calibration of its steps, and what its networks are made of.

``bench show --cost`` measures a few real training steps and evaluations of every kind of trial (a configuration without
its seed and budget), and how much trials slow each other down at once, and adds that up over the steps of the trials.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import datasets, folders
from bench.cli.show import table
from bench.costs.predict import Calibration, Kept, makespan, measured_mode, steps_per_epoch, trial_seconds
from bench.devices import cpu_count
from bench.experiments import catalog
from bench.experiments.config import TrialConfig, short_bits
from bench.experiments.labels import label
from bench.experiments.trials import Experiment
from bench.foreign import Grant, adopt, current
from bench.layers.diagnostics import layer_diagnostics
from bench.networks import Network, build, describe_layers
from bench.processes import Child
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training import execution, setup
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run
from bench.training.start import beginning

REPEATS = 5
BUSY = 1.15  # seconds of the clock for one of the processor, above which others are using it, too


# --- a run to measure --------------------------------------------------------------------------------------------------


def synthetic(count: int = 512, size: int = 32) -> datasets.Arrays:
    """Return ``count`` training and test images of random uint8 pixels, 10 classes."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    return datasets.Arrays(pixels, labels, pixels, labels, 10)


def make_run(config: TrialConfig, arrays: datasets.Loaded, device: str, mode: str = "eager") -> Run:
    """Return a ``Run`` of ``config`` at its first step, teachers untrained: for measuring, not for results."""
    execution.apply({**execution.decide(config, 0, device), "mode": mode})
    clock = Clock(config.seed, device)
    data = setup.make_batches(config, arrays, clock)
    weights = setup.untrained_weights(config, data.num_classes, clock)
    return setup.make_run(config, data, clock, weights=weights, mode=mode)


def on_and_off(run: Run) -> tuple[int | None, int | None]:
    """Return a step of ``run`` at which its factor is above 0 and one at which it is 0, None where there is none."""
    on = off = None
    for step in (run.total_steps - 1, 0):
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


# --- measuring --------------------------------------------------------------------------------------------------------


def _now(device: str) -> float:
    """Return the processor's seconds of this process on the CPU, else those of the clock, the device's work done."""
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _seconds(action: Callable[[], object], device: str, repeats: int = REPEATS) -> tuple[float, float]:
    """Return (the median seconds of ``action``, those of a first time, which does not count)."""
    marks = [_now(device)]
    for _ in range(repeats + 1):
        action()
        marks.append(_now(device))
    first, *taken = (end - begin for begin, end in itertools.pairwise(marks))
    return statistics.median(taken), first


def calibrate(
    config: TrialConfig, load: Callable[[], datasets.Loaded], device: str, mode: str = "eager"
) -> Calibration:
    """Measure ``config`` on ``device``: what comes before the first step, a few steps and evaluations, and the memory.

    ``load`` returns the data, as a trial loads it. On a GPU this process should do nothing else there.
    """
    cuda = device.startswith("cuda")
    if cuda:
        torch.zeros(1, device=device)  # the context is not this trial's
        free = torch.cuda.mem_get_info(device)[0]
    execution.reset_peak_memory(device)
    begin = _now(device)
    run = make_run(config, load(), device, mode)
    setup = _now(device) - begin
    on, off = on_and_off(run)
    steps: dict[bool, float] = {}
    epochs: dict[bool, float] = {}
    data, classes = run.data, run.data.num_classes
    images = next(iter(data.test_batches(EVALUATION_BATCH)))
    count = len(images[1])

    def evaluation(factor: float) -> float:
        run.clock.set_factor(factor)
        return _seconds(lambda: evaluate(run.network, [images], classes), device, 3)[0] / count  # an image

    for step in (on, off):  # in the order of training: a branch is there first, then gone
        if step is None:
            continue
        factor = run.strategy.factor(step)
        steps[factor > 0], first = _seconds(step_at(run, step), device)
        setup += max(0.0, first - steps[factor > 0])
        deployed = evaluation(0.0)
        tested = data.test_count if config.evaluate_test else 0
        epochs[factor > 0] = tested * (deployed + (evaluation(factor) if factor > 0 else 0.0))
        epochs[factor > 0] += (config.holdout + config.eval_bn * config.batch_size) * deployed
        epochs[factor > 0] += _seconds(lambda: layer_diagnostics(run.network, images[0]), device, 1)[0]
    peak = torch.cuda.max_memory_reserved(device) if cuda else execution.peak_memory(device)
    context = 0
    if cuda:  # what libraries took beside the allocator, and the context itself
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
    """Return how much of a GPU's free memory goes when another process does nothing but open it."""
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
    """Measures kinds of trials on one device once, keeps what was measured while the machine was quiet."""

    def __init__(self, device: str, data_dir: Path) -> None:
        self.device, self.data_dir, self.kept = device, data_dir, Kept(device)
        self.busy = 1.0  # seconds of the clock for one of work, the worst seen while measuring

    def of(self, config: TrialConfig, total_steps: int) -> Calibration:
        """Return what trials like ``config`` cost."""
        mode = measured_mode(config, total_steps, self.device)
        known = self.kept.find(config, mode)
        if known is not None:
            return known
        found, quiet = self._watched(
            lambda: calibrate(config, lambda: datasets.load(config.dataset, self.data_dir), self.device, mode)
        )
        gc.collect()
        if quiet:
            self.kept.remember(config, mode, found)
        return found

    def number(self, name: str, measure: Callable[[], float]) -> float:
        """Return the number kept under ``name``, else what ``measure`` returns."""
        known = self.kept.number(name)
        if known is not None:
            return known
        found, quiet = self._watched(measure)
        if quiet:
            self.kept.keep(name, found)
        return found

    def _watched(self, measure: Callable[[], Any]) -> tuple[Any, bool]:
        """Return what ``measure`` returns, and whether the machine was quiet meanwhile."""
        begin, work = time.perf_counter(), _work()
        found = measure()
        if self.device.startswith("cuda"):
            busy = os.getloadavg()[0] / cpu_count() if hasattr(os, "getloadavg") else 0.0
        else:
            busy = (time.perf_counter() - begin) / max(_work() - work, 1e-9)
        self.busy = max(self.busy, busy)
        return found, busy <= BUSY


def _work() -> float:
    """Return the processor's seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def start_seconds() -> float:
    """Return what it takes to start a process that can train: seconds of a core."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", "import bench.training.trial"], check=True, cwd=Path(__file__).parents[2]
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


# --- several at once ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtOnce:
    """Seconds of the clock and of the processor for a step of one process alone, and of each of several at once."""

    alone: tuple[float, ...]
    alone_work: tuple[float, ...]
    together: tuple[tuple[float, ...], ...]  # a round, each process
    together_work: tuple[tuple[float, ...], ...]
    memory: tuple[int, ...]  # peak bytes of each

    def slowdown(self, device: str) -> float:
        """Return how much longer a step takes beside the others, in ``Calibration``'s kind of seconds; at least 1."""
        alone, together = (
            (self.alone, self.together)
            if device.startswith("cuda")
            else (self.alone_work, self.together_work)
        )
        return max(1.0, statistics.median(map(statistics.mean, together)) / statistics.median(alone))


def at_once(
    configs: Sequence[TrialConfig],
    count: int,
    device: str,
    mode: str = "eager",
    rounds: int = 3,
    seconds: float = 0.5,
) -> list[AtOnce]:
    """Train ``count`` processes on ``device``, each with a run of every config, on synthetic images; return a result a config.

    Each round measures every config in turn, first in one process alone, then in all at the same time. Raises
    ``EOFError`` where one of them dies.
    """
    children: list[Child] = []
    try:
        for _ in range(count):
            children.append(Child(_take_part, list(configs), device, mode, current(), name="bench-measure"))
        for child in children:
            child.receive()  # ready

        def measured(number: int, who: Sequence[Child]) -> list[tuple[float, float]]:
            for child in who:
                child.send((number, seconds))
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


def _take_part(
    pipe: Connection, configs: Sequence[TrialConfig], device: str, mode: str, grant: Grant
) -> None:
    """Do what ``at_once`` says: steps of a config for some seconds, as often as it asks."""
    adopt(grant)
    arrays = synthetic(4 * max(config.batch_size for config in configs))
    runs = [make_run(config, arrays, device, mode) for config in configs]
    for run in runs:
        for _ in range(3):
            step_at(run, 0)()
    pipe.send(None)
    while (wanted := pipe.recv()) is not None:
        number, seconds = wanted
        action, steps = step_at(runs[number], 0), 0
        begin, work = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < seconds:
            action()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            steps += 1
        pipe.send(((time.perf_counter() - begin) / steps, (time.process_time() - work) / steps))
    pipe.send(
        torch.cuda.max_memory_reserved(device) if device.startswith("cuda") else execution.peak_memory(device)
    )


# --- what trials need of a GPU ------------------------------------------------------------------------------------------


def device_needs(
    configs: Mapping[str, dict[str, Any]], data_dir: str, devices: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (bytes that each trial takes of a GPU with its process, bytes that are free on each of ``devices``).

    Run this in a process of its own: what it takes itself is gone with it, and counted in by a context's worth.
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


# --- texts ------------------------------------------------------------------------------------------------------------


def _name(config: TrialConfig) -> str:
    return " ".join(
        [
            label("networks", config.network),
            f"{config.width:g}x",
            label("quantizers", config.quantizer),
            short_bits(config.bits),
            label("strategies", config.strategy),
        ]
    )


def cost_text(
    experiment: Experiment, data_dir: Path | str | None, shares: Mapping[str, float] | None = None
) -> str:
    """Return time and memory a trial and device-hours of the whole experiment; measures what is not kept yet.

    ``shares`` tell, by id, of trials that are expected to be stopped early: the share of their epochs that is trained.
    Raises ``InputError`` for absent data.
    """
    folder = folders.resolve_data_dir(data_dir)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    meter = Meter(device, folder)
    jobs = cpu_count() if device == "cpu" else 1
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    rows: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    bound = False
    for number, trial in enumerate(experiment.trials):
        config = trial.config
        name = json.dumps(config.dataset, sort_keys=True)
        if name not in counts:
            catalog.require(config.dataset, folder)
            known = catalog.facts(config.dataset, folder).train_count
            counts[name] = known or len(datasets.load(config.dataset, folder).y_train)
        steps = steps_per_epoch(config, counts[name])
        total = config.epochs * steps
        measured = meter.of(config, total)
        bound |= execution.decide(config, total, device)["mode"] != measured_mode(config, total, device)
        described = f"{_name(config)} {config.epochs} epochs"
        taken = trial_seconds(config, steps, measured) * (shares or {}).get(trial.id or "", 1.0)
        rows.setdefault(described, []).append(taken)
        memory[described] = measured.memory + measured.context
        seconds[trial.id or str(number)] = taken
    start = meter.number("start", start_seconds)
    slowdown = meter.number(f"slowdown of {jobs}", lambda: _slowdown(device, jobs)) if jobs > 1 else 1.0
    needs = {
        t.id: [needed for needed in t.needs.values() if needed] for t in experiment.trials if t.id is not None
    }
    elapsed = start + makespan({id: slowdown * taken for id, taken in seconds.items()}, needs, jobs)
    table = [("trials", "time each", "memory", "what")]
    for described, taken_by in sorted(rows.items(), key=lambda item: -sum(item[1])):
        each = sum(taken_by) / len(taken_by)
        table.append((str(len(taken_by)), _duration(each), f"{memory[described] / 2**20:.0f} MiB", described))
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:3], widths, strict=True)) + f"  {row[3]}"
        for row in table
    ]
    alone, unit = sum(seconds.values()), "core" if device == "cpu" else "GPU"
    most = "At most (steps measured eager, trials will be compiled) " if bound else ""
    lines.append(
        f"{most}{_duration(alone)} of one {unit} in all ({alone / 3600:.2f} device-hours), about {_duration(elapsed)} with "
        f"{jobs} at once"
        + (f", which slows each down by {slowdown:.2f}." if jobs > 1 else ".")
        + f" Measured on {meter.kept.where}."
    )
    if meter.busy > BUSY:
        lines.append(
            f"The machine was busy: {meter.busy:.1f} seconds of the clock for one of work. Not kept; a run meanwhile takes as "
            "much longer."
        )
    return "Cost, from a short calibration\n" + "\n".join(lines)


def _slowdown(device: str, jobs: int) -> float:
    """Return how much ``jobs`` trials at once slow each other down, measured with the SVHN network at 0.25x."""
    config = TrialConfig.model_validate(
        {
            "dataset": "digits",
            "network": "svhn_convnet",
            "width": 0.25,
            "quantizer": "dorefa",
            "bits": "1/1",
            "epochs": 2,
        }
    )
    try:
        return at_once([config], jobs, device)[0].slowdown(device)
    except EOFError:  # a process is gone: there is not the room for so many
        return 1.0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def layers_text(experiment: Experiment, data_dir: Path | str | None) -> str:
    """Return the layers of every different network of the experiment: shapes, costs, what stays full precision and why."""
    tables: dict[str, str] = {}
    for trial in experiment.trials:
        config = trial.config
        strategy = make_strategy(config, 1)
        classes = catalog.facts(config.dataset, folders.resolve_data_dir(data_dir)).num_classes or 10
        title = _name(config)
        if title not in tables:
            network = build(
                config,
                num_classes=classes,
                clock=Clock(),
                branch=strategy.branch,
                blend=strategy.blend,
                check_original=True,
            )
            tables[title] = "\n".join([beginning(config), _layer_table(network), *_decisions(network)])
    return "\n\n".join(f"{title}\n{table}" for title, table in tables.items())


def _decisions(network: Network) -> list[str]:
    """Return the table of what the transformation decided, with the reasons; nothing for the suite's own networks."""
    rows = [(d.name, d.kind, d.decision, d.reason) for d in getattr(network, "decisions", ())]
    return (
        ["Decisions of the transformation", *table(("name", "kind", "decision", "because"), rows)]
        if rows
        else []
    )


def _layer_table(network: Network) -> str:
    rows = [("layer", "type", "weight", "parameters", "MACs", "W/A", "branch", "full precision because")]
    for row in describe_layers(network):
        if row.type == "batch norm":
            continue
        shape = "x".join(map(str, row.shape))
        bits = f"{row.w_bits}/{row.a_bits}"
        branch = "yes" if row.branch else ""
        rows.append(
            (
                row.name,
                row.type,
                shape,
                f"{row.parameters:,}",
                f"{row.macs:,}",
                bits,
                branch,
                row.full_precision or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
