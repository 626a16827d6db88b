"""What the comparisons share: rows, stored arrays, and the presets that are held against them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.experiments.config import TrialConfig
from bench.experiments.expand import load_experiment

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[2] / "experiments"
DTYPES = {"float32": torch.float32, "float64": torch.float64}

EXACT = "the same values, so nothing is rounded"
SUMS = "float32 sums of the release, up to 1,152 terms in another order"


@dataclass(frozen=True)
class Row:
    """One comparison; ``difference`` and ``allowed`` are absolute, or parts of the tensor's largest value."""

    group: str
    item: str
    precision: str
    difference: float
    allowed: float
    released: str
    ours: str
    why: str
    relative: bool = False


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of ``name``.npz by name."""
    with np.load(HERE / f"{name}.npz") as file:
        return {key: file[key] for key in file}


def facts(name: str) -> dict[str, Any]:
    """Return what ``name``.json holds."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


@cache
def presets(experiment: str) -> dict[str, TrialConfig]:
    """Return the configuration of each arm of a shipped experiment by the arm's name (its first trial)."""
    loaded = load_experiment(EXPERIMENTS / f"{experiment}.toml", data_dir=HERE)
    found: dict[str, TrialConfig] = {}
    for line in loaded.index:
        if line.arm is not None:
            found.setdefault(line.arm, line.trial.config)
    return found


def difference(ours: Any, theirs: np.ndarray, *, relative: bool = False) -> float:
    """Return the largest absolute difference, or its part of the largest magnitude of ``theirs``."""
    ours = ours.detach().double().numpy() if isinstance(ours, Tensor) else np.asarray(ours, float)
    theirs = np.asarray(theirs, float)
    if theirs.size == 0:
        return 0.0
    largest = float(np.abs(ours - theirs).max())
    return largest / max(float(np.abs(theirs).max()), 1e-3) if relative else largest
