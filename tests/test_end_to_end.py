"""From an experiment file to a report with real training on a few digits, through the real command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.experiments.expand import load_experiment
from bench.records.store import Store
from bench.training.trial import comparable
from tests.waiting import HANG

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TINY = """
title = "Tiny"

[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 2
batch_size = 16
train_size = 64

[grid]
seed = [0, 1]

[[arms]]
name = "Plain"
quantizer = "dorefa"
bits = "1/1"

[[arms]]
name = "Progressive"
baseline = "Plain"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }

[[arms]]
name = "Apprentice"
baseline = "Plain"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "apprentice", scheme = "B" }
"""


def bench(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the ``bench`` command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def records(folder: Path) -> dict[str, object]:
    """Return what of every trial's record must be equal between equal runs."""
    store = Store(folder)
    found = {}
    for trial_id in store.ids():
        summary = store.summary(trial_id)
        assert summary is not None
        kept = {
            key: value for key, value in summary.items() if key not in ("wall_seconds", "peak_memory_bytes")
        }
        trial = store.read_trial(trial_id)
        assert trial is not None
        del trial["provenance"]
        found[trial_id] = ([comparable(line) for line in store.epochs(trial_id)], kept, trial)
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, Path, str]:
    """The tiny experiment, run once without Ray: who imports it is stopped."""
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "tiny.toml"
    file.write_text(TINY)
    (folder / "ray").mkdir()
    (folder / "ray/__init__.py").write_text("raise SystemExit('ray was imported')")
    path = f"{folder}{os.pathsep}{ROOT}"
    done = bench("run", file, "--no-ray", "--results", folder / "runs", PYTHONPATH=path)
    assert done.returncode == 0 and "ray was imported" not in done.stdout + done.stderr, done.stderr
    return folder, file, done.stdout


def here(*arguments: str | Path) -> int:
    """Run the command within this process, whose trials are forked."""
    return main(list(map(str, arguments)))


def test_every_trial_is_done_and_indexed(ran):
    folder, file, out = ran
    experiment = load_experiment(file)
    assert len(experiment.trials) == 8  # 3 arms x 2 seeds and a teacher a seed
    assert set(records(folder / "runs")) == {trial.id for trial in experiment.trials}
    index = [json.loads(line) for line in (folder / "runs/tiny/index.jsonl").read_text().splitlines()]
    assert {line["arm"] for line in index} == {"Plain", "Progressive", "Apprentice", None}
    assert (folder / "runs/tiny/tiny.toml").read_text() == TINY
    assert "[8/8]" in out


def test_the_second_run_trains_nothing(ran, capsys):
    folder, file, _ = ran
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs/trials").rglob("*") if path.is_file()}
    assert here("run", file, "--no-ray", "--results", folder / "runs") == 0
    assert "nothing to train" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_ray_writes_the_same_records(ran, tmp_path):
    pytest.importorskip("ray")
    folder, file, _ = ran
    done = bench("run", file, "--results", tmp_path, "--seeds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found, without = records(tmp_path), records(folder / "runs")
    assert len(found) == 4 and found == {id: without[id] for id in found}


def test_the_report_says_what_the_records_say(ran):
    folder, file, _ = ran
    assert here("report", file, "--results", folder / "runs") == 0
    out = folder / "runs/report/tiny"
    with (out / "accuracy.csv").open() as handle:
        rows = {row["arm"]: row for row in csv.DictReader(handle)}
    for arm in ("Plain", "Progressive", "Apprentice"):
        lines = load_experiment(file).lines(arm)
        values = [Store(folder / "runs").summary(line.id)["final_test_acc"] for line in lines]
        accuracy = next(
            value for key, value in rows[arm].items() if key in ("mean", "accuracy", "test_acc", "mean_pct")
        )
        assert float(accuracy) == pytest.approx(sum(values) / 2, abs=0.01)
    for name in ("accuracy.md", "accuracy.tex", "curves.png", "curves.pdf", "curves.csv", "index.html"):
        assert (out / name).stat().st_size > 0, name


def test_verify_says_identical(ran, capsys):
    folder, file, _ = ran
    trial = load_experiment(file).trials[-1].id
    assert here("verify", trial, "--results", folder / "runs") == 0
    assert "identical" in capsys.readouterr().out


def test_verify_of_a_trial_that_needs_one_other_twice(tmp_path, capsys):
    file = tmp_path / "twice.toml"  # the teacher of scheme C is the network it starts from
    file.write_text(
        TINY[: TINY.index("[grid]")]
        + """
[[arms]]
name = "Apprentice"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "apprentice", scheme = "C" }
"""
    )
    assert here("run", file, "--no-ray", "--results", tmp_path / "runs") == 0
    trial = next(t for t in load_experiment(file).trials if t.needs)
    assert len(trial.needs) == 2 and len(set(trial.needs.values())) == 1
    assert here("verify", trial.id, "--results", tmp_path / "runs") == 0
    assert "identical" in capsys.readouterr().out


def test_a_misspelt_key_ends_before_training(tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(TINY.replace("batch_size", "bacth_size"))
    done = bench("run", file, "--no-ray", "--results", tmp_path / "runs")
    assert done.returncode == 2 and "batch_size" in done.stderr and "wrong.toml" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()
