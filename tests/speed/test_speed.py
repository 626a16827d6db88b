"""What `bench speed` and the cost estimate compute, on a network small enough to wait for."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import registry
from bench.costs import measure as costs_measure
from bench.costs import predict
from bench.costs.at_once import AtOnce
from bench.costs.predict import Calibration, KeptCosts, makespan, trial_seconds
from bench.experiments.config import TrialConfig
from bench.integer.build import library
from bench.networks import costs
from bench.speed import cases, floor, inference, measure, timing
from docs.tools import peers, speed_page
from tests.configs import make_config

ROOT = Path(__file__).parents[2]


def config(**fields) -> TrialConfig:
    return make_config(**{"width": 1.0, "epochs": 4, "batch_size": 128, "train_size": None, **fields})


def progressive(until: float = 0.5) -> dict:
    return {"kind": "progressive", "merge": "sum", "factor": {"kind": "linear", "until": until}}


class TestRows:
    def test_ratios_are_taken_round_by_round(self):
        row = timing.summary([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
        assert row["ratio"] == 2.0  # of 2, 3 and 1
        assert row["seconds"] == 4.0
        low, middle, high = statistics.quantiles([2.0, 6.0, 4.0], n=4)
        assert row["spread"] == (high - low) / middle

    def test_every_round_measures_every_action_once_and_in_turn(self):
        order = []
        taken = timing.interleaved([lambda: order.append("a"), lambda: order.append("b")], "cpu", 3)
        assert order == ["a", "b"] * 4  # one round does not count
        assert [len(column) for column in taken] == [3, 3]

    def test_the_floor_counts_every_tensor_between_layers_once_a_pass(self, monkeypatch):
        monkeypatch.setattr(cases, "BATCH", 2)
        run = measure.make_run(cases.UNIT.config("svhn_convnet", 0.125, "fp32"), measure.synthetic(8), "cpu")
        sizes = [40, 18, 18, 9, 7, 7, 5]  # of what conv0 .. conv6 read
        sides = [36, 18, 18, 7, 7, 5, 1]  # of what they write
        channels = [3, 6, 8, 8, 16, 16, 16, 64]
        moved = sum(3 * c * s**2 for c, s in zip(channels, sizes, strict=False))
        moved += sum(2 * c * s**2 for c, s in zip(channels[1:], sides, strict=True)) + 3 * 64 + 2 * 10
        weights = sum(p.numel() for p in run.network.parameters())
        assert floor.step_bytes(run, False) == 2 * 4 * moved + 40 * weights
        fast = {"flops_per_second": 1e30, "bytes_per_second": 1.0}
        assert floor.floor_seconds(run, False, fast) == floor.step_bytes(run, False)
        assert floor.floor_seconds(
            run, False, {"flops_per_second": 1.0, "bytes_per_second": 1e30}
        ) == run.step_flops(False)

    def test_the_file_has_a_row_for_every_case(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(measure, "NETWORKS", (("svhn_convnet", 0.125),))
        monkeypatch.setattr(measure, "BATCH", 8)
        monkeypatch.setattr(cases, "BATCH", 8)
        monkeypatch.setattr(measure, "dtypes", lambda device: ["fp32"])
        monkeypatch.setattr(
            peers, "installed", lambda: {"plain": plain_layer, "broken": lambda *shape: 1 / 0}
        )
        monkeypatch.setattr(measure, "EXTRAS", [peers.further])
        monkeypatch.setattr(peers, "WHAT", {"plain": "nothing quantized", "broken": ""})
        file = tmp_path / "speed.json"
        assert (
            measure.main(argparse.Namespace(json=file, rounds=2, mode="eager", images=None, inference=False))
            == 0
        )
        document = json.loads(file.read_text())
        rows = [row for row in document["rows"] if "kind" not in row]
        kinds = [row["kind"] for row in document["rows"] if "kind" in row]
        assert len(rows) == len(cases.CASES)
        assert kinds == ["training without data", "data", "evaluation", "peer"]
        assert document["rows"][-1]["peer"] == "plain" and document["rows"][-1]["what"] == "nothing quantized"
        unit = rows[0]
        assert unit["quantizer"] == "full_precision" and unit["ratio"] == 1.0
        assert all(row["seconds"] > 0 and row["images_per_second"] == 8 / row["seconds"] for row in rows)
        assert {(row["merge"], row["factor_on"]) for row in rows if row["strategy"] == "progressive"} == {
            (merge, on) for merge in cases.MERGES for on in (True, False)
        }
        schema = {
            "network",
            "width",
            "quantizer",
            "bits",
            "strategy",
            "merge",
            "factor_on",
            "mode",
            "dtype",
            "batch_size",
        }
        schema |= {
            "seconds",
            "spread",
            "ratio",
            "images_per_second",
            "peak_memory_bytes",
            "roofline_share",
            "operations",
        }
        assert all(schema <= row.keys() for row in rows)
        assert {"schema", "device", "versions", "rows", "rates", "load_average"} <= document.keys()
        out, err = capsys.readouterr()
        assert "images/s" in out and "broken in mode eager cannot be measured (ZeroDivisionError)" in err

    def test_a_mode_that_fails_costs_no_other_and_what_was_measured_is_kept(
        self, tmp_path, monkeypatch, capsys
    ):
        def broken(*_):
            yield row
            raise RuntimeError("no compiler today")

        row = {
            "network": "resnet20",
            "width": 1.0,
            "mode": "eager",
            "dtype": "fp32",
            "kind": "data",
            "spread": 0.1,
        }
        row |= {"seconds": 0.01, "ratio": 0.1, "images_per_second": 1e4}
        monkeypatch.setattr(measure, "NETWORKS", (("resnet20", 1.0),))
        monkeypatch.setattr(measure, "modes", lambda device: ["eager", "packed"])
        monkeypatch.setattr(measure, "dtypes", lambda device: ["fp32"])
        monkeypatch.setattr(measure, "measure", broken)
        monkeypatch.setattr(measure, "measure_packed", lambda *_: iter([{**row, "mode": "packed"}]))
        file = tmp_path / "speed.json"
        assert (
            measure.main(argparse.Namespace(json=file, rounds=2, mode=None, images=None, inference=False))
            == 1
        )
        assert [r["mode"] for r in json.loads(file.read_text())["rows"]] == ["eager", "packed"]
        assert (
            "resnet20 1x eager fp32 cannot be measured (RuntimeError: no compiler today)"
            in capsys.readouterr().err
        )

    def test_peak_memory_is_what_is_held_and_what_a_step_adds(self):
        run = measure.make_run(
            cases.UNIT.config("svhn_convnet", 0.125, "fp32"), measure.synthetic(128), "cpu"
        )
        held = []

        def action() -> None:
            big = torch.empty(1 << 22)  # 16 MB
            del big
            held.append(torch.empty(1 << 20))  # 4 MB

        weights = sum(
            t.numel() * t.element_size() for t in (*run.network.parameters(), *run.network.buffers())
        )
        assert floor.peak_memory_cpu(run, action) == pytest.approx(weights + (16 << 20), abs=4096)
        assert floor.peak_memory_cpu(run, lambda: (action(), action())) == pytest.approx(
            weights + (20 << 20), abs=4096
        )

    @pytest.mark.slow
    def test_several_at_once(self, monkeypatch):
        monkeypatch.setattr(measure, "BATCH", 8)
        monkeypatch.setattr(cases, "BATCH", 8)
        monkeypatch.setattr(measure, "cpu_count", lambda: 2)
        unit, row = measure.measure_packed("svhn_convnet", 0.05, "fp32", "cpu", 2)
        assert (unit["mode"], unit["processes"], unit["ratio"], row["quantizer"]) == (
            "packed",
            2,
            1.0,
            "dorefa",
        )
        assert (
            0.2 < unit["throughput"] < 4.0
        )  # of two, over one; a busy machine may not give it more than one
        assert row["peak_memory_bytes"] > 1 << 26


def plain_layer(width: int, out: int, kernel: int, padding: int) -> nn.Module:
    return nn.Conv2d(width, out, kernel, padding=padding, bias=False)


def test_peers_networks_are_ours_in_shape():
    ours = measure.make_run(
        cases.PLAIN.config("svhn_convnet", 0.25, "fp32"), measure.synthetic(), "cpu"
    ).network
    for layer in (plain_layer, *peers.installed().values()):
        network = peers.svhn_convnet(layer, 0.25)
        y = network(torch.rand(2, 3, 40, 40))
        y.sum().backward()
        assert y.shape == (2, 10)
        weights = [p.numel() for p in network.parameters() if p.dim() == 4]
        assert weights == [p.numel() for p in ours.parameters() if p.dim() == 4]


class TestEstimate:
    def test_a_trial_takes_its_steps_with_and_without_the_branch_and_its_evaluations(self):
        measured = Calibration(setup=7.0, step_on=3.0, step_off=2.0, epoch_on=20.0, epoch_off=10.0, memory=0)
        # 20 steps on (factor above 0 at steps 0 .. 19), 20 off; epochs 1 and 2 end with it on, 3 and 4
        # without
        expected = 7 + 20 * 3 + 20 * 2 + 2 * 20 + 2 * 10
        assert trial_seconds(config(strategy=progressive()), 10, measured) == pytest.approx(expected)
        assert trial_seconds(config(), 10, measured) == pytest.approx(7 + 40 * 2 + 4 * 10)
        kept_on = {
            "kind": "progressive",
            "merge": "sum",
            "keep": True,
            "factor": {"kind": "constant", "until": 0.99},
        }
        kept_on.pop("keep")
        assert trial_seconds(config(strategy=kept_on), 10, measured) == pytest.approx(7 + 40 * 3 + 4 * 20)

    def test_the_end_of_a_run_is_that_of_its_longest_first_schedule(self):
        assert makespan({"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}, {}, 2) == 4.0  # a d | b c
        assert makespan({"a": 3.0, "b": 2.0}, {"a": ["b"]}, 2) == 5.0
        assert makespan({"a": 3.0}, {"a": ["elsewhere"]}, 8) == 3.0
        with pytest.raises(ValueError, match="each other"):
            makespan({"a": 1.0, "b": 1.0}, {"a": ["b"], "b": ["a"]}, 2)

    def test_a_calibration_is_kept_for_its_kind_device_and_mode(self, tmp_path, monkeypatch):
        monkeypatch.setattr(predict, "cache_folder", lambda: tmp_path)
        found = Calibration(1.0, 1.0, 1.0, 1.0, 1.0, 1)
        KeptCosts("cpu").remember(config(), "eager", found)
        assert KeptCosts("cpu").find(config(epochs=9, seed=3), "eager") == found
        assert KeptCosts("cpu").find(config(width=2.0), "eager") is None
        assert KeptCosts("cpu").find(config(), "captured") is None
        KeptCosts("cpu").keep("start", 2.5)
        assert KeptCosts("cpu").number("start") == 2.5 and KeptCosts("cpu").find(config(), "eager") == found
        (tmp_path / "calibration.json").write_text("{ damaged")
        assert KeptCosts("cpu").find(config(), "eager") is None

    def test_a_cache_that_cannot_be_written_is_no_error(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        (tmp_path / "folder" / "calibration.json").mkdir(parents=True)
        for place in ("file", "folder"):
            monkeypatch.setattr(predict, "cache_folder", lambda place=place: tmp_path / place)
            kept = KeptCosts("cpu")
            kept.keep("start", 2.5)
            assert kept.number("start") == 2.5 and KeptCosts("cpu").number("start") is None

    def test_known_seconds_are_of_kinds_measured_before(self, tmp_path, monkeypatch):
        monkeypatch.setattr(predict, "cache_folder", lambda: tmp_path)
        KeptCosts("cpu").remember(config(), "eager", Calibration(5.0, 0.0, 1.0, 0.0, 0.0, 0))
        trials = {"a": config(seed=1), "b": config(width=2.0), "c": config(batch_size=100_000)}
        assert predict.known_seconds(trials, "cpu", tmp_path) == {"a": 5.0 + 4 * (1195 // 128)}
        assert predict.known_seconds(trials, "cluster", tmp_path) == {}

    def test_what_was_measured_on_a_busy_machine_is_not_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(predict, "cache_folder", lambda: tmp_path)
        clock = {"wall": 0.0, "work": 0.0}
        monkeypatch.setattr(costs_measure.time, "perf_counter", lambda: clock["wall"])
        monkeypatch.setattr(costs_measure, "_processor_seconds", lambda: clock["work"])

        def measure(wall: float) -> float:
            clock["wall"] += wall
            clock["work"] += 1.0
            return wall

        meter = costs_measure.Meter("cpu", tmp_path)
        assert meter.number("start", lambda: measure(2.0)) == 2.0 and meter.busy == 2.0
        assert meter.number("start", lambda: measure(1.1)) == 1.1
        assert meter.number("start", lambda: pytest.fail("measured again")) == 1.1

    def test_the_length_and_the_kind_of_a_factor_do_not_change_the_cost_of_a_step(self):
        def kind(**factor):
            return predict.cost_kind(config(strategy={**progressive(), "factor": factor}))

        ending = kind(kind="cosine", until=0.5)
        assert kind(kind="linear", until=0.9) == kind(kind="cosine", until_epochs=1) == ending
        endless = kind(kind="constant", keep=True)  # no step without the branch can be measured
        assert endless != ending and predict.cost_kind(config()) not in (ending, endless)

    def test_a_kind_is_measured_once_on_a_busy_machine_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(predict, "cache_folder", lambda: tmp_path)
        monkeypatch.setattr(costs_measure, "BUSY", 0.0)  # every machine is busy
        calls = []

        def calibrate(measured, *_):
            calls.append(measured.width)
            return Calibration(len(calls), 1.0, 1.0, 1.0, 1.0, 1)

        monkeypatch.setattr(costs_measure, "calibrate", calibrate)
        meter = costs_measure.Meter("cpu", tmp_path)
        costs = [meter.of(config(seed=seed, width=width), 8) for seed in (1, 2) for width in (1.0, 2.0)]
        assert calls == [1.0, 2.0] and [cost.setup for cost in costs] == [1, 2, 1, 2]
        assert KeptCosts("cpu").find(config(), "eager") is None

    def test_calibrating_adds_up_to_what_a_trial_does(self, tmp_path):
        small = config(width=0.05, batch_size=32, strategy=progressive())
        measured = costs_measure.calibrate(small, lambda: costs_measure.synthetic(64, 8), "cpu")
        assert min(measured.step_on, measured.step_off, measured.epoch_on, measured.epoch_off) > 0
        assert measured.setup > 0 and measured.memory > 1 << 26 and measured.context == 0

    def test_slowdown_is_of_the_steps_beside_others(self):
        result = AtOnce((1.0, 1.0), (0.5, 0.5), ((2.0, 4.0), (3.0, 3.0)), ((0.5, 0.7), (0.6, 0.6)), (1, 1))
        assert result.slowdown("cuda:0") == 3.0 and result.slowdown("cpu") == pytest.approx(1.2)


def test_networks_say_their_multiply_accumulates():
    """The order of trials goes by them where nothing was measured."""
    stated = {n: e.facts["macs"] for n, e in registry.entries("networks").items() if "macs" in e.facts}
    assert {"svhn_convnet", "resnet20"} <= stated.keys()
    for name in ("svhn_convnet", "resnet20"):
        run = costs_measure.make_run(
            config(network=name, dataset="digits"), costs_measure.synthetic(512), "cpu"
        )
        assert costs(run.network).macs == stated[name], name


class TestPage:
    def test_the_page_has_the_numbers_of_the_files(self):
        text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
        assert speed_page.filled(text, ROOT / "docs" / "speed") == text, (
            "run `python -m docs.tools.speed_page`"
        )

    def test_a_table_of_ratios(self):
        common = {"device": "d", "network": "resnet20", "width": 1.0, "mode": "eager", "dtype": "fp32"}
        rows = [
            {
                **common,
                **cases.UNIT.row(),
                "seconds": 0.05,
                "ratio": 1.0,
                "spread": 0.1,
                "images_per_second": 2560.0,
            },
            {
                **common,
                **cases.PLAIN.row(),
                "seconds": 0.06,
                "ratio": 1.2,
                "spread": 0.1,
                "images_per_second": 2133.0,
            },
            {
                **common,
                "kind": "evaluation",
                "seconds": 0.1,
                "ratio": 2,
                "spread": 0.1,
                "images_per_second": 5120.0,
            },
        ]
        table = speed_page.ratios({"rows": rows}, "fp32").splitlines()
        assert table[0] == "| | resnet20 1x eager |"
        assert table[2:4] == ["| full precision, ms | 50.0 |", "| dorefa 1/1 | 1.20 |"]
        assert "| resnet20 1x eager | 5,120 |" in speed_page.rates({"rows": rows}, "fp32")

    def test_modes_are_compared_with_the_eager_step_of_the_same_rounds(self):
        common = {"network": "resnet20", "width": 1.0, "mode": "compiled", "dtype": "bf16"}
        packed = {
            **common,
            **cases.PLAIN.row(),
            "mode": "packed",
            "ratio": 1.0,
            "throughput": 1.9,
            "processes": 2,
        }
        rows = [
            {**common, **cases.PLAIN.row(), "ratio": 1.2, "peak_memory_bytes": 5_000_000},
            {**common, "kind": "eager fp32", "ratio": 1.8},
            packed,
        ]
        table = speed_page.modes({"rows": rows}, "all").splitlines()
        assert table[2:] == [
            "| compiled bf16 | 1.50 |",
            "| packed bf16, 2 at once, over one of them | 1.90 |",
        ]
        assert speed_page.memory({"rows": rows}, "bf16").splitlines()[2:] == ["| dorefa 1/1 | 5 |"]


class TestInference:
    """``bench speed --inference``, on layers and networks small enough to wait for."""

    def test_rows(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(inference, "LAYERS", ((8, 9, 6, 1, 3), (5, 70, 5, 2, 1)))
        monkeypatch.setattr(inference, "NETWORKS", ("svhn_convnet",))
        monkeypatch.setattr(inference, "BATCHES", (2,))
        monkeypatch.setattr(inference, "_SHORTEST", 0.0)
        monkeypatch.setattr(inference, "network_ways", self.small)
        file = tmp_path / "x.json"
        words = argparse.Namespace(json=file, rounds=2, mode=None, images=None, inference=True)
        assert measure.main(words) == 0
        rows = json.loads(file.read_text())["rows"]
        layers = {row["layer"] for row in rows}
        assert layers == {"8 to 9, 6 px, stride 1", "5 to 70, 5 px, stride 2", inference.ALL_LAYERS, None}
        for layer in layers:
            here = [row for row in rows if row["layer"] == layer]
            assert here[0]["way"] == inference.UNIT and here[0]["speedup"] == 1.0
            assert {row["bits"] for row in here if row["way"] == "integers"} == {"1/1", "2/2"}
            for row in here:
                assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
                assert ("instructions" in row) == (row["way"] == "integers")
        assert len(capsys.readouterr().out.splitlines()) == len(rows)

    @staticmethod
    def small(name, batch, folder):
        return {(inference.UNIT, "32/32"): lambda: None} | {
            ("integers", b): lambda: None for b in inference.BITS
        }

    def test_the_layers_together_are_weighted_sums_of_a_round(self, monkeypatch):
        taken = iter([[1.0, 2.0], [10.0, 30.0]])
        monkeypatch.setattr(inference, "LAYERS", ((8, 9, 6, 1, 3), (5, 70, 5, 2, 1)))
        monkeypatch.setattr(inference, "layer_ways", lambda *_: None)
        monkeypatch.setattr(inference, "interleaved", lambda *_: {(inference.UNIT, "1/1"): next(taken)})
        *_, last = inference._layer_rows(1, 2, library("portable"))
        assert last["layer"] == inference.ALL_LAYERS and last["seconds"] == (3 * 1 + 10 + 3 * 2 + 30) / 2

    @pytest.mark.slow
    def test_a_network(self, tmp_path):
        with torch.no_grad():
            ways = inference.network_ways("svhn_convnet", 2, tmp_path)
            found = {key: run() for key, run in ways.items()}
        for bits in inference.BITS:
            low, ours = found["float32 of low precision, PyTorch", bits], found["integers", bits]
            assert torch.allclose(low, ours, atol=1e-4 * float(low.std()))
        assert inference.UNIT in {way for way, _ in found}
