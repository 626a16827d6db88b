"""Checks that what the suite promises holds on a device, on a small network and synthetic images.

Captured training equals eager training, a trial that shares the device equals one alone, a resumed trial
equals one never stopped: bit for bit, over 200 steps, half of them with the branch. A CPU has no
CUDA graphs: the captured step is emulated (``bench.training.capture``), so the graph itself is not checked.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.costs.measure import make_run, synthetic
from bench.experiments.config import TrialConfig
from bench.machine.processes import Child
from bench.speed.cases import PLAIN, UNIT, Case
from bench.speed.floor import roofline
from bench.speed.measure import dtypes, measure, measure_packed, modes
from bench.text import kind_and_reason
from bench.training import checkpoint, execution
from bench.training.loop import Run
from bench.training.resume import resume

STEPS = 200
STEPS_PER_EPOCH = 4
AT_ONCE = {"cpu": 2, "cuda": 4}  # trials that share the device
CASES = (UNIT, PLAIN, Case("dorefa", "1/1", "progressive", "sum", True))
ROUNDS = 3
# of a run's state, equal for no two runs
_CLOCKS = ("training_seconds", "wall_seconds", "peak_memory_bytes", "param_groups")


@dataclass(frozen=True)
class Check:
    """What became of a check: ``passed``, ``failed`` or ``skipped``, and what was found."""

    name: str
    status: str
    found: str
    seconds: float = 0.0


def config(steps: int = STEPS) -> TrialConfig:
    """Return the trial of the checks: so many steps of 8 images, a branch for the first half of them."""
    strategy = {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}}
    fields = {
        "dataset": "digits",
        "network": "svhn_convnet",
        "width": 0.125,
        "quantizer": "dorefa",
        "bits": "1/2",
        "epochs": steps // STEPS_PER_EPOCH,
        "batch_size": 8,
        "train_size": 8 * STEPS_PER_EPOCH,
        "learning_rate": 1e-3,
        "augmentation": "crop_flip",
        "strategy": strategy,
    }
    return TrialConfig.model_validate(fields)


def begin_run(device: str, mode: str, steps: int) -> Run:
    """Return a run of ``config`` at its first step."""
    run = make_run(config(steps), synthetic(64), device, mode)
    if mode == "captured":
        run.rehearse()
    return run


def train_until(run: Run, until: int | None = None) -> Run:
    """Return a run after its step ``until``, None: after its last."""
    while run.step < (run.total_steps if until is None else until):
        run.train_step()
    return run


def checksum_of_run(device: str, mode: str, steps: int) -> str:
    """Return the checksum of a run of ``config`` that was never stopped."""
    return checksum(train_until(begin_run(device, mode, steps)))


def checksum(run: Run) -> str:
    """Return a checksum of all numbers of a run: weights, statistics, moments, sums."""
    found = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                if key not in _CLOCKS:
                    add(f"{name}.{key}", value[key])
        elif isinstance(value, Tensor):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{name}={value!r}".encode())

    add("", run.state())
    return found.hexdigest()


def checks(device: str, steps: int = STEPS) -> Iterator[Check]:
    """Yield the checks of exactness on ``device``, one after the other."""
    cuda = device.startswith("cuda")
    yield _run_check("repeatable", _alike, device, steps, "two eager runs", "eager", "eager")
    emulated = "" if cuda else " (emulated: a CPU has no CUDA graphs)"
    yield _run_check(f"captured = eager{emulated}", _captured, device, steps)
    if cuda and execution.has_compiler():
        what = "the compiled step, captured and not"
        yield _run_check("captured = compiled", _alike, device, steps, what, "compiled", "captured")
    elif cuda:
        yield Check("captured = compiled", "skipped", execution.NO_COMPILER)
    else:
        yield Check("captured = compiled", "skipped", "a CPU has no CUDA graphs")
    yield _run_check("packed = alone", _packed, device, steps)
    mode = "captured" if cuda and execution.has_compiler() else "eager"
    yield _run_check(f"resumed = never stopped ({mode})", _resumed, device, mode, steps)


def throughput(device: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``bench speed`` for a small network, three cases in every mode there is here.

    On a GPU the fastest mode for one trial is measured in bf16 as well: more would take over five minutes.
    """
    planned = [(mode, "fp32") for mode in modes(device)]
    if ("captured", "fp32") in planned and "bf16" in dtypes(device):
        planned.append(("captured", "bf16"))
    for mode, dtype in planned:
        if mode == "packed":
            yield from measure_packed("svhn_convnet", 0.25, dtype, device, ROUNDS)
        else:
            rates = roofline(device, dtype)
            yield from measure("svhn_convnet", 0.25, mode, dtype, device, ROUNDS, rates, CASES)


def _run_check(name: str, check: Callable[..., tuple[bool, str]], *arguments: Any) -> Check:
    """Return what a check found; a check that cannot be finished has failed, and says why."""
    begin = time.perf_counter()
    try:
        passed, found = check(*arguments)
    except Exception as error:  # of a device, a driver or a compiler: the other checks can still be done
        passed, found = False, kind_and_reason(error)
    return Check(name, "passed" if passed else "failed", found, round(time.perf_counter() - begin, 1))


def _compared(equal: bool, what: str, steps: int) -> tuple[bool, str]:
    return equal, f"{what}: {'equal, bit for bit' if equal else 'DIFFERENT'} after {steps} steps"


def _alike(device: str, steps: int, what: str, *modes: str) -> tuple[bool, str]:
    """One run in each of ``modes``, never stopped."""
    return _compared(len({checksum_of_run(device, mode, steps) for mode in modes}) == 1, what, steps)


def _captured(device: str, steps: int) -> tuple[bool, str]:
    """The captured step without the compiler, so that its arithmetic is eager arithmetic."""
    with torch.compiler.set_stance("force_eager"):
        what = "the captured step, not compiled, and the eager one"
        return _alike(device, steps, what, "eager", "captured")


def _packed(device: str, steps: int) -> tuple[bool, str]:
    """Trials at once, each in a process, and one alone in this process."""
    count = AT_ONCE[device.partition(":")[0]]
    alone = checksum_of_run(device, "eager", steps)
    children = [Child(_send_result, device, steps, name="bench-doctor") for _ in range(count)]
    try:
        together = {child.receive() for child in children}
    finally:
        for child in children:
            child.end(patience=5.0)
    return _compared(together == {alone}, f"{count} trials at once and one alone", steps)


def _send_result(pipe: Connection, device: str, steps: int) -> None:
    pipe.send(checksum_of_run(device, "eager", steps))


def _resumed(device: str, mode: str, steps: int) -> tuple[bool, str]:
    """A run stopped with the branch on, written, read into a new run, and trained to the end."""
    whole = checksum_of_run(device, mode, steps)
    other = begin_run(device, mode, steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        checkpoint.save(path, train_until(begin_run(device, mode, steps), steps // 3).state())
        resume(other, checkpoint.read(path, device), path)
    return _compared(whole == checksum(train_until(other)), "stopped at a third and not", steps)
