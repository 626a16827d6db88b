"""The one small configuration that tests start from."""

from __future__ import annotations

from typing import Any

from bench.experiments import config
from bench.experiments.config import TrialConfig

TINY: dict[str, Any] = {
    "dataset": "digits",
    "network": "svhn_convnet",
    "width": 0.125,
    "quantizer": "dorefa",
    "bits": "1/1",
    "epochs": 2,
    "batch_size": 16,
    "train_size": 80,
    "learning_rate": {"kind": "cosine", "initial": 1e-3},
}


def make_config(**changes: Any) -> TrialConfig:
    """Return ``TINY`` with these fields: two epochs of five steps of 16 digits, seconds on one core.

    Raises ``InputError`` as the suite does, with a line a problem.
    """
    return config.make_config({**TINY, **changes})
