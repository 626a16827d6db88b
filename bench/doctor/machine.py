"""What a machine has: versions, devices, compilers, room on disk, data sets, and what will be slow on it."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.datasets import manage
from bench.machine.devices import cpu_count, cpu_name, memory_bytes
from bench.machine.folders import cache_folder
from bench.text import plural
from bench.training.provenance import version_of

PACKAGES = tuple("torch torchvision ray numpy pandas pyarrow matplotlib scikit-learn pydantic".split())
EXTRAS = ("timm", "optuna", "onnx", "onnxruntime", "qonnx", "brevitas")
COMPILERS = ("g++", "clang++", "nvcc")
LOW_ROOM = 5e9  # bytes: checkpoints and compiled code need a few gigabytes


def facts(results: Path, data_dir: Path) -> dict[str, Any]:
    """Return what is found, as JSON values: the report's ``machine``. torch is imported."""
    import torch

    from bench.training.execution import has_compiler, instruction_sets

    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        gpus.append(
            {
                "device": f"cuda:{number}",
                "name": found.name,
                "memory_bytes": found.total_memory,
                "capability": f"{found.major}.{found.minor}",
            }
        )
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "extras": {name: version_of(name) for name in EXTRAS},
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "instruction_sets": instruction_sets(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "compilers": {name: shutil.which(name) is not None for name in COMPILERS},
        "compiles": has_compiler(),
        "triton": version_of("triton"),
        "room_bytes": {
            name: _room(folder)
            for name, folder in (("results", results), ("data", data_dir), ("cache", cache_folder()))
        },
        "data": [
            name
            for name, (source, options) in manage.offered(data_dir).items()
            if source.problem(options, data_dir) is None
        ],
    }


def lines(found: dict[str, Any], data_dir: Path) -> list[str]:
    """Return the facts for people, a line each."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    extras = ", ".join(f"{name} {version}" for name, version in found["extras"].items() if version)
    gpus = [f"{g['device']} {g['name']}, {g['memory_bytes'] / 2**30:.0f} GiB" for g in found["gpus"]]
    compilers = [name for name, there in found["compilers"].items() if there]
    rooms = ", ".join(f"{name} {_gigabytes(room)}" for name, room in found["room_bytes"].items())
    sets = ", ".join(found["data"]) or "none"
    memory = found["memory_bytes"]
    return [
        f"python     {found['python']} on {found['system']}",
        f"packages   {versions}",
        f"extras     {extras or 'none installed'}",
        f"cpu        {found['cpu']}, {plural(found['cores'], 'core')}, {_gigabytes(memory)} of memory",
        f"gpu        {'; '.join(gpus) or 'none'}",
        f"compilers  {', '.join(compilers) or 'none'}; triton {found['triton'] or 'missing'}",
        f"room       {rooms}",
        f"data       {sets} (in {data_dir})",
    ]


def remarks(found: dict[str, Any]) -> list[str]:
    """Return what will be slow or impossible on this machine, and why, a sentence each."""
    said = []
    if not found["gpus"]:
        why = "torch was built without CUDA" if found["cuda"] is None else "torch sees none"
        said.append(
            f"Training runs on the CPU: no GPU is found ({why}). Experiments on digits and npz:svhn_subset "
            "take minutes to hours; CIFAR-10 and SVHN in full take days, ImageNet is out of reach."
        )
    if not found["compiles"]:
        said.append("Nothing is compiled: no C++ compiler is found ($CXX, g++, c++, clang++). Install one.")
    if found["gpus"] and not found["triton"]:
        said.append("Nothing is compiled for the GPU: the package triton is missing.")
    flags = found["instruction_sets"]
    if not found["gpus"] and not {"avx512_bf16", "amx_bf16", "bf16"} & set(flags):
        said.append("precision = bf16 is emulated: the CPU has no bf16 instructions. Keep fp32.")
    if not found["gpus"] and not {"avx2", "avx512f", "asimd"} & set(flags):
        said.append("Convolutions are slow: the CPU has neither AVX2 nor NEON.")
    for gpu in found["gpus"]:
        if float(gpu["capability"]) < 8.0:
            said.append(f"{gpu['device']} computes bf16 slowly (capability {gpu['capability']}, below 8.0).")
    if found["cores"] == 1:
        said.append("One trial runs at a time: there is one core.")
    memory = found["memory_bytes"]
    if memory is not None and memory / found["cores"] < 1.5e9:
        said.append("Less than 1.5 GB of memory a core: give `bench run --jobs N` fewer trials at once.")
    said += [
        f"Little room for {name}: {_gigabytes(room)} free."
        for name, room in found["room_bytes"].items()
        if room is not None and room < LOW_ROOM
    ]
    said += [f"The package {name} is missing." for name, version in found["packages"].items() if not version]
    if sys.platform not in ("linux", "darwin"):
        said.append(f"{platform.system()} is not tested.")
    return said


def _room(folder: Path) -> int | None:
    """Return the free bytes where ``folder`` is, or would be made."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:,.0f} GB"
