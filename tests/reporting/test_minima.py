"""The tables of minima against means, differences and intervals computed by hand."""

from __future__ import annotations

import pytest

from bench.reporting.assembly import make_cells
from bench.reporting.minima import barrier_table, sharpness_table
from bench.reporting.records import read_experiment
from bench.reporting.report import make_report
from tests.reporting.fake_records import SUM, Results

TEXT = 'title = "One"\n[[arms]]\nname = "Plain"\n[[arms]]\nname = "Sum"\nbaseline = "Plain"\n'
WITH = {"noise_on": "quantized", "sizes": [0.1, 0.2], "draws": 5, "images": 64}


def measured(id, loss, rises, before=(0.5, 0.6), **changes):
    def numbers(loss, rises):
        sized = zip(WITH["sizes"], rises, strict=True)
        return {"loss": loss, "rises": [{"size": s, "mean": r, "error": 0.01} for s, r in sized]}

    untrained = numbers(2.3, before) if before else None
    return {"id": id, "with": {**WITH, **changes}, "trained": numbers(loss, rises), "untrained": untrained}


def results(tmp_path, arms=(("Plain", {}), ("Sum", {"strategy": SUM, "baseline": "Plain"})), seeds=3):
    made = Results(tmp_path)
    made.experiment("one", TEXT)
    ids = {
        (arm, seed): made.trial("one", arm, [50.0, 80.0], seed=seed, **fields)
        for arm, fields in arms
        for seed in range(seeds)
    }
    return made, ids


def read(made):
    records = read_experiment(made.write(), "one")
    return records, make_cells(records)


def test_means_over_seeds_and_differences_paired_by_seed(tmp_path):
    made, ids = results(tmp_path)
    rises = {"Plain": (0.30, 0.50, 0.40), "Sum": (0.10, 0.35, 0.30)}
    for (arm, seed), id in ids.items():
        made.store.append_sharpness("one", measured(id, 0.2 + 0.1 * seed, (rises[arm][seed], 1.0)))
    table = sharpness_table(*read(made))
    first = {row["arm"]: row for row in table.data.to_dict("records") if row["size"] == 0.1}
    assert len(table.data) == 4 and first["Plain"]["n"] == 3
    assert first["Plain"]["rise"] == pytest.approx(0.4) and first["Plain"]["loss"] == pytest.approx(0.3)
    half = 4.302653 * 0.1 / 3**0.5  # t(0.975, 2) s / sqrt(n) with s = 0.1
    assert first["Plain"]["rise_high"] - 0.4 == pytest.approx(half, rel=1e-5)
    assert first["Sum"]["difference"] == pytest.approx((-0.20 - 0.15 - 0.10) / 3)
    assert first["Sum"]["difference_low"] == pytest.approx(-0.15 - 4.302653 * 0.05 / 3**0.5, rel=1e-5)
    assert first["Plain"]["pairs"] is None and first["Sum"]["pairs"] == 3
    shown = {column.title: list(column.values) for column in table.columns}
    assert shown["Rise"][0] == "0.4000 ± 0.2484" and "0.5000 (identical" in shown["Rise, untrained"][0]
    assert "-0.1500 [-0.2742, -0.0258]" in shown["Over the baseline"]


def test_ways_of_measuring_are_rows_of_their_own_and_the_last_of_equal_lines_counts(tmp_path):
    made, ids = results(tmp_path, arms=(("Plain", {}),), seeds=1)
    id = ids["Plain", 0]
    for line in (
        measured(id, 0.1, (9.0, 9.0)),
        measured(id, 0.1, (0.3, 0.4)),
        measured(id, 0.1, (0.7, 0.8), before=None, noise_on="stored"),
    ):
        made.store.append_sharpness("one", line)
    rows = sharpness_table(*read(made)).data.to_dict("records")
    assert [(row["noise_on"], row["size"], row["rise"]) for row in rows] == [
        ("quantized", 0.1, 0.3), ("quantized", 0.2, 0.4), ("stored", 0.1, 0.7), ("stored", 0.2, 0.8),
    ]  # fmt: skip
    assert rows[0]["untrained_rise"] == 0.5 and rows[2]["untrained_rise"] is None


def test_barriers_are_means_over_pairs_of_seeds(tmp_path):
    made, ids = results(tmp_path, arms=(("Plain", {}),), seeds=4)
    for seeds, path, height in (((0, 1), [0.2, 1.5, 0.4], 1.2), ((2, 3), [0.2, 1.9, 0.4], 1.6)):
        pair = [ids["Plain", seed] for seed in seeds]
        line = {"ids": pair, "with": {"images": 64, "points": 3}, "path": path, "barrier": height}
        made.store.append_sharpness("one", line)
    records, cells = read(made)
    (row,) = barrier_table(records, cells).data.to_dict("records")
    assert row["pairs"] == 2 and row["barrier"] == pytest.approx(1.4)
    assert row["barrier_high"] - 1.4 == pytest.approx(12.7062 * 0.2, rel=1e-4)  # t(0.975, 1) s / sqrt(2)
    assert row["loss_at_the_ends"] == pytest.approx(0.3)
    assert sharpness_table(records, cells) is None
    assert [t.name for t in make_report(records).tables if t.name in ("sharpness", "barriers")] == [
        "barriers"
    ]


def test_nothing_measured_no_table_and_a_damaged_file_is_a_note(tmp_path):
    made, ids = results(tmp_path, seeds=1)
    records, cells = read(made)
    assert sharpness_table(records, cells) is None and barrier_table(records, cells) is None
    made.store.append_sharpness("one", {**measured(ids["Plain", 0], 0.1, (1.0, 2.0)), "trained": {"loss": 1}})
    records, cells = read(made)
    assert sharpness_table(records, cells) is None
    assert any("sharpness.jsonl" in note and "'trained' needs a 'loss'" in note for note in records.notes)
