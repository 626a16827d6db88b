"""A checkpoint between any two steps is enough: every strategy and quantizer goes on with the same bits.

The step behind each checkpoint is trained twice: by the run that wrote it, and by a new run that read it. If
all of these steps are equal, so is a trial that was killed anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import datasets, registry
from bench.experiments.config import TrialConfig
from bench.randomness import Clock
from bench.training import checkpoint, setup
from bench.training.loop import Run
from bench.training.resume import resume
from tests.configs import make_config
from tests.conformance.checks import strategy_config
from tests.conformance.tables import FACTOR
from tests.conformance.test_registered import own, row, strategy_cases

MEASURED = {"training_seconds", "wall_seconds", "peak_memory_bytes"}


def begin(config: TrialConfig) -> Run:
    """Return a run of ``config`` at its first step; the trials that it needs have initial weights."""
    clock = Clock(config.seed)
    images = datasets.load(config.dataset, Path("/nonexistent"))
    data = setup.make_batches(config, images, clock)
    weights = setup.untrained_weights(config, data.num_classes, clock)
    return setup.make_run(config, data, clock, weights=weights)


def unlike(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places at which two states differ in any bit, clocks and memory left out."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        keys = [key for key in one if key not in MEASURED]
        return [place for key in keys for place in unlike(one[key], other[key], f"{where}.{key}")]
    if torch.is_tensor(one) and torch.is_tensor(other):
        return [] if torch.equal(one, other) else [where]
    return [] if type(one) is type(other) and one == other else [where]


def step(run: Run) -> dict[str, Any]:
    """Train a step, with the epoch's end behind the last one; return the state and the epoch's numbers."""
    run.train_step()
    line = {}
    if run.step % run.steps_per_epoch == 0:
        line = {key: value for key, value in run.end_epoch().items() if "second" not in key}
    rows = [{key: repr(value) for key, value in row.items()} for row in run.diagnostics.rows]
    return {**run.state(), "line": line, "row": rows[-1] if line else None}


def check_every_step(config: TrialConfig, folder: Path) -> None:
    """Each step of a run is, bit for bit, that of a new run which begins with the checkpoint before it."""
    run, path = begin(config), folder / "checkpoint.pt"
    while run.step < run.total_steps:
        at = run.step
        checkpoint.save(path, run.state())
        again = begin(config)
        state = checkpoint.load(path, "cpu")
        assert state is not None
        resume(again, state, path)
        assert unlike(step(run), step(again)) == [], f"the step behind a checkpoint at step {at}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), strategy_cases())
def test_strategy(kind, number, tmp_path):
    """Stages, portions and removals among the steps; peers, twins and teachers beside the network."""
    config, _ = strategy_config(kind, row("strategies", kind)[number], tmp_path)
    check_every_step(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", own("quantizers"))
def test_quantizer(kind, tmp_path):
    """At the fewest bits, with a factor that is removed inside an epoch."""
    facts = registry.get("quantizers", kind).facts
    bits = f"{facts['w_bits'][0]}/{facts['a_bits'][0]}/{facts.get('g_bits', [32])[0]}"
    strategy = {"kind": "anneal", "factor": FACTOR}
    config = make_config(quantizer=kind, bits=bits, strategy=strategy, train_size=48, holdout=16)
    check_every_step(config, tmp_path)
