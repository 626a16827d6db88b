"""``bench run`` with [tuning]: from the search to the final trials, stopped and killed anywhere."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.costs.operations import training_operations
from bench.experiments.expand import load_experiment
from bench.records.store import Store
from bench.tuning.search import unfold
from tests.waiting import HANG

ROOT = Path(__file__).parents[2]
TRAIN = "tests.tuning.training_fakes:train"
TEXT = """
title = "tuned fakes"
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 9
quantizer = "dorefa"
bits = "1/1"
learning_rate = { kind = "cosine", initial = 1e-3 }
[grid]
seed = [0, 1]
[[arms]]
name = "plain"
[[arms]]
name = "sum"
baseline = "plain"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
[tuning]
holdout = 64
seeds = [100, 101]
effort = 3
sampler = "grid"
[tuning.space]
"learning_rate.initial" = { log = [1e-3, 16e-3] }
"strategy.factor.until" = [0.25, 0.5]
[[claims]]
arm = "sum"
over = "plain"
at = "equal epochs"
"""


class Bench:
    """An experiment file and a results folder."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        self.file, self.data, self.results = folder / "tuned.toml", folder / "data", folder / "results"
        self.file.write_text(text)
        self.data.mkdir()
        self.store = Store(self.results)

    def words(self, *more: str, command: str = "run") -> list[str]:
        return [command, str(self.file), "--results", str(self.results), "--data", str(self.data), *more]

    def run(self, *more: str) -> int:
        return main(self.words("--no-ray", "--jobs", "2", *more), train=TRAIN)

    def unfolded(self):
        return unfold(load_experiment(self.file, data_dir=self.data), self.store)

    def calls(self) -> list[tuple[str, int]]:
        path = self.data / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def tuned(self) -> list[dict]:
        return self.store.tuning("tuned")


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def change(bench: Bench, old: str, new: str) -> None:
    text = bench.file.read_text()
    assert old in text
    bench.file.write_text(text.replace(old, new))


class TestSearch:
    def test_goes_on_by_itself_from_the_search_to_the_final_trials(self, bench, capsys):
        assert bench.run() == 0
        experiment, standing = bench.unfolded()
        assert standing.finished
        assert [s.chosen.configuration["learning_rate.initial"] for s in standing.points] == [4e-3, 4e-3]
        for line in experiment.index:
            config, summary = line.trial.config, bench.store.summary(line.id)
            if line.role == "tuning":
                assert config.holdout == 64 and not config.evaluate_test and config.seed in (100, 101)
                assert summary["final_test_acc"] is None and summary["final_val_acc"] is not None
            else:
                assert config.holdout == 0 and config.evaluate_test and config.seed in (0, 1)
                assert config.learning_rate["initial"] == 4e-3
        assert len(experiment.lines("plain")) == len(experiment.lines("sum")) == 2
        assert all(line.baseline_trial is not None for line in experiment.lines("sum"))
        assert "2 of 2 choices made" in capsys.readouterr().out

    def test_the_same_command_again_trains_nothing(self, bench):
        bench.run()
        before = bench.calls()
        assert bench.run() == 0
        assert bench.calls() == before and len(before) == 2 * 3 * 2 + 4

    def test_tuning_jsonl_says_what_was_chosen_from_what_at_which_cost(self, bench):
        bench.run()
        lines = bench.tuned()
        assert len(lines) == 6 and [line["chosen"] for line in lines].count(True) == 2
        chosen = next(line for line in lines if line["arm"] == "plain" and line["chosen"])
        assert chosen["configuration"] == {"learning_rate.initial": 4e-3}
        assert chosen["mean"] == max(line["mean"] for line in lines if line["arm"] == "plain")
        assert chosen["operations"] == 2 * 9e6 and set(chosen["trials"]) == {"100", "101"}
        roles = [(line["role"], line.get("tunes")) for line in bench.store.index("tuned")]
        assert roles.count(("tuning", "plain")) == roles.count(("tuning", "sum")) == 6

    def test_a_new_choice_replaces_the_final_lines_of_the_old_one(self, bench):
        bench.run("--set", "tuning.effort=1")
        bench.run()
        finals = [line for line in bench.store.index("tuned") if line["arm"] is not None]
        assert len(finals) == 4
        assert {
            bench.store.read_trial(line["id"])["config"]["learning_rate"]["initial"] for line in finals
        } == {4e-3}

    def test_other_budgets_keep_their_lines(self, bench):
        bench.run("--set", "epochs=3")
        bench.run()
        assert len([line for line in bench.store.index("tuned") if line["arm"] is not None]) == 8

    def test_only_and_seeds(self, bench):
        assert bench.run("--only", "plain", "--seeds", "1") == 0
        assert len(bench.calls()) == 6 + 1
        assert bench.run() == 0
        assert len(bench.calls()) == 12 + 4  # nothing of plain twice

    def test_fresh_searches_anew(self, bench):
        bench.run()
        assert bench.run("--fresh") == 0
        assert len(bench.calls()) == 2 * 16

    def test_a_seed_of_the_grid_cannot_tune(self, bench, capsys):
        change(bench, "seeds = [100, 101]", "seeds = [100, 1]")
        assert bench.run() == 2
        assert "tuning.seeds: 1 stands in the grid, too" in capsys.readouterr().err

    def test_wrong_tables_are_named_with_their_keys(self, bench, capsys):
        change(bench, "effort = 3", "effort = 0")
        change(bench, '"learning_rate.initial" = {', '"learning_rate.initail" = {')
        change(bench, 'sampler = "grid"', 'sampler = "gird"')
        assert bench.run() == 2
        shown = capsys.readouterr().err
        assert "tuning.effort: expected a whole number" in shown
        assert "tuning.sampler: 'gird' is not one of" in shown and "Did you mean 'grid'?" in shown

    @pytest.mark.parametrize("scheduler", ['"ahsa"', '{ kind = "halving", reduction = 1 }'])
    def test_a_wrong_scheduler_is_named(self, bench, capsys, scheduler):
        change(bench, "effort = 3", f"effort = 3\nscheduler = {scheduler}")
        assert bench.run() == 2
        assert "tuning.scheduler." in capsys.readouterr().err

    def test_a_field_that_no_arm_has_is_an_error(self, bench, capsys):
        change(bench, '"learning_rate.initial" = {', '"learning_rate.initail" = {')
        assert bench.run() == 2
        assert "tuning.space.learning_rate.initail: touches nothing" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("space", "told"),
        [
            ('bits = ["1/1", "2/2"]', "tuning.space.bits: 'bits' is no hyper-parameter"),
            ("width = [0.1, 0.2]", "tuning.space.width: 'width' is no hyper-parameter"),
            ('"network.kind" = ["svhn_convnet"]', "'network.kind' is no hyper-parameter"),
            ('"strategy.kind" = ["plain"]', "'strategy.kind' is no hyper-parameter"),
            ('quantizer = ["dorefa"]', "'quantizer' is no hyper-parameter"),
            ('"strategy.teacher.epochs" = [1, 2]', "'epochs' of a further network is no hyper-parameter"),
            ("learning_rate = [0.1]", "learning_rate.initial: 'learning_rate', which is tuned too, replaces"),
            ('"strategy.factor.until" = [0.5, nan]', "until: expected text, finite numbers, true or false"),
            ('"strategy.factor.until" = [1979-05-27]', "until: expected text, finite numbers, true or false"),
            ("weight_decay = [0, 0.0]", "at learning_rate.initial = 0.004, weight_decay = 0.0"),
        ],
    )
    def test_a_space_that_would_compare_something_else_is_refused(self, bench, capsys, space, told):
        change(bench, '"strategy.factor.until" = [0.25, 0.5]', space)
        if space.startswith("weight_decay"):
            change(bench, "{ log = [1e-3, 16e-3] }", "[4e-3]")
        assert bench.run() == 2
        assert told in capsys.readouterr().err and not bench.calls()

    def test_an_int_range_is_tuned(self, bench):
        change(bench, '"strategy.factor.until" = [0.25, 0.5]', "batch_size = { int = [20, 30] }")
        assert bench.run("--only", "plain", "--seeds", "1") == 0
        assert {line["configuration"]["batch_size"] for line in bench.tuned()} == {20, 25, 30}

    @pytest.mark.parametrize("axis", ["learning_rate = [0.1, 0.01]", '"learning_rate.initial" = [0.1]'])
    def test_a_tuned_field_is_no_axis_of_the_grid(self, bench, capsys, axis):
        change(bench, "[grid]", f"[grid]\n{axis}")
        assert bench.run() == 2
        told = "grid.learning_rate: [tuning] chooses what this axis says", "is an axis of the grid, too"
        shown = capsys.readouterr().err
        assert any(text in shown for text in told)

    @pytest.mark.parametrize(
        "text", ["learning_rate.initial=0.5", "learning_rate=0.5", "learning_rate={initial=0.5}"]
    )
    def test_a_value_that_the_search_would_replace_is_refused(self, bench, capsys, text):
        why = "learning_rate.initial: [tuning] chooses 'learning_rate.initial' for every arm"
        assert bench.run("--set", text) == 2
        assert f"--set {why}" in capsys.readouterr().err
        change(bench, 'name = "plain"', 'name = "plain"\nlearning_rate = { initial = 0.5 }')
        assert bench.run() == 2
        assert f"arm 'plain'.{why}" in capsys.readouterr().err

    def test_set_changes_a_field_of_the_space_however_it_is_written(self, bench, capsys):
        change(bench, '"learning_rate.initial" = {', "learning_rate.initial = {")
        words = "--set", "tuning.space.learning_rate.initial=[4e-3]", "--set", "tuning.effort=1"
        assert bench.run(*words, "--only", "plain", "--seeds", "1") == 0
        assert {line["configuration"]["learning_rate.initial"] for line in bench.tuned()} == {4e-3}
        text = bench.file.read_text()
        change(bench, text[text.index("[tuning.space]") : text.index("[[claims]]")], "space = 5\n")
        assert bench.run(*words) == 0  # the whole space is that of the command line

    def test_too_many_held_out_images_are_told_once_for_each_arm(self, bench, capsys):
        change(bench, "holdout = 64", "holdout = 100000")
        assert bench.run() == 2
        assert capsys.readouterr().err.count("tuning.holdout: arm") == 2

    def test_a_start_that_was_trained_on_the_held_out_images_is_refused(self, bench, tmp_path, capsys):
        first = tmp_path / "first.toml"
        head, rest = TEXT.split("[grid]", maxsplit=1)[0], '[[arms]]\nname = "first"\n'
        for holdout, code in ((0, 2), (64, 0)):
            first.write_text(f"{head}holdout = {holdout}\n{rest}")
            words = ["run", str(first), "--results", str(bench.results), "--data", str(bench.data)]
            assert main([*words, "--no-ray", "--jobs", "1"], train=TRAIN) == 0
            id = load_experiment(first, data_dir=bench.data).trials[0].id
            text = TEXT.replace("[grid]", f'start = {{ trial = "{id}" }}\n[grid]')
            bench.file.write_text(text)
            assert main(bench.words("--only", "plain", command="show")) == code
            told = f"arm 'plain'.start.trial: {id} was trained on images that tuning.holdout = 64 keeps"
            assert (told in capsys.readouterr().err) == (code == 2)

    def test_values_that_an_arm_cannot_have_are_named_before_any_training(self, bench, capsys):
        change(bench, "[0.25, 0.5]", "[0.25, 1.5]")
        assert bench.run() == 2
        shown = capsys.readouterr().err
        assert "arm 'sum'" in shown and "until" in shown and not bench.calls()

    def test_the_teacher_of_a_tuning_trial_sees_no_held_out_image(self, tmp_path):
        strategy = '{ kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }'
        teacher = '{ kind = "apprentice", scheme = "B", teacher = { width = 0.25 } }'
        text = TEXT.replace(strategy, teacher).replace('"strategy.factor.until" = [0.25, 0.5]', "")
        bench = Bench(tmp_path, text)
        assert bench.run() == 0
        experiment, _ = bench.unfolded()
        teachers = [line.trial.config for line in experiment.index if line.role == "teacher"]
        assert sorted((t.seed, t.holdout, t.evaluate_test) for t in teachers) == [
            (0, 0, True),
            (1, 0, True),
            (100, 64, False),
            (101, 64, False),
        ]


class TestHalving:
    def test_a_rung_is_a_stop_that_is_continued_and_what_is_dropped_is_not_run_again(self, bench, capsys):
        change(bench, "effort = 3", 'effort = 3\nscheduler = "halving"')
        assert bench.run() == 0
        _, standing = bench.unfolded()
        for search in standing.points:
            assert search.chosen.configuration["learning_rate.initial"] == 4e-3
            for tried in search.tried:
                done = {len(bench.store.epochs(trial.id)) for trial in tried.trials}
                assert done == ({9} if tried is search.chosen else {3})
        calls = bench.calls()
        assert len(calls) == 12 + 4 + 4  # all to epoch 3, the survivors go on from there, the final trials
        assert [start for _, start in calls].count(3) == 4
        assert bench.run() == 0
        assert bench.calls() == calls
        assert main(bench.words(command="status")) == 0
        shown = capsys.readouterr().out
        assert "8 trials stopped at a rung for good" in shown

    def test_stopped_in_the_middle_of_a_rung(self, bench):
        change(bench, "effort = 3", 'effort = 3\nscheduler = "halving"')
        (bench.data / "pause").touch()
        assert bench.run("--max-minutes", "0.01") == 3
        (bench.data / "pause").unlink()
        assert bench.run() == 0
        _, standing = bench.unfolded()
        assert standing.finished and all(s.chosen is not None for s in standing.points)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["none", "halving"])
def test_killed_in_the_middle_of_the_search(bench, scheduler, tmp_path):
    change(bench, "effort = 3", f'effort = 3\nscheduler = "{scheduler}"')
    (bench.data / "kill").touch()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.tuning.launcher", *bench.words("--no-ray", "--jobs", "1")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=HANG,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    (bench.data / "kill").unlink()
    _, half = bench.unfolded()
    assert not half.finished
    assert bench.run() == 0
    other = tmp_path / "other"
    other.mkdir()
    whole = Bench(other, bench.file.read_text())
    assert whole.run() == 0
    assert whole.tuned() == bench.tuned()
    ids = [[line["id"] for line in one.store.index("tuned")] for one in (whole, bench)]
    assert sorted(ids[0]) == sorted(ids[1])


def test_asha_needs_ray_and_one_seed(bench, capsys):
    change(bench, "effort = 3", 'effort = 3\nscheduler = "asha"')
    assert bench.run() == 2
    assert "tuning.seeds: 'asha' stops single trials" in capsys.readouterr().err
    change(bench, "seeds = [100, 101]", "seeds = [100]")
    assert bench.run() == 2
    assert "'asha' is Ray Tune's; 'halving' does without Ray" in capsys.readouterr().err


def test_equal_operations_give_plain_training_more_configurations(bench, capsys):
    change(bench, "effort = 3", 'effort = { operations = "equal", configurations = 10 }')
    change(bench, 'sampler = "grid"', 'sampler = "quasirandom"')
    assert main(bench.words(command="show")) == 0
    shown = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in shown if "to epoch 9" in line}
    lines = load_experiment(bench.file, data_dir=bench.data).lines
    plain, branch = (training_operations(lines(arm)[0].trial.config, 44, 10) for arm in ("plain", "sum"))
    assert branch > 1.2 * plain
    assert "10 to epoch 9" in found["sum"]
    assert f"{math.floor(10 * branch / plain)} to epoch 9" in found["plain"]


def test_optuna_asks_for_one_configuration_after_the_other(bench):
    pytest.importorskip("optuna")
    change(bench, 'sampler = "grid"', 'sampler = "optuna"')
    assert bench.run("--set", "tuning.effort=2", "--only", "plain") == 0
    assert bench.run("--set", "tuning.effort=4") == 0
    tuned = [line["configuration"] for line in bench.tuned() if line["arm"] == "plain"]
    assert len(tuned) == 4
    other = Bench(bench.file.parent / "data", bench.file.read_text())  # a folder of its own
    assert other.run("--set", "tuning.effort=4", "--only", "plain") == 0
    assert [
        line["configuration"] for line in other.tuned()
    ] == tuned  # a function of the scores, whatever the order


def test_an_edge_is_widened_for_every_arm(bench, capsys):
    change(bench, 'sampler = "grid"', 'sampler = "grid"\nextend = true')
    change(bench, "[1e-3, 16e-3]", "[2.5e-4, 1e-3]")
    assert bench.run() == 0
    _, standing = bench.unfolded()
    assert standing.widened == {("learning_rate.initial", "high"): 3}
    assert {s.chosen.configuration["learning_rate.initial"] for s in standing.points} == {4e-3}
    assert "was widened 3 times at its high end, for every arm" in capsys.readouterr().out


def test_show_and_status_tell_of_both_phases(bench, capsys):
    assert main(bench.words(command="show")) == 0
    shown = capsys.readouterr().out
    assert "Phase 1, tuning: 12 trials, seeds 100, 101, 64 training images held out" in shown
    assert "Phase 2: 4 final trials" in shown and "0 of 6 configurations tried" in shown
    bench.run()
    capsys.readouterr()
    assert main(bench.words(command="status")) == 0
    assert "6 of 6 configurations tried, 2 of 2 choices made" in capsys.readouterr().out


def test_records_of_another_experiment_are_shared(bench, tmp_path):
    bench.run()
    before = len(bench.calls())
    copy = tmp_path / "copied.toml"
    copy.write_text(bench.file.read_text())
    words = ["run", str(copy), "--results", str(bench.results), "--data", str(bench.data)]
    assert main([*words, "--no-ray", "--jobs", "1"], train=TRAIN) == 0
    assert len(bench.calls()) == before
    assert json.loads((bench.results / "copied" / "tuning.jsonl").read_text().splitlines()[0])["trials"]


def test_whole_schedules_are_tuned_and_reported_as_such(bench, capsys):
    """A choice of tables is recognised in the records, where each option stands by itself."""
    change(bench, '"learning_rate.initial" = { log = [1e-3, 16e-3] }', "learning_rate = [1e-3, 4e-3]")
    kinds = '[{ kind = "cosine", until = 0.5 }, { kind = "linear", until = 0.5 }]'
    change(bench, '"strategy.factor.until" = [0.25, 0.5]', f'"strategy.factor" = {kinds}')
    assert bench.run("--set", "tuning.space.learning_rate=[1e-3]") == 0
    assert bench.run() == 0
    finals = [line for line in bench.store.index("tuned") if line["arm"] is not None]
    assert len(finals) == 4  # those of the first search made way
    assert main(bench.words(command="status")) == 0
    assert "strategy.factor=linear (until 0.5)" in capsys.readouterr().out
    assert main(["report", str(bench.file), "--results", str(bench.results), "--format", "md"]) == 0
    (table,) = (bench.results / "report" / "tuned").glob("accuracy.md")
    text = table.read_text()
    tried = sum(len(line["trials"]) for line in bench.tuned())
    assert "learning\\_rate 0.004, strategy.factor linear (until 0.5)" in text
    assert f"{tried} trials that chose the configurations" in text
    assert "differs from its baseline" not in text and "not tuned" not in text
