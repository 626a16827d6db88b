"""A training function that trains nothing and misbehaves as ``behaviour.json`` of the data folder says."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

from tests.waiting import HANG, wait_until

PLAIN = """
title = "fakes"
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 3
quantizer = "dorefa"
bits = "1/1"
[grid]
seed = [0, 1, 2, 3]
[[arms]]
name = "plain"
"""


def train(job):
    """Record epochs whose accuracies are functions of the id, behind those already recorded."""
    config, trial_id, needs, store, data_dir = job.config, job.trial_id, job.needs, job.store, job.data_dir
    path = data_dir / "behaviour.json"
    behaviours = json.loads(path.read_text()) if path.exists() else {}
    behaviour = behaviours.get(str(config.seed), behaviours.get("*", ""))
    with open(data_dir / "calls.txt", "a") as file:
        file.write(f"{trial_id} {os.getpid()} {config.seed}\n")
    for role, needed in needs.items():
        assert store.status(needed) == "done", f"the {role} was not ready"
    print(f"output of the trial, {os.environ['OMP_NUM_THREADS']} threads")
    store.write_trial(trial_id, {"config": config.dump(), "execution": {"kind": "cpu"}, "needs": dict(needs)})
    lines = store.epochs(trial_id)
    while len(lines) < config.epochs:
        epoch = len(lines) + 1
        if epoch == 2:
            misbehave(behaviour, data_dir / f"once-{trial_id}", job.stop)
            if behaviour == "fill":
                with contextlib.suppress(OSError), open(store.root / "ballast", "wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
        time.sleep(0.03)
        if job.stop():
            return "stopped"
        accuracy = 50.0 + int(trial_id, 16) % 1000 / 100 + epoch
        loss = math.nan if behaviour == "diverge" else 1.0 / epoch
        lines.append({"epoch": epoch, "train_loss": loss, "test_acc": accuracy, "seconds": time.time()})
        store.append_epoch(trial_id, lines[-1])
        if job.on_epoch:
            job.on_epoch(lines[-1])
    diverged = behaviour == "diverge"
    store.write_summary(
        trial_id,
        {
            "status": "diverged" if diverged else "done",
            "reason": "the training loss was not finite" if diverged else None,
            "final_test_acc": None if diverged else lines[-1]["test_acc"],
            "wall_seconds": time.time(),
        },
    )
    return "diverged" if diverged else "done"


def misbehave(behaviour: str, once, stop) -> None:
    """Do what a trial should not do; ``X-once`` does it the first time only."""
    if behaviour.endswith("-once"):
        if once.exists():
            return
        once.touch()
        behaviour = behaviour.removesuffix("-once")
    if behaviour == "raise":
        raise ValueError("planted failure\nsecond line")
    if behaviour == "exit":
        sys.exit(3)
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + (2 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, limit)
        bytearray(8 << 30)
    if behaviour == "hang":  # until it is asked to stop
        wait_until(stop, "nobody asks the trial to stop")
    if behaviour == "deaf":  # to any question
        (once.parent / "deaf").touch()
        time.sleep(HANG)
    if behaviour == "slow":
        time.sleep(1.0)
