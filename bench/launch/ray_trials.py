"""A trial in a process that Ray started, here or on another node; or in several, which form a team.

Ray is imported only by the functions below.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.launch.data_parallel import LEAD, TIMEOUT, WorkerDied, backend, lead_or_follow
from bench.launch.execute import Outcome, Task, execute
from bench.launch.remote import Home, execute_remotely, with_local_data
from bench.machine.temporary import temporary_folder


@dataclass(frozen=True)
class RayRun:
    """What a trial's process must know of the run it belongs to, wherever it is."""

    go_on: Path  # taken away to stop
    mark: Path  # seen where the results folder is
    workers: int
    home: Any  # the actor that writes the results of nodes without the folder; None without other nodes
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


def start_home(root: Path, go_on: Path) -> Any:
    """Return the actor that keeps the results folder, on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Home)
    return actor.options(num_cpus=0, max_concurrency=64, scheduling_strategy=here).remote(
        str(root), str(go_on)
    )


def train_together(
    task: Task, ray_run: RayRun, cpus: float, gpus: float, on_epoch: Callable[[Any], None]
) -> Outcome:
    """Run a trial by a team of Ray Train's workers, from inside a Tune function; raises what ended the team.

    The first worker runs the trial as a single one would (lock, log, records).

    Args:
        task: The trial.
        ray_run: The run; it has the number of workers.
        cpus: What a worker takes.
        gpus: Likewise.
        on_epoch: Is called with each epoch of the first worker, which a queue carries.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    told = Queue(actor_options={"num_cpus": 0})
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    outcome: list[Outcome] = []

    def receive() -> None:
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
                receive()
        receive()
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
