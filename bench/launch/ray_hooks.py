"""What Ray Tune calls in the launcher's process: the searcher, the callback, the scheduler and the stopper.

Tune pickles these objects. So the session and the stream stay outside of them, in ``running``. This module
imports Ray: it is imported where Ray is about to run.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from bench.launch.execute import Outcome, Task
from bench.launch.ray_trials import RayRun
from bench.launch.session import Session

UNREACHABLE = "its process cannot be reached"
NODE_DEATHS = 3  # that a trial survives within one run
NODE_SILENCE = 60.0  # seconds after which Ray has noticed a machine that is gone without a word
NODE_REFUSAL = 20.0  # the same for one that refuses connections: Ray looks five times, every three seconds


@dataclass
class Stream:
    """Hands the session's trials to Tune as they become ready; ``alone``: those that run alone.

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


class Running(NamedTuple):
    """The session and the stream that one ``Tuner`` serves."""

    session: Session
    stream: Stream


running: list[Running] = []  # the last one is the one that runs


class SessionSearcher(Searcher):
    """Tune's searcher: suggests the session's next trial. It saves no state: that is the records."""

    def suggest(self, trial_id: str) -> Any:
        session, stream = running[-1]
        task = stream.next(session)
        if task is not None:
            return {"trial": task.id, "task": task}
        session.tick()
        return Searcher.FINISHED if stream.over(session) else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Do nothing: the session hears of the end from ``SessionCallback``."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class SessionCallback(tune.Callback):
    """Tells the session what Tune hears from the trials."""

    def __init__(self, ray_run: RayRun) -> None:
        self.ray_run = ray_run

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        nodes = live_nodes() if self.ray_run.home is not None else set()
        self.ray_run.nodes[trial.config["trial"]] = nodes
        running[-1].session.started(trial.config["trial"])

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        session, stream = running[-1]
        if result.get("epoch"):
            session.epoch(trial.config["trial"], json.loads(result["epoch"]))
        if result.get("outcome"):
            stream.given.discard(trial.config["trial"])
            session.finished(Outcome(**json.loads(result["outcome"])))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        session, stream = running[-1]
        stream.given.discard(trial.config["trial"])
        lost(session, self.ray_run, trial.config["trial"], cause_of_death(Path(trial.local_path)))

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        running[-1].session.tick()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        id, (session, stream) = trial.config["trial"], running[-1]
        if id in stream.given and trial.config["task"].bracket is not None:  # ASHA stopped the trial
            stream.given.discard(id)
            epoch = int((trial.last_result or {}).get("trained") or 0)
            session.finished(Outcome(id, "dropped", f"stopped by ASHA after epoch {epoch}", epoch=epoch))


class AshaBrackets(FIFOScheduler):
    """Ray Tune's ASHA, one for each bracket: arms and grid points do not compete with each other."""

    def __init__(self, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
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
                grace_period=max(1, task.config["epochs"] // self.reduction**2),
                reduction_factor=self.reduction,
            )
        self.schedulers[task.bracket].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        bracket = trial.config["task"].bracket
        if bracket is None or "held_out" not in result:
            return FIFOScheduler.CONTINUE
        return self.schedulers[bracket].on_trial_result(tune_controller, trial, result)


class StopWhenAsked(tune.Stopper):
    """Ends the stream once a stop was asked for and every running trial has reached its checkpoint."""

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        session = running[-1].session
        return session.stop.is_set() and not session.running


def live_nodes() -> set[str]:
    """Return the nodes of the cluster."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def lost(session: Session, ray_run: RayRun, id: str, reason: str) -> None:
    """Record that a trial's process is gone, or queue the trial again where its node is gone, too."""
    if ray_run.home is not None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(ray_run.home.abandon.remote(id))
        end = time.monotonic() + (NODE_SILENCE if UNREACHABLE in reason else NODE_REFUSAL)
        while not ray_run.nodes.get(id, set()) - (there := live_nodes()) and time.monotonic() < end:
            time.sleep(0.5)
        if ray_run.nodes.get(id, set()) - there:
            ray_run.lost[id] = ray_run.lost.get(id, 0) + 1
            if ray_run.lost[id] <= NODE_DEATHS and not session.stop.is_set():
                label = session.progress.labels.get(id, id)
                session.progress.note(f"{label}: its node died; it goes on from its last checkpoint")
                return session.finished(Outcome(id, "busy", "its node died"))  # until its lock is free
            reason = "its process died (the node died)"
    session.died(id, reason)


def cause_of_death(folder: Path) -> str:
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
    reason = next((why for name, why in known.items() if name in text), "Ray gave no reason")
    return f"its process died ({reason})"
