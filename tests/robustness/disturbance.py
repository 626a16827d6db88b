"""Training that is killed at a chosen instant, and the comparison with training that was not.

``train`` is the suite's own training function, called in a process that only tests start, with a shorter
checkpoint interval and, where asked, one fault: SIGKILL while a step, a checkpoint, a line, the weights or a
summary is under way. ``run`` executes a trial so in a forked process of its own; ``bench_with_faults.py``
puts it under the whole command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.experiments.config import TrialConfig
from bench.experiments.roles import needed_roles
from bench.launch.execute import Outcome, Task, execute
from bench.records.store import Store
from bench.training.job import Job
from tests import configs, forking

SETTINGS = "BENCH_TEST_SETTINGS"  # JSON: every_steps, mode, mark, fault, signal
ID = "0123456789abcdef"
NEEDED = {"teacher": "a" * 16, "start": "b" * 16}
STEPS = 5  # of an epoch
REMOVAL = 12  # the first step without the branch, of 20: inside the third epoch
FACTOR = {"kind": "cosine", "until": 0.6}

# --- what is trained ----------------------------------------------------------------------------------------


def make_config(**changes: Any) -> TrialConfig:
    """Five steps an epoch, four epochs: a factor until 0.6 is on for 12 of the 20 steps."""
    return configs.make_config(**{"epochs": 4, **changes})


def progressive(merge: str, **options: Any) -> dict[str, Any]:
    """Return a progressive strategy."""
    return {"kind": "progressive", "merge": merge, "factor": FACTOR, **options}


def apprentice(scheme: str) -> dict[str, Any]:
    """Return an apprentice strategy; teacher (and start, in scheme C) have a network like the student's."""
    full = make_config(quantizer="full_precision", bits="32/32").dump()
    return {
        "kind": "apprentice",
        "scheme": scheme,
        "teacher": full,
        **({"start": full} if scheme == "C" else {}),
    }


DROPOUT = {"kind": "svhn_convnet", "dropout": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "plain, dropout": {"network": DROPOUT},
    "sgd, augmented": {"optimizer": "sgd", "weight_decay": 1e-4, "augmentation": "crop_flip"},
    "sum, dropout": {"strategy": progressive("sum"), "network": DROPOUT},
    "difference, augmented": {"strategy": progressive("difference"), "augmentation": "svhn"},
    "concat, held-out part": {"strategy": progressive("concat"), "holdout": 20},
    "preactivation": {"strategy": progressive("preactivation")},
    "batch norm re-estimated at removal": {"strategy": progressive("sum", bn_reestimate=2), "eval_bn": 2},
    "anneal, gradient quantizer": {"strategy": {"kind": "anneal", "factor": FACTOR}, "bits": "1/1/4"},
    "gradient quantizer, concat": {"bits": "1/2/4", "strategy": progressive("concat")},
    "stochastic bnn, sum, dropout": {
        "quantizer": {"kind": "bnn", "stochastic": True},
        "strategy": progressive("sum"),
        "network": DROPOUT,
    },
    "xnor, sum": {"quantizer": "xnor", "strategy": progressive("sum")},
    "syq, concat": {"quantizer": "syq", "bits": "2/2", "strategy": progressive("concat")},
    "ttq": {"quantizer": "ttq", "bits": "2/32"},
    "apprentice A": {"strategy": apprentice("A")},
    "apprentice B": {"strategy": apprentice("B")},
    "apprentice C": {"strategy": apprentice("C")},
    "residual, difference": {"network": "resnet20", "strategy": progressive("difference")},
    "bf16, sum": {"precision": "bf16", "strategy": progressive("sum")},
}

# In a run of 20 steps: where it is killed, one after the other, each time resumed before. "from" is the first
# step at which the fault may strike; removal is at step 12, epochs end at 5, 10, 15 and 20.
FAULTS: tuple[dict[str, Any], ...] = (
    {"at": "step", "from": 2},
    {"at": "half", "file": "checkpoint.pt", "from": 3},
    {"at": "unnamed", "file": "checkpoint.pt", "from": 4},
    {"at": "half", "file": "epochs.jsonl", "from": 5},
    {"at": "updated", "from": 8},
    {"at": "written", "file": "epochs.jsonl", "from": 10},
    {"at": "step", "from": REMOVAL - 1},
    {"at": "updated", "from": REMOVAL},
    {"at": "step", "from": REMOVAL + 1},
    {"at": "named", "file": "checkpoint.pt", "from": 15},
    {"at": "half", "file": "epochs.jsonl", "from": 20},
    {"at": "half", "file": "weights.pt", "from": 20},
    {"at": "named", "file": "weights.pt", "from": 20},
    {"at": "half", "file": "summary.json", "from": 20},
    {"at": "unnamed", "file": "summary.json", "from": 20},
    {"at": "named", "file": "summary.json", "from": 20},
)
IN_A_TEACHER = (
    {"at": "updated", "from": 7, "role": "teacher"},
    {"at": "half", "file": "checkpoint.pt", "from": 12, "role": "teacher"},
    {"at": "half", "file": "weights.pt", "from": 20, "role": "teacher"},
)


def words(fault: Mapping[str, Any]) -> str:
    """Return a fault in words."""
    file = {"checkpoint.pt": "a checkpoint", "epochs.jsonl": "a line", "weights.pt": "the weights"}.get(
        fault.get("file", ""), "the summary"
    )
    text = {
        "step": "inside a step, before the update",
        "updated": "inside a step, after the update",
        "half": f"half of {file} written",
        "unnamed": f"{file} written, not renamed",
        "named": f"{file} renamed",
        "written": f"{file} written, nothing after it",
    }[fault["at"]]
    return text + (" (teacher)" if fault.get("role") else "")


# --- the training function under test -----------------------------------------------------------------------


class _Names:
    """A module with some of its names replaced."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Torn:
    """A file of which the first write gets half-way, to the disk, before the process dies."""

    def __init__(self, file: Any, die: Any) -> None:
        self.file, self.die = file, die

    def __enter__(self) -> _Torn:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        os.fsync(self.file.fileno())
        self.die()


class _Disturbed:
    """What is changed in this process: the interval of checkpoints, the mode, and one fault."""

    def __init__(self, settings: Mapping[str, Any], config: TrialConfig) -> None:
        self.settings = settings
        self.step = 0
        fault = settings.get("fault") or {}
        role = "teacher" if config.quantizer["kind"] == "full_precision" else None
        self.fault = fault if fault.get("role") == role or fault.get("role") == "any" else {}

    def due(self, at: str, path: str = "") -> bool:
        fault = self.fault
        if fault.get("at") != at or self.step < fault.get("from", 0):
            return False
        name = os.path.basename(path)
        return fault.get("file") is None or name == fault["file"] or name.startswith(f".{fault['file']}.")

    def die(self) -> None:
        if self.fault.get("whole_group"):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def install(self) -> None:
        """Change the modules of this process; called again, it only takes over the new settings."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        import bench.records.files
        import bench.records.store
        from bench.training import execution, loop

        global _active
        first, _active = _active is None, self
        if self.settings.get("mode") == "compiled":
            execution.COMPILED_STEPS = {"cpu": 1, "cuda": 1}
        loop.CHECKPOINT_SECONDS, loop.CHECKPOINT_RATIO = float(self.settings.get("every_steps", 3)) - 0.5, 0.0
        if not first:
            return
        # a clock that ticks once a step: checkpoints at steps that do not depend on how busy the machine is
        loop.time = _Names(time, monotonic=lambda: float(_active.step))
        plain_step, plain_set = loop.Run.train_step, loop.set_step

        def train_step(run: Any) -> None:
            _active.step = run.step
            plain_step(run)
            _active.step = run.step
            mark = _active.settings.get("mark")
            if mark and not os.path.exists(mark):
                Path(mark).write_text(str(os.getpid()))

        def set_step(*arguments: Any) -> None:
            plain_set(*arguments)
            if _active.due("step"):
                _active.die()

        def updated(*_: Any) -> None:
            if _active.due("updated"):
                _active.die()

        def open_(path: Any, *arguments: Any, **named: Any) -> Any:
            file = open(path, *arguments, **named)  # noqa: SIM115
            return _Torn(file, _active.die) if _active.due("half", str(path)) else file

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            if _active.due("half", os.readlink(f"/proc/self/fd/{fd}")):
                os.pwrite(fd, data[: len(data) // 2], offset)
                _active.die()
            return os.pwrite(fd, data, offset)

        def fsync(fd: int) -> None:
            os.fsync(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if _active.due("unnamed", path) or (path.endswith(".jsonl") and _active.due("written", path)):
                _active.die()

        def replace(source: Any, target: Any) -> None:
            os.replace(source, target)
            if _active.due("named", str(target)):
                _active.die()

        loop.Run.train_step, loop.set_step = train_step, set_step
        register_optimizer_step_post_hook(updated)
        named = _Names(os, pwrite=pwrite, fsync=fsync, replace=replace)
        bench.records.files.open = open_  # type: ignore[attr-defined]
        bench.records.files.os = named  # type: ignore[assignment]
        bench.records.store.os = named  # type: ignore[assignment]


_active: Any = None


def train(job: Job, **named: Any) -> str:
    """Train as ``bench.training.trial.run_trial`` does, disturbed as the environment says."""
    from bench.training.trial import run_trial

    _Disturbed(json.loads(os.environ.get(SETTINGS, "{}")), job.config).install()
    return run_trial(job, **named)


# --- a trial in a process of its own ------------------------------------------------------------------------


def _child(task: Task, settings: Mapping[str, Any], stop_after: int | None, pipe: Any) -> None:
    os.environ[SETTINGS] = json.dumps(settings)
    calls = iter(range(10**9))
    pipe.send(execute(task, stop=lambda: stop_after is not None and next(calls) >= stop_after, isolated=True))


def run(
    config: TrialConfig,
    results: Path,
    *,
    id: str = ID,
    needs: Mapping[str, str] | None = None,
    fault: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    kill_after: float | None = None,
    every_steps: int = 3,
    mode: str = "eager",
) -> Outcome | None:
    """Execute a trial in a new process; return its outcome, None where it was killed.

    ``stop_after`` steps it is asked to stop at a checkpoint; ``kill_after`` seconds it is killed from
    outside.
    """
    context = forking.context()
    here, there = context.Pipe(duplex=False)
    task = Task(
        id,
        config.dump(),
        dict(needs or {}),
        str(results),
        "/nonexistent",
        retry=True,
        function=f"{__name__}:train",
    )
    settings = {"every_steps": every_steps, "fault": fault, "mode": mode}
    process = context.Process(target=_child, args=(task, settings, stop_after, there))
    process.start()
    there.close()
    if kill_after is not None:
        process.join(kill_after)
        process.kill()
    outcome = None
    with contextlib.suppress(EOFError):
        outcome = here.recv()
    process.join()
    if outcome is None and process.exitcode != -signal.SIGKILL:
        raise AssertionError(
            f"the process ended with {process.exitcode}: {Store(results).log(id).read_text()[-3000:]}"
        )
    return outcome


def needed_by(config: TrialConfig) -> dict[str, str]:
    """Return the ids of the trials that ``config`` needs, by role."""
    return {role: NEEDED[role] for role in needed_roles(config.strategy)}


def run_needed(config: TrialConfig, results: Path) -> dict[str, str]:
    """Train what ``config`` needs, undisturbed; return the ids by role."""
    needs = needed_by(config)
    for role, id in needs.items():
        outcome = run(TrialConfig.model_validate(config.strategy[role]), results, id=id)
        assert outcome is not None and outcome.status == "done", outcome
    return needs


def kill_chain(
    config: TrialConfig,
    results: Path,
    faults: Iterable[Mapping[str, Any]],
    *,
    id: str = ID,
    needs: Mapping[str, str] | None = None,
) -> list[Mapping[str, Any]]:
    """Kill a trial at each instant, resume it each time, finish it; return the faults that struck."""
    struck = []
    for fault in faults:
        outcome = run(config, results, id=id, needs=needs, fault=fault)
        if outcome is None:
            struck.append(fault)
        elif outcome.status != "done":
            raise AssertionError(f"{fault}: {outcome}")
    outcome = run(config, results, id=id, needs=needs)
    assert outcome is not None and outcome.status == "done", outcome
    return struck


def kill_at_random(
    config: TrialConfig,
    results: Path,
    seconds: Iterable[float],
    *,
    id: str = ID,
    needs: Mapping[str, str] | None = None,
) -> int:
    """Kill a trial after so many seconds, again and again; return how many kills struck it."""
    return sum(run(config, results, id=id, needs=needs, kill_after=pause) is None for pause in seconds)


# --- comparison ---------------------------------------------------------------------------------------------

CLOCKS = {"seconds", "images_per_second", "wall_seconds", "peak_memory_bytes", "provenance"}


def unlike(one: Path, other: Path, id: str = ID) -> list[str]:
    """Return where two finished trials differ, but for clocks, weights bit for bit; and what is left over."""
    import torch

    from bench.training import checkpoint

    found = []
    stores = Store(one), Store(other)

    def kept(record: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in (record or {}).items() if key not in CLOCKS}

    for name in ("read_trial", "summary"):
        a, b = (kept(getattr(store, name)(id)) for store in stores)
        found += [
            f"{name}: {key}: {a.get(key)!r}, {b.get(key)!r}" for key in {*a, *b} if a.get(key) != b.get(key)
        ]
    lines = [[kept(line) for line in store.epochs(id)] for store in stores]
    if lines[0] != lines[1]:
        found.append(f"epochs: {len(lines[0])} and {len(lines[1])} lines, not the same")
    weights = [checkpoint.load(store.folder(id) / "weights.pt", "cpu") for store in stores]
    if weights[0] is None or weights[1] is None:
        return [*found, "no final weights"]
    a, b = (state["network"] for state in weights)
    if a.keys() != b.keys():
        found.append("weights: other names")
    else:
        found += [f"weights: {name}" for name in a if not torch.equal(a[name], b[name])]
    for store in stores:
        differs = [line for line in store.resumes(id) if "differs_from" in line]
        found += [f"an epoch came out otherwise after a resume: {line['epoch']}" for line in differs]
        left = [
            p.name
            for p in store.folder(id).iterdir()
            if p.name.endswith(".tmp") or "checkpoint" in p.name or "previous" in p.name
        ]
        left += [
            path.name for path in store.folder(id).parent.glob(f"{id}.old-*")
        ]  # a record had to be set aside
        found += [f"left over: {name}" for name in left]
    return found


def resumed_steps(results: Path, id: str = ID) -> list[int]:
    """Return the steps at which a trial was taken up again."""
    return [line["step"] for line in Store(results).resumes(id) if "step" in line]
