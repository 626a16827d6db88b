"""Several trials on one device at once: how many fit, which may start where, and what a record says of it.

A trial is always a process of its own, alone on its device or not: its numbers are those of its own kernels in its own
order, so they do not depend on its neighbours, and one that dies takes none along. (Streams in one process would share
an allocator and a fate; seeds stacked into grouped convolutions would be other arithmetic, hence other records.) How many
share a device follows from measured memory. On an NVIDIA GPU the kernels of several processes overlap only under the
Multi-Process Service (MPS), whose control daemon is started for the run where it is installed. Under MPS one thing is
shared: a device fault (an illegal address, not running out of memory) ends all processes of that GPU; such trials, like
those that ran out of memory, are tried once more alone. No torch is imported here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from bench.experiments.permission import adopt, current

SHARE = 0.9  # of the free memory that trials are given: allocators round up, and others use the device, too
MPS = "nvidia-cuda-mps-control"
_FAULTS = ("out of memory", "CUDA error", "AcceleratorError", "CUDNN_STATUS", "CUBLAS_STATUS")


def trials_per_device(
    free_bytes: float, peak_bytes_per_trial: float, context_bytes: float, cores: float, limit: float = inf
) -> int:
    """Return how many equal trials share a device: what its memory holds, at most one a core and ``limit``, at least one.

    ``free_bytes`` of the device before any of them starts; ``peak_bytes_per_trial`` that its allocator takes at most and
    ``context_bytes`` of its process besides (the CUDA context and libraries), both measured; ``cores`` of the host for this
    device, since each trial's process keeps one busy launching kernels.
    """
    need = max(1.0, peak_bytes_per_trial + context_bytes)
    return int(max(1, min(SHARE * free_bytes // need, cores, limit)))


@dataclass
class Room:
    """Which trial may start on which device now; the placement tells it what starts and ends.

    ``slots`` trials at once on each device and ``total`` on all; ``free`` bytes of each device where memory was measured,
    with the ``needs`` of each trial in bytes. A device on which nothing runs takes any trial: whether a trial fits alone
    is for the trial to find out. Those in ``alone`` have a device to themselves.
    """

    slots: dict[str, int]
    total: int = 1 << 30
    free: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[str, float] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    running: dict[str, str] = field(default_factory=dict)  # trial -> device
    _accompanied: set[str] = field(default_factory=set)  # running trials that have had a neighbour

    def device_for(self, trial: str) -> str | None:
        """Return the device on which ``trial`` can start, the emptiest one; None where it has to wait."""
        if len(self.running) >= self.total:
            return None
        beside = {
            device: [id for id, where in self.running.items() if where == device] for device in self.slots
        }
        for device in sorted(self.slots, key=lambda device: len(beside[device])):
            here = beside[device]
            if not here:
                return device
            taken = sum(self.needs.get(id, 0.0) for id in [*here, trial])
            fits = len(here) < self.slots[device] and taken <= SHARE * self.free.get(device, inf)
            if fits and self.alone.isdisjoint([*here, trial]):
                return device
        return None

    def begin(self, trial: str, device: str) -> None:
        """Note that ``trial`` runs on ``device``."""
        beside = [id for id, where in self.running.items() if where == device]
        if beside:
            self._accompanied.update([*beside, trial])
        self.running[trial] = device

    def end(self, trial: str) -> bool:
        """Note that ``trial`` no longer runs; return whether it has had a neighbour on its device."""
        self.running.pop(trial, None)
        accompanied = trial in self._accompanied
        self._accompanied.discard(trial)
        return accompanied

    @property
    def most(self) -> int:
        """How many trials may ever share a device: what a record states."""
        return min(self.total, max(self.slots.values(), default=1))

    @property
    def equal_share(self) -> int:
        """How many may share every device, whichever they are: for a placement that knows one size of trial."""
        largest = max(self.needs.values(), default=0.0)
        fitting = (
            trials_per_device(self.free.get(d, inf), largest, 0.0, slots) for d, slots in self.slots.items()
        )
        return min(fitting, default=1)


def make_room(
    configs: Mapping[str, dict[str, Any]],
    devices: Sequence[str],
    share: float | None,
    cores: int,
    jobs: int | None,
    data_dir: str,
) -> tuple[Room, str]:
    """Return the room for trials (their configurations by id) on GPUs, and what is to be said of it.

    ``share`` is the part of a GPU that each trial takes; None: what it was measured to take. That is measured first where
    it is not known yet, in a process that then ends; where it cannot be, each trial gets a GPU. ``cores`` of this machine.
    """
    total = jobs or 1 << 30
    whole = Room(dict.fromkeys(devices, 1), total)
    if share is not None:
        return Room(dict.fromkeys(devices, int(1 / share + 1e-9)), total), ""
    if len(configs) <= len(devices):
        return whole, ""
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, initializer=adopt, initargs=(current(),)) as pool:
            needs, free = pool.submit(_measure, dict(configs), data_dir, list(devices)).result()
    except Exception as error:  # whatever a driver, a library or a broken process makes of it
        return (
            whole,
            f"memory could not be measured ({type(error).__name__}: {error}): one trial on a GPU at a time",
        )
    slots = {
        device: trials_per_device(free[device], min(needs.values()), 0.0, cores / len(devices))
        for device in devices
    }
    largest = max(needs.values()) / 2**20
    return Room(slots, total, free, needs), f"as many as fit, the largest takes {largest:,.0f} MiB"


def _measure(
    configs: dict[str, dict[str, Any]], data_dir: str, devices: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    from bench.costs.measure import device_needs

    return device_needs(configs, data_dir, devices)


def crowded_out(reason: str) -> bool:
    """Return whether a failure for ``reason`` may be the neighbours' doing: the trial deserves a try alone."""
    return any(fault in reason for fault in _FAULTS)


# --- what a record says -----------------------------------------------------------------------------------------------


def layout(trials: int) -> int | dict[str, Any]:
    """Return ``execution.pack`` of a record: 1 for a trial alone on its device, else the layout.

    ``trials`` is how many trials share the device of this process at most.
    """
    if trials == 1:
        return 1
    return {"layout": "processes", "trials": trials, "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ}


# --- MPS --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlapping(devices: Sequence[str], share: float | None) -> Iterator[str]:
    """Let kernels of several processes overlap while this lasts; yield what was done, "" where nothing was to be done.

    Starts MPS for processes started meanwhile where a trial may take less than a GPU (``share`` below 1, or None: not
    known yet), its daemon is installed and none is in use; the daemon ends with this.
    """
    program = shutil.which(MPS)
    if (share is not None and share >= 1.0) or not any(device.startswith("cuda") for device in devices):
        yield ""
        return
    standard = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if (standard / "control").exists():
        with _environment(CUDA_MPS_PIPE_DIRECTORY=str(standard)):
            yield "MPS is running"
        return
    if program is None:
        yield f"no {MPS} here: kernels of different trials take turns"
        return
    folder = tempfile.mkdtemp(prefix="bench-mps-")
    places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    with _environment(**places):
        try:
            subprocess.run([program, "-d"], check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            for name in places:
                os.environ.pop(name, None)
            shutil.rmtree(folder, ignore_errors=True)
            yield f"MPS cannot be started ({type(error).__name__}): kernels of different trials take turns"
            return
        try:
            yield "MPS started"
        finally:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([program], input=b"quit\n", check=False, capture_output=True, timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
