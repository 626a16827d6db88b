"""What `bench speed` and the cost estimate compute, on a network small enough to wait for."""

from __future__ import annotations

import argparse
import json
import statistics

import pytest

from bench import estimate, speed
from bench.config import TrialConfig


def test_ratios_are_taken_round_by_round():
    row = speed.summary([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert row["ratio"] == 2.0  # of 2, 3 and 1
    assert row["seconds"] == 4.0
    low, middle, high = statistics.quantiles([2.0, 6.0, 4.0], n=4)
    assert row["spread"] == (high - low) / middle


def test_every_round_measures_every_action_once_and_in_turn():
    order = []
    taken = speed.interleaved([lambda: order.append("a"), lambda: order.append("b")], "cpu", 3)
    assert order == ["a", "b"] * 4  # one round does not count
    assert [len(column) for column in taken] == [3, 3]


def test_the_file_has_a_row_for_every_case(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "NETWORKS", (("svhn_convnet", 0.125),))
    monkeypatch.setattr(speed, "BATCH", 8)
    monkeypatch.setattr(speed, "modes", lambda device: ["eager"])
    monkeypatch.setattr(speed, "dtypes", lambda device: ["fp32"])
    file = tmp_path / "speed.json"
    assert speed.main(argparse.Namespace(json=file, rounds=2, mode=None)) == 0
    document = json.loads(file.read_text())
    rows = [row for row in document["rows"] if "kind" not in row]
    assert len(rows) == len(speed.CASES) and {row["kind"] for row in document["rows"] if "kind" in row} == {
        "training without data",
        "data",
        "evaluation",
    }
    unit = rows[0]
    assert unit["quantizer"] == "full_precision" and unit["ratio"] == 1.0
    assert all(row["seconds"] > 0 and row["images_per_second"] == 8 / row["seconds"] for row in rows)
    assert {(row["merge"], row["factor_on"]) for row in rows if row["strategy"] == "progressive"} == {
        (merge, on) for merge in speed.MERGES for on in (True, False)
    }
    assert "images/s" in capsys.readouterr().out


def test_a_trial_takes_its_steps_with_and_without_the_branch_and_its_evaluations():
    config = TrialConfig.model_validate(
        {
            "dataset": "digits",
            "network": "svhn_convnet",
            "quantizer": "dorefa",
            "bits": "1/1",
            "epochs": 4,
            "strategy": {"kind": "progressive", "merge": "sum", "factor": {"kind": "linear", "until": 0.5}},
        }
    )
    measured = estimate.Calibration(step_on=3.0, step_off=2.0, evaluation=10.0, memory=0)
    # 20 steps on (factor above 0 at steps 0 .. 19), 20 off; 4 deployed and 2 expanded evaluations
    expected = estimate.START_SECONDS + 20 * 3 + 20 * 2 + 6 * 10
    assert estimate.trial_seconds(config, 10, measured) == pytest.approx(expected)


def test_a_calibration_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "cache_folder", lambda: tmp_path)
    config = TrialConfig.model_validate({"dataset": "digits", "network": "svhn_convnet", "epochs": 1})
    found = estimate.Calibration(1.0, 1.0, 1.0, 1)
    assert estimate._Kept("cpu").get(config, lambda: found) == found
    other_budget = config.model_copy(update={"epochs": 9, "seed": 3})
    assert estimate._Kept("cpu").get(other_budget, lambda: pytest.fail("measured again")) == found
    wider = config.model_copy(update={"width": 2.0})
    assert estimate._Kept("cpu").get(wider, lambda: estimate.Calibration(5.0, 5.0, 5.0, 5)).step_on == 5.0
    (tmp_path / "calibration.json").write_text("{ damaged")
    assert estimate._Kept("cpu").get(config, lambda: found) == found
