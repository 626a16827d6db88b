"""How a trial is computed: device, mode, threads. Decided once, recorded, and used again on every resume.

No decision depends on a measured time, so two runs on equal hardware decide alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.machine.devices import THREADS_PER_TRIAL, device_name
from bench.machine.folders import cache_folder

# Compiling a step takes about a minute on a slow core. From this number of steps on, compiled steps save much
# more time than that.
COMPILED_STEPS = {"cpu": 50_000, "cuda": 2_000}
NO_COMPILER = "no C++ compiler is found ($CXX, g++, c++, clang++), so nothing is compiled"
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")


def instruction_sets() -> list[str]:
    """Return the instruction sets of this processor that change results or speed, sorted."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return sorted(set(line.split(":", 1)[1].split()) & set(_CPU_FLAGS))
    return []


def has_native_bf16(device: str) -> bool:
    """Return whether bf16 convolutions run in hardware on ``device`` ("cpu", "cuda:0", ...)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets()))


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which compiled CPU code needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++") if name)


def decide(
    config: TrialConfig, total_steps: int, device: str, workers: int = 1, pack: int | dict[str, Any] = 1
) -> dict[str, Any]:
    """Return the ``execution`` of a record: device, mode, threads and determinism flags. JSON values only.

    ``mode`` is "eager"; "compiled", for trials with enough steps to make up for compiling; or "captured", the
    compiled step in CUDA graphs. Where the machine lacks what a mode needs, the mode is "eager" and
    ``fallback`` says why.

    Args:
        config: The trial's.
        total_steps: Of the whole trial.
        device: "cpu" or "cuda:N".
        workers: How many share the trial.
        pack: How trials share the device (``bench.launch.gpu_sharing.layout``); 1: they do not.
    """
    kind = device.partition(":")[0]
    mode = _wanted_mode(config, total_steps, kind, workers)
    fallback = NO_COMPILER if mode != "eager" and not has_compiler() else None
    execution: dict[str, Any] = {
        "device": device_name(device),
        "kind": kind,
        "instruction_sets": instruction_sets() if kind == "cpu" else [],
        "mode": mode if fallback is None else "eager",
        "threads": THREADS_PER_TRIAL,
        "workers": workers,
        "pack": pack,
        "deterministic": True,
        "tf32": False,
        "torch": torch.__version__,
    }
    return execution if fallback is None else fell_back(execution, fallback)


def _wanted_mode(config: TrialConfig, total_steps: int, kind: str, workers: int) -> str:
    if config.activation_checkpointing:  # a compiler decides by itself which activations it keeps
        return "eager"
    if total_steps < COMPILED_STEPS.get(kind, COMPILED_STEPS["cuda"]):
        return "eager"
    # A graph keeps the epsilon of Adam that it was recorded with, but TensorFlow's epsilon changes at each
    # step. Averaging gradients over workers needs the host, which a graph excludes.
    changing_epsilon = config.optimizer == "adam" and config.epsilon_mode != "pytorch"
    return "captured" if kind == "cuda" and workers == 1 and not changing_epsilon else "compiled"


def fell_back(execution: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Return ``execution`` in eager mode; ``reason`` is one line that says why."""
    return {**execution, "mode": "eager", "fallback": reason}


def slow_precision(config: TrialConfig, execution: Mapping[str, Any], device: str) -> bool:
    """Return whether the device emulates the trial's precision: bf16 on a CPU without bf16 instructions."""
    return config.precision == "bf16" and execution["kind"] == "cpu" and not has_native_bf16(device)


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each part of the ``recorded`` execution that this machine cannot repeat.

    A resumed trial takes its mode from the record, so the mode is named only where the machine does not
    support it. The number of trials that share the device is not compared: each trial is a process of its
    own, and its numbers do not depend on its neighbours.
    """
    lost = recorded.get("mode", "eager") != "eager" and "fallback" in here
    found = [f"mode: {recorded['mode']!r} then, but {here['fallback']} here"] if lost else []
    return found + [
        f"{key}: {recorded.get(key)!r} then, {here.get(key)!r} here"
        for key in sorted({*recorded, *here} - {"mode", "fallback", "pack"})
        if recorded.get(key) != here.get(key)
    ]


def resume_execution(
    recorded: Mapping[str, Any] | None, here: dict[str, Any], accept_other: bool, where: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the execution to use, and its differences from the record (empty where there are none).

    Raises ``InputError`` where something differs and ``accept_other`` is False: the final weights would not
    be those of an uninterrupted run.
    """
    if recorded is None:
        return here, []
    changed = differences(recorded, here)
    if changed and not accept_other:
        raise InputError(
            f"{where}: this trial was begun under another execution ({'; '.join(changed)}), so its end would "
            "not be that of an undisturbed run. Give --fresh to begin it anew, or --accept-other-hardware to "
            "go on and mark the record."
        )
    if "fallback" in here and recorded.get("mode") != "eager":  # accepted: the recorded mode is not available
        return here, changed
    own = {key: value for key, value in here.items() if key != "fallback"}
    return {**own, **{key: recorded[key] for key in ("mode", "fallback") if key in recorded}}, changed


def apply(execution: Mapping[str, Any]) -> None:
    """Set up this process: the recorded threads, deterministic algorithms, no TF32, no choices by timing."""
    torch.set_num_threads(execution["threads"])
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution["deterministic"])
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = execution["deterministic"]
    torch.backends.cuda.matmul.allow_tf32 = execution["tf32"]
    torch.backends.cudnn.allow_tf32 = execution["tf32"]
    # The suite never reads memory that was not written, so filling that memory would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if execution["mode"] != "eager":
        _set_up_compiler()


def _set_up_compiler() -> None:
    """Let the compiler choose code without timing, and keep compiled code in the user's cache."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    import torch._dynamo.config as dynamo  # slow to import, and not needed by eager trials
    import torch._inductor.config as inductor

    inductor.deterministic = True
    inductor.max_autotune = inductor.coordinate_descent_tuning = False
    dynamo.recompile_limit = 64  # each network, stage and precision of a process compiles a step again


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step frees for the next step.

    A step of a small network allocates the same tens of megabytes again and again. By default glibc returns
    this memory to the system each time, and the kernel clears the pages again: 2,200 page faults in a step of
    the SVHN network at 0.25x, 10 % of its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to set
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_* of malloc.h
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 64 << 20)


def quiet_profiler() -> None:
    """Keep torch's profiler, which counts memory, from writing to the terminal."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of the peak memory, where the system supports it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Without support, ``peak_memory`` returns the peak since the process began: an upper bound.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Return the peak bytes since ``reset_peak_memory``: of the GPU, or of this process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
