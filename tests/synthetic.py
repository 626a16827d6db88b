"""Records without training: a store of thousands of trials, and trials that notice a second execution."""

from __future__ import annotations

import fcntl
import os
import random
import time
from pathlib import Path
from typing import Any
from unittest import mock

from bench.experiments.expand import load_experiment
from bench.records.store import Store

BITS = ("1/1", "1/2", "1/4", "2/2", "2/4", "4/4", "8/8", "1/8", "2/8", "1/3")


def experiment_file(path: Path, *, seeds: int, arms: int, widths: int = 1) -> Path:
    """Write an experiment of ``arms`` arms, half of them progressive with the other half as baselines."""
    lines = [
        'title = "synthetic"',
        "[defaults]",
        'dataset = "digits"',
        'network = "svhn_convnet"',
        "epochs = 30",
    ]
    lines += ['quantizer = "dorefa"', "[grid]", f"seed = {list(range(seeds))}"]
    lines += [f"width = {[round(0.125 * (w + 1), 3) for w in range(widths)]}"]
    for k in range(arms // 2):
        lines += ["[[arms]]", f'name = "DoReFa {k}"', f'bits = "{BITS[k]}"']
        lines += ["[[arms]]", f'name = "EXP {k}"', f'baseline = "DoReFa {k}"', f'bits = "{BITS[k]}"']
        lines += [
            'strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }'
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def many_trials(folder: Path, results: Path, *, trials: int, epochs: int) -> tuple[Path, list[str]]:
    """Write a store of ``trials`` finished trials, a few of them odd; return its file and their ids."""
    file = experiment_file(folder / "many.toml", seeds=10, arms=20, widths=max(1, trials // 200))
    experiment = load_experiment(file)
    store = Store(results)
    dice = random.Random(1)
    with mock.patch("os.fsync"):  # a test's records need not outlive the machine
        for number, trial in enumerate(experiment.trials):
            _record(store, str(trial.id), trial.config.dump(), number, epochs, dice)
        lines = [line.as_dict() for line in experiment.index]
        store.write_index(experiment.name, experiment.text, lines, file=file.name)
    return file, [str(trial.id) for trial in experiment.trials]


def _record(
    store: Store, id: str, config: dict[str, Any], number: int, epochs: int, dice: random.Random
) -> None:
    provenance = {"commit": "c0ffee", "dirty": False, "versions": {"torch": "2.11.0"}, "data": "sha256:0"}
    execution = {"device": "a processor", "kind": "cpu", "mode": "eager", "threads": 1}
    store.write_trial(id, {"config": config, "execution": execution, "provenance": provenance})
    lines, correct = [], 0
    for epoch in range(1, epochs + 1):
        correct = min(300, 40 + 8 * epoch + dice.randrange(12))
        factor = max(0.0, 1.0 - 2.0 * epoch / epochs) if config["strategy"]["kind"] == "progressive" else 0.0
        lines.append(
            {
                "epoch": epoch,
                "step": 37 * epoch,
                "train_loss": 2.0 / epoch,
                "train_acc": 80.0,
                "val_acc": None,
                "test_acc": 100.0 * correct / 301,
                "test_acc_expanded": 90.0 if factor > 0 else None,
                "test_acc_top5": None,
                "test_correct": correct,
                "test_seen": 301,
                "factor": factor,
                "lr": 0.001,
                "seconds": 1.5,
                "images_per_second": 800.0,
                "sign_flip_rate": 0.01,
                "branch_ratio": None,
            }
        )
    store.write_epochs(id, lines)
    status = {7: "diverged"}.get(number % 400, "done")
    final = lines[-1]["test_acc"] if status == "done" else None
    store.write_summary(
        id,
        {
            "status": status,
            "reason": None if status == "done" else "the training loss of epoch 30 was not finite",
            "final_test_acc": final,
            "best_test_acc": final,
            "best_epoch": epochs,
            "wall_seconds": 45.0,
            "model_bits": 1000,
            "bit_operations": 1000,
            "train_flops": 1e9,
            "flags": ["at_chance"] if number % 300 == 5 else [],
            "warnings": [],
        },
    )


def train_with_witness(job):
    """Train nothing for a while; write down beginning and end, and whether somebody else was at it."""
    config, trial_id, store, data_dir = job.config, job.trial_id, job.store, job.data_dir

    def event(kind: str) -> None:
        with open(data_dir / "events.txt", "a") as file:
            file.write(f"{kind} {trial_id} {os.getpid()} {time.monotonic()}\n")

    with open(data_dir / f"witness-{trial_id}", "w") as witness:
        try:
            fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            event("OVERLAP")
        event("start")
        store.write_trial(trial_id, {"config": config.dump(), "execution": {"kind": "cpu"}, "provenance": {}})
        lines = store.epochs(trial_id)
        for epoch in range(len(lines) + 1, 5):
            time.sleep(0.25)
            if job.stop():
                event("end")
                return "stopped"
            store.append_epoch(trial_id, {"epoch": epoch, "test_acc": 50.0, "train_loss": 1.0})
        store.write_summary(trial_id, {"status": "done", "final_test_acc": 50.0})
        event("end")
    return "done"
