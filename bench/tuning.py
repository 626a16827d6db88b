"""Ray Tune places trials on the processors and GPUs of one machine or of a cluster. It owns no state of ours.

Records, resuming, retries and the order of trials are ours, the same with Ray and without; Tune is given a grid over
the ids of the trials that can start, and what a trial needs of the hardware. Its own files go to a temporary folder.
Ray is imported only by the functions below.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.running import Outcome, Session, Task, execute

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_current: list[Session] = []  # the one that runs, out of the reach of Tune, which pickles its callbacks
_LOGGERS = ("ray", "ray.tune", "ray.train", "ray.air")


def _session() -> Session:
    return _current[-1]


def unavailable(address: str | None = None) -> str:
    """Return why Ray cannot be imported, "" where it can; ``address`` is that of the cluster to be joined."""
    if address:  # Ray reads this at its import
        _authenticate()
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    try:
        import ray.tune  # noqa: F401
    except Exception as error:  # a broken installation raises all sorts of things
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@contextlib.contextmanager
def cluster(address: str | None, devices: Sequence[str]) -> Iterator[dict[str, float]]:
    """Start Ray on this machine, or join the cluster at ``address``; yield its resources ("CPU", "GPU", ...).

    Raises ``InputError`` where the cluster cannot be reached.
    """
    import ray

    folder = None
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        arguments["address"] = address
    else:
        gpus = [device.partition(":")[2] for device in devices if device.startswith("cuda")]
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
        arguments.update(include_dashboard=False, num_gpus=len(gpus))
        if len(tempfile.gettempdir()) < 24:  # a socket's path has 107 bytes at most
            folder = tempfile.mkdtemp(prefix="bench-ray-")
            arguments["_temp_dir"] = folder
    try:
        try:
            ray.init(**arguments)
        except Exception as error:
            where = f"--address {address}: the cluster cannot be reached" if address else "Ray cannot be started"
            hint = "is its token in ~/.ray/auth_token here, too? " if address else ""
            raise InputError(f"{where} ({str(error).strip().splitlines()[0]}); {hint}--no-ray does without") from error
        yield ray.cluster_resources()
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _authenticate() -> None:
    """Show the cluster the user's token, as ``ray start`` (2.59 and later) wants it, where there is one.

    Ray reads it from $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, but only in this mode.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (named or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ["RAY_AUTH_MODE"] = "token"


def _visible(gpus: Sequence[str]) -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` for these of the GPUs that are visible now."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    return ",".join(names[int(gpu)] if names else gpu for gpu in gpus)


def check_resources(resources: dict[str, float], cpus: float, gpus: float) -> None:
    """Raise ``InputError`` where one trial asks for more than there is: it would wait for ever."""
    for option, wanted, kind in (("--cpus-per-trial", cpus, "CPU"), ("--gpus-per-trial", gpus, "GPU")):
        if wanted > resources.get(kind, 0.0):
            raise InputError(f"{option} {wanted:g}: Ray finds {resources.get(kind, 0.0):g} {kind}s in all")


def run_ray(session: Session, *, cpus: float, gpus: float, jobs: int | None = None) -> None:
    """Run the session's trials through Ray Tune, wave by wave: what a trial needs is done before its wave begins.

    ``cpus`` and ``gpus`` are what a trial takes (fractions allowed), ``jobs`` the most trials at once. ``cluster``
    must be active.
    """
    device = "cuda:0" if gpus else "cpu"  # Ray shows a trial its own GPU alone
    go_on = Path(next(iter(session.tasks.values())).results) / ".locks" / f"go-on-{uuid.uuid4().hex[:8]}"
    go_on.parent.mkdir(parents=True, exist_ok=True)
    go_on.touch()  # taken away to stop: that works on a full disk, too, and on every host of the cluster

    def tell() -> None:
        with contextlib.suppress(OSError):
            go_on.unlink()

    session.stop.hooks.append(tell)
    _current.append(session)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        while True:
            wave = [replace(task, device=device) for task in session.ready()]
            if wave:
                _run_wave(session, wave, go_on, cpus, gpus, jobs)
            elif session.waiting():
                time.sleep(0.5)
            else:
                break
            session.tick()
    except KeyboardInterrupt:
        pass
    finally:
        session.stop.hooks.remove(tell)
        _current.remove(session)
        tell()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _run_wave(session: Session, wave: Sequence[Task], go_on: Path, cpus: float, gpus: float, jobs: int | None) -> None:
    from ray import tune

    tasks = {task.id: task for task in wave}

    def trial(config: dict[str, Any]) -> None:
        outcome = execute(
            tasks[config["trial"]],
            stop=lambda: not go_on.exists(),
            on_epoch=lambda line: tune.report({"epoch": json.dumps(line)}),
        )
        tune.report({"outcome": json.dumps(asdict(outcome))})

    class Watch(tune.Callback):
        """Tells the session what Tune hears from the trials."""

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            _session().started(trial.config["trial"])

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if result.get("epoch"):
                _session().epoch(trial.config["trial"], json.loads(result["epoch"]))
            if result.get("outcome"):
                _session().finished(Outcome(**json.loads(result["outcome"])))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            _session().died(trial.config["trial"], _death(Path(trial.local_path)))

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            _session().tick()

    class Ended(tune.Stopper):
        """Ends the wave once a stop was asked for and every running trial has reached its checkpoint."""

        def __call__(self, trial_id: str, result: dict) -> bool:
            return False

        def stop_all(self) -> bool:
            return _session().stop.is_set() and not _session().running

    storage = tempfile.mkdtemp(prefix="bench-tune-")
    try:
        with (  # the session's progress keeps the stream it was given; nothing of Tune's is for people here
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            tune.Tuner(
                tune.with_resources(trial, {"cpu": cpus, "gpu": gpus}),
                param_space={"trial": tune.grid_search(list(tasks))},
                tune_config=tune.TuneConfig(max_concurrent_trials=jobs, reuse_actors=True),
                run_config=tune.RunConfig(
                    name="wave", storage_path=storage, verbose=0, callbacks=[Watch()], stop=Ended()
                ),
            ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    for id in tasks:  # Tune lost it without a word
        if id in session.running and not session.stop.is_set():
            session.died(id, "worker died (Ray gave no reason)")


def _death(folder: Path) -> str:
    """Return why a worker died, from the exception that Tune wrote down."""
    text = ""
    with contextlib.suppress(OSError):
        text = "".join(path.read_text(errors="replace") for path in folder.glob("error.txt"))
    known = {  # from Ray's messages
        "running low on memory": "the node was out of memory",
        "its node has died": "its node died",
        "its worker process has died": "its process is gone",
        "actor died": "its process is gone",
        "unavailable": "its process cannot be reached",
    }
    return f"worker died ({next((why for name, why in known.items() if name in text), 'Ray gave no reason')})"
