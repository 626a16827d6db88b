"""``bench doctor``: facts and remarks of a machine, checks that notice what they are for."""

from __future__ import annotations

import json

import pytest

from bench.cli.main import main
from bench.doctor import checks, machine
from bench.training.capture import Recording
from bench.training.loop import Run

STEPS = 16


@pytest.fixture(scope="module")
def found():
    return list(checks.checks("cpu", STEPS))


@pytest.mark.slow
def test_every_check_passes_here_and_says_what_was_compared(found):
    assert [check.status for check in found] == ["passed", "passed", "skipped", "passed", "passed"]
    assert all(f"{STEPS} steps" in check.found for check in found if check.status == "passed")
    assert "emulated" in found[1].name  # a CPU has no CUDA graphs


def test_the_branch_is_there_for_half_of_the_steps():
    run = checks.begin_run("cpu", "eager", STEPS)
    factors = [run.strategy.factor(step) for step in range(run.total_steps)]
    assert run.total_steps == STEPS and sum(f > 0 for f in factors) == STEPS // 2


def test_a_wrong_replay_is_noticed(monkeypatch):
    """A recording whose replay keeps the first batch."""

    def stale(self, inputs, stage):
        if self.replay is None or stage != self.stage:
            self.record(inputs, stage)
        self.replay()

    monkeypatch.setattr(Recording, "step", stale)
    assert checks._captured("cpu", STEPS)[0] is False


def test_a_lost_moment_is_noticed(monkeypatch):
    restore = Run.restore

    def forgetful(self, state):
        restore(self, state)
        for values in self.optimizer.state.values():
            values["exp_avg"].zero_()

    monkeypatch.setattr(Run, "restore", forgetful)
    assert checks._resumed("cpu", "eager", STEPS)[0] is False


@pytest.mark.slow
def test_other_numbers_in_other_processes_are_noticed(monkeypatch):
    """This process starts from another seed than the processes beside it."""
    config = checks.config
    monkeypatch.setattr(checks, "config", lambda steps: config(steps).model_copy(update={"seed": 1}))
    assert checks._packed("cpu", STEPS)[0] is False


def test_a_check_that_breaks_has_failed_and_the_others_are_done(monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setattr(Recording, "record", broken)
    monkeypatch.setattr(checks, "_packed", lambda *_: (True, "equal"))
    found = {check.name.split(" (")[0]: check for check in checks.checks("cpu", STEPS)}
    assert found["captured = eager"].status == "failed"
    assert found["captured = eager"].found == "RuntimeError: CUDA error: an illegal memory access"
    assert found["packed = alone"].status == "passed"


def test_an_error_without_a_message_is_a_failure_too():
    def gone():
        raise EOFError  # as the pipe of a process that died

    check = checks._run_check("packed = alone", gone)
    assert (check.status, check.found) == ("failed", "EOFError")


def test_facts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert (
        main(["doctor", "--facts", "--json", str(tmp_path / "facts.json"), "--results", str(tmp_path)]) == 0
    )
    said = capsys.readouterr().out
    assert "torch" in said and "digits" in said and "gpu" in said
    document = json.loads((tmp_path / "facts.json").read_text())
    assert document["schema"] == 1 and document["machine"]["cores"] >= 1
    assert document["rows"] == [] and document["checks"] == []


def test_remarks_say_what_is_slow_and_why(tmp_path):
    here = machine.facts(tmp_path, tmp_path)
    poor = here | {
        "gpus": [],
        "cuda": None,
        "compiles": False,
        "instruction_sets": [],
        "cores": 1,
        "memory_bytes": 10**9,
        "room_bytes": {"results": 10**9},
    }
    text = "\n".join(machine.remarks(poor | {"packages": {"ray": None}}))
    for words in (
        "built without CUDA",
        "C++ compiler",
        "bf16",
        "AVX2",
        "one core",
        "Little room",
        "ray is missing",
    ):
        assert words in text
    rich = here | {
        "gpus": [{"device": "cuda:0", "name": "A", "memory_bytes": 8 * 10**10, "capability": "9.0"}],
        "compiles": True,
        "triton": "3",
        "cores": 16,
        "memory_bytes": 10**11,
        "room_bytes": {"results": 10**12},
        "packages": {"torch": "2"},
    }
    assert machine.remarks(rich) == []
    old = rich | {"gpus": [rich["gpus"][0] | {"capability": "7.5"}]}
    assert "bf16" in machine.remarks(old)[0]


def test_a_gpu_is_measured_in_every_mode_and_bf16_in_the_fastest(monkeypatch):
    monkeypatch.setattr(checks, "modes", lambda device: ["eager", "compiled", "captured", "packed"])
    monkeypatch.setattr(checks, "dtypes", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(checks, "roofline", lambda device, dtype: {})
    monkeypatch.setattr(
        checks, "measure", lambda *a: iter([{"mode": a[2], "dtype": a[3], "cases": len(a[7])}])
    )
    monkeypatch.setattr(checks, "measure_packed", lambda *a: iter([{"mode": "packed", "dtype": a[2]}]))
    found = [(row["mode"], row["dtype"]) for row in checks.throughput("cuda:0")]
    fp32 = [(mode, "fp32") for mode in ("eager", "compiled", "captured", "packed")]
    assert found == [*fp32, ("captured", "bf16")]


def test_what_is_measured_stands_in_the_document(tmp_path, monkeypatch, capsys):
    row = {"network": "svhn_convnet", "width": 0.25, "mode": "eager", "dtype": "fp32", "quantizer": "dorefa"}
    row |= {
        "bits": "1/1",
        "strategy": "plain",
        "merge": None,
        "factor_on": False,
        "seconds": 0.1,
        "spread": 0.0,
    }
    row |= {"ratio": 1.2, "images_per_second": 10.0, "peak_memory_bytes": 2**20}

    def measured(device):
        yield row
        raise RuntimeError("out of memory")

    monkeypatch.setattr(
        checks, "checks", lambda device: iter([checks.Check("repeatable", "passed", "equal")])
    )
    monkeypatch.setattr(checks, "throughput", measured)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    file = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(file), "--device", "cpu"]) == 1
    assert "out of memory" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["rows"][0]["ratio"] == 1.2 and document["rows"][0]["device"] == document["device"]
    assert [check["status"] for check in document["checks"]] == ["passed", "failed"]
