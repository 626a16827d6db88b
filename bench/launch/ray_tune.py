"""Ray Tune places trials on the processors and GPUs of one machine or of a cluster. It owns no state of ours.

Records, resuming, retries and the order of trials are ours, the same with Ray and without. Tune asks a
searcher of ours for the next trial whenever there is room, so no trial waits for the last one of a wave.
Tune's own files go to a temporary folder. Ray is imported only by the functions below.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.launch.ray_trials import RayRun, start_home, train_together
from bench.launch.session import Session
from bench.machine.temporary import temporary_folder
from bench.records.files import write_atomic
from bench.records.locks import Owner

if TYPE_CHECKING:
    from bench.launch.ray_hooks import Stream

_LOGGERS = ("ray", "ray.tune", "ray.train", "ray.air")


def run_ray(
    session: Session,
    *,
    cpus: float,
    gpus: float,
    jobs: int | None = None,
    workers: int = 1,
    cluster: bool = False,
) -> None:
    """Run the session's trials through Ray Tune. Trials that want a device to themselves come last.

    Args:
        session: The trials and what is known of them.
        cpus: What a worker of a trial takes; fractions are allowed.
        gpus: Likewise.
        jobs: The most trials at once; None: no limit.
        workers: The workers of a trial.
        cluster: Whether the cluster, which must be active (``cluster``, the function), has nodes other than
            this machine, some of which may not see the results folder.
    """
    from bench.launch.ray_hooks import Stream

    device = "cuda:0" if gpus else "cpu"  # Ray shows a trial its own GPU alone
    root = Path(next(iter(session.tasks.values())).results)
    go_on, mark = _write_marks(root / ".locks")
    ray_run = RayRun(go_on, mark, workers, start_home(root, go_on) if cluster else None)

    def ask_to_stop() -> None:
        with contextlib.suppress(OSError):
            go_on.unlink()

    session.stop.hooks.append(ask_to_stop)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        while True:
            ready = session.ready()
            if any(task.id not in session.slots.alone for task in ready):
                _run_stream(session, Stream(device), ray_run, cpus, gpus, jobs)
            elif ready:  # a whole GPU each; on the CPU one after the other
                alone = Stream(device, alone=True)
                _run_stream(session, alone, ray_run, cpus, 1.0 if gpus else 0.0, jobs if gpus else 1)
            elif session.waiting():
                time.sleep(0.5)
            else:
                break
            session.tick()
    except KeyboardInterrupt:
        pass
    finally:
        session.stop.hooks.remove(ask_to_stop)
        ask_to_stop()
        with contextlib.suppress(OSError):
            mark.unlink()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _write_marks(folder: Path) -> tuple[Path, Path]:
    """Write this launcher's two marks into ``folder``; remove those of launchers that were killed.

    The first is taken away to stop the trials: that works on a full disk, too, and on every host of the
    cluster. The second stays until the end: a host that sees it shares the folder. Both say who wrote them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("go-on-*"), *folder.glob("here-*")]:
        with contextlib.suppress(OSError):
            owner = Owner.read(path.read_bytes())
            if owner is not None and owner.local and owner.dead():
                path.unlink()
    go_on = folder / f"go-on-{uuid.uuid4().hex[:8]}"
    mark = folder / go_on.name.replace("go-on", "here")
    for path in (go_on, mark):
        write_atomic(path, json.dumps(asdict(Owner.here())).encode())
    return go_on, mark


def _run_stream(
    session: Session, stream: Stream, ray_run: RayRun, cpus: float, gpus: float, jobs: int | None
) -> None:
    """Run trials through one ``Tuner`` until none is left that the stream may start."""
    from ray import tune

    from bench.launch import ray_hooks as hooks

    contested = any(task.bracket is not None for task in session.tasks.values())
    resources: Any = {"cpu": cpus, "gpu": gpus}
    if ray_run.workers > 1:  # the trial's own process waits for its workers, which Ray Train places
        resources = tune.PlacementGroupFactory([{"memory": 1.0}])
        teams = _teams_at_once(ray_run.workers, cpus, gpus)
        jobs = min(jobs or teams, teams)
    with (  # the session's progress keeps the terminal; what Tune prints is not for people here
        temporary_folder("tune") as storage,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        hooks.running.append(hooks.Running(session, stream))
        try:
            tune.Tuner(
                tune.with_resources(_trainable(ray_run, cpus, gpus), resources),
                tune_config=tune.TuneConfig(
                    search_alg=hooks.SessionSearcher(),
                    scheduler=hooks.AshaBrackets(session.reduction),
                    num_samples=-1,
                    max_concurrent_trials=jobs,
                    reuse_actors=not contested,  # a process whose trial was stopped in the middle ends
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(storage),
                    verbose=0,
                    callbacks=[hooks.SessionCallback(ray_run)],
                    stop=hooks.StopWhenAsked(),
                ),
            ).fit()
        finally:
            hooks.running.pop()
    for id in list(stream.given):  # Tune lost the trial without a word
        if id in session.running and not session.stop.is_set():
            session.died(id, "its process died (Ray gave no reason)")


def _trainable(ray_run: RayRun, cpus: float, gpus: float) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs in a trial's process; it reports epochs and the outcome as JSON."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        task = config["task"]

        def report(line: dict[str, Any]) -> None:
            told = {"epoch": json.dumps(line)}
            through = line.get("epoch") == task.config["epochs"]  # such a trial is not stopped any more
            if task.bracket is not None and line.get("val_acc") is not None and not through:
                told |= {"trained": line["epoch"], "held_out": line["val_acc"]}
            tune.report(told)

        if ray_run.workers > 1:
            outcome = train_together(task, ray_run, cpus, gpus, report)
        else:
            outcome = ray_run.run(task, report)
        tune.report({"outcome": json.dumps(asdict(outcome))})

    return trial


def _teams_at_once(workers: int, cpus: float, gpus: float) -> int:
    """Return how many trials of so many workers there is room for at once."""
    import ray

    there = ray.cluster_resources()
    room = [there.get(kind, 0.0) / (workers * each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return max(1, int(min(room) + 1e-9))
