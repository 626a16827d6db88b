"""``import bench``: experiments, runs, results, figures, networks and quantizers from Python."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bench
from bench.cli.main import main
from bench.cli.parser import make_parser

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"  # committed records of real runs
FILE = """
title = "Two arms"
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.0625
recipe = "digits"
epochs = 2
train_size = 64
[[arms]]
name = "plain"
quantizer = "dorefa"
bits = "1/1"
[[arms]]
name = "progressive"
baseline = "plain"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a small experiment that was run, and what ``bench.run`` returned."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "two.toml").write_text(FILE)
    found = bench.run(folder / "two.toml", results=folder / "runs", no_ray=True, jobs=1)
    return folder, found


def test_importing_bench_is_quick_and_every_name_is_there():
    code = "import bench, sys; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules); dir(bench)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for name in bench.__all__:
        assert getattr(bench, name) is not None
        assert name in dir(bench)
    with pytest.raises(AttributeError, match="no attribute 'reprot'"):
        bench.reprot  # noqa: B018


def test_public_functions_are_documented_and_typed():
    assert (Path(bench.__file__).parent / "py.typed").is_file()
    functions = [getattr(bench, name) for name in bench.__all__] + [
        getattr(bench.plot, name) for name in bench.plot.__all__
    ]
    for function in filter(inspect.isfunction, functions):
        assert inspect.getdoc(function)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_run_takes_every_option_of_the_command():
    _, commands = make_parser()
    names = {"file": "file", "overrides": "overrides"}
    options = {names.get(a.dest, a.dest) for a in commands["run"]._actions} - {"help"}
    assert options == set(inspect.signature(bench.run).parameters)


def test_run_returns_what_was_recorded(ran):
    folder, found = ran
    assert list(found.trials["arm"]) == ["plain", "progressive"]
    assert (found.trials["status"] == "done").all() and found.trials["accuracy"].between(0, 100).all()
    assert len(found.epochs) == 4 and found.epochs["train_loss"].notna().all()
    again = bench.results(folder / "runs")
    pd.testing.assert_frame_equal(again.trials, found.trials)
    pd.testing.assert_frame_equal(again.epochs, found.epochs)


def test_run_goes_on_and_takes_overrides(ran, capsys):
    folder, _ = ran
    found = bench.run(folder / "two.toml", results=folder / "runs", no_ray=True)
    assert "nothing to train" in capsys.readouterr().out and len(found.trials) == 2
    overrides = {"epochs": 3, "strategy": {"kind": "plain"}, "grid.seed": [0, 1]}
    loaded = bench.load_experiment(folder / "two.toml", overrides=overrides, only=["plain"])
    assert [trial.config.epochs for trial in loaded.trials] == [3, 3]
    assert {trial.config.seed for trial in loaded.trials} == {0, 1}
    with pytest.raises(bench.InputError, match="overrides"):
        bench.load_experiment(folder / "two.toml", overrides={"epochs": object()})


@pytest.mark.slow
def test_run_in_a_thread(ran):
    """A notebook may run a cell in a thread, in which Python hears no signals."""
    folder, before = ran
    found = []

    def work() -> None:
        found.append(
            bench.run(folder / "two.toml", results=folder / "thread", no_ray=True, jobs=1, only=["plain"])
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].trials["accuracy"][0] == before.trials["accuracy"][0]


def test_results_are_tidy():
    found = bench.results(RESULTS, "digits")
    trials, epochs = found.trials, found.epochs
    assert {"experiment", "arm", "seed", "accuracy", "config.quantizer.kind", "config.width"} <= set(trials)
    assert all(trials[name].dtype != object for name in trials)
    assert trials["accuracy"].dtype == np.float64
    assert trials["config.epochs"].dtype.kind in "iu"
    means = trials[trials["role"].isna()].groupby("arm")["accuracy"].mean()
    assert means["Full precision"] > 90
    assert not epochs.duplicated(["id", "epoch"]).any()
    assert set(epochs["id"]) <= set(trials["id"])


def test_all_results_together_have_no_mixed_column():
    found = bench.results(RESULTS)
    assert found.trials["experiment"].nunique() > 3
    assert all(found.trials[name].dtype != object for name in found.trials)


def test_parquet_holds_the_same(tmp_path):
    found = bench.results(RESULTS, "digits")
    paths = found.to_parquet(tmp_path / "new")
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), found.trials)
    pd.testing.assert_frame_equal(pd.read_parquet(paths[1]), found.epochs)
    folder = bench.report(
        [RESULTS, tmp_path / "none"], "digits", out=tmp_path / "report", formats=["parquet"]
    )
    assert {p.name for p in (folder / "digits").iterdir()} == {
        "trials.parquet",
        "epochs.parquet",
        "files.txt",
    }
    assert (folder / "digits" / "trials.parquet").read_bytes() == paths[0].read_bytes()


def test_parquet_is_written_on_request_alone(ran):
    folder, _ = ran
    assert main(["report", str(folder / "two.toml"), "--results", str(folder / "runs")]) == 0
    names = {path.name for path in (folder / "runs" / "report" / "two").iterdir()}
    assert "index.html" in names and not any(name.endswith(".parquet") for name in names)


def test_wrong_input_is_one_error(tmp_path):
    with pytest.raises(bench.InputError, match="Did you mean 'digits'"):
        bench.load_experiment("digitz")
    with pytest.raises(bench.InputError, match="no experiment is recorded"):
        bench.results(tmp_path / "nothing")
    with pytest.raises(bench.InputError, match="Did you mean 'digits'"):
        bench.results(RESULTS, "digit")
    with pytest.raises(bench.InputError, match="name one of them"):
        bench.plot.forest(RESULTS)
    with pytest.raises(bench.InputError, match="'doref'"):
        bench.network("resnet20", "doref", "1/1")
    with pytest.raises(bench.InputError, match="bits"):
        bench.network("resnet20", "bnn", "3/3")
    with pytest.raises(bench.InputError, match="no run of an arm"):
        bench.plot.learning_rate(RESULTS, "digits", arms=["EXP"])


WRONG = [
    ("only", "DoReFa-Net"),  # a text is no list of letters
    ("overrides", "epochs=3"),
    ("overrides", 3),
    ("seeds", True),
    ("seeds", "1"),
    ("profile", []),
    ("device", 1),
    ("jobs", 0),
    ("jobs", 1.5),
    ("workers_per_trial", 0),
    ("gpus_per_trial", "a"),
    ("gpus_per_trial", -1),
    ("cpus_per_trial", float("inf")),
    ("max_minutes", float("nan")),
    ("no_ray", "yes"),
    ("results", 3),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value}" for name, value in WRONG])
def test_a_wrong_argument_is_named_before_anything_is_written(tmp_path, name, value):
    given = {"results": tmp_path / "runs", "data": tmp_path, name: value}
    with pytest.raises(bench.InputError, match=f"{name}|{name.replace('_', '-')}"):
        bench.run("digits", **given)
    assert not list(tmp_path.iterdir())


def test_a_network_needs_a_class():
    with pytest.raises(bench.InputError, match="num_classes: expected a whole number from 1, not 0"):
        bench.network("resnet20", num_classes=0)


@pytest.mark.parametrize("draw", ["convergence", "forest", "learning_rate"])
def test_figures(draw, tmp_path):
    import matplotlib as mpl

    before = mpl.rcParams["backend"], mpl.rcParams["font.size"]
    figure = getattr(bench.plot, draw)(RESULTS, "digits")
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert (mpl.rcParams["backend"], mpl.rcParams["font.size"]) == before


def test_nothing_recorded_is_no_figure(tmp_path):
    (tmp_path / "runs" / "two").mkdir(parents=True)
    (tmp_path / "runs" / "two" / "index.jsonl").write_text(
        '{"arm": "plain", "baseline": null, "grid": {"seed": 0}, "id": "0123456789abcdef"}\n'
    )
    for draw in (bench.plot.convergence, bench.plot.forest, bench.plot.learning_rate):
        assert draw(tmp_path / "runs") is None
    assert list(bench.results(tmp_path / "runs").trials["status"]) == ["missing"]


def test_network_and_quantizer():
    network = bench.network("svhn_convnet", "dorefa", "1/2", num_classes=7, width=0.125, seed=3).eval()
    assert isinstance(network, torch.nn.Module) and network(torch.zeros(2, 3, 40, 40)).shape == (2, 7)
    same = bench.network("svhn_convnet", "dorefa", "1/2", num_classes=7, width=0.125, seed=3)
    other = bench.network("svhn_convnet", "dorefa", "1/2", num_classes=7, width=0.125, seed=4)
    weights = [next(n.parameters()) for n in (network, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    quantizer = bench.make_quantizer("dorefa", w_bits=1)
    assert len(quantizer.weight(torch.randn(4, 3, 3, 3)).unique()) == 2
