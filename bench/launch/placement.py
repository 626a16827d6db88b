"""Where a run's trials go: to Ray, to processes of this machine, or to those of ``torchrun``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.errors import InputError
from bench.launch import gpu_sharing
from bench.launch.data_parallel import device_groups, own_device, run_torchrun, torchrun_workers
from bench.launch.options import RunOptions
from bench.launch.pool import Pool
from bench.launch.session import Session
from bench.machine.devices import cpu_count
from bench.text import plural, say


@contextlib.contextmanager
def shared_gpus(options: RunOptions, session: Session, devices: Sequence[str]) -> Iterator[None]:
    """Find out how many trials share each GPU of this machine, and let their kernels overlap meanwhile."""
    if not devices[0].startswith("cuda") or options.workers_per_trial > 1:
        yield
        return
    share = options.gpu_share
    with gpu_sharing.overlapping_kernels(devices, share) as words:
        configs = {id: task.config for id, task in session.tasks.items()}
        session.slots, more = gpu_sharing.measured_slots(
            configs, devices, share, cpu_count(), options.jobs, str(options.data_dir)
        )
        for text in filter(None, (words, more)):
            say(text)
        yield


def place(options: RunOptions, session: Session, devices: Sequence[str]) -> None:
    """Run the session's trials with Ray, or without Ray where that is wanted or Ray is not to be had.

    ``devices`` are this machine's ("cpu", or "cuda:0", ...), or "cluster" where the trials go to
    ``--address``.
    """
    if options.no_ray:
        _check_brackets(session)
    if torchrun_workers():
        say(f"one trial at a time on the {options.workers_per_trial} workers of torchrun")
        run_torchrun(session, own_device("cpu" if devices[0] == "cpu" else "cuda"))
    elif options.no_ray or not _place_with_ray(options, session, devices):
        _place_in_processes(options, session, devices)


def _check_brackets(session: Session) -> None:
    """Raise ``InputError`` where a search wants Ray Tune's ASHA, which is not there."""
    if any(task.bracket is not None for task in session.tasks.values()):
        raise InputError("tuning.scheduler: 'asha' is Ray Tune's; 'halving' does without Ray")


def _place_with_ray(options: RunOptions, session: Session, devices: Sequence[str]) -> bool:
    """Run the session's trials with Ray; return False where Ray cannot be imported."""
    from bench.launch import ray_cluster, ray_tune

    if why := ray_cluster.unavailable(options.address):
        if options.address:
            raise InputError(f"--address needs Ray, which cannot be imported ({why})")
        _check_brackets(session)
        say(f"Ray cannot be imported ({why}): going on as with --no-ray")
        return False
    workers, on_gpu = options.workers_per_trial, devices[0] != "cpu"
    with (
        ray_cluster.cluster(options.address, devices) as resources,
        session.stop.watching(),  # Ray has signal handlers of its own; ours count
    ):
        if options.address:  # the cluster may have GPUs where this machine has none
            on_gpu = options.device != "cpu" and bool(options.device or resources.get("GPU"))
        cpus = options.cpus_per_trial or 1.0
        gpus = options.gpu_share or 1.0 / session.slots.any_per_device
        gpus = gpus if on_gpu and workers == 1 else float(on_gpu)
        _note_sharing(session, 1.0 / gpus if on_gpu else 1.0 / cpus)
        ray_cluster.check_resources(resources, cpus, gpus, workers)
        say(f"Ray: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")
        ray_tune.run_ray(
            session, cpus=cpus, gpus=gpus, jobs=options.jobs, workers=workers, cluster=bool(options.address)
        )
    return True


def _place_in_processes(options: RunOptions, session: Session, devices: Sequence[str]) -> None:
    """Run the session's trials in processes of this machine."""
    workers, on_gpu = options.workers_per_trial, devices[0] != "cpu"
    if workers > 1:
        devices = device_groups(devices, workers)
        jobs = options.jobs or (len(devices) if on_gpu else max(1, cpu_count() // workers))
    elif on_gpu:
        jobs = min(session.slots.total, sum(session.slots.per_device.values()))
        _note_sharing(session, session.slots.most_per_device)
    else:
        jobs = options.jobs or cpu_count()
        _note_sharing(session, math.ceil(jobs / cpu_count()))
    say(f"{plural(jobs, 'trial')} at once on {', '.join(devices)}")
    Pool(session, devices, jobs).run()


def _note_sharing(session: Session, trials: float) -> None:
    """Note in the tasks how many trials share a device at most."""
    most = max(1, int(trials + 1e-9))
    session.tasks = {id: replace(task, trials_per_device=most) for id, task in session.tasks.items()}
