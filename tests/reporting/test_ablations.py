"""Tuned ablations and half-finished experiments: heat maps by field, and what is missing in them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.experiments.expand import load_experiment
from bench.experiments.labels import plain
from bench.experiments.selection import Selection
from bench.experiments.shipped import shipped_experiments
from bench.reporting import figures
from bench.reporting.ablation import ablations
from bench.reporting.claims import judge
from bench.reporting.page import leaderboard_page, page
from bench.reporting.page.answer import answer
from bench.reporting.page.leaderboard import _distinct, leaderboard, matrix
from bench.reporting.records import read_experiment
from bench.reporting.report import make_report
from bench.reporting.write import write_report
from bench.tuning import samplers
from bench.tuning.points import find_points
from tests.reporting.fake_records import SUM, Results
from tests.reporting.test_figures_visually import faults
from tests.reporting.tuned_records import (
    ABLATIONS,
    HOLDOUT,
    KINDS,
    MERGES,
    PLAIN,
    SEEDS,
    accuracy,
    chosen_rate,
    record,
)


def _report(root: Path, name: str, ended=None):
    results = Results(root)
    record(results, name, ABLATIONS[name], ended)
    return make_report(read_experiment(results.write(), name))


def _panels(report):
    return ablations(report.cells, report.tuned)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("factor", [("strategy.factor.kind", "strategy.factor.until", 3, 3), ("", "arm", 1, 1)]),
        ("merge", [("strategy.merge", "strategy.factor.until", 4, 3), ("", "arm", 1, 1)]),
        (
            "branch",
            [
                ("strategy.batch_norm", "strategy.kernel", 2, 2),
                ("", "strategy.width_ratio", 1, 2),
                ("", "arm", 1, 3),
            ],
        ),
    ],
)
def test_every_field_of_a_tuned_ablation_has_its_mean_interval_and_rate(tmp_path, name, shapes):
    report = _report(tmp_path, name)
    panels = _panels(report)
    assert [(p.row_axis, p.column_axis, len(p.rows), len(p.columns)) for p in panels] == shapes
    spots = {
        (spot.arm, axis_row, axis_column): spot
        for panel in panels
        for (axis_row, axis_column), spot in panel.spots.items()
    }
    assert len(spots) == len(ABLATIONS[name])  # no field twice, none lost
    for number, (arm, _, grid) in enumerate(ABLATIONS[name]):
        texts = set(map(plain, grid.values()))
        (spot,) = [s for s in spots.values() if s.arm == arm and {s.row, s.column} - {"", arm} == texts]
        values = np.array([accuracy(number, seed) for seed in SEEDS])
        half = 2.7764451 * values.std(ddof=1) / np.sqrt(5)  # Student's t, 4 degrees of freedom
        assert spot.accuracy.mean == pytest.approx(values.mean())
        assert spot.accuracy.half == pytest.approx(half, rel=1e-6)
        assert (spot.rate, spot.done, spot.wanted, spot.state) == (chosen_rate(number), 5, 5, "")
        if arm != "Plain":
            assert spot.gain.mean == pytest.approx(values.mean() - np.mean([accuracy(0, s) for s in SEEDS]))
    figure = figures.heat_figure(panels, "Ablation, tuned")
    assert figure is not None and faults(figure) == []


@pytest.mark.parametrize("name", ["factor", "merge", "branch"])
def test_the_shipped_file_has_these_fields_and_tunes_each_with_the_same_effort(name):
    experiment = load_experiment(shipped_experiments()[f"tuned_{name}"])
    assert experiment.tuning is not None
    points = find_points(experiment)
    assert sorted((p.arm, sorted(p.grid.items())) for p in points) == sorted(
        (arm, sorted(grid.items())) for arm, _, grid in ABLATIONS[name]
    )
    tried = [samplers.configurations(experiment.tuning, p.reached, experiment.tuning.effort) for p in points]
    assert all(one == tried[0] for one in tried) and len(tried[0]) == 4


def test_rows_stand_in_the_order_of_the_file(tmp_path):
    assert _panels(_report(tmp_path, "factor"))[0].rows == KINDS
    assert _panels(_report(tmp_path / "merge", "merge"))[0].rows == MERGES


HALF = {0: 8, 1: 3, 2: 0, 4: 6, 6: 10}  # runs that are through: 6 tuning trials a point, then 5 final runs


def test_a_half_finished_ablation_says_of_each_field_how_far_it_is(tmp_path):
    report = _report(tmp_path, "merge", HALF)
    points = ABLATIONS["merge"]
    spots = {(spot.row, spot.column): spot for panel in _panels(report) for spot in panel.spots.values()}
    of = {n: spots[tuple(map(plain, points[n][2].values()))] for n in (1, 2, 4, 6)}
    assert of[1].state == "tuning 3 of 6" and of[1].accuracy.mean is None and of[1].rate is None
    assert of[2].state == "tuning 0 of 6"
    assert of[4].state == "not run" and of[4].rate == chosen_rate(4)  # chosen, no final run yet
    assert (of[6].done, of[6].wanted, of[6].state) == (4, 5, "")
    assert of[6].accuracy.mean == pytest.approx(np.mean([accuracy(6, seed) for seed in SEEDS[:4]]))
    assert (spots["", "Plain"].done, spots["", "Plain"].wanted) == (2, 5)
    figure = figures.heat_figure(_panels(report), "half")
    assert figure is not None and faults(figure) == []
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"tuning\n3 of 6", "tuning\n0 of 6", f"not run\nrate {chosen_rate(4):g}"} <= set(texts)
    assert any("n = 4 of 5" in text for text in texts)


def test_a_search_that_goes_on_is_read_from_the_records_of_its_trials(tmp_path):
    """``tuning.jsonl`` lags behind: the runner writes it between trials."""
    report = _report(tmp_path, "merge", HALF)
    going = report.tuned[1]
    assert going.chosen is None and going.progress == "3 of 6" and going.holdout == HOLDOUT
    first = going.tried[0]
    assert first.accuracies == (78.0, 78.5) and first.score == pytest.approx(78.25)
    assert going.tried[1].score is None  # one of its two seeds is missing
    assert report.tuned[0].effort == "3 configurations × 2 seeds, 1,084 images held out"


def test_a_report_of_a_half_finished_experiment_names_what_is_missing(tmp_path, capsys):
    results = Results(tmp_path)
    record(results, "merge", ABLATIONS["merge"], HALF)
    assert write_report(None, Selection(), results.write(), tmp_path / "out", ["md", "csv", "html"]) == 0
    told = capsys.readouterr().out
    assert "46 of 55 runs done; tuning: 69 of 78 trials, 11 of 13 choices" in told
    accuracy_table = (tmp_path / "out" / "merge" / "accuracy.md").read_text()
    assert "The tuning is not over: 69 of 78 trials, 11 of 13 choices" in accuracy_table
    assert (
        "until 0.25, merge sum, width 0.25 (3 of 6 trials)" in accuracy_table.partition("Without a choice")[2]
    )
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "merge" / "heat.csv").read_text())))
    assert len(rows) == 13 and sum(row["state"].startswith("tuning") for row in rows) == 2
    html = (tmp_path / "out" / "merge" / "index.html").read_text()
    assert "46 of 55 runs finished; tuning: 69 of 78 trials, 11 of 13 choices" in html
    assert "3 of 6 tuning trials" in html


CLAIMED = """title = "Claimed"
[[arms]]
name = "Plain"
[[arms]]
name = "EXP-Net"
baseline = "Plain"
[[claims]]
arm = "EXP-Net"
over = "Plain"
at = "equal epochs"
margin = 1.0
"""


def test_a_claim_has_no_verdict_before_all_of_its_runs_and_choices_are_there(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", CLAIMED)
    for seed in range(8):
        results.trial("one", "Plain", [10.0, 60.0 + seed], seed=seed)
        curve = [10.0, 65.0 + seed + seed % 2] if seed < 7 else None
        results.trial("one", "EXP-Net", curve, seed=seed, baseline="Plain", strategy=SUM, epochs=2)
    report = make_report(read_experiment(results.write(), "one"))
    assert report.judged[0].verdict == "not yet decided: 7 of 8 seeds"
    assert "7 of 8 seeds" in answer(report)[0] and "7 pairs" in answer(report)[0]
    results.trial("one", "EXP-Net", [10.0, 72.0], seed=7, baseline="Plain", strategy=SUM, epochs=2, salt="x")
    results.lines["one"] = [line for line in results.lines["one"] if results.store.summary(line["id"])]
    report = make_report(read_experiment(results.write(), "one"))
    assert report.judged[0].verdict == "better"
    line = {"arm": "Plain", "configuration": {"learning_rate.initial": 0.1}, "trials": {"100": "0" * 16}}
    tuned = replace(report.records, searches=(line,))
    assert judge(tuned, report.cells)[0].verdict == "not yet decided: tuning: 0 of 1 trial, 0 of 1 choice"


def test_runs_that_share_a_field_of_an_ablation_are_all_shown(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", '[[arms]]\nname = "EXP-Net"\n')
    for batch, add in ((100, 0.0), (50, 10.0)):
        for until in (0.25, 0.5):
            for seed in range(2 if batch == 100 else 1):
                results.trial(
                    "one",
                    "EXP-Net",
                    [60.0 + 10 * until + add + seed],
                    seed=seed,
                    batch_size=batch,
                    strategy={**SUM, "factor": {"kind": "cosine", "until": until}},
                    grid={"strategy.factor.until": until},
                )
    panels = _panels(make_report(read_experiment(results.write(), "one")))
    shown = [{field: spot.accuracy.mean for field, spot in panel.spots.items()} for panel in panels]
    assert shown == [
        {("", "0.25"): 63.0, ("", "0.5"): 65.5},
        {("", "0.25"): 72.5, ("", "0.5"): 75.0},
    ]
    assert panels[1].title == f"{panels[0].title}, other runs 1"


def test_a_claim_keeps_to_the_runs_of_its_own_row_where_the_code_was_revised(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", CLAIMED)
    for seed in range(8):
        results.trial("one", "Plain", [10.0, 60.0], seed=seed)
        for salt, gain in (("", 5.0), ("revised", -5.0)):
            results.trial(
                "one",
                "EXP-Net",
                [10.0, 60.0 + gain + 0.1 * seed],
                seed=seed,
                baseline="Plain",
                strategy=SUM,
                salt=salt,
            )
    report = make_report(read_experiment(results.write(), "one"))
    found = [(round(j.pairing.gain.interval.mean, 6), j.verdict) for j in report.judged]
    assert found == [(5.35, "better"), (-4.65, "worse")]
    gains = next(table for table in report.tables if table.name == "gains")
    assert [row["claim"] for row in gains.rows] == ["better", "worse"]
    assert len(_distinct([report])[0]) == 3  # both rows stand on the leaderboard


def _board(tmp_path):
    """A method at one place tuned and, with a higher accuracy, untuned."""
    results = Results(tmp_path)
    record(results, "tuned", [PLAIN])
    results.experiment("fixed", 'title = "Fixed"\n[[arms]]\nname = "Plain"\n')
    for seed in range(3):
        results.trial("fixed", "Plain", [50.0, 90.0 + seed], seed=seed)
    # the configuration that the search chose, fixed by another file: never under the tuned row
    rate = {"learning_rate": {"kind": "constant", "initial": chosen_rate(0)}}
    results.experiment("same", 'title = "Same"\n[[arms]]\nname = "Plain"\n')
    for seed in SEEDS:
        results.trial("same", "Plain", [30.0, accuracy(0, seed)], seed=seed, grid={}, **rate)
    root = results.write()
    return [make_report(read_experiment(root, name)) for name in ("fixed", "same", "tuned")]


def test_the_leaderboard_marks_what_was_tuned_and_never_ranks_it_among_what_was_not(tmp_path):
    reports = _board(tmp_path)
    found = leaderboard_page(reports)
    held = json.loads(found.split('id="data">', 1)[1].split("</script>", 1)[0])
    names = [t["name"] for plot in held["plots"].values() for t in plot["traces"]]
    assert names == []  # the records have no operations
    cells, sources = _distinct(reports)
    board = {column.title: list(column.values) for column in leaderboard(cells, sources).columns}
    assert board["Tuning"] == ["tuned", "untuned", "untuned"]
    assert board["Experiment"] == [
        "tuned",
        "fixed",
        "same",
    ]  # the tuned row first, though 91 is more than 70.8
    assert board["Effort of the tuning"] == ["3 configurations × 2 seeds, 1,084 images held out", "–", "–"]
    best = {column.title: list(column.values) for column in matrix(cells).columns}
    assert best["Tuning"] == ["tuned", "untuned"]
    assert [values for title, values in best.items() if "width" in title] == [["70.80", "91.00"]]


def test_what_a_search_chose_is_no_difference_from_the_baseline(tmp_path):
    report = _report(tmp_path, "merge")
    assert {flag for cell in report.cells for flag in cell.flags} == set()
    columns = {c.title: list(c.values) for t in report.tables if t.name == "accuracy" for c in t.columns}
    assert columns["Chosen"][0] == f"learning_rate.initial {chosen_rate(0):g}"
    assert "each arm tuned: 3 configurations × 2 seeds, 1,084 images held out" in answer(report)[-1]
    assert page(report)


def test_the_figures_of_many_searches_are_parts_with_a_look_for_each(tmp_path):
    report = _report(tmp_path, "factor")
    made = {name: make for name, _, make in figures.plans(report) if name.startswith("tuning")}
    assert list(made) == ["tuning-1", "tuning-2"]
    figure = made["tuning-1"]()
    assert figure is not None and faults(figure) == []
    looks = [(line.get_color(), line.get_marker()) for line in figure.legends[0].legend_handles[:7]]
    assert len(set(looks)) == 7
