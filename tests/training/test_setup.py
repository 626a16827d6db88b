"""One builder: what is measured for a cost or a speed is the network that a trial trains."""

from __future__ import annotations

import pytest
import torch

from bench import datasets
from bench.costs import measure
from bench.records.store import Store
from bench.training import trial
from bench.training.job import Job
from tests.configs import make_config

ID = "0" * 16
CASES = {
    "progressive": {
        "strategy": {"kind": "progressive", "merge": "concat", "factor": {"kind": "cosine", "until": 0.5}}
    },
    "groups of batch norm": {"batch_norm_group": 4},
    "micro-batches": {"micro_batches": 2},
    "activations computed again": {"activation_checkpointing": True},
    "bf16, sgd": {"precision": "bf16", "optimizer": "sgd"},
}


def parts(run) -> list[tuple[str, str, str]]:
    """Return what a network is made of: every module's name, text and way of computing."""
    modules = run.network.named_modules()
    return [(name, repr(module), type(module.forward).__name__) for name, module in modules]


@pytest.mark.parametrize("case", CASES)
def test_trial_and_measurement_train_the_same_network(case, tmp_path, monkeypatch):
    config = make_config(**CASES[case])
    trained = []

    def three_steps(run, **_):
        trained.append(run)
        for _ in range(3):
            run.train_step()
        return "stopped"

    monkeypatch.setattr(trial, "train", three_steps)
    trial.run_trial(Job(config, ID, {}, Store(tmp_path), tmp_path))
    measured = measure.make_run(config, datasets.load(config.dataset, tmp_path), "cpu")
    for step in range(3):
        measure.step_at(measured, step)()
    assert parts(measured) == parts(trained[0])
    weights, expected = measured.network.state_dict(), trained[0].network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
