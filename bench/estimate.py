"""What an experiment will cost, from a short calibration of its steps, and what its networks are made of.

``bench show --cost`` measures a few real training steps and one evaluation of every kind of trial (a configuration
without its seed and budget) and adds them up over the trials' steps. Measurements are kept per device and torch release
in a file among the user's caches, so they are taken once.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import bench
from bench import datasets
from bench.config import TrialConfig, label, short_bits
from bench.datasets import catalog
from bench.datasets.folders import cache_folder
from bench.devices import cpu_count, threads_per_trial
from bench.experiment import Experiment
from bench.networks import Network, build, describe_layers, initialize
from bench.randomness import Clock
from bench.store import write_atomic
from bench.strategies import Strategy, make_strategy
from bench.training import execution
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run

REPEATS = 5
START_SECONDS = 4.0  # importing torch and loading data; the worker process serves several trials


@dataclass(frozen=True)
class Calibration:
    """Seconds of a training step with the branch on and off, of evaluating the test set once; peak bytes of the process."""

    step_on: float
    step_off: float
    evaluation: float
    memory: int


def _teacher_stand_in(config: TrialConfig, build_network: Callable[[TrialConfig], Network]) -> dict[str, Any]:
    """Return untrained weights for the teachers that ``config`` needs: they cost what trained ones do."""
    needed = {"A": (), "B": ("teacher",), "C": ("teacher", "start")}.get(config.strategy.get("scheme", "A"), ())
    return {role: build_network(TrialConfig.model_validate(config.strategy[role])).state_dict() for role in needed}


def make_run(config: TrialConfig, arrays: datasets.Arrays, device: str, mode: str = "eager") -> Run:
    """Return a ``Run`` of ``config`` at its first step, teachers untrained: for measuring, not for results."""
    execution.apply(execution.decide(config, 0, device))
    clock = Clock(config.seed, device)

    def make(config: TrialConfig, strategy: Strategy | None = None) -> Network:
        branch, blend = (strategy.branch, strategy.blend) if strategy else (None, None)
        network = build(config, num_classes=arrays.num_classes, clock=clock, branch=branch, blend=blend)
        initialize(network, config.seed, config.initialization)
        return network.to(device).to(memory_format=torch.channels_last)

    size = make(config).input_size
    data = datasets.DeviceData(arrays, config, size, device)
    strategy = make_strategy(config, data.steps_per_epoch)
    network = make(config, strategy)
    strategy.prepare(network, make, _teacher_stand_in(config, make))
    return Run(config, data, network, strategy, clock, mode=mode)


def _seconds(action: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Return the median seconds of ``action``, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        action()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def calibrate(config: TrialConfig, arrays: datasets.Arrays, device: str) -> Calibration:
    """Measure ``config`` on ``device``: a few steps with the factor on, a few with it off, and one evaluation."""
    execution.reset_peak_memory(device)
    run = make_run(config, arrays, device)
    on, off = run.total_steps, run.total_steps
    for step in (0, run.total_steps - 1):
        if run.strategy.factor(step) > 0:
            on = step
        else:
            off = step

    def train_at(step: int) -> Callable[[], object]:
        def action() -> None:
            run.step = step
            run.train_step()

        return action

    # in the order of training: a branch is there first, then gone
    step_on = _seconds(train_at(on), device) if on < run.total_steps else None
    step_off = _seconds(train_at(off), device) if off < run.total_steps else 0.0
    step_on = step_off if step_on is None else step_on
    run.clock.set_factor(0.0)
    classes = run.data.num_classes
    images = next(iter(run.data.test_batches(EVALUATION_BATCH)))
    batches = -(-run.data.test_count // EVALUATION_BATCH)
    evaluation = batches * _seconds(lambda: evaluate(run.network, [images], classes), device, 3)
    return Calibration(step_on, step_off, evaluation, execution.peak_memory(device))


def _kind(config: TrialConfig) -> dict[str, Any]:
    """Return what of a configuration decides the cost of a step: everything but seed, budget and learning rate."""
    return config.model_copy(update={"seed": 0}).model_dump(
        mode="json", exclude={"epochs", "learning_rate", "initialization", "eval_bn"}
    )


class _Kept:
    """Calibrations kept in a file, by device, release and kind of trial."""

    def __init__(self, device: str) -> None:
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else execution.cpu_name()
        self.where = f"{name} | torch {torch.__version__} | bench {bench.__version__}"
        self.path = cache_folder() / "calibration.json"
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.kept: dict[str, Any] = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            self.kept = {}

    def get(self, config: TrialConfig, measure: Callable[[], Calibration]) -> Calibration:
        key = hashlib.sha256(json.dumps([self.where, _kind(config)], sort_keys=True).encode()).hexdigest()[:16]
        try:
            return Calibration(**self.kept[key])
        except (KeyError, TypeError):
            found = measure()
        self.kept[key] = asdict(found)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(self.kept, indent=0).encode())
        except OSError:
            pass  # measured again next time
        return found


def trial_seconds(config: TrialConfig, steps_per_epoch: int, measured: Calibration) -> float:
    """Return the seconds a trial will take: its steps with the branch on and off, and an evaluation or two an epoch."""
    strategy = make_strategy(config, steps_per_epoch)
    total = config.epochs * steps_per_epoch
    on = sum(1 for step in range(total) if strategy.factor(step) > 0.0)
    evaluations = config.epochs + on / steps_per_epoch
    return START_SECONDS + on * measured.step_on + (total - on) * measured.step_off + evaluations * measured.evaluation


def cost_text(experiment: Experiment, data_dir: Path | str | None) -> str:
    """Return time and memory a trial and device-hours of the whole experiment; measures what is not kept yet.

    Raises ``InputError`` for absent data.
    """
    folder = catalog.resolve_data_dir(data_dir)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    kept = _Kept(device)
    loaded: dict[str, datasets.Arrays] = {}
    rows: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    for trial in experiment.trials:
        config = trial.config
        name = json.dumps(config.dataset, sort_keys=True)
        if name not in loaded:
            loaded[name] = datasets.load(config.dataset, folder)
        arrays = loaded[name]
        steps = catalog.split(
            len(arrays.y_train),
            batch_size=config.batch_size,
            train_size=config.train_size,
            holdout=config.holdout,
            name=catalog.label(config.dataset),
        )
        measured = kept.get(config, lambda config=config, arrays=arrays: calibrate(config, arrays, device))  # type: ignore[misc]
        described = " ".join(
            [
                label("networks", config.network),
                f"{config.width:g}x",
                label("quantizers", config.quantizer),
                short_bits(config.bits),
                label("strategies", config.strategy),
                f"{config.epochs} epochs",
            ]
        )
        rows.setdefault(described, []).append(trial_seconds(config, steps // config.batch_size, measured))
        memory[described] = measured.memory
    total = sum(sum(seconds) for seconds in rows.values())
    jobs = cpu_count() // threads_per_trial(device) if device == "cpu" else 1
    table = [("trials", "time each", "memory", "what")]
    for described, seconds in sorted(rows.items(), key=lambda item: -sum(item[1])):
        each = sum(seconds) / len(seconds)
        table.append((str(len(seconds)), _duration(each), f"{memory[described] / 2**20:.0f} MiB", described))
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:3], widths, strict=True)) + f"  {row[3]}"
        for row in table
    ]
    lines.append(
        f"In all {_duration(total)} of one {'core' if device == 'cpu' else 'GPU'} ({total / 3600:.2f} device-hours), "
        f"about {_duration(total / jobs)} with {jobs} at once. Measured on {kept.where}."
    )
    return "Cost, from a short calibration\n" + "\n".join(lines)


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
        classes = catalog.facts(config.dataset, catalog.resolve_data_dir(data_dir)).num_classes or 10
        network = build(config, num_classes=classes, clock=Clock(), branch=strategy.branch, blend=strategy.blend)
        title = " ".join(
            [
                label("networks", config.network),
                f"{config.width:g}x",
                label("quantizers", config.quantizer),
                short_bits(config.bits),
                label("strategies", config.strategy),
            ]
        )
        if title not in tables:
            tables[title] = _layer_table(network)
    return "\n\n".join(f"{title}\n{table}" for title, table in tables.items())


def _layer_table(network: Network) -> str:
    rows = [("layer", "type", "weight", "parameters", "MACs", "W/A", "branch", "full precision because")]
    for row in describe_layers(network):
        if row.type == "batch norm":
            continue
        shape = "x".join(map(str, row.shape))
        bits = f"{row.w_bits}/{row.a_bits}"
        branch = "yes" if row.branch else ""
        rows.append(
            (row.name, row.type, shape, f"{row.parameters:,}", f"{row.macs:,}", bits, branch, row.full_precision or "")
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
