"""A trial whose numbers are lost is diverged, whatever its loss is; a sound trial goes on."""

from __future__ import annotations

import math

import pytest
import torch

from bench.records.store import Store
from bench.training import checkpoint, loop, trial
from bench.training.divergence import LARGEST_CROSS_ENTROPY, largest_loss, not_finite
from bench.training.evaluate import evaluate
from bench.training.job import Job
from tests.training.test_trial import ID, TEACHER, apprentice, make_config, progressive, with_needs


def spoiled(monkeypatch, spoil, at: int = 5):
    """Let ``spoil(run)`` happen at the end of the step before ``at``."""
    step = loop.Run.train_step

    def spoiling(run):
        step(run)
        if run.step == at:
            with torch.no_grad():
                spoil(run)

    monkeypatch.setattr(loop.Run, "train_step", spoiling)


def lose(tensor, value=math.nan):
    tensor[(0,) * tensor.dim()] = value


def outcome(tmp_path, config, needs=None):
    store = Store(tmp_path)
    status = trial.run_trial(Job(config, ID, needs or {}, store, tmp_path))
    summary = store.summary(ID)
    assert summary["status"] == status
    return status, summary, store.epochs(ID)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("quantizer", "bits"), [("full_precision", "32/32"), ("dorefa", "1/1"), ("bnn", "1/1"), ("ttq", "2/32")]
)
@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_exploding_learning_rates_diverge(quantizer, bits, optimizer, rate, tmp_path):
    config = make_config(quantizer=quantizer, bits=bits, optimizer=optimizer, learning_rate=rate)
    status, summary, lines = outcome(tmp_path, config)
    assert status == "diverged" and summary["final_test_acc"] is None
    assert f"epoch {lines[-1]['epoch']}" in summary["reason"]
    assert lines[-1]["test_acc"] is None and lines[-1]["test_correct"] is None


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [("bnn", "1/1"), ("ttq", "2/32"), ("syq", "2/2"), ("xnor", "1/1"), ("dorefa", "1/1")],
)
def test_one_lost_weight_is_found_and_named(quantizer, bits, tmp_path, monkeypatch):
    spoiled(monkeypatch, lambda run: lose(run.network.conv3.weight))
    status, summary, lines = outcome(tmp_path, make_config(quantizer=quantizer, bits=bits))
    assert status == "diverged" and "conv3.weight" in summary["reason"] and "epoch 1" in summary["reason"]
    assert len(lines) == 1 and lines[0]["test_acc"] is None


def first_moment(run):
    return next(iter(run.optimizer.state.values()))["exp_avg"]


SIBLINGS = {
    "a running variance": (
        {},
        lambda run: next(b for n, b in run.network.named_buffers() if n.endswith("running_var"))[0].fill_(
            math.inf
        ),
        "running_var",
    ),
    "a moment": ({}, lambda run: lose(first_moment(run), math.inf), "exp_avg of"),
    "a branch": (
        {"strategy": progressive("sum")},
        lambda run: lose(run.network.conv3.branch.weight),
        "conv3.branch.weight",
    ),
    "a joint teacher": (
        {"strategy": apprentice("A")},
        lambda run: run.trained["teacher"].linear.bias[0].fill_(math.nan),
        "teacher.linear.bias",
    ),
    "the epoch's loss": ({}, lambda run: run.loss_sum.fill_(1e10), "more than any data gives"),
}


@pytest.mark.parametrize("what", SIBLINGS)
def test_everything_that_training_moves_is_looked_at(what, tmp_path, monkeypatch):
    fields, spoil, named = SIBLINGS[what]
    spoiled(monkeypatch, spoil)
    status, summary, _ = outcome(tmp_path, make_config(**fields))
    assert status == "diverged" and named in summary["reason"]


def test_logits_that_are_not_finite_in_evaluation_alone(tmp_path, monkeypatch):
    def overflowing(run):  # finite weights whose product is not
        run.network.linear.weight.fill_(3e38)
        run.network.linear.bias.fill_(3e38)

    spoiled(monkeypatch, overflowing)
    status, summary, lines = outcome(tmp_path, make_config(holdout=20))
    assert status == "diverged" and "logits of" in summary["reason"]
    assert lines[-1]["test_acc"] is None and lines[-1]["val_acc"] is None


def test_a_teacher_with_lost_weights_is_refused(tmp_path):
    store, config = Store(tmp_path), make_config(strategy=apprentice("B"))
    needs = with_needs(config, store, tmp_path)
    path = store.folder(TEACHER) / "weights.pt"
    weights = checkpoint.load(path, "cpu")["network"]
    weights["linear.bias"][0] = math.nan
    checkpoint.save(path, {"network": weights})
    with pytest.raises(trial.InputError, match=r"weights\.pt: weights of the teacher.*linear\.bias"):
        trial.run_trial(Job(config, ID, needs, store, tmp_path))


def test_infinite_constants_of_a_network_are_its_own_affair(tmp_path, monkeypatch):
    make = trial.setup.make_network

    def masked(*arguments, **named):
        network = make(*arguments, **named)
        network.register_buffer("mask", torch.full((3,), -math.inf))
        return network

    monkeypatch.setattr(trial.setup, "make_network", masked)
    assert outcome(tmp_path, make_config())[0] == "done"


def test_the_bound_is_where_the_right_class_has_probability_zero_in_float32():
    at, beyond = (
        torch.exp(torch.tensor(-loss, dtype=torch.float64)).to(torch.float32)
        for loss in (LARGEST_CROSS_ENTROPY, LARGEST_CROSS_ENTROPY + 0.7)
    )
    assert at > 0 and beyond == 0
    assert largest_loss("cross_entropy") == pytest.approx(103.28, abs=0.01)


def test_not_finite_names_the_tensors_and_counts_no_integers():
    good = {"a": torch.ones(3), "steps": torch.tensor(2), "empty": torch.zeros(0)}
    assert not_finite(good.items()) == []
    assert not_finite({**good, "b": torch.tensor([1.0, math.inf]), "c": torch.tensor(math.nan)}.items()) == [
        "b",
        "c",
    ]


def test_evaluation_counts_images_with_logits_that_are_not_finite():
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [0.0, math.inf]])
    found = evaluate(torch.nn.Identity(), [(logits, torch.tensor([1, 0, 0]))], 2)
    assert (found.seen, found.not_finite) == (3, 2)
