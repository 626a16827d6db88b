"""Intervals, gains, claims, verdicts and times: against hand-computed numbers, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.reporting import statistics as st

REPS = 4000
SLACK = 3 * math.sqrt(0.05 * 0.95 / REPS)  # three standard errors of a simulated 5 %


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_interval_by_hand():
    # mean 82, deviations -2 0 2: s = 2; t(0.975, 2) = 4.302653; half = 4.302653 * 2 / sqrt(3) = 4.968275
    interval = st.mean_interval([80.0, 82.0, 84.0])
    assert interval.n == 3 and interval.mean == 82.0 and interval.note == ""
    assert interval.half == pytest.approx(4.968275, abs=1e-6)
    assert (interval.low, interval.high) == pytest.approx((77.031725, 86.968275), abs=1e-6)


def test_one_run_and_none_have_no_interval():
    assert st.mean_interval([80.0]) == st.Interval(1, 80.0, note="n = 1: no interval")
    assert st.mean_interval([]) == st.Interval(0, None, note="no run")


@pytest.mark.parametrize("values", [[21.6] * 5, [0.1 + 0.2, 0.3], [100.0, 100.0], [0.0, 0.0, 0.0]])
def test_identical_runs_give_no_certainty(values):
    interval = st.mean_interval(values)
    assert interval.low is None and interval.half is None and "identical" in interval.note
    word = st.verdict(interval, values[0], "original").word
    assert word == "inconclusive"


def test_wilson_by_hand():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662
    assert st.wilson(81, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    low, high = st.wilson(0, 20)  # and 0 of 20: 0 to 0.1611
    assert (low, high) == pytest.approx((0.0, 16.11), abs=0.005)
    assert st.wilson(20, 20)[1] == 100.0
    for correct, seen in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="seen"):
            st.wilson(correct, seen)


def test_gain_pairs_by_seed():
    # seeds 0, 1, 2 have both: differences 3, 5, 4: mean 4, s = 1, half = 4.302653 / sqrt(3) = 2.484138
    # t = 4 / (1 / sqrt 3) = 6.928203; two-sided p at 2 degrees = 1 - t / sqrt(2 + t^2) = 0.020204
    gain = st.paired_gain({0: 83.0, 1: 75.0, 2: 64.0, 7: 1.0}, {2: 60.0, 1: 70.0, 0: 80.0, 9: 99.0})
    assert gain.seeds == (0, 1, 2)
    assert gain.interval.mean == 4.0 and gain.interval.half == pytest.approx(2.484138, abs=1e-6)
    t = 4 * math.sqrt(3)
    assert gain.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-9)


def test_gain_without_spread_is_not_tested():
    same = st.paired_gain({0: 81.0, 1: 71.0}, {0: 80.0, 1: 70.0})
    assert same.p_value is None and same.interval.mean == 1.0 and "identical" in same.interval.note
    assert st.claim(same, None).startswith("not decided")
    single = st.paired_gain({0: 90.0}, {0: 10.0})
    assert single.p_value is None and single.interval.note == "1 pair: no interval"
    nothing = st.paired_gain({0: 90.0}, {1: 10.0})
    assert nothing.interval.mean is None and nothing.interval.note == "no pair"
    assert st.claim(nothing, None) == "not decided (no pair)"


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1 = 0.03, 0.06, 0.04 -> made monotone: 0.03, 0.06, 0.06
    assert st.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert st.holm([]) == [] and st.holm([0.9, 0.8]) == [1.0, 1.0]


def test_claims():
    up, down = (
        st.paired_gain({0: 3.0, 1: 4.1}, {0: 1.0, 1: 2.0}),
        st.paired_gain({0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.1}),
    )
    assert (st.claim(up, 0.05), st.claim(down, 0.01)) == ("better", "worse")
    assert st.claim(up, 0.051) == "no difference shown"
    assert st.claim(up, 0.001, lost=1) == "not decided: 1 pair lost to diverged runs"


@pytest.mark.parametrize(
    ("low", "high", "kind", "reasons", "word"),
    [
        (83.6, 85.2, "original", (), "reproduced"),
        (83.3, 85.2, "original", (), "inconclusive"),  # reaches 1.1 below
        (81.0, 83.3, "original", (), "not reproduced"),
        (85.5, 86.0, "reproduction", (), "not reproduced"),  # above is not the same either
        (81.0, 83.3, "quoted", (), "inconclusive"),
        (83.6, 85.2, "quoted", (), "reproduced"),
        (70.0, 99.0, "original", (), "inconclusive"),  # a wide interval reproduces nothing
        (84.3, 84.5, "original", ("short budget",), "not comparable"),
    ],
)
def test_verdicts(low, high, kind, reasons, word):
    ours = st.Interval(3, (low + high) / 2, low, high)
    assert st.verdict(ours, 84.4, kind, reasons).word == word


def test_verdict_needs_an_interval():
    assert st.verdict(st.mean_interval([84.4]), 84.4, "original").word == "inconclusive"
    assert st.verdict(st.mean_interval([]), 84.4, "original").reason == "no finished run"


def test_time_to_counts_runs_that_never_arrive():
    assert st.time_to([3.0, None, 5.0]) == st.TimeTo(3, (3.0, 5.0), 5.0)
    assert st.time_to([3.0, None, None]).median is None  # only a third ever did
    assert st.time_to([3.0, None]).median == 3.0  # half did by 3
    assert st.time_to([]).median is None


def test_first_reached_and_held():
    curve = [10.0, 60.0, None, 70.0, 50.0, 61.0, 62.0]
    assert st.first_reached(curve, 60.0) == 1 and st.held_from(curve, 60.0) == 5
    assert st.first_reached(curve, 71.0) is None and st.held_from(curve, 62.5) is None
    assert st.held_from([None, 61.0, None, 62.0, None], 60.0) == 1  # evaluated every second epoch
    assert st.held_from([70.0], 60.0) == 0 and st.held_from([], 60.0) is None
    assert (st.common_threshold(84.99), st.common_threshold(85.0), st.common_threshold(3.0)) == (
        80.0,
        85.0,
        0.0,
    )


def test_removal_by_hand():
    # the branch is last on in epoch 2 (80 %); deployed after it 60, 75, 81: dip 20, back in the third epoch
    gone = st.removal(
        [0.5, 0.1, 0.0, 0.0, 0.0], [20.0, 40.0, 60.0, 75.0, 81.0], [70.0, 80.0, None, None, None]
    )
    assert gone == st.Removal(3, 80.0, 20.0, 3)
    never = st.removal([0.5, 0.1, 0.0], [20.0, 40.0, 60.0], [70.0, 80.0, None])
    assert never is not None and never.recovery is None
    # evaluated every second epoch: the branch is last on in epoch 3, last measured in epoch 2 (80 %)
    sparse = st.removal(
        [0.5, 0.2, 0.1, 0.0, 0.0], [None, 40.0, None, 75.0, 81.0], [None, 80.0, None, None, None]
    )
    assert sparse == st.Removal(4, 80.0, 5.0, 2)
    assert st.removal([0.0, 0.0], [1.0, 2.0], [None, None]) is None
    assert st.removal([0.5, 0.5], [1.0, 2.0], [3.0, 4.0]) is None  # never removed


def test_welch():
    low, high = st.welch([80.0, 82.0, 84.0], [70.0, 71.0, 72.0])
    reference = stats.ttest_ind([80, 82, 84], [70, 71, 72], equal_var=False).confidence_interval()
    assert (low, high) == pytest.approx((reference.low, reference.high))
    assert st.welch([80.0], [70.0, 71.0]) is None and st.welch([80.0, 80.0], [70.0, 70.0]) is None


# -- by simulation ---------------------------------------------------------------------------------------------------


def _normal(rng, n):
    return 80.0 + 2.0 * rng.standard_normal((REPS, n)), 80.0


def _binomial_plus_seed(rng, n):
    # a seed's own accuracy, 80 % with a standard deviation of 1 point, measured on 2,000 test images
    p = np.clip(0.8 + 0.01 * rng.standard_normal((REPS, n)), 0, 1)
    return 100.0 * rng.binomial(2000, p) / 2000, 80.0


@pytest.mark.parametrize("noise", [_normal, _binomial_plus_seed])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_of_the_mean(noise, n):
    samples, truth = noise(np.random.default_rng(n), n)
    intervals = [st.mean_interval(row) for row in samples]
    covered = sum(i.low is not None and i.low <= truth <= i.high for i in intervals)
    without = sum(i.low is None for i in intervals)
    assert without < 0.005 * REPS
    assert 0.93 <= covered / REPS <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_of_a_paired_gain(n):
    rng = np.random.default_rng(20 + n)
    shared = rng.standard_normal((REPS, n)) * 3.0  # what a seed does to both arms
    arm = np.clip((82.0 + shared + rng.standard_normal((REPS, n))) / 100, 0, 1)
    base = np.clip((80.0 + shared + rng.standard_normal((REPS, n))) / 100, 0, 1)
    arm, base = 100.0 * rng.binomial(2000, arm) / 2000, 100.0 * rng.binomial(2000, base) / 2000
    covered = 0
    for a, b in zip(arm, base, strict=True):
        gain = st.paired_gain(dict(enumerate(a)), dict(enumerate(b)))
        covered += gain.interval.low is not None and gain.interval.low <= 2.0 <= gain.interval.high
    assert 0.93 <= covered / REPS <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_family_wise_error_of_the_claims(n):
    """Six arms that are no better than the baseline they share: a false claim in at most 5 % of the tables."""
    rng = np.random.default_rng(40 + n)
    reps, arms = REPS // 2, 6
    p = np.clip(0.8 + 0.01 * rng.standard_normal((reps, arms + 1, n)), 0, 1)
    accuracy = 100.0 * rng.binomial(2000, p) / 2000
    wrong = uncorrected = 0
    for table in accuracy:
        gains = [st.paired_gain(dict(enumerate(row)), dict(enumerate(table[0]))) for row in table[1:]]
        tested = [g for g in gains if g.p_value is not None]
        claims = [st.claim(g, p) for g, p in zip(tested, st.holm([g.p_value for g in tested]), strict=True)]
        wrong += any(c in ("better", "worse") for c in claims)
        uncorrected += any(st.claim(g, g.p_value) in ("better", "worse") for g in tested)
    assert wrong / reps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps)
    assert uncorrected / reps > 0.09  # the check can fail: without the correction it does


def test_wilson_covers_the_accuracy_of_one_network():
    rng = np.random.default_rng(5)
    for p, seen in ((0.5, 360), (0.9, 360), (0.97, 2000)):
        counts, times = np.unique(rng.binomial(seen, p, 20_000), return_counts=True)
        inside = [low <= 100 * p <= high for low, high in (st.wilson(int(c), seen) for c in counts)]
        assert 0.93 <= float(np.dot(inside, times)) / 20_000 <= 0.97
