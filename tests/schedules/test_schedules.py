"""Schedules against NumPy float64 formulas, and against tables from the text of the released scripts."""

from __future__ import annotations

import numpy as np
import pytest

from bench import schedules
from bench.errors import InputError
from bench.experiments.options import complete
from bench.schedules import factor_value, learning_rate_value

TOTAL, EPOCH = 400, 20  # steps in all, steps an epoch


def factor(spec, total=TOTAL, epoch=EPOCH):
    spec = complete("factors", spec)
    return np.array([factor_value(spec, step, total, epoch) for step in range(total)])


def rate(spec, total=TOTAL, epoch=EPOCH):
    spec = complete("learning_rates", spec)
    return np.array([learning_rate_value(spec, step, total, epoch) for step in range(total)])


class TestFactors:
    @pytest.mark.parametrize("until", [0.1, 0.25, 0.5, 0.73, 0.9])
    @pytest.mark.parametrize(
        ("kind", "formula"),
        [
            ("cosine", lambda u: (1 + np.cos(np.pi * u)) / 2),
            ("linear", lambda u: 1 - u),
            ("exponential", lambda u: np.exp(u * np.log(0.001))),
            ("constant", np.ones_like),
        ],
    )
    def test_fractions_follow_their_formula(self, kind, formula, until):
        u = np.arange(TOTAL, dtype=np.float64) / TOTAL / until
        expected = np.where(u < 1, formula(np.minimum(u, 1)), 0.0)
        found = factor({"kind": kind, "until": until})
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert np.all(found[u >= 1] == 0.0) and found[0] == 1.0 and found[-1] == 0.0

    @pytest.mark.parametrize("kind", ["cosine", "linear", "exponential", "constant"])
    def test_epochs_are_the_same_as_the_fraction_they_make(self, kind):
        np.testing.assert_allclose(
            factor({"kind": kind, "until_epochs": 5}),
            factor({"kind": kind, "until": 0.25}),
            rtol=1e-12,
            atol=1e-12,
        )
        assert (
            factor({"kind": kind, "until_epochs": 5})[100]
            == 0.0
            < factor({"kind": kind, "until_epochs": 5})[99]
        )

    @pytest.mark.parametrize("kind", ["cosine", "linear", "exponential", "constant"])
    def test_exactly_zero_from_the_step_where_it_ends(self, kind):
        for until, total in ((0.7, 10), (0.3, 10), (0.1, 30), (0.6, 5), (0.8, 1000)):
            found = factor({"kind": kind, "until": until}, total, 1)
            assert np.count_nonzero(found) == round(until * total)

    @pytest.mark.parametrize(("every", "end"), [(4, 40), (5, 50)])
    def test_released_staircases_halve_and_snap_to_zero_below_a_thousandth(self, every, end):
        # 2^-9 = 0.00195 stays, 2^-10 = 0.00098 is below 0.001
        table = [2.0**-k for k in range(10) for _ in range(every)] + [0.0] * (100 - end)
        found = factor({"kind": "staircase", "every_epochs": every}, 100 * 3, 3)
        assert found[::3].tolist() == table and found[2::3].tolist() == table

    def test_released_svhn_cosine_of_50_in_200_epochs(self):
        found = factor({"kind": "cosine", "until_epochs": 50}, 200 * 4, 4)
        for epoch, value in (
            (0, 1.0),
            (12.5, (2 + np.sqrt(2)) / 4),
            (25, 0.5),
            (37.5, (2 - np.sqrt(2)) / 4),
            (50, 0.0),
        ):
            assert found[int(epoch * 4)] == pytest.approx(value, abs=1e-12)
        assert not found[200:].any() and found[:200].all()

    def test_step_takes_each_value_from_its_time_on(self):
        found = factor({"kind": "step", "at": [0.25, 0.5], "values": [0.5, 0.0]})
        assert found.tolist() == [1.0] * 100 + [0.5] * 100 + [0.0] * 200
        assert factor({"kind": "step", "at_epochs": [5, 10], "values": [0.5, 0]}).tolist() == found.tolist()

    def test_kept_constant_is_one_throughout(self):
        assert factor({"kind": "constant", "keep": True}).tolist() == [1.0] * TOTAL

    @pytest.mark.parametrize("kind", ["cosine", "linear", "exponential", "constant", "staircase", "step"])
    def test_never_rises_and_stays_zero(self, kind):
        options = {"staircase": {"every_epochs": 2}, "step": {"at": [0.2, 0.4], "values": [0.3, 0]}}
        found = factor({"kind": kind, **options.get(kind, {"until": 0.6})}, 1000, 10)
        assert np.all(np.diff(found) <= 0) and found.max() == 1.0 and found.min() == 0.0

    @pytest.mark.parametrize(
        ("spec", "key", "words"),
        [
            ("cosine", "until", "exactly one"),
            ({"kind": "linear", "until": 0.5, "until_epochs": 3}, "until_epochs", "not both"),
            ({"kind": "linear", "until": 1}, "until", "below 1"),
            ({"kind": "linear", "until": 0}, "until", "above 0"),
            ({"kind": "cosine", "keep": True}, "until", "exactly one"),
            ({"kind": "staircase"}, "every_epochs", "missing"),
            ({"kind": "staircase", "every_epochs": 3, "decay": 1}, "decay", "below 1"),
            ({"kind": "step", "at": [0.5, 0.25], "values": [0.1, 0]}, "at", "rise"),
            ({"kind": "step", "at": [0.5], "values": [0.1, 0]}, "values", "2 values for 1"),
            ({"kind": "step", "at": [], "values": [0]}, "at", "list"),
            ({"kind": "step", "at": [0.2, 0.5], "values": [0, 0.5]}, "values", "stays 0"),
            ({"kind": "cosin", "until": 0.5}, "", "Did you mean 'cosine'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, spec, key, words):
        with pytest.raises(InputError, match=words) as error:
            complete("factors", spec, "strategy.factor")
        assert str(error.value).startswith(f"strategy.factor{'.' if key else ''}{key}")


class TestRemoval:
    @pytest.mark.parametrize(
        ("spec", "epochs", "steps", "ends"),
        [
            ({"kind": "cosine", "until": 0.99}, 10, 100, True),
            ({"kind": "cosine", "until": 0.99}, 10, 5, False),  # 50 steps: the last is at 0.98
            ({"kind": "cosine", "until": 0.99}, 10, None, True),
            ({"kind": "cosine", "until_epochs": 9.9}, 10, 5, False),
            ({"kind": "cosine", "until_epochs": 10}, 10, None, False),
            ({"kind": "cosine", "until_epochs": 10, "keep": True}, 10, None, True),
            ({"kind": "staircase", "every_epochs": 5}, 50, 100, False),
            ({"kind": "staircase", "every_epochs": 5}, 51, 100, True),
            ({"kind": "step", "at": [0.5], "values": [0.1]}, 10, 100, False),
        ],
    )
    def test_a_factor_that_does_not_end_at_zero_is_noticed(self, spec, epochs, steps, ends):
        reason = schedules.never_removed(complete("factors", spec), epochs, steps)
        assert (reason is None) == ends
        assert ends or "at the last step of" in reason


class TestLearningRates:
    progress = np.arange(TOTAL, dtype=np.float64) / TOTAL

    @pytest.mark.parametrize(
        ("spec", "formula"),
        [
            ({"kind": "cosine", "initial": 0.1}, lambda p: 0.05 * (1 + np.cos(np.pi * p))),
            ({"kind": "cosine", "initial": 0.1, "final": 0.02}, lambda p: 0.06 + 0.04 * np.cos(np.pi * p)),
            ({"kind": "linear", "initial": 0.1, "final": 0.02}, lambda p: 0.1 - 0.08 * p),
            ({"kind": "polynomial", "initial": 0.1, "power": 3}, lambda p: 0.1 * (1 - p) ** 3),
            ({"kind": "exponential", "initial": 0.1, "final": 1e-4}, lambda p: 10 ** (-1 - 3 * p)),
            (0.003, lambda p: np.full_like(p, 0.003)),
        ],
    )
    def test_smooth_kinds_follow_their_formula(self, spec, formula):
        np.testing.assert_allclose(rate(spec), formula(self.progress), rtol=1e-12, atol=1e-15)

    def test_warmup_rises_linearly_to_the_initial_rate_and_the_rest_follows(self):
        found = rate({"kind": "cosine", "initial": 0.1, "warmup_epochs": 2})
        np.testing.assert_allclose(found[:40], 0.1 * np.arange(1, 41) / 40, rtol=1e-12)
        rest = np.arange(360) / 360
        np.testing.assert_allclose(found[40:], 0.05 * (1 + np.cos(np.pi * rest)), rtol=1e-12, atol=1e-15)

    def test_stairs_keep_their_times_under_a_warmup(self):
        found = rate({"kind": "step", "initial": 1.0, "at": [0.5], "gamma": 0.1, "warmup_epochs": 1})
        assert found[19] == 1.0 and found[9] == 0.5 and found[199] == 1.0 and found[200] == 0.1

    def test_warmup_longer_than_training(self):
        assert rate({"kind": "linear", "initial": 1.0, "warmup_epochs": 100})[-1] == pytest.approx(400 / 2000)

    @pytest.mark.parametrize(("decay", "late"), [(0.1, 1e-4), (0.5, 5e-4)])
    def test_released_svhn_rates(self, decay, late):
        found = rate({"kind": "staircase", "initial": 1e-3, "decay": decay, "every_epochs": 100}, 200 * 3, 3)
        np.testing.assert_allclose(found, [1e-3] * 300 + [late] * 300, rtol=1e-15)

    @pytest.mark.parametrize(
        ("at", "values"), [([56, 64], [1e-4, 2e-5]), ([60, 80], [1e-4, 1e-5])], ids=["baseline", "expnet"]
    )
    def test_released_alexnet_rates(self, at, values):
        found = rate({"kind": "step", "initial": 2e-4, "at_epochs": at, "values": values}, 100 * 2, 2)
        first, second = 2 * at[0], 2 * at[1]
        table = [2e-4] * first + [values[0]] * (second - first) + [values[1]] * (200 - second)
        assert found.tolist() == table

    def test_resnet_steps_at_the_papers_shares(self):
        found = rate({"kind": "step", "initial": 0.1, "at": [0.5, 0.75], "gamma": 0.1})
        np.testing.assert_allclose(found, [0.1] * 200 + [0.01] * 100 + [0.001] * 100, rtol=1e-12)

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ({"kind": "step", "initial": 1, "at": [0.5]}, "exactly one of 'gamma' and 'values'"),
            ({"kind": "step", "initial": 1, "at": [0.5], "gamma": 0.1, "values": [0.1]}, "not both"),
            ({"kind": "step", "initial": 1, "gamma": 0.1}, "exactly one of 'at' and 'at_epochs'"),
            ({"kind": "cosine", "initial": 0.1, "final": 0.2}, "above the initial"),
            ({"kind": "cosine", "initial": -1}, "above 0"),
            ("cosine", "missing"),
            (True, "a name or a table"),
            (0, "above 0"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, spec, words):
        with pytest.raises(InputError, match=words):
            complete("learning_rates", spec)
