"""The choice of a configuration: by the mean held-out accuracy of the deployed network at the last epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.tuning.space import Configuration


def mean(accuracies: Sequence[float | None]) -> float | None:
    """Return the mean over the tuning seeds; None, which is never chosen, where a seed diverged."""
    known = [value for value in accuracies if value is not None]
    return fmean(known) if known and len(known) == len(accuracies) else None


def best(configurations: Sequence[Configuration], scores: Sequence[float | None]) -> int | None:
    """Return the position of the best score, or None where no configuration has a score.

    Of equal scores the smaller learning rate is chosen, then the earlier configuration.
    """
    found = [
        (-score, tuned_learning_rate(configurations[i]), i)
        for i, score in enumerate(scores)
        if score is not None
    ]
    return min(found)[-1] if found else None


def tuned_learning_rate(configuration: Mapping[str, Any]) -> float:
    """Return the initial learning rate of a configuration, 0 where none is tuned."""
    value = configuration.get("learning_rate", configuration.get("learning_rate.initial"))
    if isinstance(value, Mapping):
        value = value.get("initial")
    return float(value) if isinstance(value, int | float) else 0.0
