"""Where a step stands on the way to the times that a schedule names."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

Spec = Mapping[str, Any]  # the completed options of a schedule


def progress_to_end(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return u = progress over ``until`` (or ``until_epochs``): 1 and more once the factor is gone."""
    if spec["until_epochs"] is not None:
        return step / (spec["until_epochs"] * steps_per_epoch)
    return step / total_steps / spec["until"]


def times_passed(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> int:
    """Return how many of the times ``at`` (fractions) or ``at_epochs`` have come at ``step``."""
    if spec["at_epochs"] is not None:
        return bisect_right([epoch * steps_per_epoch for epoch in spec["at_epochs"]], step)
    return bisect_right(spec["at"], step / total_steps)


def progress_after_warmup(step: int, total_steps: int, warmup: float) -> float:
    """Return the share of the steps after the warm-up (``warmup`` steps) that are over, 1 at most."""
    return min(1.0, (step - warmup) / (total_steps - warmup))


def shares_passed(shares: Iterable[float], step: int, total_steps: int) -> int:
    """Return how many of the ``shares`` of all steps have come at ``step``.

    A share that is a whole number of steps but for rounding errors is that number.
    """
    return sum(step >= math.ceil(share * total_steps - 1e-6) for share in shares)
