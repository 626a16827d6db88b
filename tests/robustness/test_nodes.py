"""Two nodes of Ray's own test cluster, one of them killed.

The short form of ``python -m tests.robustness.soak --part nodes``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.expand import load_experiment
from bench.launch.execute import Outcome, Task
from bench.launch.remote import Home, with_local_data
from bench.records.store import Store
from tests.robustness.disturbance import resumed_steps, run, unlike
from tests.waiting import HANG

HERE = Path(__file__).parent
ID = "0123456789abcdef"


@pytest.mark.slow
def test_a_node_lost_costs_only_what_its_trial_did_since_the_last_checkpoint(tmp_path):
    """Also where the nodes do not share the results folder, where this user may hide it from them."""
    pytest.importorskip("ray")
    apart = os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    command = [sys.executable, str(HERE / "nodes.py"), str(tmp_path), *(["--apart"] if apart else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * HANG)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == 0 and "Traceback" not in said["output"], said["output"]
    assert said["killed"] and "its node died; it goes on from its last checkpoint" in said["output"]
    assert said["seen"] == [] or not apart  # the nodes saw an empty folder
    trial = load_experiment(tmp_path / "nodes.toml").trials[0]
    assert run(trial.config, tmp_path / "calm", id=trial.id).status == "done"
    assert unlike(tmp_path / "calm", tmp_path / "results", trial.id) == []
    assert len(resumed_steps(tmp_path / "results", trial.id)) == 1
    assert resumed_steps(tmp_path / "results", trial.id)[0] > 0


def task(results: Path, **fields) -> Task:
    config = {"dataset": "digits", "network": "svhn_convnet", "epochs": 2, **fields}
    return Task(ID, TrialConfig.model_validate(config).dump(), {}, str(results), str(results / "nowhere"))


def test_home_keeps_the_lock_and_refuses_a_node_that_was_given_up(tmp_path):
    go_on = tmp_path / "go-on"
    go_on.touch()
    home, store = Home(str(tmp_path), str(go_on)), Store(tmp_path)
    store.append_epoch(ID, {"epoch": 1})
    token, files = home.begin(task(tmp_path))
    assert files == {f"trials/{ID}/epochs.jsonl": b'{"epoch": 1}\n'}
    assert store.status(ID) == "running"
    assert home.begin(task(tmp_path)).status == "busy"
    assert home.keep(ID, token, {"epochs.jsonl": b'{"epoch": 1}\n{"epoch": 2}\n', "../x": b"no"})
    assert len(store.epochs(ID)) == 2 and not (tmp_path / "trials" / "x").exists()
    home.abandon(ID)  # its node was lost; another takes the trial up
    other, _ = home.begin(task(tmp_path))
    assert not home.keep(ID, token, {"epochs.jsonl": b""}) and len(store.epochs(ID)) == 2
    go_on.unlink()
    assert home.keep(ID, other, {}) is False  # all are to stop
    store.write_trial(ID, {"id": ID})
    store.write_summary(ID, {"status": "done"})
    home.end(ID, other, "done")
    assert store.status(ID) == "done"
    settled = home.begin(task(tmp_path))
    assert isinstance(settled, Outcome) and settled.status == "done" and not settled.trained


def test_a_node_without_the_data_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "own"))
    assert with_local_data(task(tmp_path)).data_dir == str(
        tmp_path / "nowhere"
    )  # digits are part of a library
    with pytest.raises(InputError, match=rf"^node \S+: .*cifar10.*nowhere.*own folder, {tmp_path}/own"):
        with_local_data(task(tmp_path, dataset="cifar10", network="resnet20"))


@pytest.fixture(autouse=True)
def _no_ray_left():
    yield
    with contextlib.suppress(ImportError):
        import ray

        ray.shutdown()
