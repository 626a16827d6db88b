"""Training functions for shared devices: one notes when it ran, one trains and kills a victim."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

from tests.launch import running_fakes
from tests.waiting import wait_until


def noted(job):
    """Train nothing (``running_fakes``); note device, beginning and end in ``times.jsonl``."""
    config, data_dir = job.config, job.data_dir
    begin = time.monotonic()
    once = data_dir / f"full-{config.seed}"
    meet(config.seed, data_dir)
    try:
        if once.exists():  # the first time it finds no room
            once.unlink()
            raise MemoryError
        return running_fakes.train(job)
    finally:
        with open(data_dir / "times.jsonl", "a") as file:
            file.write(json.dumps([config.seed, job.device, begin, time.monotonic()]) + "\n")


def meet(seed, data_dir):
    """Wait for all seeds of ``meet.json`` to begin, if this is one, however busy the machine is."""
    path = data_dir / "meet.json"
    expected = json.loads(path.read_text()) if path.exists() else []
    (data_dir / f"begun-{seed}").touch()
    if seed in expected:
        wait_until(lambda: all((data_dir / f"begun-{other}").exists() for other in expected), "all begin")


def victim(job):
    """Train really; the process of seed 0 is killed after its first epoch, the first time."""
    from bench.training.trial import run_trial

    def record(line):
        job.on_epoch(line)
        once = job.store.root / "killed"
        if job.config.seed == 0 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return run_trial(replace(job, on_epoch=record))
