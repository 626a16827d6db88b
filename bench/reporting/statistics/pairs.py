"""Two arms compared seed by seed: gain, exact test, equivalence, ratio of the seeds' standard deviations.

Runs are paired by seed because the two runs of a seed share the initial weights and the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import stdtr  # Student's t distribution function

from bench.reporting.statistics.intervals import (
    IDENTICAL,
    LEVEL,
    NO_RUN,
    SINGLE,
    Interval,
    all_equal,
    mean_interval,
    student_quantile,
)

LARGEST_EXACT = 20  # pairs: 2^20 sign patterns are all counted, more are sampled
_SAMPLED = 2**20
_PAIR_NOTES = {
    NO_RUN: "no pair",
    SINGLE: "1 pair: no interval",
    IDENTICAL: "identical differences: no interval",
}


def differences(arm: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Return arm - baseline for every seed that both have, in the order of the seeds."""
    return {seed: arm[seed] - baseline[seed] for seed in sorted(arm.keys() & baseline.keys())}


@dataclass(frozen=True)
class Gain:
    """A gain over a baseline, paired by seed, in points.

    ``p_value`` is that of the two-sided paired t-test; None where there is no interval.
    """

    interval: Interval
    seeds: tuple[int, ...]
    p_value: float | None


def paired_gain(arm: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL) -> Gain:
    """Return the mean of arm - baseline over their common seeds, with its t-interval and p-value."""
    by_seed = differences(arm, baseline)
    seeds, values = tuple(by_seed), np.asarray(list(by_seed.values()), dtype=np.float64)
    interval = mean_interval(values, level)
    interval = replace(interval, note=_PAIR_NOTES.get(interval.note, interval.note))
    if interval.low is None:
        return Gain(interval, seeds, None)
    t = float(values.mean() / (values.std(ddof=1) / math.sqrt(values.size)))
    return Gain(interval, seeds, float(2.0 * stdtr(values.size - 1, -abs(t))))


@dataclass(frozen=True)
class SignFlip:
    """A sign-flip test. ``exact``: every sign pattern was counted; else about a million were drawn.

    ``smallest`` is the smallest p-value that so many pairs can give, 2 / 2^n: with 5 pairs it is 0.0625, so 5
    pairs can never show a difference at the 5 % level. Where patterns were drawn it is 1 / (the number of
    patterns).
    """

    p_value: float
    smallest: float
    exact: bool


def sign_flip(values: Sequence[float]) -> SignFlip | None:
    """Return the two-sided sign-flip test of paired differences (Fisher 1935); None without any difference.

    Null hypothesis: the difference of a pair is as likely d as -d. The p-value is the share of the 2^n sign
    patterns whose absolute sum is at least the observed one. The test needs no normal distribution, so its
    error rate is exact at any n. Above ``LARGEST_EXACT`` pairs a fixed random sample of patterns is counted,
    the observed one included. A difference that is not a finite number leaves no p-value: NaN.
    """
    d = np.asarray(values, dtype=np.float64)
    if d.size == 0:
        return None
    exact = d.size <= LARGEST_EXACT
    if exact:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
    else:
        random = np.random.default_rng(0)
        sums = np.full(1, d.sum())
        for _ in range(16):
            signs = random.choice((-1.0, 1.0), size=(_SAMPLED // 16, d.size))
            sums = np.concatenate([sums, signs @ d])
    if not np.isfinite(d).all():
        return SignFlip(math.nan, max(2.0 ** (1 - d.size), 1 / sums.size), exact)
    # Sums that are equal in exact arithmetic may differ in the last bits.
    reached = np.abs(sums) >= abs(float(d.sum())) - 1e-9 * max(1.0, float(np.abs(d).sum()))
    return SignFlip(float(reached.mean()), max(2.0 ** (1 - d.size), 1 / sums.size), exact)


def equivalence(values: Sequence[float], margin: float) -> float | None:
    """Return the p-value of equivalence within ``margin`` points: two one-sided t-tests (Schuirmann 1987).

    Null hypothesis: the mean difference is at least ``margin`` away from 0. The p-value is the larger one of
    the two tests; it is at most 0.05 exactly where the 90 % t-interval of the mean difference lies within the
    margin. None where there is no spread to estimate or the margin is 0.
    """
    d = np.asarray(values, dtype=np.float64)
    if d.size < 2 or margin <= 0 or all_equal(d):
        return None
    above = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(d, margin, alternative="less").pvalue
    return float(max(above, below))


@dataclass(frozen=True)
class DeviationRatio:
    """The standard deviation over an arm's seeds over its baseline's, with its interval.

    Below 1 the arm varies less. Without an interval ``low`` and ``high`` are None and ``note`` says why.
    """

    n: int
    ratio: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


def deviation_ratio(
    arm: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL
) -> DeviationRatio:
    """Return the ratio of the two standard deviations over the seeds that both arms have.

    The interval is Pitman and Morgan's (Pitman 1939, Morgan 1939), not the F-interval: runs of one seed are
    correlated, and the F-interval assumes that they are independent. With w the ratio of the variances, r the
    correlation of the pairs and t Student's quantile with n - 2 degrees of freedom, K = 1 + 2 (1 - r^2) t^2 /
    (n - 2) and the interval of the variances' ratio is w (K - sqrt(K^2 - 1)) to w (K + sqrt(K^2 - 1)). It
    holds for pairs that are jointly normal, and unlike a t-interval of a mean it gets no better with n where
    they are not.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    x = np.asarray([arm[seed] for seed in seeds], dtype=np.float64)
    y = np.asarray([baseline[seed] for seed in seeds], dtype=np.float64)
    if len(seeds) < 2:
        return DeviationRatio(len(seeds), None, note=f"{len(seeds)} pair{'s' * (len(seeds) != 1)}: no spread")
    if all_equal(x) or all_equal(y):
        return DeviationRatio(len(seeds), None, note="identical runs: no ratio")
    ratio = float(x.std(ddof=1) / y.std(ddof=1))
    if len(seeds) == 2:
        return DeviationRatio(2, ratio, note="2 pairs: no interval")
    r = float(np.corrcoef(x, y)[0, 1])
    t = student_quantile(level, len(seeds) - 2)
    k = 1 + 2 * max(0.0, 1 - r * r) * t * t / (len(seeds) - 2)
    spread = math.sqrt(k + math.sqrt(k * k - 1))  # 1 / (K - sqrt(K^2 - 1)) is K + sqrt(K^2 - 1)
    return DeviationRatio(len(seeds), ratio, ratio / spread, ratio * spread)
