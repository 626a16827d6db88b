"""When runs reach an accuracy, and how the removal of the branch changes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeTo:
    """The times of runs to a threshold: ``times`` of the runs that reached it, of ``n`` runs in all.

    ``median`` is the time by which at least half of all runs had reached it (the Kaplan-Meier median, since
    all runs are watched to their end); None where fewer than half ever did: then it is longer than the
    budget, not unknown.
    """

    n: int
    times: tuple[float, ...]
    median: float | None


def time_to(times: Sequence[float | None]) -> TimeTo:
    """Summarise times to a threshold; None is a run that never reached it, longer than any other."""
    reached = sorted(t for t in times if t is not None)
    half = math.ceil(len(times) / 2)
    return TimeTo(len(times), tuple(reached), reached[half - 1] if times and len(reached) >= half else None)


def first_reached(accuracy: Sequence[float | None], threshold: float) -> int | None:
    """Return the index of the first epoch at or above ``threshold``, None without one."""
    return next((i for i, a in enumerate(accuracy) if a is not None and a >= threshold), None)


def held_from(accuracy: Sequence[float | None], threshold: float) -> int | None:
    """Return the index from which all evaluated epochs are at or above ``threshold``; None without any.

    An epoch without a value was not evaluated (``evaluate_every``) and decides nothing.
    """
    start = None
    for i, a in enumerate(accuracy):
        if a is None or math.isnan(a):
            continue
        start = None if a < threshold else (i if start is None else start)
    return start


def common_threshold(baseline_final: float) -> float:
    """Return the largest multiple of 5 points that is not above the baseline's mean final accuracy.

    One threshold for all arms held against that baseline, fixed by the baseline alone and coarse enough not
    to be tuned. A mean that is a multiple but for rounding errors is that multiple.
    """
    return 5.0 * math.floor(baseline_final / 5.0 + 1e-9)


@dataclass(frozen=True)
class Removal:
    """The removal of a branch: accuracies in percent, epochs counted from 1.

    ``dip`` is the expanded network's last accuracy before the removal (of its last epoch, where every epoch
    is evaluated) minus the lowest deployed one from the removal on; ``recovery`` the epochs from the removal
    until the deployed network is back at it, None if it never was.
    """

    epoch: int
    before: float
    dip: float
    recovery: int | None


def removal(
    factor: Sequence[float | None], deployed: Sequence[float | None], expanded: Sequence[float | None]
) -> Removal | None:
    """Return the removal of the branch, from a run's factors and accuracies by epoch; None if not seen."""
    last_on = max((i for i, f in enumerate(factor) if f), default=None)
    if last_on is None or last_on + 1 >= len(factor):
        return None
    before = next((value for value in reversed(expanded[: last_on + 1]) if value is not None), None)
    after = list(deployed[last_on + 1 :])
    known = [a for a in after if a is not None and math.isfinite(a)]
    if before is None or not known:
        return None
    back = first_reached(after, before)
    return Removal(last_on + 2, before, before - min(known), None if back is None else back + 1)
