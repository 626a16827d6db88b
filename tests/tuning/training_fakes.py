"""A training function that trains nothing: accuracies are a known function of rate and epoch."""

from __future__ import annotations

import math
import os
import signal
import time

from tests.waiting import HANG

BEST_RATE = 4e-3


def accuracy(config, epoch: int) -> float:
    """Highest at ``BEST_RATE``; a factor that lives longer costs a little."""
    distance = math.log(config.learning_rate["initial"] / BEST_RATE)
    until = config.strategy.get("factor", {}).get("until", 0.0)
    return 80.0 - 5.0 * distance**2 - until - 20.0 / epoch - config.seed % 10 / 100


def train(job):
    """Record epochs behind those already recorded. ``pause`` in the data folder slows it down."""
    config, trial_id, needs, store, data_dir = job.config, job.trial_id, job.needs, job.store, job.data_dir
    with open(data_dir / "calls.txt", "a") as file:
        file.write(f"{trial_id} {len(store.epochs(trial_id))}\n")
    for role, needed in needs.items():
        assert store.status(needed) == "done", f"the {role} was not ready"
    store.write_trial(trial_id, {"config": config.dump(), "execution": {"kind": "cpu"}, "needs": dict(needs)})
    lines = store.epochs(trial_id)
    while len(lines) < config.epochs:
        epoch = len(lines) + 1
        if (data_dir / "pause").exists():
            time.sleep(0.1)
        held_out = accuracy(config, epoch) if config.holdout else None
        tested = accuracy(config, epoch) - 1.0 if config.evaluate_test else None
        loss = 1.0 / epoch
        if config.learning_rate["initial"] > 1.0:
            loss = math.nan
        line = {"epoch": epoch, "train_loss": loss, "test_acc": tested, "val_acc": held_out, "seconds": 1.0}
        lines.append(line)
        store.append_epoch(trial_id, line)
        if (data_dir / "kill").exists() and len(os.listdir(store.root / "trials")) > 7:
            os.kill(os.getppid(), signal.SIGKILL)  # the launcher, in the middle of the search
            time.sleep(HANG)  # until this process is ended, too
        if job.on_epoch:
            job.on_epoch(line)
        if len(lines) < config.epochs and job.stop():
            return "stopped"
    store.write_summary(
        trial_id,
        {
            "status": "done",
            "final_test_acc": lines[-1]["test_acc"],
            "final_val_acc": lines[-1]["val_acc"],
            "train_flops": 1e6 * config.epochs,
            "wall_seconds": 1.0,
        },
    )
    return "done"
