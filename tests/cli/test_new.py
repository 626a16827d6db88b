"""Shipped experiments by name, and ``bench new``."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from bench import registry
from bench.cli.main import main
from bench.cli.new import file_text
from bench.errors import InputError
from bench.experiments import shipped
from bench.experiments.expand import load_experiment
from bench.experiments.shipped import locate, shipped_experiments
from bench.reporting import published_tables


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))


def test_a_shipped_experiment_is_found_by_name_from_anywhere():
    assert load_experiment("digits").name == "digits"
    assert locate("svhn_figure") == shipped_experiments()["svhn_figure"]


def test_a_file_comes_before_a_shipped_name_and_a_folder_does_not(tmp_path):
    (tmp_path / "digits").mkdir()
    assert locate("digits") == shipped_experiments()["digits"]
    (tmp_path / "digits").rmdir()
    (tmp_path / "digits").write_text("title = ''")
    assert locate("digits") == Path("digits")
    assert locate("digits.toml") == Path(
        "digits.toml"
    )  # a path: whoever reads the file says that it is not there


def test_a_wrong_name_gets_the_nearest_one(capsys):
    for command in ("show", "run", "status", "report"):
        assert main([command, "digitz"]) == 2
        message = capsys.readouterr().err
        assert (
            "digitz" in message
            and "Did you mean 'digits'?" in message
            and "bench list experiments" in message
        )


def test_list_experiments(capsys):
    assert main(["list", "experiments"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in shipped_experiments()) and "quick" in listed


def test_new_writes_a_file_that_expands(tmp_path, capsys):
    assert main(["new", "my.toml"]) == 0
    said = capsys.readouterr().out
    assert "9 trials" in said and "bench run my.toml --profile quick" in said
    experiment = load_experiment(tmp_path / "my.toml", profile="quick")
    assert [arm.name for arm in experiment.arms] == ["Full precision", "Plain", "EXP-Net"]
    assert len(experiment.trials) == 3


@pytest.mark.parametrize(
    "quantizer", [name for name in registry.entries("quantizers") if name != "full_precision"]
)
def test_new_knows_every_quantizer(quantizer, tmp_path):
    assert main(["new", "my.toml", "--quantizer", quantizer]) == 0


@pytest.mark.parametrize(
    "dataset", ["digits", "cifar10", "svhn", "imagenet", "npz:mine", "imagefolder:flowers"]
)
def test_new_knows_every_kind_of_data(dataset, tmp_path):
    assert main(["new", "my.toml", "--dataset", dataset]) == 0
    assert tomllib.loads((tmp_path / "my.toml").read_text())["defaults"]["dataset"] == dataset


def test_new_says_what_is_wrong_and_leaves_nothing_behind(tmp_path, capsys):
    for words, said in [
        (["my.toml", "--dataset", "cifar"], "Did you mean 'cifar10'?"),
        (["my.toml", "--network", "resnet2"], "Did you mean 'resnet"),
        (["my.toml", "--quantizer", "doref"], "Did you mean 'dorefa'?"),
        (["my.toml", "--quantizer", "bnn", "--bits", "2/2"], "bnn"),
        (["my.txt"], ".toml"),
        (["trials.toml"], "reserved"),
        (["nowhere/my.toml"], "nowhere"),
    ]:
        assert main(["new", *words]) == 2
        assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_new_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("mine")
    assert main(["new", "my.toml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "my.toml").read_text() == "mine"


def test_new_leaves_nothing_on_a_full_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_text", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    assert main(["new", "my.toml"]) == 2
    assert "my.toml: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "my.toml").exists()


def test_new_asks_on_a_terminal(tmp_path, monkeypatch, capsys):
    answers = iter(["npz:mine", "", "bnn"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    assert main(["new", "my.toml"]) == 0
    written = tomllib.loads((tmp_path / "my.toml").read_text())
    assert written["defaults"]["dataset"] == "npz:mine"
    assert written["defaults"]["network"] == {"kind": "resnet18", "input_size": 224}
    assert written["arms"][1]["quantizer"] == "bnn"


def test_small_images_of_ones_own_get_the_small_network(tmp_path):
    images, labels = np.zeros((128, 8, 8), np.uint8), np.arange(128) % 2
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert main(["new", "my.toml", "--dataset", "npz:mine"]) == 0
    assert tomllib.loads((tmp_path / "my.toml").read_text())["defaults"]["network"] == "svhn_convnet"


def test_what_lies_at_the_top_of_the_repository_is_looked_for_where_the_wheel_has_it():
    root = Path(shipped.__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for top, inside in wheel["sources"].items():
        assert (root / top).is_dir() and not (root / inside).exists() and top in wheel["only-include"]
    assert root / wheel["sources"]["experiments"] == shipped._INSTALLED
    published = Path(published_tables.__file__).parent / "published"
    assert root / wheel["sources"]["paper_tables/published"] == published


def test_a_starting_file_keeps_to_a_line_of_a_terminal():
    text = file_text(Path("my.toml"), "digits", "svhn_convnet", "dorefa")
    assert max(map(len, text.splitlines())) <= 130


def test_an_unknown_name_is_an_input_error():
    with pytest.raises(InputError, match="--network"):
        file_text(Path("my.toml"), "digits", "lenet", "dorefa")
