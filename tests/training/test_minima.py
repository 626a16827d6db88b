"""The minima of an experiment: which trials and pairs are measured, once each, and what is left out."""

from __future__ import annotations

import pytest

from bench.cli.main import main
from bench.errors import InputError
from bench.records.store import Store
from bench.reporting.assembly import make_cells
from bench.reporting.minima import barrier_table, sharpness_table
from bench.reporting.records import read_experiment
from bench.training.job import Job
from bench.training.minima import final_trials, pairs
from bench.training.sharpness import barrier, sharpness, subject
from bench.training.trial import run_trial
from tests.configs import make_config

TEXT = 'title = "One"\n[[arms]]\nname = "A"\n[[arms]]\nname = "B"\nbaseline = "A"\n'
IDS = {(arm, seed): f"{arm}{seed}".lower() * 8 for arm in "AB" for seed in range(3)}


def line(arm, seed, role=None, **grid):
    return {"arm": arm, "grid": {**grid, "seed": seed}, "id": IDS[arm, seed], "role": role}


def test_final_trials_are_grouped_by_arm_and_grid_point_and_paired_once():
    lines = [line("A", 2), line("A", 0), line("A", 1), line("B", 0, width=1), line("B", 1, width=2)]
    lines.append(line("A", 1, role="tuning"))
    lines.append({"arm": None, "role": "teacher", "grid": {}, "id": "c" * 16})
    groups = [list(group.items()) for group in final_trials(lines).values()]
    a = [(seed, IDS["A", seed]) for seed in range(3)]
    assert groups == [a, [(0, IDS["B", 0])], [(1, IDS["B", 1])]]
    assert pairs(dict(a)) == [(IDS["A", 0], IDS["A", 1])]
    assert len(final_trials(lines, ["B"])) == 2
    with pytest.raises(InputError, match=r"arm 'C'.*Arms: A, B"):
        final_trials(lines, ["C"])


def test_an_experiment_is_measured_once_and_reported(tmp_path, capsys):
    store = Store(tmp_path)
    wanted = [("A", 0), ("A", 1), ("B", 0), ("B", 1)]
    for arm, seed in wanted[:3]:
        bits = "1/1" if arm == "A" else "1/2"
        config = make_config(seed=seed, epochs=1, bits=bits)
        assert run_trial(Job(config, IDS[arm, seed], {}, store, tmp_path)) == "done"
    store.write_index("one", TEXT, [line(*place) for place in wanted])
    places = ["--results", str(tmp_path), "--data", str(tmp_path)]
    numbers = ["--images", "32", "--draws", "2", "--size", "0.1", "0.5", "--points", "3"]
    command = ["sharpness", "--experiment", "one", *numbers, *places]
    assert main(command) == 1  # B 1 is not there
    out, err = capsys.readouterr()
    assert f"barrier between {IDS['A', 0]} and {IDS['A', 1]}" in out
    assert "not measured" in err and IDS["B", 1] in err
    kept = (tmp_path / "one" / "sharpness.jsonl").read_bytes()
    assert main(command) == 1 and (tmp_path / "one" / "sharpness.jsonl").read_bytes() == kept
    lines = store.sharpness("one")
    assert [m["id"] for m in lines if "id" in m] == [IDS["A", 0], IDS["A", 1], IDS["B", 0]]
    found = subject(store, IDS["A", 0], tmp_path, 32)
    assert lines[0]["trained"]["loss"] == pytest.approx(found.loss())
    assert lines[0]["trained"]["rises"][1]["mean"] == pytest.approx(sharpness(found, 0.5, 2).mean)
    (pair,) = (m for m in lines if "ids" in m)
    assert pair["barrier"] == pytest.approx(barrier(pair["path"])) and len(pair["path"]) == 3
    records = read_experiment(tmp_path, "one")
    cells = make_cells(records)
    assert list(sharpness_table(records, cells).data["n"]) == [2, 2, 1, 1]
    assert list(barrier_table(records, cells).data["pairs"]) == [1]
    assert main(["sharpness", "--experiment", "one", "--only", "A", *numbers, *places]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "trials, or --experiment NAME"),
        (["1" * 16, "--experiment", "one"], "trials, or --experiment NAME"),
        (["--experiment", "one"], "no trial of this experiment is recorded"),
        (["--experiment", "one", "--json", "x"], "go to its sharpness.jsonl"),
        (["1" * 16, "--only", "A"], "--only: needs --experiment"),
    ],
)
def test_what_cannot_be_is_said(arguments, words, tmp_path, capsys):
    assert main(["sharpness", *arguments, "--results", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
