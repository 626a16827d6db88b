"""Searches that train tiny networks: no test label is read, and a rung goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli.main import main
from bench.costs.operations import training_operations
from bench.experiments.expand import load_experiment
from bench.records.store import Store
from bench.training.trial import comparable
from bench.tuning.search import unfold

TEXT = """
[defaults]
dataset = "npz:tiny"
network = "svhn_convnet"
width = 0.0625
recipe = "svhn_subset"
epochs = 3
batch_size = 16
quantizer = "dorefa"
bits = "1/1"
[grid]
seed = [0]
[[arms]]
name = "plain"
[[arms]]
name = "sum"
baseline = "plain"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
[tuning]
holdout = 32
seeds = [100]
effort = 3
sampler = "grid"
scheduler = "SCHEDULER"
[tuning.space]
"learning_rate.initial" = { log = [1e-3, 1e-1] }
"""


def make_data(folder: Path, shuffled_test_labels: bool = False) -> None:
    """Write 96 training images whose brightness tells the class, and 32 test images."""
    dice = np.random.default_rng(0)
    y_train, y_test = dice.integers(0, 10, 96), dice.integers(0, 10, 32)
    x_train, x_test = (
        np.clip(25 * y[:, None, None, None] + dice.integers(0, 20, (len(y), 32, 32, 3)), 0, 255).astype(
            np.uint8
        )
        for y in (y_train, y_test)
    )
    if shuffled_test_labels:
        y_test = (y_test + 1 + dice.integers(0, 9, 32)) % 10  # every label is wrong
    folder.mkdir()
    np.savez(folder / "tiny.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def search(folder: Path, scheduler: str = "none", shuffled: bool = False):
    """Run the experiment in ``folder``; return its store, the experiment as decided, and its standing."""
    folder.mkdir(exist_ok=True)
    if not (folder / "data").exists():
        make_data(folder / "data", shuffled)
    file, results = folder / "tiny.toml", folder / f"results-{scheduler}"
    file.write_text(TEXT.replace("SCHEDULER", scheduler))
    words = [
        "run",
        str(file),
        "--data",
        str(folder / "data"),
        "--results",
        str(results),
        "--no-ray",
        "--jobs",
        "1",
    ]
    assert main(words) == 0
    store = Store(results)
    experiment, standing = unfold(load_experiment(file, data_dir=folder / "data"), store)
    return store, experiment, standing


def held_out(standing) -> list:
    return [[tried.accuracies for tried in point.tried] for point in standing.points]


@pytest.mark.slow
def test_changing_the_test_labels_changes_no_choice(tmp_path):
    store, right, as_they_are = search(tmp_path / "right")
    _, wrong, changed = search(tmp_path / "wrong", shuffled=True)
    assert {t.id for t in right.trials}.isdisjoint(t.id for t in wrong.trials)  # other data, trained anew
    assert changed.choices == as_they_are.choices
    assert held_out(changed) == held_out(as_they_are)
    tuned = [line.id for line in right.index if line.role == "tuning"]
    for id in tuned:
        assert all(line["test_acc"] is None and line["test_correct"] is None for line in store.epochs(id))
        assert store.summary(id)["final_test_acc"] is None and store.summary(id)["final_val_acc"] is not None


@pytest.mark.slow
def test_a_trial_stopped_at_a_rung_and_continued_equals_one_never_stopped(tmp_path):
    halved, _, standing = search(tmp_path / "one", "halving")
    whole, _, _ = search(tmp_path / "one", "none")
    continued = [
        t for point in standing.points for tried in point.tried if tried.dropped is None for t in tried.trials
    ]
    assert len(continued) == 2
    for trial in continued:
        assert len(halved.resumes(trial.id)) == 1 and not whole.resumes(trial.id)
        for one, other in zip(halved.epochs(trial.id), whole.epochs(trial.id), strict=True):
            assert comparable(one) == comparable(other)
        a, b = (torch.load(s.folder(trial.id) / "weights.pt")["network"] for s in (halved, whole))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for dropped in standing.dropped:
        assert halved.status(dropped) == "unfinished" and len(halved.epochs(dropped)) == 1
        assert halved.checkpoint(dropped).exists()  # nothing is lost


def test_held_out_images_are_not_trained_on_and_operations_are_known_beforehand(tmp_path):
    store, experiment, _ = search(tmp_path / "one")
    for one in experiment.index:
        config = one.trial.config
        steps = (96 - config.holdout) // 16
        assert training_operations(config, steps, 10) == store.summary(one.id)["train_flops"]
    line = next(line for line in experiment.index if line.role == "tuning")
    final = experiment.lines("plain")[0]
    assert store.epochs(line.id)[0]["step"] == (96 - 32) // 16
    assert store.epochs(final.id)[0]["step"] == 96 // 16
