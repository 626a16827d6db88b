"""Ray Tune places trials on the processors and GPUs of one machine or of a cluster. It owns no state of ours.

Records, resuming, retries and the order of trials are ours, the same with Ray and without. Tune asks a searcher of ours
for the next trial whenever there is room, so no trial waits for the last one of a wave. Tune's own files go to a
temporary folder.
Ray is imported only by the functions below.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.launch.data_parallel import LEAD, TIMEOUT, WorkerDied, backend, lead_or_follow
from bench.launch.execute import Outcome, Task, execute
from bench.launch.remote import Home, execute_remotely, with_local_data
from bench.launch.session import Session
from bench.temporary import temporary_folder

# The session and the stream that run, out of the reach of Tune, which pickles its callbacks and its searcher.
_current: list[Session] = []
_streams: list[Stream] = []
UNREACHABLE = "its process cannot be reached"
NODE_DEATHS = 3  # that a trial survives within one run
NODE_SILENCE = 60.0  # seconds after which Ray has noticed a machine that is gone without a word
_LOGGERS = ("ray", "ray.tune", "ray.train", "ray.air")


def _session() -> Session:
    return _current[-1]


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

    ``cpus`` and ``gpus`` are what a worker of a trial takes (fractions allowed), ``workers`` how many a trial has,
    ``jobs`` the most trials at once. ``cluster`` (the function) must be active; the argument says that it has nodes
    other than this machine, some of which may not see the results folder.
    """
    device = "cuda:0" if gpus else "cpu"  # Ray shows a trial its own GPU alone
    root = Path(next(iter(session.tasks.values())).results)
    go_on = root / ".locks" / f"go-on-{uuid.uuid4().hex[:8]}"
    go_on.parent.mkdir(parents=True, exist_ok=True)
    go_on.touch()  # taken away to stop: that works on a full disk, too, and on every host of the cluster
    mark = go_on.with_name(
        go_on.name.replace("go-on", "here")
    )  # stays: a host that sees it shares the folder
    mark.touch()
    ray_run = RayRun(go_on, mark, workers, _home(root, go_on) if cluster else None)

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
        session.stop.hooks.remove(tell)
        _current.remove(session)
        tell()
        with contextlib.suppress(OSError):
            mark.unlink()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@dataclass(frozen=True)
class RayRun:
    """What a trial's process must know of the run it belongs to, wherever it is."""

    go_on: Path  # taken away to stop
    mark: Path  # seen where the results folder is
    workers: int
    home: (
        Any  # the actor that writes the results of nodes that do not see the folder; None without other nodes
    )

    nodes: dict[str, set[str]] = field(default_factory=dict)  # the cluster's nodes when a trial started
    lost: dict[str, int] = field(default_factory=dict)  # how often a trial's node died

    def run(self, task: Task, on_epoch: Callable[[dict[str, Any]], None]) -> Outcome:
        """Run a trial in this process (with the other workers of its team)."""
        if self.home is None:
            return execute(task, stop=lambda: not self.go_on.exists(), on_epoch=on_epoch)
        try:
            task = with_local_data(task)
        except InputError as error:
            return Outcome(task.id, "refused", str(error))
        if self.mark.exists():
            return execute(task, stop=lambda: not self.go_on.exists(), on_epoch=on_epoch)
        return execute_remotely(task, self.home, on_epoch)


def _home(root: Path, go_on: Path) -> Any:
    """Return the actor that keeps the results folder, on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Home)
    return actor.options(num_cpus=0, max_concurrency=64, scheduling_strategy=here).remote(
        str(root), str(go_on)
    )


def _train_together(
    task: Task, ray_run: RayRun, cpus: float, gpus: float, on_epoch: Callable[[Any], None]
) -> Outcome:
    """Run a trial by a team of Ray Train's workers, from inside a Tune function; raises what ended the team.

    The first worker runs the trial as a single one would (lock, log, records) and tells of its epochs through a queue.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    told = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    outcome: list[Outcome] = []

    def hear() -> None:
        while not told.empty():
            said = told.get()
            if isinstance(said, Outcome):
                outcome.append(said)
            else:
                on_epoch(said)

    try:
        with temporary_folder("train") as storage, ThreadPoolExecutor(1) as executor:
            trainer = TorchTrainer(
                _work_together,
                train_loop_config={"task": task, "ray_run": ray_run, "told": told},
                scaling_config=ScalingConfig(
                    num_workers=ray_run.workers, use_gpu=gpus > 0, resources_per_worker=resources
                ),
                torch_config=TorchConfig(
                    backend=backend(task.device), timeout_s=int(TIMEOUT.total_seconds())
                ),
                run_config=RunConfig(name="trial", storage_path=str(storage)),
            )
            ending = executor.submit(trainer.fit)
            while not ending.done():
                time.sleep(0.5)
                hear()
        hear()
        if not outcome:
            ending.result()
            raise WorkerDied("Ray Train ended without a word")
        return outcome[0]
    finally:
        told.shutdown()


def _work_together(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does."""
    import ray.train.torch

    task, ray_run, told = config["task"], config["ray_run"], config["told"]
    device = str(ray.train.torch.get_device())

    def lead() -> int:
        outcome = ray_run.run(replace(task, device=device, function=LEAD), told.put)
        told.put(outcome)
        if outcome.status == "failed" and outcome.trained:
            raise WorkerDied(outcome.reason)  # the others may wait for this one: Ray ends them
        return 0

    lead_or_follow(device, lead)


@dataclass
class Stream:
    """Hands the trials of the session to Tune one by one, as they become ready; ``alone``: those without company.

    ``given`` are the trials that Tune has and that have not ended.
    """

    device: str
    alone: bool = False
    given: set[str] = field(default_factory=set)

    def next(self, session: Session) -> Task | None:
        """Return the next trial to start, None while there is none."""
        for task in session.ready():
            if task.id not in self.given and (task.id in session.slots.alone) == self.alone:
                self.given.add(task.id)
                return replace(task, device=self.device)
        return None

    def over(self, session: Session) -> bool:
        """Return whether no further trial will come: nothing is running that others wait for."""
        return session.stop.is_set() or not (self.given or session.running or session.waiting())


def _run_stream(
    session: Session, stream: Stream, ray_run: RayRun, cpus: float, gpus: float, jobs: int | None
) -> None:
    """Run trials through one ``Tuner`` until none is left that the stream may start."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
    from ray.tune.search import Searcher

    contested = any(task.bracket is not None for task in session.tasks.values())
    reduction = session.reduction
    resources: Any = {"cpu": cpus, "gpu": gpus}
    if ray_run.workers > 1:  # the trial's own process waits for its workers, which Ray Train places
        resources = tune.PlacementGroupFactory([{"memory": 1.0}])
        teams = _teams(ray_run.workers, cpus, gpus)
        jobs = min(jobs or teams, teams)

    def trial(config: dict[str, Any]) -> None:
        task = config["task"]

        def report(line: dict[str, Any]) -> None:
            told = {"epoch": json.dumps(line)}
            through = line.get("epoch") == task.config["epochs"]  # such a trial is not stopped any more
            if task.bracket is not None and line.get("val_acc") is not None and not through:
                told |= {"trained": line["epoch"], "held_out": line["val_acc"]}
            tune.report(told)

        if ray_run.workers > 1:
            outcome = _train_together(task, ray_run, cpus, gpus, report)
        else:
            outcome = ray_run.run(task, report)
        tune.report({"outcome": json.dumps(asdict(outcome))})

    class Queue(Searcher):
        """Tune's searcher: the session's queue. Tune pickles the searcher, so the session stays outside."""

        def suggest(self, trial_id: str) -> Any:
            session, stream = _session(), _streams[-1]
            task = stream.next(session)
            if task is not None:
                return {"trial": task.id, "task": task}
            session.tick()
            return Searcher.FINISHED if stream.over(session) else None

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            """Nothing: the session hears of the end from the callback."""

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the records are the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    class Watch(tune.Callback):
        """Tells the session what Tune hears from the trials."""

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            ray_run.nodes[trial.config["trial"]] = _alive() if ray_run.home is not None else set()
            _session().started(trial.config["trial"])

        def on_trial_result(
            self, iteration: int, trials: list, trial: Any, result: dict, **info: Any
        ) -> None:
            if result.get("epoch"):
                _session().epoch(trial.config["trial"], json.loads(result["epoch"]))
            if result.get("outcome"):
                _streams[-1].given.discard(trial.config["trial"])
                _session().finished(Outcome(**json.loads(result["outcome"])))

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            _streams[-1].given.discard(trial.config["trial"])
            _lost(_session(), ray_run, trial.config["trial"], _death(Path(trial.local_path)))

        def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
            _session().tick()

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            id, stream = trial.config["trial"], _streams[-1]
            if id in stream.given and trial.config["task"].bracket is not None:  # ASHA stopped the trial
                stream.given.discard(id)
                epoch = int((trial.last_result or {}).get("trained") or 0)
                reason = f"stopped by ASHA after epoch {epoch}"
                _session().finished(Outcome(id, "dropped", reason, epoch=epoch))

    class Brackets(FIFOScheduler):
        """Ray Tune's ASHA, one for the trials of each bracket: arms and grid points do not compete with each other."""

        def __init__(self) -> None:
            super().__init__()
            self.schedulers: dict[str, Any] = {}

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            task = trial.config["task"]
            if task.bracket is None:
                return
            if task.bracket not in self.schedulers:
                self.schedulers[task.bracket] = ASHAScheduler(
                    time_attr="trained",
                    metric="held_out",
                    mode="max",
                    max_t=task.config["epochs"] + 1,
                    grace_period=max(1, task.config["epochs"] // reduction**2),
                    reduction_factor=reduction,
                )
            self.schedulers[task.bracket].on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
            bracket = trial.config["task"].bracket
            if bracket is None or "held_out" not in result:
                return FIFOScheduler.CONTINUE
            return self.schedulers[bracket].on_trial_result(tune_controller, trial, result)

    class Ended(tune.Stopper):
        """Ends the stream once a stop was asked for and every running trial has reached its checkpoint."""

        def __call__(self, trial_id: str, result: dict) -> bool:
            return False

        def stop_all(self) -> bool:
            return _session().stop.is_set() and not _session().running

    with (  # the session's progress keeps the stream that it was given; what Tune prints is not for people here
        temporary_folder("tune") as storage,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        _streams.append(stream)
        try:
            tune.Tuner(
                tune.with_resources(trial, resources),
                tune_config=tune.TuneConfig(
                    search_alg=Queue(),
                    scheduler=Brackets(),
                    num_samples=-1,
                    max_concurrent_trials=jobs,
                    reuse_actors=not contested,  # a process whose trial was stopped in the middle ends
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(storage), verbose=0, callbacks=[Watch()], stop=Ended()
                ),
            ).fit()
        finally:
            _streams.remove(stream)
    for id in list(stream.given):  # Tune lost the trial without a word
        if id in session.running and not session.stop.is_set():
            session.died(id, "its process died (Ray gave no reason)")


def _teams(workers: int, cpus: float, gpus: float) -> int:
    """Return how many trials of so many workers there is room for at once."""
    import ray

    there = ray.cluster_resources()
    room = [there.get(kind, 0.0) / (workers * each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return max(1, int(min(room) + 1e-9))


def _alive() -> set[str]:
    """Return the nodes of the cluster."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _lost(session: Session, ray_run: RayRun, id: str, reason: str) -> None:
    """Record that a trial's process is gone; where a node of the cluster is, too, put it back into the queue."""
    if ray_run.home is not None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(ray_run.home.abandon.remote(id))
        end = time.monotonic() + (NODE_SILENCE if UNREACHABLE in reason else 3.0)
        while not ray_run.nodes.get(id, set()) - (alive := _alive()) and time.monotonic() < end:
            time.sleep(0.5)
        if ray_run.nodes.get(id, set()) - alive:
            lost = ray_run.lost[id] = ray_run.lost.get(id, 0) + 1
            if lost <= NODE_DEATHS and not session.stop.is_set():
                label = session.progress.labels.get(id, id)
                session.progress.note(f"{label}: its node died; it goes on from its last checkpoint")
                return session.finished(Outcome(id, "busy", "its node died"))  # until its lock is free
            reason = "its process died (the node died)"
    session.died(id, reason)


def _death(folder: Path) -> str:
    """Return why a trial's process died, from the exception that Tune wrote down."""
    text = ""
    with contextlib.suppress(OSError):
        text = "".join(path.read_text(errors="replace") for path in folder.glob("error.txt"))
    known = {  # from Ray's messages
        "running low on memory": "the node was out of memory",
        "its node has died": "the node died",
        "its worker process has died": "the process is gone",
        "actor died": "the process is gone",
        "unavailable": UNREACHABLE,
    }
    return f"its process died ({next((why for name, why in known.items() if name in text), 'Ray gave no reason')})"
