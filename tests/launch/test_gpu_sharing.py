"""Several trials on one device: how many, which may start; neighbours change nothing but the time."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from bench.cli import arguments
from bench.cli.main import main
from bench.experiments.config import TrialConfig
from bench.experiments.expand import load_experiment
from bench.launch import gpu_sharing
from bench.launch.execute import Task
from bench.launch.gpu_sharing import DeviceSlots, crowded_out, measured_slots, trials_per_device
from bench.launch.plan import Planned, costs, relative_cost
from bench.launch.verify import differences
from bench.machine.devices import cpu_count
from bench.records.store import State, Store
from bench.training import execution
from tests.launch.running_fakes import PLAIN

GiB = 2**30


class TestAccounting:
    @pytest.mark.parametrize(
        ("free", "peak", "context", "cores", "limit", "expected"),
        [
            (80 * GiB, 1 * GiB, 0.5 * GiB, 16, 100, 16),  # 0.9 x 80 / 1.5 = 48 would fit, 16 cores drive 16
            (80 * GiB, 1 * GiB, 0.5 * GiB, 64, 100, 48),
            (80 * GiB, 1 * GiB, 0.5 * GiB, 64, 8, 8),
            (4 * GiB, 1 * GiB, 0.5 * GiB, 16, 100, 2),  # 3.6 / 1.5 = 2.4
            (
                1 * GiB,
                4 * GiB,
                0.5 * GiB,
                16,
                100,
                1,
            ),  # does not fit even alone: that is for the trial to find out
            (80 * GiB, 0, 0, 0.5, 100, 1),  # more GPUs than cores
        ],
    )
    def test_memory_cores_and_limit(self, free, peak, context, cores, limit, expected):
        assert trials_per_device(free, peak, context, cores, limit) == expected

    def test_a_trial_starts_only_where_its_measured_need_fits_beside_those_running(self):
        slots = DeviceSlots(
            {"cuda:0": 8, "cuda:1": 8},
            free_bytes={"cuda:0": 10.0, "cuda:1": 10.0},
            trial_bytes={"a": 6, "b": 6, "c": 4, "d": 3},
        )
        for trial, device in (("a", "cuda:0"), ("b", "cuda:1")):
            assert slots.device_for(trial) == device  # the emptier one
            slots.begin(trial, device)
        assert slots.device_for("c") is None  # 6 + 4 is more than 90 % of 10
        assert slots.device_for("d") == "cuda:0"  # 6 + 3 is not
        slots.begin("d", "cuda:0")
        assert slots.end("b") is False  # it had its device to itself
        assert slots.device_for("c") == "cuda:1"
        assert slots.end("a") is True and slots.end("d") is True

    def test_slots_the_total_and_trials_that_want_to_be_alone(self):
        slots = DeviceSlots({"gpu": 2}, total=2, alone={"x"})
        slots.begin("a", "gpu")
        assert slots.device_for("x") is None and slots.device_for("b") == "gpu"
        slots.begin("b", "gpu")
        assert slots.device_for("c") is None
        slots.end("a")
        slots.end("b")
        assert slots.device_for("x") == "gpu"
        slots.begin("x", "gpu")
        assert slots.device_for("c") is None
        assert (
            DeviceSlots({"p": 3, "q": 3}, total=1).device_for("a")
            and DeviceSlots({"p": 3}, total=2).most_per_device == 2
        )

    def test_a_placement_with_one_size_of_trial_goes_by_the_largest_and_the_fullest_device(self):
        slots = DeviceSlots(
            {"p": 16, "q": 16}, free_bytes={"p": 100.0, "q": 50.0}, trial_bytes={"a": 1.0, "b": 10.0}
        )
        assert slots.any_per_device == 4  # 0.9 x 50 / 10

    def test_what_neighbours_may_have_caused(self):
        assert crowded_out("out of memory (cuda:0): CUDA out of memory. Tried to allocate 2 GiB")
        assert crowded_out("its process died (signal 9, the system was out of memory)")
        assert crowded_out(
            "AcceleratorError: CUDA error: an illegal memory access was encountered"
        )  # shared under MPS
        assert not crowded_out("its process died (signal 9)") and not crowded_out(
            "ValueError: planted failure"
        )


class TestSlotsOfGPUs:
    def test_shares_are_taken_as_given(self):
        slots, words = measured_slots({"a": {}, "b": {}}, ["cuda:0", "cuda:1"], 0.125, 4, None, "data")
        assert slots.per_device == {"cuda:0": 8, "cuda:1": 8} and words == ""

    def test_measured_needs_decide_and_cores_limit(self, monkeypatch):
        needs, free = {"a": 2.0 * GiB, "b": 1.0 * GiB}, {"cuda:0": 20.0 * GiB}
        monkeypatch.setattr(
            "bench.machine.processes.call", lambda function, *arguments, name: function(*arguments)
        )
        monkeypatch.setattr(gpu_sharing, "_measure", lambda *arguments: (needs, free))
        slots, words = measured_slots({"a": {}, "b": {}}, ["cuda:0"], None, 16, 3, "data")
        assert (slots.per_device, slots.total, slots.trial_bytes) == ({"cuda:0": 16}, 3, needs)
        assert "2,048 MiB" in words and slots.most_per_device == 3 and slots.any_per_device == 9
        assert measured_slots({"a": {}, "b": {}}, ["cuda:0"], None, 4, None, "data")[0].per_device == {
            "cuda:0": 4
        }

    def test_one_trial_a_gpu_where_nothing_can_be_measured_or_gained(self, monkeypatch):
        def fail(*arguments):
            raise RuntimeError("no driver")

        monkeypatch.setattr(
            "bench.machine.processes.call", lambda function, *arguments, name: function(*arguments)
        )
        monkeypatch.setattr(gpu_sharing, "_measure", fail)
        slots, words = measured_slots({"a": {}, "b": {}}, ["cuda:0"], None, 16, None, "data")
        assert slots.per_device == {"cuda:0": 1} and "no driver" in words
        assert measured_slots({"a": {}}, ["cuda:0"], None, 16, None, "data") == (
            DeviceSlots({"cuda:0": 1}),
            "",
        )


class TestMPS:
    def daemon(self, folder, monkeypatch, status: int = 0):
        program = folder / gpu_sharing.MPS
        program.write_text(
            f'#!/bin/sh\necho "$@ $CUDA_MPS_PIPE_DIRECTORY $(cat | head -1)" >> {folder}/said\nexit '
            f"{status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)

    def test_started_for_shared_gpus_and_ended(self, tmp_path, monkeypatch):
        self.daemon(tmp_path, monkeypatch)
        with gpu_sharing.overlapping_kernels(["cuda:0"], None) as words:
            folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
            assert words == "MPS started" and os.path.isdir(folder)
        began, ended = (tmp_path / "said").read_text().splitlines()
        assert began.split() == ["-d", folder] and ended.split() == [folder, "quit"]
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ and not os.path.exists(folder)

    def test_nothing_where_nothing_is_shared_or_it_cannot_be_had(self, tmp_path, monkeypatch):
        self.daemon(tmp_path, monkeypatch, status=1)
        for devices, share in ((["cpu"], None), (["cuda:0"], 1.0)):
            with gpu_sharing.overlapping_kernels(devices, share) as words:
                assert words == ""
        with gpu_sharing.overlapping_kernels(["cuda:0"], 0.5) as words:
            assert "cannot be started" in words and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        with gpu_sharing.overlapping_kernels(["cuda:0"], 0.5) as words:
            assert "take turns" in words

    def test_one_that_runs_is_used(self, tmp_path, monkeypatch):
        (tmp_path / "control").touch()
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
        with gpu_sharing.overlapping_kernels(["cuda:0"], None) as words:
            assert words == "MPS is running"
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path)


class TestPlacement:
    @pytest.fixture
    def files(self, tmp_path):
        (tmp_path / "fakes.toml").write_text(PLAIN)
        (tmp_path / "data").mkdir()
        return tmp_path

    def run(self, files, *more: str) -> int:
        places = ["--results", str(files / "results"), "--data", str(files / "data")]
        return main(
            ["run", str(files / "fakes.toml"), *places, *more], train="tests.launch.sharing_fakes:noted"
        )

    def times(self, files) -> list[tuple[int, str, float, float]]:
        return [tuple(json.loads(line)) for line in (files / "data" / "times.jsonl").read_text().splitlines()]

    def test_out_of_memory_beside_others_is_tried_again_alone_once(self, files, capsys):
        (files / "data" / "behaviour.json").write_text(
            json.dumps({"0": "memory-once", "2": "memory", "3": "slow"})
        )
        assert self.run(files, "--no-ray", "--jobs", "3") == 1
        times = self.times(files)
        tries = {seed: [t for t in times if t[0] == seed] for seed in range(4)}
        assert {seed: len(found) for seed, found in tries.items()} == {0: 2, 1: 1, 2: 2, 3: 1}
        for _, _, begin, end in (tries[0][1], tries[2][1]):
            assert [t for t in times if t[2] < end and t[3] > begin] == [t for t in times if t[2] == begin]
        said = capsys.readouterr().out
        assert said.count("tried again alone") == 2 and "failed: out of memory (host)" in said
        store = Store(files / "results")
        ids = {t.config.seed: t.id for t in load_experiment(files / "fakes.toml").trials}
        assert [store.status(ids[seed]) for seed in range(4)] == ["done", "done", "failed", "done"]
        assert len(store.epochs(ids[0])) == 3

    @pytest.mark.slow
    def test_with_ray_too(self, files, capsys, monkeypatch):
        pytest.importorskip("ray")
        here = Path(__file__).parent
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here.parent), str(here)]))
        (files / "data" / "full-0").touch()
        (files / "data" / "meet.json").write_text("[0, 1]")
        assert self.run(files, "--jobs", "2", "--seeds", "2") == 0
        assert [seed for seed, *_ in self.times(files)].count(0) == 2
        assert "tried again alone" in capsys.readouterr().out

    def test_alone_from_the_start_fails_at_once(self, files, capsys):
        (files / "data" / "behaviour.json").write_text(json.dumps({"0": "memory"}))
        assert self.run(files, "--no-ray", "--jobs", "1", "--seeds", "2") == 1
        assert len(self.times(files)) == 2 and "again alone" not in capsys.readouterr().out

    def test_gpus_are_shared_as_measured_and_a_large_trial_waits_its_turn(self, files, monkeypatch, capsys):
        ids = {t.config.seed: t.id for t in load_experiment(files / "fakes.toml").trials}
        needs = {ids[0]: 6.0, ids[1]: 3.0, ids[2]: 9.0, ids[3]: 3.0}

        def slots(configs, devices, share, cores, jobs, data_dir):
            assert share is None and set(configs) == set(ids.values())
            return DeviceSlots({"cuda:0": 8}, 4, {"cuda:0": 10.0}, needs), "as measured"

        (files / "data" / "meet.json").write_text("[0, 1]")
        monkeypatch.setattr("bench.cli.run.find_devices", lambda requested: ["cuda:0"])
        monkeypatch.setattr(gpu_sharing, "measured_slots", slots)
        monkeypatch.setattr(
            "bench.cli.run.known_seconds", lambda configs, device, data_dir: {ids[s]: 9.0 - s for s in ids}
        )
        assert self.run(files, "--no-ray", "--gpus-per-trial", "auto") == 0
        assert "as measured" in capsys.readouterr().out
        times = {seed: (begin, end) for seed, _, begin, end in self.times(files)}
        assert times[1][0] < times[0][1]  # 6 + 3 fit
        assert times[2][0] > max(times[0][1], times[1][1])  # 9 does not beside any
        assert times[3][0] > times[2][1]  # and is not passed by

    def test_the_share_is_a_number_or_auto(self, files, capsys):
        for text in ("0", "-1", "some"):
            assert self.run(files, "--gpus-per-trial", text) == 2
            assert "--gpus-per-trial" in capsys.readouterr().err
        assert self.run(files, "--gpus-per-trial", "auto", "--device", "cpu") == 2


REAL = """
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.05
epochs = 2
train_size = 64
batch_size = 32
quantizer = "dorefa"
bits = "1/1"
[grid]
seed = [0, 1]
[[arms]]
name = "plain"
"""


@pytest.mark.slow
def test_a_neighbour_killed_changes_nothing_for_the_others_and_the_layout_is_recorded(tmp_path, capsys):
    (tmp_path / "real.toml").write_text(REAL)

    def run(results: str, *more: str) -> int:
        arguments = [
            "run",
            str(tmp_path / "real.toml"),
            "--results",
            str(tmp_path / results),
            "--data",
            str(tmp_path),
        ]
        return main([*arguments, "--no-ray", *more], train="tests.launch.sharing_fakes:victim")

    jobs = 2 * cpu_count() if cpu_count() < 3 else cpu_count() + 1
    ids = {t.config.seed: t.id for t in load_experiment(tmp_path / "real.toml").trials}
    packed, alone = Store(tmp_path / "packed"), Store(tmp_path / "alone")
    assert run("packed", "--jobs", str(jobs)) == 1
    assert packed.inspect(ids[0]).reason == "its process died (signal 9)"
    assert packed.status(ids[1]) == "done"

    assert run("packed", "--jobs", "1") == 0  # the killed one goes on, with another number of neighbours
    assert packed.status(ids[0]) == "done"
    resumes = (packed.folder(ids[0]) / "resumes.jsonl").read_text().splitlines()
    assert json.loads(resumes[-1])["pack"] == 1 and json.loads(resumes[-1])["other_hardware"] == []
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "killed").touch()
    assert run("alone", "--jobs", "1") == 0
    for seed, id in ids.items():
        weights = [(store.folder(id) / "weights.pt").read_bytes() for store in (packed, alone)]
        assert weights[0] == weights[1], f"seed {seed}"
        (found,) = differences(alone, packed, id)
        assert (found.where, found.key) == ("trial.json", "execution")
        assert {**found.now, "pack": 1} == found.then
        assert found.now["pack"] == {"layout": "processes", "trials": 2, "mps": False}


def test_resuming_under_another_layout_is_no_other_execution():
    config = TrialConfig.model_validate({"dataset": "digits", "network": "svhn_convnet", "epochs": 1})
    alone = execution.decide(config, 10, "cpu")
    shared = execution.decide(config, 10, "cpu", pack=gpu_sharing.layout(8))
    assert alone["pack"] == 1 and shared["pack"]["trials"] == 8
    assert execution.differences(alone, shared) == [] == execution.differences(shared, alone)
    assert execution.differences(alone, {**shared, "threads": 2}) == ["threads: 1 then, 2 here"]


class TestOrder:
    def planned(self, id: str, **fields) -> Planned:
        base = {"dataset": "cifar10", "network": "svhn_convnet", "epochs": 2, "width": 0.25}
        config = TrialConfig.model_validate({**base, **fields})
        return Planned(id, config, {}, State("missing"), "train")

    def test_measured_seconds_count_and_set_the_scale_of_the_others(self):
        trials = [self.planned("a"), self.planned("b", epochs=4), self.planned("c", network="resnet20")]
        relative = {p.id: relative_cost(p.config) for p in trials}
        assert relative["b"] == 2 * relative["a"]
        taken = costs(trials, {"a": 10.0})
        assert taken["a"] == 10.0 and taken["b"] == pytest.approx(20.0)
        assert taken["c"] == pytest.approx(10.0 * relative["c"] / relative["a"])
        assert costs(trials) == relative

    def test_a_teacher_costs_its_operations(self):
        full = {"dataset": "cifar10", "network": "svhn_convnet", "epochs": 2, "width": 0.25}
        quantized = {"quantizer": "dorefa", "bits": "1/1"}

        def apprentice(scheme: str) -> float:
            teacher = TrialConfig.model_validate(full).dump()
            strategy = {"kind": "apprentice", "scheme": scheme, "teacher": teacher}
            return relative_cost(self.planned("x", **quantized, strategy=strategy).config)

        plain = relative_cost(self.planned("x", **quantized).config)
        assert apprentice("A") == pytest.approx(2 * plain)
        assert apprentice("B") == pytest.approx(plain * 4 / 3, rel=1e-4)  # declared as 0.3333


def test_tasks_travel_with_their_layout():
    assert Task("0" * 16, {}, {}, "r", "d").trials_per_device == 1
    assert arguments.gpu_share("auto") == "auto" and arguments.gpu_share("0.125") == 0.125
