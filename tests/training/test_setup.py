"""One builder: what is measured for a cost or a speed is the network that a trial trains."""

from __future__ import annotations

import pytest
import torch

from bench import datasets
from bench.costs import measure
from bench.costs.operations import training_operations
from bench.records.store import Store
from bench.training import trial
from bench.training.job import Job
from tests.configs import make_config
from tests.strategies.toys import FULL

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


@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "auxiliary"},
        {"kind": "fitnets", "teacher": FULL},
        {"kind": "distillation", "teacher": FULL},
        {"kind": "mutual", "peer": FULL, "peers": 2},
        {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}},
    ],
    ids=lambda strategy: strategy["kind"],
)
def test_operations_known_beforehand_count_all_that_a_strategy_trains_and_asks(strategy):
    run = measure.make_run(make_config(strategy=strategy), measure.synthetic(96), "cpu")
    assert training_operations(run.config, run.steps_per_epoch, 10) == run.train_flops(run.total_steps)


def test_what_is_measured_without_a_factor_is_the_last_step():
    """FitNets' first stage goes back through a part of the network, its second one through all of it."""
    strategy = {"kind": "fitnets", "teacher": FULL}
    run = measure.make_run(make_config(strategy=strategy), measure.synthetic(96), "cpu")
    assert measure.on_and_off(run) == (None, run.total_steps - 1)
    assert run.strategy.stage(run.total_steps - 1) == run.strategy.DISTILLATION
