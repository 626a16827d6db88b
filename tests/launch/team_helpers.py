"""Two gloo workers on the CPU, forked from a process with torch, and what tests of teams run there."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from bench.launch import data_parallel
from bench.machine import processes
from bench.training.job import Job
from tests import forking
from tests.robustness import disturbance

FAULT = "fault.json"  # in the results folder: {"worker": rank, "fault": {...}, "every_steps": n}


def _entry(rank: int, size: int, folder: str, function: str, arguments: tuple[Any, ...], pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    data_parallel.join_team("cpu", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    from bench.training.distributed import Team

    module, _, name = function.partition(":")
    pipe.send(getattr(importlib.import_module(module), name)(Team.joined(), *arguments))


def together(function: str, *arguments: Any, size: int = 2) -> list[Any]:
    """Return what ``function(team, *arguments)`` returns in each of ``size`` workers: plain values."""
    context = forking.context()
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(target=_entry, args=(rank, size, folder, function, arguments, there))
            for rank, (_, there) in enumerate(ends)
        ]
        for process in processes:
            process.start()
        for _, there in ends:
            there.close()
        found = [here.recv() for here, _ in ends]
        for process in processes:
            process.join()
    return found


def train(job: Job, team: Any) -> str:
    """Train as one of the workers, disturbed as the results folder says."""
    path = Path(job.store.root) / FAULT
    settings = json.loads(path.read_text()) if path.exists() else {}
    mine = settings.get("worker") == team.rank
    os.environ[disturbance.SETTINGS] = json.dumps(
        {"every_steps": settings.get("every_steps", 3), "fault": settings.get("fault") if mine else None}
    )
    return disturbance.train(job, team=team)


def train_together(job: Job) -> str:
    """Train by two workers: the training function that the tests give to ``bench.launch.execute.execute``."""
    with mock.patch.object(processes, "CONTEXT", forking.Forking()):
        return data_parallel.run_trial(job, f"{__name__}:train")
