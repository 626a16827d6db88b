"""Spaces and samplers: what is drawn, in which order, and how ranges grow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.experiments.tuning_table import Dimension, Tuning
from bench.tuning import samplers
from bench.tuning.space import edges, key, levels, value_at, widened

RATE = Dimension(("learning_rate", "initial"), "log", (1e-3, 16e-3))
UNTIL = Dimension(("strategy", "factor", "until"), "list", (0.25, 0.5, 0.8))
COUNT = Dimension(("batch_size",), "int", (2, 5))
ALL = ("learning_rate.initial", "strategy.factor.until")


def tuning(*space: Dimension, effort: int = 8, **fields) -> Tuning:
    return Tuning(holdout=8, seeds=(100,), effort=effort, space=space, **fields)


class TestValues:
    def test_a_log_range_is_linear_in_the_logarithm(self):
        for u in np.linspace(0, 0.999, 7):
            expected = np.exp((1 - u) * np.log(1e-3) + u * np.log(16e-3))
            assert value_at(RATE, u) == pytest.approx(expected, rel=1e-5)

    def test_every_value_of_a_list_and_of_an_int_range_has_the_same_share(self):
        points = (np.arange(1200) + 0.5) / 1200
        for dimension, values in ((UNTIL, UNTIL.values), (COUNT, (2, 3, 4, 5))):
            drawn = [value_at(dimension, u) for u in points]
            assert {value: drawn.count(value) for value in values} == dict.fromkeys(
                values, 1200 // len(values)
            )

    def test_five_levels_of_a_log_range_double(self):
        assert levels(RATE, 5) == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]

    def test_values_have_six_digits_so_that_identities_are_stable(self):
        assert value_at(RATE, 1 / 3) == float(f"{1e-3 * 16 ** (1 / 3):.6g}")


class TestQuasirandom:
    def test_configurations_depend_on_the_space_alone_and_a_larger_effort_adds_to_them(self):
        few = samplers.configurations(tuning(RATE, UNTIL), ALL, 4)
        many = samplers.configurations(tuning(RATE, UNTIL, effort=64), ALL, 16)
        assert many[:4] == few
        assert len({key(c) for c in many}) == 16

    def test_arms_try_the_same_learning_rates_whatever_else_they_have(self):
        both = samplers.configurations(tuning(RATE, UNTIL), ALL, 8)
        alone = samplers.configurations(tuning(RATE, UNTIL), ALL[:1], 8)
        assert [c["learning_rate.initial"] for c in both] == [c["learning_rate.initial"] for c in alone]

    def test_points_are_evenly_spread(self):
        drawn = samplers.configurations(tuning(RATE), ALL[:1], 16)
        places = sorted(16 * math.log(c["learning_rate.initial"] / 1e-3) / math.log(16) for c in drawn)
        assert [math.floor(place) for place in places] == list(range(16))  # one in each sixteenth

    def test_a_small_discrete_space_is_tried_whole(self):
        drawn = samplers.configurations(tuning(UNTIL), ALL[1:], 8)
        assert sorted(c["strategy.factor.until"] for c in drawn) == [0.25, 0.5, 0.8]

    def test_an_arm_without_tuned_fields_has_one_configuration(self):
        assert samplers.configurations(tuning(RATE), (), 8) == [{}]


class TestGrid:
    def test_the_full_product_where_the_effort_pays_for_it(self):
        small = Dimension(("weight_decay",), "list", (0.0, 1e-4))
        drawn = samplers.configurations(
            tuning(UNTIL, small, sampler="grid"), ("strategy.factor.until", "weight_decay"), 6
        )
        assert len(drawn) == len({key(c) for c in drawn}) == 6

    def test_else_a_diagonal_that_reaches_every_level(self):
        drawn = samplers.configurations(tuning(RATE, UNTIL, sampler="grid"), ALL, 5)
        assert [c["learning_rate.initial"] for c in drawn] == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]
        assert {c["strategy.factor.until"] for c in drawn} == {0.25, 0.5, 0.8}

    @pytest.mark.parametrize("sizes", [(2, 5), (5, 2), (3, 4), (2, 2, 3), (3, 6, 2), (2, 8)])
    def test_the_whole_effort_is_spent_whatever_the_numbers_of_levels(self, sizes):
        space = [Dimension(("strategy", str(k)), "list", tuple(range(n))) for k, n in enumerate(sizes)]
        for effort in range(1, math.prod(sizes) + 2):
            drawn = samplers.configurations(tuning(*space, sampler="grid"), [d.name for d in space], effort)
            assert len({key(c) for c in drawn}) == len(drawn) == min(effort, math.prod(sizes))

    @pytest.mark.parametrize("effort", [3, 4, 5, 6, 8, 9])
    def test_an_arm_with_a_list_before_the_rates_tries_all_rates_of_an_arm_without(self, effort):
        grid = tuning(UNTIL, RATE, sampler="grid")
        both, alone = (samplers.configurations(grid, names, effort) for names in (ALL, ALL[:1]))
        assert len(both) == len(alone) == effort
        rates = [{c["learning_rate.initial"] for c in drawn} for drawn in (both, alone)]
        assert rates[0] == rates[1]

    def test_a_widening_adds_one_level(self):
        grid = tuning(RATE, UNTIL, effort=5, sampler="grid")
        high = samplers.extension(grid, ALL, 5, ("learning_rate.initial", "high"), 1)
        low = samplers.extension(grid, ALL, 5, ("learning_rate.initial", "low"), 2)
        assert [c["learning_rate.initial"] for c in high] == [32e-3]
        assert [c["learning_rate.initial"] for c in low] == [0.25e-3]
        assert high[0]["strategy.factor.until"] in UNTIL.values

    def test_a_widening_does_not_reach_an_arm_without_the_field(self):
        grid = tuning(RATE, sampler="grid")
        assert samplers.extension(grid, (), 5, ("learning_rate.initial", "high"), 1) == []

    def test_an_arm_without_the_widened_field_gets_as_many_new_ones_of_its_own(self):
        for sampler, count in (("grid", 1), ("quasirandom", 2)):
            table = tuning(RATE, sampler=sampler)
            tried = samplers.configurations(table, ALL[:1], 8)
            new = samplers.further(table, ALL[:1], 8, tried)
            assert len(new) == count and not {key(c) for c in new} & {key(c) for c in tried}
            assert all(1e-3 <= c["learning_rate.initial"] <= 16e-3 for c in new)
        assert samplers.further(tuning(UNTIL), (), 8, [{}]) == []


class TestWidening:
    def test_the_best_at_the_extreme_that_was_tried_lies_at_an_edge(self):
        tried = [{"learning_rate.initial": r} for r in (1e-3, 3e-3, 9e-3)]
        assert edges(tried[2], tried, [RATE]) == [("learning_rate.initial", "high")]
        assert edges(tried[0], tried, [RATE]) == [("learning_rate.initial", "low")]
        assert edges(tried[1], tried, [RATE]) == []

    def test_a_list_has_no_edge(self):
        tried = [{"strategy.factor.until": u} for u in UNTIL.values]
        assert edges(tried[2], tried, [UNTIL]) == []

    def test_the_range_grows_by_a_quarter_of_its_width_at_a_time(self):
        assert widened(RATE, "high", 1).values == (16e-3, 32e-3)
        assert widened(RATE, "high", 2).values == (32e-3, 64e-3)
        assert widened(RATE, "low", 1).values == (0.5e-3, 1e-3)

    def test_a_range_above_zero_stays_above_zero(self):
        assert widened(Dimension(("weight_decay",), "linear", (0.1, 1.0)), "low", 1) is None
        assert widened(Dimension(("batch_size",), "int", (0, 4)), "low", 1) is None

    def test_quasirandom_configurations_of_a_widening_lie_in_the_new_part(self):
        new = samplers.extension(tuning(RATE, UNTIL), ALL, 8, ("learning_rate.initial", "high"), 1)
        assert len(new) == 2
        assert all(16e-3 <= c["learning_rate.initial"] <= 32e-3 for c in new)
