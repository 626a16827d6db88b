"""Intervals of means and of single accuracies.

What an interval is about: the mean over seeds of the accuracy *on this test set*. The interval holds the
influence of the seed (initial weights, order, augmentation) and the part of the finite test set that differs
between seeds. That another test set would give other numbers is not part of the interval; ``wilson`` says how
much that is for one network.

Checked by simulation in ``tests/reporting/test_statistics.py``: the coverage is 93 to 97 % at 3, 5 and 10
seeds, for normal noise and for noise of the seed plus a binomial test set. Within a few images of 0 or 100 %
the noise is neither, and a t-interval is too short. The tables then mostly show identical runs, which get no
interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
NO_RUN = "no run"
IDENTICAL = "identical runs: no interval"
SINGLE = "n = 1: no interval"


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values with its interval; ``note`` says why ``low`` and ``high`` are None."""

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def all_equal(values: np.ndarray) -> bool:
    """Return whether all values are one number up to float rounding."""
    return bool(np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())))


@functools.cache
def student_quantile(level: float, degrees: int) -> float:
    """Return the half width, in standard errors, of a two-sided Student t-interval."""
    return float(stats.t.ppf(0.5 + level / 2, degrees))


def mean_interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """Return the mean and the two-sided Student t-interval of independent runs.

    One run has no interval. Runs that all give the same number have none either: a spread of zero would make
    the interval a point, yet it only means that the seed did not act, or that the test set is too coarse to
    show it (a network at chance answers one class for every seed).
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return Interval(0, None, note=NO_RUN)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(1, mean, note=SINGLE)
    if all_equal(x):
        return Interval(x.size, mean, note=IDENTICAL)
    half = student_quantile(level, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(x.size, mean, mean - half, mean + half)


def wilson(correct: int, seen: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval (1927), in percent, of the accuracy of *one* network on ``seen`` images.

    The interval is about the finite test set alone. Raises ``ValueError`` unless 0 <= correct <= seen and
    seen > 0.
    """
    if not 0 <= correct <= seen or seen == 0:
        raise ValueError(f"{correct} correct of {seen} seen")
    interval = stats.binomtest(correct, seen).proportion_ci(level, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def welch(new: Sequence[float], old: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return Welch's interval of mean(new) - mean(old) of independent runs; None without any spread."""
    a, b = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if min(a.size, b.size) < 2 or (all_equal(a) and all_equal(b)):
        return None
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return float(interval.low), float(interval.high)
