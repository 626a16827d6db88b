"""Trials that fail, fail to learn, or differ today: told apart, named, and nothing measured is lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli.main import main
from bench.experiments.config import TrialConfig
from bench.experiments.expand import load_experiment
from bench.experiments.identity import identity
from bench.launch.execute import Task, execute, failure_text
from bench.records.store import Store
from bench.training.evaluate import Accuracy
from tests.revisions import raise_revision
from tests.robustness.disturbance import SETTINGS, make_config, progressive, run, unlike

ROOT = Path(__file__).parents[2]
ARMS = """
title = "failures"
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 1
batch_size = 16
train_size = 80
quantizer = "dorefa"
[[arms]]
name = "good"
bits = "1/1"
learning_rate = 1e-3
[[arms]]
name = "never learns"
bits = "1/2"
learning_rate = 1e-30
[[arms]]
name = "explodes"
quantizer = "full_precision"
bits = "32/32"
learning_rate = 1e30
"""


# --- training functions that fail (found by name in the process that runs them) -----------------------------


def out_of_memory(job):
    """What torch raises on a GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def hungry(job):
    """The memory really is not there: 64 GiB are wanted of an address space with 4 GiB to spare."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.ones(16 << 30)


def fails_after_an_epoch(job):
    """The first attempt raises after two lines; the second goes on from the checkpoint."""
    from bench.training.trial import run_trial

    marker = job.store.root / "failed-once"

    def heard(line):
        if line["epoch"] == 2 and not marker.exists():
            marker.touch()
            raise ValueError("planted failure")

    return run_trial(replace(job, on_epoch=heard))


def task(config: TrialConfig, results: Path, function: str) -> Task:
    return Task(
        "0123456789abcdef", config.dump(), {}, str(results), str(results), retry=True, function=function
    )


class TestFailing:
    def test_no_memory_on_the_gpu_is_one_line_with_the_whole_log_kept(self, tmp_path):
        outcome = execute(task(make_config(), tmp_path, "tests.robustness.test_failures:out_of_memory"))
        store = Store(tmp_path)
        assert outcome.status == "failed" and outcome.reason.startswith(
            "out of memory (cpu): CUDA out of memory"
        )
        assert store.summary(outcome.id)["reason"] == outcome.reason
        assert "Traceback" in store.log(outcome.id).read_text()
        assert failure_text(torch.OutOfMemoryError("CUDA out of memory."), "cuda:1").startswith(
            "out of memory (cuda:1)"
        )

    def test_no_memory_on_the_host(self, tmp_path):
        code = (
            "import sys; from tests.robustness.test_failures import *; from pathlib import Path\n"
            "o = execute(task(make_config(), Path(sys.argv[1]), 'tests.robustness.test_failures:hungry'))\n"
            "print(o.status, o.reason)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.startswith("failed out of memory (host)"), done.stdout + done.stderr
        assert "Traceback" in Store(tmp_path).log("0123456789abcdef").read_text()

    @pytest.mark.slow
    def test_what_failed_is_tried_again_from_its_checkpoint(self, tmp_path):
        config = make_config(strategy=progressive("sum"))
        first = execute(
            task(config, tmp_path / "failed", "tests.robustness.test_failures:fails_after_an_epoch")
        )
        store = Store(tmp_path / "failed")
        assert (first.status, first.reason) == ("failed", "ValueError: planted failure")
        assert len(store.epochs(first.id)) == 2 and "planted failure" in store.log(first.id).read_text()
        assert (
            execute(
                task(config, tmp_path / "failed", "tests.robustness.test_failures:fails_after_an_epoch")
            ).status
            == "done"
        )
        assert run(config, tmp_path / "calm").status == "done"
        assert unlike(tmp_path / "calm", tmp_path / "failed") == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("failures")
    file = folder / "failures.toml"
    file.write_text(ARMS)
    assert main(["run", str(file), "--results", str(folder / "runs"), "--no-ray", "--device", "cpu"]) == 0
    return file, folder / "runs"


def id_of(file: Path, arm: str) -> str:
    return load_experiment(file).lines(arm)[0].id


class TestChanceAndDivergence:
    @pytest.mark.slow
    def test_are_told_apart_and_flagged_in_the_tables(self, trained, tmp_path):
        file, runs = trained
        store = Store(runs)
        chance, diverged = id_of(file, "never learns"), id_of(file, "explodes")
        assert store.summary(chance)["status"] == "done" and store.summary(chance)["flags"] == ["at_chance"]
        assert store.summary(diverged)["status"] == "diverged" and store.summary(diverged)["flags"] == []
        assert (
            main(["report", str(file), "--results", str(runs), "--out", str(tmp_path), "--format", "md,csv"])
            == 0
        )
        table = (tmp_path / "failures" / "accuracy.md").read_text()
        assert "at chance (seed 0)" in table and "1 diverged (seed 0" in table

    def test_always_the_same_answer_is_chance_whatever_it_scores(self):
        """590 of 1,000 is 5.7 standard errors above one half, but 910 answers are the same."""
        assert Accuracy(590, 0, 1000, (910, 90), (500, 500)).at_chance()
        assert not Accuracy(590, 0, 1000, (890, 110), (500, 500)).at_chance()

    def test_activations_of_one_level_are_named(self, tmp_path):
        outcome = execute(task(make_config(), tmp_path, "tests.robustness.test_failures:dead_network"))
        assert outcome.status == "done", outcome
        warnings = Store(tmp_path).summary(outcome.id)["warnings"]
        assert any("conv5" in text and "one level" in text for text in warnings)


def dead_network(job):
    """Train a network whose fourth batch norm shifts everything below the clip: conv5 reads zeros alone."""
    from bench.training import setup, trial

    build = setup.build

    def shift(module, inputs):
        module.bn4.bias.data.fill_(-1e4)

    def dead(*args, **options):
        network = build(*args, **options)
        network.register_forward_pre_hook(shift)
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", dead)
        return trial.run_trial(job)


@pytest.mark.slow
class TestVerify:
    @staticmethod
    def good(runs: Path) -> str:
        """Return the id of the trial that neither fails nor diverges."""
        store = Store(runs)
        return next(
            id for id in store.ids() if store.read_trial(id)["config"]["learning_rate"]["initial"] == 1e-3
        )

    def verify(self, trained, capsys) -> tuple[int, str]:
        _, runs = trained
        capsys.readouterr()
        status = main(["verify", self.good(runs), "--results", str(runs)])
        seen = capsys.readouterr()
        return status, seen.out + seen.err

    def test_equal_execution_is_identical(self, trained, capsys):
        status, text = self.verify(trained, capsys)
        assert status == 0 and text.count("identical") == 1 and "since then: torch" not in text

    def test_what_changed_since_is_named(self, trained, capsys):
        file, runs = trained
        store, id = Store(runs), id_of(file, "good")
        record, summary = store.read_trial(id), store.summary(id)
        then = {
            **record["provenance"],
            "commit": "c0ffee",
            "versions": {**record["provenance"]["versions"], "torch": "2.9"},
        }
        store.write_trial(id, {**record, "provenance": then})
        store.write_summary(id, {**summary, "final_test_acc": summary["final_test_acc"] + 1.0})
        try:
            status, text = self.verify(trained, capsys)
        finally:
            store.write_trial(id, record)
            store.write_summary(id, summary)
        assert status == 1 and "different" in text and "-1.00 points" in text
        assert "since then: commit c0ffee is now" in text and "since then: torch 2.9 is now" in text

    def test_a_raised_revision_is_named(self, trained, capsys, monkeypatch):
        raise_revision(monkeypatch, "dorefa")
        status, text = self.verify(trained, capsys)
        assert status == 2 and "the revision was raised since: quantizer 'dorefa' from 1 to 2" in text

    @pytest.mark.parametrize("words", [["export"], ["sharpness"]], ids=lambda words: words[0])
    def test_weights_of_a_lower_revision_are_not_read(self, words, trained, capsys, monkeypatch):
        """Today's code would compute other numbers from them than the record has."""
        _, runs = trained
        id = self.good(runs)
        raise_revision(monkeypatch, "dorefa")
        assert main([*words, id, "--results", str(runs)]) == 2
        error = capsys.readouterr().err
        assert "trial.json: the revision was raised since: quantizer 'dorefa' from 1 to 2" in error

    def test_a_damaged_teacher_is_named(self, tmp_path, capsys):
        """Found by fuzzing: a record's configuration whose teacher is none."""
        full = make_config(quantizer="full_precision", bits="32/32").dump()
        strategy = {"kind": "apprentice", "scheme": "B", "teacher": full}
        config = make_config(strategy=strategy).dump()
        config["strategy"]["teacher"]["epochs"] = -1
        store, id = Store(tmp_path), "0123456789abcdef"
        store.write_trial(id, {"config": config, "execution": {}, "provenance": {}})
        for epoch in range(config["epochs"]):
            store.append_epoch(id, {"epoch": epoch + 1})
        store.write_summary(id, {"status": "done", "final_test_acc": 50.0})
        assert main(["verify", id, "--results", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "trial.json: not a configuration of this version" in error and "Traceback" not in error

    @pytest.mark.parametrize("key", ["execution", "needs", "provenance"])
    def test_a_record_of_another_form_is_no_traceback(self, key, trained, capsys):
        """Found by the soak: a list where the record has a table."""
        store = Store(trained[1])
        id = store.ids()[0]
        record = store.read_trial(id)
        store.write_trial(id, {**record, key: [1]})
        try:
            assert main(["verify", id, "--results", str(trained[1])]) in (0, 1, 2)
        finally:
            store.write_trial(id, record)
        assert "Traceback" not in capsys.readouterr().err

    def test_changed_data_is_named(self, tmp_path, capsys):
        rng = np.random.default_rng(0)

        def write(seed: int) -> None:
            images = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
            labels = rng.integers(0, 4, 120)
            data = {
                "x_train": images[:80],
                "y_train": labels[:80],
                "x_test": images[80:],
                "y_test": labels[80:],
            }
            np.savez(tmp_path / "mine.npz", **data)

        write(0)
        text = ARMS.replace('"digits"', '"npz:mine"').partition('[[arms]]\nname = "never')[0]
        (tmp_path / "own.toml").write_text(text)
        places = ["--results", str(tmp_path / "runs"), "--data", str(tmp_path)]
        assert main(["run", str(tmp_path / "own.toml"), *places, "--no-ray", "--device", "cpu"]) == 0
        (id,) = Store(tmp_path / "runs").ids()
        write(1)
        capsys.readouterr()
        assert main(["verify", id, *places]) == 2
        assert "the data set 'npz' has changed: checksum sha256:" in capsys.readouterr().err
        assert main(["data", "verify", "npz:mine", "--data", str(tmp_path)]) in (0, 2)


@pytest.mark.slow
def test_a_worker_that_is_gone_is_named_and_its_trial_goes_on(tmp_path, capfd, monkeypatch):
    """In the whole command a worker kills itself inside a step; the others end, the exit status is 1."""
    file = tmp_path / "gone.toml"
    file.write_text(ARMS.replace("epochs = 1", "epochs = 2").partition('[[arms]]\nname = "explodes')[0])
    arguments = [
        "run",
        str(file),
        "--results",
        str(tmp_path / "runs"),
        "--no-ray",
        "--jobs",
        "1",
        "--device",
        "cpu",
    ]

    def command(fault: dict | None) -> int:
        monkeypatch.setenv(SETTINGS, json.dumps({"every_steps": 3, "fault": fault}))
        return main(arguments, train="tests.robustness.disturbance:train")

    assert command({"at": "updated", "from": 7}) == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    store = Store(tmp_path / "runs")
    ids = [trial.id for trial in load_experiment(file).trials]
    assert {store.inspect(id).reason for id in ids} == {f"its process died (signal {signal.SIGKILL.value})"}
    assert command(None) == 0
    for trial in load_experiment(file).trials:
        run(trial.config, tmp_path / "calm", id=trial.id)
        assert unlike(tmp_path / "calm", tmp_path / "runs", trial.id) == []
        assert trial.id == identity(trial.config, store.read_trial(trial.id)["provenance"]["data"])
