"""What a tracker gets is what the records say, once, also when it is sent in parts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.errors import InputError
from bench.records import trackers
from bench.records.store import Store
from tests.reporting.fake_records import Results


def _records(root: Path) -> Path:
    results = Results(root)
    results.experiment("two", 'title = "T"\n[[arms]]\nname = "P"\n')
    results.trial("two", "P", [10.0, 20.0, 30.0], seed=0, status="unfinished", epochs=4)
    results.trial("two", "P", [10.0, 20.0, 30.0, 40.0], seed=1)
    results.trial("two", "P", None, seed=2)
    return results.write()


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_tensorboard_gets_every_epoch_once(tmp_path, capsys):
    root = _records(tmp_path / "runs")
    assert main(["log", "--results", str(root)]) == 0
    assert "2 trials, 7 epochs sent to tensorboard" in capsys.readouterr().out
    store, out = Store(root), root / "logs" / "tensorboard"
    unfinished, done, _ = (line["id"] for line in store.index("two"))
    assert _scalars(out / "two" / done)["test_acc"] == {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0}
    assert _scalars(out / "two" / done)["summary/final_test_acc"] == {4: 40.0}
    assert main(["log", "two", "--results", str(root)]) == 0
    assert "0 trials, 0 epochs" in capsys.readouterr().out
    epoch = {**store.epochs(unfinished)[-1], "epoch": 4, "test_acc": 35.0}
    store.append_epoch(unfinished, epoch)
    assert trackers.send(store, ["two"], "tensorboard", out) == (1, 1)
    assert _scalars(out / "two" / unfinished)["test_acc"][4] == 35.0


def test_a_run_that_is_followed_sends_the_same(tmp_path):
    root = _records(tmp_path / "runs")
    out = tmp_path / "out"
    with trackers.following(Store(root), "two", "tensorboard", out):
        pass
    assert {
        Path(name).name: epochs for name, (epochs, _) in json.loads((out / "sent.json").read_text()).items()
    }
    done = Store(root).index("two")[1]["id"]
    assert _scalars(out / "two" / done)["train_loss"].keys() == {1, 2, 3, 4}


def test_a_fault_of_a_tracker_is_told_after_the_training(tmp_path, monkeypatch):
    root = _records(tmp_path / "runs")

    def broken(sent, out):
        raise RuntimeError("no such server")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", ("tensorboardX", broken))
    trained = False
    with (
        pytest.raises(InputError, match="no such server"),
        trackers.following(Store(root), "two", "tensorboard", tmp_path / "out"),
    ):
        trained = True
    assert trained


def test_a_missing_package_and_a_wrong_name_are_one_message(tmp_path, capsys, monkeypatch):
    root = _records(tmp_path / "runs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["log", "--to", "aim", "--results", str(root)]) == 2
    assert "pip install aim" in capsys.readouterr().err
    assert main(["log", "tvo", "--results", str(root)]) == 2
    assert "'two'" in capsys.readouterr().err


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "aim"])
def test_the_other_trackers_take_the_records(tmp_path, tracker, monkeypatch):
    pytest.importorskip(trackers.TRACKERS[tracker][0])
    monkeypatch.setenv("WANDB_MODE", "offline")
    root, out = _records(tmp_path / "runs"), tmp_path / "out"
    assert trackers.send(Store(root), ["two"], tracker, out) == (2, 7)
    assert trackers.send(Store(root), ["two"], tracker, out) == (0, 0)
    assert len(list(out.rglob("*"))) > 1
