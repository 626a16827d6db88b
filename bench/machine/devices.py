"""Which devices trials may use. torch is imported only where a GPU is asked for or may be there."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from bench.errors import InputError

THREADS_PER_TRIAL = 1  # CPU threads of a trial, on the CPU and beside a GPU, with Ray and without


def _gpus() -> int:
    """Return how many GPUs torch sees; without importing torch where the system shows none."""
    if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_devices(requested: str | None) -> list[str]:
    """Return the devices meant by ``--device``: ``["cpu"]``, or ``["cuda:0", ...]``.

    None means all GPUs, or the CPU where there is none; "cuda" all GPUs; "cuda:N" that one. Raises
    ``InputError``, which lists what is there, for a device that is not.
    """
    if requested == "cpu":
        return ["cpu"]
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", requested or "cuda")
    if not match:
        raise InputError(f"--device {requested!r}: expected cpu, cuda or cuda:N, for instance cuda:0")
    count = _gpus()
    if requested is None and count == 0:
        return ["cpu"]
    here = ", ".join(["cpu", *(f"cuda:{n}" for n in range(count))])
    if count == 0 or (match[1] and int(match[1]) >= count):
        raise InputError(f"--device {requested}: there is no such device here; found: {here}")
    return [f"cuda:{int(match[1])}"] if match[1] else [f"cuda:{n}" for n in range(count)]


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Return the model name of the GPU or of the processor that ``device`` is."""
    if not device.startswith("cuda"):
        return cpu_name()
    import torch

    return torch.cuda.get_device_name(device)


def memory_bytes() -> int | None:
    """Return the machine's memory, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cpu_count() -> int:
    """Return the number of cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
