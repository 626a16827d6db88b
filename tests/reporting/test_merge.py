"""Several results folders as one report: duplicates, differences with their size, parts that fit."""

from __future__ import annotations

from pathlib import Path

from bench.experiments.selection import Selection
from bench.reporting.assembly import make_cells
from bench.reporting.merge import merge
from bench.reporting.records import read_experiment
from bench.reporting.write import write_report
from tests.reporting.fake_records import Results

TEXT = 'title = "T"\n[[arms]]\nname = "P"\n'


def _folder(root: Path, accuracies: dict[int, float | None]) -> Path:
    results = Results(root)
    results.experiment("two", TEXT)
    for seed, accuracy in accuracies.items():
        results.trial("two", "P", None if accuracy is None else [10.0, accuracy], seed=seed, epochs=2)
    return results.write()


def test_parts_complete_each_other_and_a_trial_counts_once(tmp_path):
    a = _folder(tmp_path / "a", {0: 80.0, 1: 81.0, 2: None})
    b = _folder(tmp_path / "b", {1: 81.0, 2: 82.0, 3: 83.0})
    merged = merge([read_experiment(a, "two"), read_experiment(b, "two")])
    (cell,) = make_cells(merged)
    assert cell.numbers.values == {0: 80.0, 1: 81.0, 2: 82.0, 3: 83.0}
    assert merged.notes == ("1 trial recorded in several folders with the same accuracy.",)
    assert sorted(merged.epochs.groupby("id").size()) == [2, 2, 2, 2]  # no epoch twice
    places = {trial["seed"]: Path(trial["results"]).name for trial in cell.trials}
    assert places == {0: "a", 1: "a", 2: "b", 3: "b"}


def test_a_disagreement_is_named_with_its_size(tmp_path, capsys):
    a = _folder(tmp_path / "a", {0: 80.0, 1: 81.0})
    b = _folder(tmp_path / "b", {0: 80.0, 1: 81.5})
    assert write_report(None, Selection(), [a, b], tmp_path / "out", ["md", "csv"]) == 0
    told = (tmp_path / "out" / "two" / "accuracy.md").read_text()
    assert "0.50 points apart" in told and "81.00 in" in told and "81.50 in" in told
    assert "80.50 ±" in told  # the first folder counts
    assert "1 trial recorded in several folders with the same accuracy" in told


def test_a_run_that_diverged_on_one_machine_alone_is_named(tmp_path):
    a, b = _folder(tmp_path / "a", {1: 81.0}), Results(tmp_path / "b")
    b.experiment("two", TEXT)
    b.trial("two", "P", [10.0, 20.0], seed=1, epochs=2, status="diverged")
    for first, second in ((a, b.write()), (b.root, a)):
        merged = merge([read_experiment(folder, "two") for folder in (first, second)])
        (cell,) = make_cells(merged)
        statuses = ("done", "diverged") if first == a else ("diverged", "done")
        assert cell.trials[0]["status"] == statuses[0]  # the first folder counts, not the better result
        assert f"{statuses[0]} in {first}, {statuses[1]} in {second}" in merged.notes[0]


def test_an_order_of_folders_changes_no_finished_number(tmp_path):
    a = _folder(tmp_path / "a", {0: 80.0, 1: None})
    b = _folder(tmp_path / "b", {0: None, 1: 81.0})
    for order in ([a, b], [b, a]):
        (cell,) = make_cells(merge([read_experiment(folder, "two") for folder in order]))
        assert cell.numbers.values == {0: 80.0, 1: 81.0}
