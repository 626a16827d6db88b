"""Searches of a toy objective whose optimum is known: choice, equal effort, rungs, resuming, widening."""

from __future__ import annotations

import random

import pytest

from bench.experiments.tuning_table import Dimension, Tuning
from bench.tuning.choice import best
from bench.tuning.halving import Rung, rungs, survivors
from bench.tuning.phases import equal_operation_efforts, expected_rungs, find_standing, trained_epochs
from tests.tuning.toy import RATE, UNTIL, ToyPoint, ToyRecords, ToyTrials, finish

RATES = Dimension(("learning_rate", "initial"), "log", (1e-3, 16e-3))
UNTILS = Dimension(("strategy", "factor", "until"), "list", (0.25, 0.5, 0.8))
PLAIN, BRANCH = ToyPoint("plain"), ToyPoint("branch", (RATE, UNTIL))


def table(**fields) -> Tuning:
    return Tuning(**{"holdout": 8, "seeds": (100, 101), "effort": 9, "space": (RATES, UNTILS)} | fields)


def search(tuning: Tuning, points, pick=lambda wanted: wanted[0], prepare=lambda trials, records: None):
    trials = ToyTrials()
    records = ToyRecords(trials)
    prepare(trials, records)
    return finish(tuning, points, trials, records, pick), records


class TestChoice:
    def test_the_search_finds_the_known_optimum(self):
        standing, _ = search(table(sampler="grid", effort=5), [PLAIN, ToyPoint("other", best_rate=8e-3)])
        assert [s.chosen.configuration for s in standing.points] == [{RATE: 4e-3}, {RATE: 8e-3}]

    def test_quasirandom_configurations_come_close(self):
        standing, _ = search(table(), [PLAIN, BRANCH])
        for found in standing.points:
            assert 2.5e-3 < found.chosen.configuration[RATE] < 6.5e-3

    def test_equal_effort_for_every_arm_whatever_its_number_of_options(self):
        for sampler in ("quasirandom", "grid"):
            standing, records = search(table(sampler=sampler), [PLAIN, BRANCH])
            assert [len(s.tried) for s in standing.points] == [9, 9]
            assert records.trained == 2 * 9 * 2 * 9  # points, configurations, seeds, epochs

    def test_ties_go_to_the_smaller_rate_and_then_to_the_earlier(self):
        configurations = [{RATE: 3e-3}, {RATE: 1e-3}, {RATE: 1e-3, UNTIL: 0.5}, {RATE: 1e-4}]
        assert best(configurations, [80.0, 80.0, 80.0, 79.0]) == 1
        warm = [{"learning_rate.warmup_epochs": w, RATE: r} for w, r in ((0.0, 3e-3), (2.0, 1e-3))]
        assert best(warm, [80.0, 80.0]) == 1
        assert best([{"learning_rate": {"kind": "cosine", "initial": r}} for r in (3.0, 2.0)], [1, 1]) == 1
        assert best([{"learning_rate": 0.2}, {"learning_rate": 0.1}], [80.0, 80.0]) == 1

    def test_a_configuration_with_a_diverged_run_is_not_chosen(self):
        def diverge(trials, records):
            find_standing(table(sampler="grid", effort=5), [PLAIN], trials, records)
            records.diverged.add(next(id for id in trials.known if '"learning_rate.initial": 0.004' in id))

        standing, _ = search(table(sampler="grid", effort=5), [PLAIN], prepare=diverge)
        assert standing.points[0].chosen.configuration == {RATE: 2e-3}  # as far as 8e-3: the smaller one

    def test_without_a_survivor_there_is_no_choice_and_the_search_is_over(self):
        def diverge(trials, records):
            find_standing(table(), [PLAIN], trials, records)
            records.diverged |= set(trials.known)

        standing, _ = search(table(), [PLAIN], prepare=diverge)
        assert standing.finished and standing.points[0].chosen is None

    def test_a_point_is_decided_as_soon_as_its_own_trials_are_through(self):
        trials = ToyTrials()
        records = ToyRecords(trials)
        for wanted in find_standing(table(), [PLAIN, BRANCH], trials, records).points[0].wanted:
            records.run(wanted)
        standing = find_standing(table(), [PLAIN, BRANCH], trials, records)
        assert list(standing.choices) == [PLAIN.key] and not standing.finished


class TestOrderAndKills:
    @pytest.mark.parametrize("fields", [{}, {"scheduler": "halving"}, {"extend": True, "sampler": "grid"}])
    def test_the_order_of_the_trials_and_kills_anywhere_change_nothing(self, fields):
        tuning = table(**fields)
        points = [PLAIN, BRANCH, ToyPoint("high", best_rate=3e-2)]
        expected, whole = search(tuning, points)
        for number in range(5):
            dice = random.Random(number)
            trials = ToyTrials()
            records = ToyRecords(trials)
            while wanted := find_standing(tuning, points, trials, records).wanted:
                one = dice.choice(wanted)
                if dice.random() < 0.3:
                    records.run(one, epochs=1)  # and killed
                else:
                    records.run(one)
            found = find_standing(tuning, points, trials, records)
            assert found.choices == expected.choices
            assert [len(s.tried) for s in found.points] == [len(s.tried) for s in expected.points]
            assert records.trained == whole.trained  # nothing twice, nothing too much


class TestHalving:
    def test_counts_fall_and_epochs_grow_by_the_same_factor(self):
        assert rungs(27, 27, 3) == [Rung(1, 27), Rung(3, 9), Rung(9, 3), Rung(27, 1)]
        assert rungs(40, 8, 2) == [Rung(5, 8), Rung(10, 4), Rung(20, 2), Rung(40, 1)]

    def test_a_rung_ends_at_an_evaluation(self):
        assert [rung.epoch for rung in rungs(40, 9, 3, every=4)] == [8, 16, 40]

    def test_too_few_epochs_make_fewer_rungs(self):
        assert rungs(2, 27, 3)[-1].epoch == 2 and len(rungs(2, 27, 3)) == 2
        assert rungs(1, 27, 3) == [Rung(1, 27)]

    def test_survivors_are_the_best_and_never_the_diverged(self):
        rates = [{RATE: 1e-3 * (i + 1)} for i in range(5)]
        assert survivors(rates, [1.0, None, 3.0, 2.0, 3.0], 2) == [2, 4]
        assert survivors(rates[:2], [None, 1.0], 2) == [1]

    def test_of_equal_scores_the_smaller_rate_goes_on_and_then_the_earlier(self):
        assert survivors([{RATE: 3e-3}, {RATE: 2e-3}, {RATE: 1e-3}], [5.0, 5.0, 5.0], 2) == [1, 2]
        assert survivors([{RATE: 1e-3}, {RATE: 1e-3, UNTIL: 0.5}], [5.0, 5.0], 1) == [0]

    @pytest.mark.parametrize("epoch", [2, 3, 4, 9])
    def test_a_survivor_that_diverges_later_is_not_replaced(self, epoch):
        tuning = table(scheduler="halving")
        even, _ = search(tuning, [PLAIN])
        first = max(even.points[0].tried, key=lambda tried: (tried.epoch, tried.score or 0.0))

        def diverge(trials, records):
            records.diverging[first.trials[0].id] = epoch

        standing, records = search(tuning, [PLAIN], prepare=diverge)
        tried = standing.points[0].tried
        assert records.trained == 2 * trained_epochs(expected_rungs(tuning, PLAIN, 9))
        assert sorted(records.epochs.values()) == [1] * 12 + [3] * 4 + [9] * 2
        # the worst of its rung: the best of the others is trained to the end, or was best at the rung before
        second = max((t for t in even.points[0].tried if t.dropped == 3), key=lambda t: t.accuracies[0])
        assert standing.points[0].chosen.configuration == second.configuration
        assert standing.points[0].chosen.dropped == (None if epoch <= 3 else 3)
        assert next(t for t in tried if t.configuration == first.configuration).accuracies[0] is None

    def test_halving_finds_the_optimum_with_a_part_of_the_epochs(self):
        standing, records = search(table(scheduler="halving"), [PLAIN, BRANCH])
        full, all_epochs = search(table(), [PLAIN, BRANCH])
        assert standing.choices == full.choices
        assert records.trained < 0.5 * all_epochs.trained
        steps = [expected_rungs(table(scheduler="halving"), point, 9) for point in (PLAIN, BRANCH)]
        assert records.trained == 2 * sum(map(trained_epochs, steps))

    def test_what_is_dropped_stays_at_its_rung(self):
        standing, records = search(table(scheduler="halving"), [PLAIN])
        ends = sorted(records.epochs[trial.id] for t in standing.points[0].tried for trial in t.trials)
        assert ends == [1] * 12 + [3] * 4 + [9] * 2
        assert [t.dropped for t in standing.points[0].tried].count(1) == 6


class TestExtension:
    def test_an_optimum_beyond_the_range_is_found_and_every_arm_is_widened_alike(self):
        points = [ToyPoint("high", best_rate=64e-3), PLAIN]
        standing, _ = search(table(sampler="grid", effort=5, extend=True), points)
        assert standing.widened == {(RATE, "high"): 3}  # 32e-3, 64e-3 and 128e-3, which is worse
        assert [len(s.tried) for s in standing.points] == [8, 8]
        assert standing.points[0].chosen.configuration == {RATE: 64e-3}
        assert standing.points[1].chosen.configuration == {RATE: 4e-3}

    def test_an_arm_without_the_widened_field_has_the_same_effort(self):
        untils = Dimension(("strategy", "factor", "until"), "linear", (0.1, 0.2))
        for sampler in ("grid", "quasirandom"):
            tuning = table(space=(RATES, untils), sampler=sampler, extend=True)
            standing, _ = search(tuning, [PLAIN, ToyPoint("until", (UNTIL,))])
            assert standing.widened == {(UNTIL, "high"): 4}
            assert len({len(found.tried) for found in standing.points}) == 1

    def test_nothing_is_chosen_before_the_widening_is_over(self):
        tuning, trials = table(sampler="grid", effort=5, extend=True), ToyTrials()
        records, points = ToyRecords(trials), [ToyPoint("high", best_rate=64e-3)]
        for wanted in find_standing(tuning, points, trials, records).wanted:
            records.run(wanted)
        standing = find_standing(tuning, points, trials, records)
        assert standing.choices == {} and {w.trial.id for w in standing.wanted}

    def test_a_range_is_widened_four_times_at_most(self):
        standing, _ = search(table(sampler="grid", effort=5, extend=True), [ToyPoint("far", best_rate=1e3)])
        assert standing.widened == {(RATE, "high"): 4} and standing.finished

    def test_values_that_an_arm_cannot_have_end_the_widening(self):
        def forbid(trials, records):
            trials.impossible.add(32e-3)

        far = ToyPoint("far", best_rate=1e3)
        standing, _ = search(table(sampler="grid", effort=5, extend=True), [far], prepare=forbid)
        assert standing.widened == {} and standing.finished
        assert standing.points[0].chosen.configuration == {RATE: 16e-3}


def test_equal_operations_give_cheaper_arms_more_configurations():
    cost = {PLAIN.key: lambda epochs: 1.0 * epochs, BRANCH.key: lambda epochs: 1.5 * epochs}
    efforts = equal_operation_efforts(table(effort=8), [PLAIN, BRANCH], cost)
    assert efforts == {PLAIN.key: 12, BRANCH.key: 8}


def test_equal_operations_with_halving_are_those_of_the_rungs():
    """A branch that doubles the first three of nine epochs is on in most of what halving trains."""
    cost = {PLAIN.key: lambda epochs: 1.0 * epochs, BRANCH.key: lambda epochs: 1.0 * epochs + min(epochs, 3)}
    tuning = table(scheduler="halving")
    efforts = equal_operation_efforts(tuning, [PLAIN, BRANCH], cost)
    # rungs 9, 3, 1 to epochs 1, 3, 9: 9 x 2 + 3 x 4 + 1 x 6 = 36 for the branch. Without it 14 configurations
    # in rungs of 14, 5, 2 take 14 x 1 + 5 x 2 + 2 x 6 = 36; 15 take 15 + 10 + 12 = 37
    assert efforts == {PLAIN.key: 14, BRANCH.key: 9}
    trials = ToyTrials()
    records = ToyRecords(trials)
    found = find_standing(tuning, [PLAIN, BRANCH], trials, records, efforts)
    while found.wanted:
        records.run(found.wanted[0])
        found = find_standing(tuning, [PLAIN, BRANCH], trials, records, efforts)
    ends = [sorted(tried.epoch for tried in search.tried) for search in found.points]
    assert ends == [[1] * 9 + [3] * 3 + [9] * 2, [1] * 6 + [3] * 2 + [9]]
