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


def ranking(configurations: Sequence[Configuration], scores: Sequence[float | None]) -> list[int]:
    """Return the positions of the configurations that have a score, the best one first.

    Of equal scores the smaller learning rate comes first, then the earlier configuration.
    """
    found = [
        (-score, tuned_learning_rate(configurations[i]), i)
        for i, score in enumerate(scores)
        if score is not None
    ]
    return [position for *_, position in sorted(found)]


def best(configurations: Sequence[Configuration], scores: Sequence[float | None]) -> int | None:
    """Return the first position of ``ranking``, or None where no configuration has a score."""
    return next(iter(ranking(configurations, scores)), None)


def tuned_learning_rate(configuration: Mapping[str, Any]) -> float:
    """Return the initial learning rate of a configuration, 0 where none is tuned."""
    value = configuration.get("learning_rate", configuration.get("learning_rate.initial"))
    if isinstance(value, Mapping):
        value = value.get("initial")
    return float(value) if isinstance(value, int | float) else 0.0
