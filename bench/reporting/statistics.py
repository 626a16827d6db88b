"""Intervals, gains, corrected claims, verdicts and times, as pure functions of numbers.

What an interval is about: the mean over seeds of the accuracy *on this test set*. It holds the seed's influence
(initial weights, order, augmentation) and the finite test set's part that differs between seeds; that another test set
would give other numbers is not in it (``wilson`` says how much that is for one network).

Checked by simulation in ``tests/test_statistics.py``: coverage 93 to 97 % at 3, 5 and 10 seeds for normal noise and
for seed noise plus a binomial test set; family-wise error of the claims at most 5 %. Within a few images of 0 or 100 %
the noise is neither, and a t-interval is too short: the tables then mostly show identical runs, which get no interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import stdtr  # Student's t distribution function

LEVEL = 0.95
MARGIN = 1.0  # points: how close to a published accuracy counts as the same
IDENTICAL = "identical runs: no interval"
SINGLE = "n = 1: no interval"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval. Where none can be had ``low`` and ``high`` are None and ``note`` says why."""

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def _same(values: np.ndarray) -> bool:
    """Whether all values are one number up to float rounding."""
    return bool(np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())))


@functools.cache
def _student(level: float, degrees: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2, degrees))


def mean_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """Return mean and two-sided Student-t interval of independent runs.

    One run has no interval. Neither have runs that are all the same number: a spread of zero would make the interval a
    point, yet it means that the seed did not act, or that the test set is too coarse to show it (a network at chance
    answers one class for every seed), and neither is certainty.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return Interval(0, None, note="no run")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(1, mean, note=SINGLE)
    if _same(x):
        return Interval(x.size, mean, note=IDENTICAL)
    half = _student(level, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(x.size, mean, mean - half, mean + half)


def wilson(correct: int, seen: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval (Wilson 1927) in percent of the accuracy of *one* network measured on ``seen`` images.

    It is about the finite test set alone. Raises ``ValueError`` unless 0 <= correct <= seen and seen > 0.
    """
    if not 0 <= correct <= seen or seen == 0:
        raise ValueError(f"{correct} correct of {seen} seen")
    z = float(stats.norm.ppf(0.5 + level / 2))
    p = correct / seen
    centre = (p + z * z / (2 * seen)) / (1 + z * z / seen)
    half = z / (1 + z * z / seen) * math.sqrt(p * (1 - p) / seen + z * z / (4 * seen * seen))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@dataclass(frozen=True)
class Gain:
    """A gain over a baseline, paired by seed. ``p_value`` (two-sided paired t-test) is None where there is no interval."""

    interval: Interval
    seeds: tuple[int, ...]
    p_value: float | None


def paired_gain(arm: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL) -> Gain:
    """Return the mean difference arm - baseline over the seeds that both have, with its interval and p-value."""
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    differences = np.asarray([arm[seed] - baseline[seed] for seed in seeds], dtype=np.float64)
    interval = mean_interval(differences, level)
    if interval.note == "no run":
        interval = Interval(0, None, note="no pair")
    elif interval.note == SINGLE:
        interval = Interval(1, interval.mean, note="1 pair: no interval")
    elif interval.note == IDENTICAL:
        interval = Interval(interval.n, interval.mean, note="identical differences: no interval")
    if interval.low is None:
        return Gain(interval, seeds, None)
    t = float(differences.mean() / (differences.std(ddof=1) / math.sqrt(differences.size)))
    return Gain(interval, seeds, float(2.0 * stdtr(differences.size - 1, -abs(t))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (Holm 1979): rejecting those up to 0.05 keeps the family-wise error at 5 %.

    It needs no independence, so arms may share a baseline.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def claim(gain: Gain, adjusted: float | None, lost: int = 0, level: float = LEVEL) -> str:
    """Return what may be said of a gain: ``better``, ``worse``, ``no difference shown``, or why nothing may.

    ``adjusted`` is the p-value after Holm's correction over all gains of the experiment; ``lost`` counts wanted pairs
    one of which diverged: the remaining ones are then a selection, and no claim is made on them.
    """
    if lost:
        return f"not decided: {lost} pair{'s' * (lost > 1)} lost to diverged runs"
    if adjusted is None or gain.interval.mean is None:
        return f"not decided ({gain.interval.note})"
    if adjusted > 1 - level:
        return "no difference shown"
    return "better" if gain.interval.mean > 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """``reproduced``, ``not reproduced``, ``inconclusive`` or ``not comparable``, and why."""

    word: str
    reason: str


def verdict(
    ours: Interval, published: float, kind: str, not_comparable: Sequence[str] = (), margin: float = MARGIN
) -> Verdict:
    """Hold a mean of ours against a published accuracy (both in percent).

    1. A run on a subset, at a short budget, on another network or data set is ``not comparable``, however close it comes.
    2. Without an interval (one run, identical runs) it is ``inconclusive``.
    3. ``reproduced``: the whole 95 % interval lies within ``margin`` points of the published value, so a wide interval
       cannot reproduce anything. (Published values carry no interval; theirs is part of what the margin is for.)
    4. ``not reproduced``: the whole interval lies more than ``margin`` away, below or above. A ``quoted`` value, which a
       later paper prints without a recipe, cannot fail like that: it is ``inconclusive``.
    5. Anything between is ``inconclusive``.
    """
    if not_comparable:
        return Verdict("not comparable", "; ".join(not_comparable))
    if ours.mean is None:
        return Verdict("inconclusive", "no finished run")
    difference = f"{ours.mean - published:+.2f} points"
    if ours.low is None or ours.high is None:
        return Verdict("inconclusive", f"{difference}; {ours.note}")
    low, high = ours.low - published, ours.high - published
    if -margin <= low and high <= margin:
        return Verdict("reproduced", f"{difference}, interval within {margin:g}")
    if high < -margin or low > margin:
        if kind == "quoted":
            return Verdict("inconclusive", f"{difference}, but the value is quoted without a recipe")
        return Verdict(
            "not reproduced",
            f"{difference}, interval {'below' if high < 0 else 'above'} by more than {margin:g}",
        )
    return Verdict(
        "inconclusive", f"{difference}, interval {low:+.2f} to {high:+.2f} against a margin of {margin:g}"
    )


@dataclass(frozen=True)
class TimeTo:
    """How long runs took to a threshold: ``times`` of those that reached it, of ``n`` in all.

    ``median`` is the time by which at least half of all runs had reached it (the Kaplan-Meier median, since all runs
    are watched to their end); None where fewer than half ever did: then it is longer than the budget, not unknown.
    """

    n: int
    times: tuple[float, ...]
    median: float | None


def time_to(times: Sequence[float | None]) -> TimeTo:
    """Summarise times to a threshold; None is a run that never reached it (censored, counted as longer than any)."""
    reached = sorted(t for t in times if t is not None)
    half = math.ceil(len(times) / 2)
    return TimeTo(len(times), tuple(reached), reached[half - 1] if times and len(reached) >= half else None)


def first_reached(accuracy: Sequence[float | None], threshold: float) -> int | None:
    """Return the index of the first epoch at or above ``threshold``, None if there is none; missing values are below."""
    return next((i for i, a in enumerate(accuracy) if a is not None and a >= threshold), None)


def held_from(accuracy: Sequence[float | None], threshold: float) -> int | None:
    """Return the index from which every evaluated epoch is at or above ``threshold``, None if the last one is not.

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

    One threshold for all arms held against that baseline, fixed by the baseline alone and coarse enough not to be tuned.
    """
    return 5.0 * math.floor(baseline_final / 5.0)


@dataclass(frozen=True)
class Removal:
    """What happened when the branch went: accuracies in percent, epochs counted from 1.

    ``dip`` is the expanded network's last accuracy before the removal (of its last epoch, where every epoch is
    evaluated) minus the lowest deployed one from the removal on;
    ``recovery`` the epochs from the removal until the deployed network is back at it, None if it never was.
    """

    epoch: int
    before: float
    dip: float
    recovery: int | None


def removal(
    factor: Sequence[float | None], deployed: Sequence[float | None], expanded: Sequence[float | None]
) -> Removal | None:
    """Return the removal of a run given its epochs' factors and accuracies; None if there was none (or it was not seen)."""
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


def welch(new: Sequence[float], old: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return Welch's interval of mean(new) - mean(old) for independent runs; None where a spread cannot be estimated."""
    a, b = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if min(a.size, b.size) < 2 or (_same(a) and _same(b)):
        return None
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return float(interval.low), float(interval.high)
