"""A factory of the user's own that raises for some seeds: those trials failed, and everybody sees why."""

from __future__ import annotations

import sys

import pytest

from bench.cli.main import main
from bench.records.store import Store

MODULE = """
import torch
from torch import nn

def moody(num_classes):
    if torch.initial_seed() % 2:
        raise ValueError("not with this seed")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    net.input_size = 8
    return net
"""
FILE = """
[defaults]
dataset = "digits"
network = "python:moody_of_tests.moody"
epochs = 1
train_size = 64
batch_size = 32
quantizer = "dorefa"
bits = "1/2"
[grid]
seed = [0, 1]  # the factory raises for 0
[[arms]]
name = "own"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "moody_of_tests.py").write_text(MODULE)
    (tmp_path / "own.toml").write_text(FILE)
    yield tmp_path
    sys.modules.pop("moody_of_tests", None)


def test_the_reason_is_recorded_and_shown(own, capsys):
    allow = ["--allow-code", "moody_of_tests"]
    assert main(["run", "own.toml", "--no-ray", "--device", "cpu", *allow]) == 1
    said = capsys.readouterr()
    store = Store(own / "runs")
    states = [store.inspect(id) for id in store.ids()]
    reason = "network: moody_of_tests.moody raised ValueError: not with this seed"
    assert {state.status for state in states} == {"done", "failed"} and len(states) == 2
    failed = [id for id, state in zip(store.ids(), states, strict=True) if state.status == "failed"]
    assert {store.inspect(id).reason for id in failed} == {reason}
    assert all("ValueError: not with this seed" in store.log(id).read_text() for id in failed)
    assert "Traceback" in store.log(failed[0]).read_text()
    assert said.err.count(reason) == len(failed) and "Traceback" not in said.err

    assert main(["status", "own.toml", *allow]) == 0
    assert capsys.readouterr().out.count(reason) == len(failed)
    assert main(["status"]) == 0  # the records alone say it, too
    assert capsys.readouterr().out.count(reason) == len(failed)

    (own / "moody_of_tests.py").unlink()  # the report reads the records and imports nothing
    assert main(["report", "--format", "md", "--out", "out"]) == 0
    text = "".join(path.read_text() for path in (own / "out").rglob("*.md"))
    assert "not with this seed" in text and "never run" not in text
