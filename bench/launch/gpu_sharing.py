"""Several trials on one device at once: how many fit, which may start where, and what a record says of it.

A trial is always a process of its own, alone on its device or not: its numbers are those of its own kernels
in its own order, so they do not depend on its neighbours, and one that dies takes none along. (Streams in one
process would share an allocator and a fate; seeds stacked into grouped convolutions would be other
arithmetic, hence other records.) How many share a device follows from measured memory. On an NVIDIA GPU the
kernels of several processes overlap only under the Multi-Process Service (MPS), whose control daemon is
started for the run where it is installed. Under MPS one thing is shared: a device fault (an illegal address,
not running out of memory) ends all processes of that GPU; such trials, like those that ran out of memory, are
tried once more alone. No torch is imported here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from bench.machine import processes
from bench.machine.foreign import Grant, adopt, current
from bench.machine.temporary import temporary_folder
from bench.text import kind_and_reason

# The part of the free memory that trials get: allocators round up, and others use the device, too.
USABLE = 0.9
MPS = "nvidia-cuda-mps-control"
HANG = 120.0  # seconds after which its start or its end hangs: a busy machine needs less
_FAULTS = ("out of memory", "CUDA error", "AcceleratorError", "CUDNN_STATUS", "CUBLAS_STATUS")


def trials_per_device(
    free_bytes: float, peak_bytes_per_trial: float, context_bytes: float, cores: float, limit: float = inf
) -> int:
    """Return how many equal trials share a device: as its memory holds, one a core, ``limit`` at most.

    Args:
        free_bytes: Of the device, before any of the trials starts.
        peak_bytes_per_trial: The most that a trial's allocator takes, measured.
        context_bytes: What a trial's process takes besides (the CUDA context and libraries), measured.
        cores: Of the host for this device: each trial's process keeps one busy launching kernels.
        limit: The most trials.

    Returns:
        At least 1.
    """
    need = max(1.0, peak_bytes_per_trial + context_bytes)
    return int(max(1, min(USABLE * free_bytes // need, cores, limit)))


@dataclass
class DeviceSlots:
    """Which trial may start on which device now; the placement says what starts and ends.

    A device on which nothing runs takes any trial: only the trial can find out whether it fits alone.
    """

    per_device: dict[str, int]  # the most trials at once on each device
    total: int = 1 << 30  # the most trials at once on all devices together
    free_bytes: Mapping[str, float] = field(default_factory=dict)  # by device, where memory was measured
    trial_bytes: Mapping[str, float] = field(default_factory=dict)  # by trial, where memory was measured
    alone: set[str] = field(default_factory=set)  # trials that get a device to themselves
    running: dict[str, str] = field(default_factory=dict)  # trial -> device
    _accompanied: set[str] = field(default_factory=set)  # running trials that have had a neighbour

    def device_for(self, trial: str) -> str | None:
        """Return the emptiest device on which ``trial`` can start, None where the trial has to wait."""
        if len(self.running) >= self.total:
            return None
        beside = {
            device: [id for id, where in self.running.items() if where == device]
            for device in self.per_device
        }
        for device in sorted(self.per_device, key=lambda device: len(beside[device])):
            here = beside[device]
            if not here:
                return device
            taken = sum(self.trial_bytes.get(id, 0.0) for id in [*here, trial])
            usable = USABLE * self.free_bytes.get(device, inf)
            fits = len(here) < self.per_device[device] and taken <= usable
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
    def most_per_device(self) -> int:
        """The largest number of trials that may share a device at any time, as records state it."""
        return min(self.total, max(self.per_device.values(), default=1))

    @property
    def any_per_device(self) -> int:
        """How many trials fit on every device, for a placement that takes all trials to be as large."""
        largest = max(self.trial_bytes.values(), default=0.0)
        fitting = (
            trials_per_device(self.free_bytes.get(device, inf), largest, 0.0, slots)
            for device, slots in self.per_device.items()
        )
        return min(fitting, default=1)


def measured_slots(
    configs: Mapping[str, dict[str, Any]],
    devices: Sequence[str],
    share: float | None,
    cores: int,
    jobs: int | None,
    data_dir: str,
) -> tuple[DeviceSlots, str]:
    """Return how trials share the GPUs, and a line that says so ("" where there is nothing to say).

    Args:
        configs: The configurations of the trials, by id.
        devices: The GPUs: "cuda:0", ...
        share: The part of a GPU that each trial takes; None: the memory that each trial is measured to take.
            Memory that is not known yet is measured in a process of its own; where that fails, each trial
            gets a GPU.
        cores: The cores of this machine.
        jobs: The most trials at once; None: no limit.
        data_dir: The data folder.
    """
    total = jobs or 1 << 30
    whole = DeviceSlots(dict.fromkeys(devices, 1), total)
    if share is not None:
        return DeviceSlots(dict.fromkeys(devices, int(1 / share + 1e-9)), total), ""
    if len(configs) <= len(devices):
        return whole, ""
    try:
        arguments = current(), dict(configs), data_dir, list(devices)
        needs, free = processes.call(_measure, *arguments, name="bench-measure")
    except Exception as error:  # whatever a driver, a library or a broken process makes of it
        why = f"memory could not be measured ({kind_and_reason(error)})"
        return whole, f"{why}: one trial on a GPU at a time"
    slots = {
        device: trials_per_device(free[device], min(needs.values()), 0.0, cores / len(devices))
        for device in devices
    }
    largest = max(needs.values()) / 2**20
    return DeviceSlots(slots, total, free, needs), f"as many as fit, the largest takes {largest:,.0f} MiB"


def _measure(
    grant: Grant, configs: dict[str, dict[str, Any]], data_dir: str, devices: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure in a process of its own what ``device_needs`` returns."""
    from bench.costs.measure import device_needs

    adopt(grant)
    return device_needs(configs, data_dir, devices)


def crowded_out(reason: str) -> bool:
    """Return whether the neighbours may have caused this failure: the trial deserves a try alone."""
    return any(fault in reason for fault in _FAULTS)


# --- what a record says -------------------------------------------------------------------------------------


def layout(trials: int) -> int | dict[str, Any]:
    """Return ``execution.pack`` of a record: 1 for a trial alone on its device, else the layout.

    ``trials`` is how many trials share the device of this process at most.
    """
    if trials == 1:
        return 1
    return {"layout": "processes", "trials": trials, "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ}


# --- MPS ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlapping_kernels(devices: Sequence[str], share: float | None) -> Iterator[str]:
    """Let kernels of several processes overlap meanwhile; yield what was done for that, "" for nothing.

    Starts MPS for processes started meanwhile where a trial may take less than a GPU (``share`` below 1, or
    None: not known yet), its daemon is installed and none is in use; the daemon ends with this.
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
    with temporary_folder("mps") as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
        with _environment(**places):
            try:
                subprocess.run([program, "-d"], check=True, capture_output=True, timeout=HANG)
            except (OSError, subprocess.SubprocessError) as error:
                for name in places:
                    os.environ.pop(name, None)
                why = type(error).__name__
                yield f"MPS cannot be started ({why}): kernels of different trials take turns"
                return
            try:
                yield "MPS started"
            finally:
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    subprocess.run([program], input=b"quit\n", check=False, capture_output=True, timeout=HANG)


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
