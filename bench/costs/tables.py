"""The tables of ``bench show`` about an experiment's networks: the cost of training, and the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import datasets, text
from bench.costs.at_once import at_once
from bench.costs.measure import BUSY, Meter, start_seconds
from bench.costs.predict import makespan, measured_mode, steps_per_epoch, trial_seconds
from bench.experiments import catalog
from bench.experiments.config import TrialConfig, short_bits
from bench.experiments.labels import label
from bench.experiments.trials import Experiment
from bench.machine import folders
from bench.machine.devices import cpu_count
from bench.networks import Network, build, describe_layers
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training import execution
from bench.training.start import beginning


def _name(config: TrialConfig) -> str:
    parts = [
        label("networks", config.network),
        f"{config.width:g}x",
        label("quantizers", config.quantizer),
        short_bits(config.bits),
        label("strategies", config.strategy),
    ]
    return " ".join(parts)


@dataclass
class _Estimates:
    """Seconds by trial and by name, bytes by name; ``bound``: some of the seconds are an upper bound."""

    by_id: dict[str, float] = field(default_factory=dict)
    by_name: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    bound: bool = False


def _estimates(experiment: Experiment, meter: Meter, shares: Mapping[str, float]) -> _Estimates:
    """Return the costs of the trials of ``experiment``; kinds of trials without a kept cost are measured."""
    found, counts = _Estimates(), dict[str, int]()
    for number, trial in enumerate(experiment.trials):
        config = trial.config
        dataset = json.dumps(config.dataset, sort_keys=True)
        if dataset not in counts:
            catalog.require(config.dataset, meter.data_dir)
            known = catalog.facts(config.dataset, meter.data_dir).train_count
            counts[dataset] = known or len(datasets.load(config.dataset, meter.data_dir).y_train)
        steps = steps_per_epoch(config, counts[dataset])
        total = config.epochs * steps
        measured = meter.of(config, total)
        mode = execution.decide(config, total, meter.device)["mode"]
        found.bound |= mode != measured_mode(config, total, meter.device)
        name = f"{_name(config)} {config.epochs} epochs"
        taken = trial_seconds(config, steps, measured) * shares.get(trial.id or "", 1.0)
        found.by_id[trial.id or str(number)] = taken
        found.by_name.setdefault(name, []).append(taken)
        found.memory[name] = measured.memory + measured.context
    return found


def cost_text(experiment: Experiment, data_dir: Path | str | None, shares: Mapping[str, float]) -> str:
    """Return time and memory of each kind of trial and the device-hours of the whole experiment.

    ``shares`` maps the id of a trial that is expected to stop early to the share of its epochs that are
    trained. Kinds of trials without a kept cost are measured. Raises ``InputError`` for absent data.
    """
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    meter = Meter(device, folders.resolve_data_dir(data_dir))
    jobs = cpu_count() if device == "cpu" else 1
    found = _estimates(experiment, meter, shares)
    start = meter.number("start", start_seconds)
    slowdown = meter.number(f"slowdown of {jobs}", lambda: _slowdown(device, jobs)) if jobs > 1 else 1.0
    needs = {
        t.id: [needed for needed in t.needs.values() if needed] for t in experiment.trials if t.id is not None
    }
    seconds = {id: slowdown * taken for id, taken in found.by_id.items()}
    elapsed, alone = start + makespan(seconds, needs, jobs), sum(found.by_id.values())
    rows = [
        (str(len(each)), _duration(sum(each) / len(each)), f"{found.memory[name] / 2**20:.0f} MiB", name)
        for name, each in sorted(found.by_name.items(), key=lambda item: -sum(item[1]))
    ]
    unit = "core" if device == "cpu" else "GPU"
    most = "At most (steps measured eager, trials will be compiled) " if found.bound else ""
    beside = f", which slows each down by {slowdown:.2f}" if jobs > 1 else ""
    lines = [
        "Cost, from a short calibration",
        text.table(("trials", "time each", "memory", "what"), rows, right={0, 1, 2}),
        f"{most}{_duration(alone)} of one {unit} in all ({alone / 3600:.2f} device-hours), about "
        f"{_duration(elapsed)} with {jobs} at once{beside}. Measured on {meter.kept.where}.",
    ]
    if meter.busy > BUSY:
        lines.append(
            f"The machine was busy: {meter.busy:.1f} seconds of the clock for one of work. The measurement "
            "is not kept; a run on a machine that busy takes as much longer."
        )
    return "\n".join(lines)


def _slowdown(device: str, jobs: int) -> float:
    """Return how much ``jobs`` trials at once slow each other down, for the SVHN network at 0.25x."""
    fields = {"dataset": "digits", "network": "svhn_convnet", "width": 0.25, "epochs": 2}
    config = TrialConfig.model_validate({**fields, "quantizer": "dorefa", "bits": "1/1"})
    try:
        return at_once([config], jobs, device)[0].slowdown(device)
    except EOFError:  # a process died: memory does not suffice for so many trials
        return 1.0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def layers_text(experiment: Experiment, data_dir: Path | str | None) -> str:
    """Return the layers of each different network: shapes, costs, and why some stay in full precision."""
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
    """Return the decisions of the transformation with their reasons; none for the suite's own networks."""
    rows = [(d.name, d.kind, d.decision, d.reason) for d in getattr(network, "decisions", ())]
    head = ("name", "kind", "decision", "because")
    return ["Decisions of the transformation", text.table(head, rows)] if rows else []


def _layer_table(network: Network) -> str:
    head = ("layer", "type", "weight", "parameters", "MACs", "W/A", "branch", "full precision because")
    rows = [
        (
            row.name,
            row.type,
            "x".join(map(str, row.shape)),
            f"{row.parameters:,}",
            f"{row.macs:,}",
            f"{row.w_bits}/{row.a_bits}",
            "yes" if row.branch else "",
            row.full_precision or "",
        )
        for row in describe_layers(network)
        if row.type != "batch norm"
    ]
    return text.table(head, rows, right={3, 4})
