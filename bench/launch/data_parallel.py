"""Workers: the processes that train one trial together, started here or by ``torchrun``.

A trial's ``device`` is then a list, "cuda:0,cuda:1" or "cpu,cpu": a worker on each. The process that runs the
trial (and holds its lock, and writes how the trial ended) trains nothing itself: it starts the workers, hands
on what the first worker reports, and ends all workers when one is gone, so that the whole trial goes on from
its last checkpoint. ``bench.training.distributed`` is the workers' part. No torch is imported before it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.launch.execute import TRAIN, execute
from bench.launch.session import Session
from bench.machine.foreign import Grant, current, granted
from bench.machine.processes import Child, portable, wait
from bench.machine.temporary import temporary_folder
from bench.training.job import Job, function_called

if TYPE_CHECKING:
    from bench.training.distributed import Team

TRAIN_TOGETHER = "bench.launch.data_parallel:run_trial"
LEAD = "bench.launch.data_parallel:lead_trial"
# For what one worker does while the others wait, for instance reading a large data set.
TIMEOUT = timedelta(minutes=30)
# Seconds in which the cause of a failure arrives: workers notice a dead one before their parent does, on a
# busy machine much earlier. The wait ends when all workers are gone, so only a worker that hangs costs it.
PATIENCE = 60.0


class Call(NamedTuple):
    """What each worker of a trial is told: the training function, its job, and what it may import."""

    function: str
    job: Job
    grant: Grant


class WorkerDied(RuntimeError):
    """One of a trial's workers is gone."""


def check_workers(config: TrialConfig, workers: int) -> None:
    """Raise ``InputError`` where a trial's batch cannot be shared by so many workers."""
    part = config.batch_size // config.micro_batches
    if part % workers:
        what = "batch" if config.micro_batches == 1 else "micro-batch"
        raise InputError(f"batch_size: a {what} of {part} images does not divide among {workers} workers")
    own, group = part // workers, config.batch_norm_group
    if group is not None and group != part and own % group:
        raise InputError(
            f"batch_norm_group: each of {workers} workers has {own} images of a batch, which groups "
            f"of {group} do not divide; take fewer workers, or leave it out for statistics of the whole batch"
        )


def device_groups(devices: Sequence[str], workers: int) -> list[str]:
    """Return the device lists of the trials that can run at once: ``workers`` devices each, with commas.

    Raises ``InputError`` where there are fewer GPUs than workers; on the CPU any number of workers may share
    the cores.
    """
    if devices[0] == "cpu":
        return [",".join(["cpu"] * workers)]
    if len(devices) < workers:
        raise InputError(
            f"--workers-per-trial {workers}: there are {len(devices)} GPUs here ({', '.join(devices)})"
        )
    return [",".join(devices[at : at + workers]) for at in range(0, len(devices) - workers + 1, workers)]


def backend(device: str) -> str:
    """Return the backends of ``torch.distributed``: objects cross on the CPU, tensors on their device."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


# --- workers of this machine --------------------------------------------------------------------------------


def run_trial(job: Job, function: str = TRAIN) -> str:
    """Train one trial as ``bench.training.trial.run_trial``, by a process on each of the job's devices.

    ``function`` is what each of them calls, with ``team`` besides. Raises what a worker raised, or
    ``WorkerDied``.
    """
    devices = job.device.split(",")
    check_workers(job.config, len(devices))
    call = Call(function, job.alone(), current())
    workers: list[Child] = []
    with temporary_folder("workers") as folder:
        try:
            for rank in range(len(devices)):
                name = f"bench-worker-{rank}"
                workers.append(Child(_run_worker, rank, devices, str(folder), call, name=name))
            return _supervise(workers, job.stop, job.on_epoch)
        finally:
            for worker in workers:
                worker.end()


def _supervise(
    workers: Sequence[Child], stop: Callable[[], bool], on_epoch: Callable[[dict[str, Any]], None] | None
) -> str:
    """Return how the trial ended, from the first worker, once all workers are through.

    Raises what the first failing worker raised, or ``WorkerDied``.
    """
    ended: dict[int, str] = {}
    errors: list[BaseException] = []
    gone: set[int] = set()
    deadline = float("inf")
    asked = False
    while len(ended) < len(workers):
        if not asked and stop():
            asked = True
            with contextlib.suppress(OSError):
                workers[0].send("stop")
        wait([w for rank, w in enumerate(workers) if rank not in gone | ended.keys()], timeout=0.2)
        for rank, worker in enumerate(workers):
            if rank not in gone and not _receive(worker, rank, ended, errors, on_epoch):
                gone.add(rank)
        dead = sorted(gone - ended.keys())
        for rank in dead:
            code = workers[rank].exit_code(patience=1.0)
            if code is not None and code < 0:
                raise WorkerDied(f"worker {rank} of {len(workers)} died (signal {-code})")
        if errors or dead:
            deadline = min(deadline, time.monotonic() + PATIENCE)
            if time.monotonic() > deadline or len(gone | ended.keys()) == len(workers):
                raise errors[0] if errors else WorkerDied(f"worker {dead[0]} of {len(workers)} died")
    return ended[0]


def _receive(
    worker: Child,
    rank: int,
    ended: dict[int, str],
    errors: list[BaseException],
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> bool:
    """Note what a worker has sent so far; return whether the worker is still there."""
    try:
        for kind, value in worker.received():
            if kind == "epoch" and on_epoch is not None:
                on_epoch(value)
            elif kind == "end":
                ended[rank] = value
            elif kind == "error":
                errors.append(value)
    except EOFError:
        return False
    return True


def _run_worker(
    pipe: connection.Connection, rank: int, devices: Sequence[str], folder: str, call: Call
) -> None:
    """Train as worker ``rank`` of a team that meets in ``folder``: what a worker's process does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # signals reach the whole group; the parent decides
    faulthandler.enable()
    asked = threading.Event()

    def listen() -> None:
        try:
            while pipe.recv() == "stop":
                asked.set()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    try:
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        device = devices[rank]
        join_team(device, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(devices))
        status = train(call, device, stop=asked.is_set, on_epoch=lambda line: pipe.send(("epoch", line)))
        pipe.send(("end", status))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("error", portable(error)))
        raise SystemExit(1) from None


def join_team(device: str, **arguments: Any) -> None:
    """Join the process group; a worker on a GPU sees to it that this is the current one."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend(device), timeout=TIMEOUT, **arguments)


def train(
    call: Call, device: str, *, stop: Callable[[], bool], on_epoch: Callable[[dict[str, Any]], None]
) -> str:
    """Train the trial ``call`` as one of a team that was joined before; return how it ended."""
    from bench.training.distributed import Team

    team = Team.joined()
    _log_to_stderr(team)
    job = replace(call.job, device=device, stop=stop, on_epoch=on_epoch if team.first else None)
    with granted(call.grant):
        return function_called(call.function)(job, team=team)


def _log_to_stderr(team: Team) -> None:
    """Send this worker's messages where its output goes, the first one's in full."""
    print(f"worker {team.rank} of {team.size}: process {os.getpid()}", file=sys.stderr, flush=True)
    logger = logging.getLogger("bench")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)s %(name)s (worker {team.rank}): %(message)s")
        )
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if team.first else logging.WARNING)


# --- workers started by torchrun ----------------------------------------------------------------------------


def torchrun_workers() -> int:
    """Return how many workers ``torchrun`` started, this process among them; 0 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def run_as_team(device: str, lead: Callable[[], int]) -> int:
    """Do ``lead`` in the first of ``torchrun``'s processes; train what it starts in all others.

    Every process must call this; the exit status is returned. ``device`` is "cpu" or "cuda": a worker takes
    the GPU of its local rank.
    """
    import torch

    if os.environ["RANK"] != "0":
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun hands them to all; the first one stops
            signal.signal(number, signal.SIG_IGN)
    own = own_device(device)
    join_team(own)
    status = lead_or_follow(own, lead)
    torch.distributed.destroy_process_group()
    return status


def own_device(device: str) -> str:
    """Return the device of this process of ``torchrun``; ``InputError`` for fewer GPUs than workers."""
    if device == "cpu":
        return device
    import torch

    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count:
        raise InputError(
            f"torchrun started {rank + 1} workers or more on this machine, which has {count} GPUs"
        )
    return f"cuda:{rank}"


def lead_or_follow(device: str, lead: Callable[[], int]) -> int:
    """Do ``lead`` in the first worker of the joined team; train what it starts in all others.

    What goes wrong in ``lead`` but for wrong input leaves the other workers waiting: all of them are to be
    ended then.
    """
    import torch

    if torch.distributed.get_rank() == 0:
        try:
            status = lead()
        except InputError:
            torch.distributed.broadcast_object_list([None])  # no more trials
            raise
        torch.distributed.broadcast_object_list([None])
        return status
    while call := _next_call():
        with contextlib.suppress(InputError):  # raised on all workers, and said by the first
            train(call, device, stop=lambda: False, on_epoch=lambda line: None)
    return 0


def _next_call() -> Call | None:
    import torch

    answer: list[Any] = [None]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def lead_trial(job: Job) -> str:
    """Train one trial with the other processes of ``torchrun``: the part of the first one."""
    import torch

    check_workers(job.config, torch.distributed.get_world_size())
    call = Call(TRAIN, job.alone(), current())
    torch.distributed.broadcast_object_list([call])
    try:
        return train(call, job.device, stop=job.stop, on_epoch=job.on_epoch or (lambda line: None))
    except RuntimeError as error:
        if re.search("onnection (closed|reset) by peer|NCCL", str(error)):
            raise WorkerDied(f"another worker of the trial is gone ({error})") from error
        raise


def run_torchrun(session: Session, device: str) -> None:
    """Run the session's trials one after the other, each on all of ``torchrun``'s processes.

    Where a trial fails the other workers may wait for this one, so all of them are ended (``torchrun`` starts
    them again where ``--max-restarts`` says so, and the trial goes on from its last checkpoint).
    """
    while task := session.next_task():
        session.started(task.id)
        outcome = execute(
            replace(task, device=device, function=LEAD),
            stop=session.stop.is_set,
            on_epoch=functools.partial(session.epoch, task.id),
        )
        session.finished(outcome)
        session.tick()
        if outcome.status == "failed" and outcome.trained:
            session.close()
            raise WorkerDied(f"trial {task.id} failed: {outcome.reason}")
        if outcome.status == "stopped":
            break
