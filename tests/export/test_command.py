"""``bench export`` and ``bench.load``: files of a finished trial, run by other programs, checked again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench.cli.main import main
from bench.export.files import pack, read_file, unpack, write_file
from bench.export.plain import plain_network
from bench.export.pt2 import write_pt2
from bench.export.rounding import TOLERANCE
from bench.networks import build
from bench.randomness import Clock
from bench.records.store import Store
from bench.training import deploy
from bench.training.deploy import Checked, prepare
from bench.training.evaluate import evaluate
from bench.training.job import Job
from bench.training.trial import run_trial
from tests.configs import make_config
from tests.export.networks_for_export import STRATEGIES, trained

ID = "0123456789abcdef"
DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return a store with one finished trial: EXP-Net of a 1/2-bit network, two epochs on the digits."""
    folder = tmp_path_factory.mktemp("export")
    config = make_config(strategy=STRATEGIES["sum"], bits="1/2", epochs=2, train_size=None)
    assert run_trial(Job(config, ID, {}, Store(folder), folder)) == "done"
    return folder


def export(results: Path, *words: object) -> int:
    return main(["export", ID[:6], "--results", str(results), *map(str, words)])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "packed", "pt2"])
def test_equal_logits_and_the_recorded_accuracy(results, tmp_path, format, capsys):
    file = tmp_path / f"network.{format}.safetensors"
    assert export(results, "--format", format, "--out", file) == 0
    assert "all logits equal the trained network's, bit for bit" in capsys.readouterr().out
    line = Store(results).exports(ID)[-1]
    assert line["equal_logits"] and line["passed"] and line["accuracy"] == line["recorded"]
    assert line["file_bytes"] == file.stat().st_size and line["seen"] == 602 and line["format"] == format
    if format != "pt2":
        trial, stored = bench.load(ID, results), bench.load(file)
        images = next(prepare(Store(results), ID, tmp_path).images())[0]
        assert torch.equal(trial(images), stored(images))


def test_an_existing_file_stays_without_force(results, tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"mine")
    assert export(results, "--out", file) == 2 and file.read_bytes() == b"mine"
    assert "--force" in capsys.readouterr().err
    assert export(results, "--out", file, "--force", "--latent") == 0 and len(file.read_bytes()) > 100_000


@pytest.mark.parametrize("format", ["packed", "pt2"])
def test_a_file_is_checked_once_more_and_not_written(results, tmp_path, capsys, format):
    file = tmp_path / "x"
    words = ("--format", format, "--out", file)
    assert export(results, *words, "--check") == 2
    assert f"{file}: cannot be read: No such file" in capsys.readouterr().err
    assert export(results, *words) == 0
    whole, line = file.read_bytes(), Store(results).exports(ID)[-1]
    capsys.readouterr()
    assert export(results, *words, "--check") == 0 and file.read_bytes() == whole
    assert "all logits equal the trained network's, bit for bit" in capsys.readouterr().out
    again = Store(results).exports(ID)[-1]
    kept = {"sha256", "file_bytes", "tensor_bytes", "accuracy", "correct", "passed"} & line.keys()
    assert all(again[key] == line[key] for key in kept) and len(kept) == (6 if format == "packed" else 5)
    if format == "packed":
        assert export(results, "--format", "safetensors", "--out", file, "--check") == 2
        assert "is a file of the format packed, not safetensors" in capsys.readouterr().err
    file.write_bytes(whole[:-1])
    assert export(results, *words, "--check") == 2 and "truncated" in capsys.readouterr().err
    assert export(results, *words, "--check", "--force") == 2
    assert "--check writes no file: leave out --force and --latent" in capsys.readouterr().err


def test_a_file_of_another_network_is_one_message(results, tmp_path, capsys):
    other, _, config = trained(network="resnet20", width=0.0625, bits="1/2")  # of 32 pixels, not 40
    write_pt2(tmp_path / "x.pt2", plain_network(other))
    assert export(results, "--format", "pt2", "--out", tmp_path / "x.pt2", "--check") == 2
    assert "x.pt2: it cannot answer the trial's images, so it is another network" in capsys.readouterr().err
    seven = plain_network(build(config, num_classes=7, clock=Clock(0)))
    write_file(tmp_path / "x.safetensors", seven, config, 7, packed=True)
    assert export(results, "--format", "packed", "--out", tmp_path / "x.safetensors", "--check") == 2
    assert "it has 7 logits and the trial 10: it is another network" in capsys.readouterr().err


@pytest.mark.parametrize("quantizer", ["dorefa", "irnet"])  # IR-Net's statistics have five axes
def test_re_estimated_batch_norm_is_the_evaluation_s_with_joint_statistics_too(quantizer, tmp_path):
    store = Store(tmp_path)
    config = make_config(strategy=STRATEGIES["joint"], quantizer=quantizer, eval_bn=2, train_size=400)
    run_trial(Job(config, ID, {}, store, tmp_path))
    found = prepare(store, ID, tmp_path)
    assert evaluate(found.network, found.images(), 10).percent == found.recorded


def test_a_tuning_trial_is_checked_on_its_held_out_images(tmp_path, capsys):
    config = make_config(epochs=1, train_size=64, holdout=100, evaluate_test=False)
    run_trial(Job(config, ID, {}, Store(tmp_path), tmp_path))
    assert export(tmp_path, "--out", tmp_path / "network.safetensors") == 0
    assert "of 100 held-out images right" in capsys.readouterr().out
    line = Store(tmp_path).exports(ID)[-1]
    assert (
        line["held_out"]
        and line["accuracy"] == line["recorded"] == Store(tmp_path).summary(ID)["final_val_acc"]
    )


def test_other_images_than_those_of_the_trial_are_refused(tmp_path, capsys):
    images, labels = np.arange(20 * 192, dtype=np.uint8).reshape(20, 8, 8, 3), np.arange(20) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "mine.npz", **arrays)
    store = Store(tmp_path)
    config = make_config(dataset={"kind": "npz", "name": "mine.npz"}, width=0.0625, epochs=1, train_size=16)
    run_trial(Job(config, ID, {}, store, tmp_path))
    prepare(store, ID, tmp_path)
    np.savez(tmp_path / "mine.npz", **{**arrays, "x_test": 255 - images})
    assert export(tmp_path, "--data", tmp_path) == 2
    assert "is not the one this was started with" in capsys.readouterr().err


def test_a_trial_without_an_end_is_refused(tmp_path, capsys):
    store = Store(tmp_path)
    store.write_trial(ID, {"config": make_config().dump()})
    assert export(tmp_path) == 2
    assert "only finished ones can be exported" in capsys.readouterr().err


def test_the_record_of_another_trial_is_refused(tmp_path, capsys):
    store = Store(tmp_path)
    other = ID[::-1]
    store.write_trial(other, {"config": make_config(epochs=1).dump()})
    store.write_epochs(other, [{"epoch": 1}])
    store.write_summary(other, {"status": "done", "final_test_acc": 50.0})
    store.folder(other).rename(store.folder(ID))
    assert export(tmp_path) == 2
    assert f"is the record of trial '{other}'" in capsys.readouterr().err


def test_the_page_s_ten_lines_run_without_this_package(results, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs progressive-bench[export]")
    pytest.importorskip("onnxscript", reason="needs progressive-bench[export]")
    file, images = tmp_path / "digits.onnx", tmp_path / "digits.npz"
    assert export(results, "--format", "onnx", "--out", file, "--images", images) == 0
    script = python_blocks("export.md")[0]
    assert len(script.splitlines()) <= 10
    script += (
        "import sys\nassert not {'bench', 'torch'} & sys.modules.keys()\nnp.save('logits.npy', logits)\n"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    line = Store(results).exports(ID)[-1]
    assert found.stdout.strip() == f"{line['accuracy']:.2f} %" and line["wrong"] == 0
    ours, theirs = np.load(images)["logits"], np.load(tmp_path / "logits.npy")
    near = np.abs(ours - theirs).max(1) <= TOLERANCE * ours.std()
    assert (~near).sum() == line["moved"] and (ours.argmax(1) == theirs.argmax(1))[near].all()


@pytest.mark.parametrize(
    ("found", "words", "status", "said"),
    [
        ({"moved": 3, "other_predictions": 0}, [], 0, "except those of 3 images"),
        ({"moved": 3, "other_predictions": 1}, [], 1, "--accept-ties lets such predictions pass"),
        ({"moved": 3, "other_predictions": 1}, ["--accept-ties"], 0, "the trained network but for rounding"),
        ({"wrong": 1, "other_predictions": 1}, ["--accept-ties"], 1, "1 image is off without a cause"),
        ({"wrong": 2, "other_predictions": 0}, [], 1, "2 images are off without a cause"),
    ],
)
def test_a_prediction_that_differs_fails_unless_ties_are_accepted(
    results, tmp_path, monkeypatch, capsys, found, words, status, said
):
    equal = dict.fromkeys(["moved", "wrong", "other_predictions"], 0)
    checked = Checked(
        correct=9,
        seen=10,
        held_out=False,
        accuracy=90.0,
        recorded=90.0,
        equal_logits=False,
        difference=1e-6,
        spread=1.0,
        allowed=1e-4,
        latency_ms=1.0,
        latency_spread_ms=0.1,
        processor="P",
        **{**equal, **found},
    )
    monkeypatch.setattr(deploy, "write", lambda *_, **__: {"format": "onnx", "file": "x", "file_bytes": 1})
    monkeypatch.setattr(deploy, "check", lambda *_: checked)
    assert export(results, "--format", "onnx", "--out", tmp_path / "x.onnx", *words) == status
    assert said in capsys.readouterr().out
    assert Store(results).exports(ID)[-1]["passed"] == (status == 0 and not words)


def test_on_integers(results, tmp_path, capsys):
    words = ("--format", "packed", "--out", tmp_path / "x.safetensors", "--integers")
    assert export(results, *words) == 0
    plain, integers = Store(results).exports(ID)[-2:]
    assert (plain["format"], integers["format"]) == ("packed", "packed (integers)")
    assert integers["passed"] and integers["other_predictions"] == 0 and integers["wrong"] == 0
    assert (integers["correct"], integers["seen"]) == (plain["correct"], plain["seen"])
    assert (integers["layers"], integers["integer_layers"]) == (8, 6)
    assert integers["sha256"] == plain["sha256"]
    assert integers["in_float32"] == dict.fromkeys(("conv0", "linear"), "its weights are full precision")
    out = capsys.readouterr().out
    assert "on integers (" in out and "in float32: conv0, linear: its weights are full precision" in out


def test_on_integers_without_a_compiler_or_with_another_format(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert export(results, "--out", tmp_path / "x.safetensors", "--integers") == 2
    assert "$CC: there is no program 'no-such-compiler'" in capsys.readouterr().err
    assert export(results, "--format", "pt2", "--out", tmp_path / "x.pt2", "--integers") == 2
    assert (
        "--integers: a pt2 file does not run on integers; safetensors and packed do"
        in capsys.readouterr().err
    )


def test_ties_of_a_format_that_has_none_are_refused(results, tmp_path, capsys):
    assert export(results, "--format", "pt2", "--out", tmp_path / "x.pt2", "--accept-ties") == 2
    assert "a pt2 file is compared bit for bit" in capsys.readouterr().err


@pytest.mark.slow
def test_qonnx_own_executor(results, tmp_path):
    pytest.importorskip("qonnx", reason="needs progressive-bench[export]")
    file = tmp_path / "digits.qonnx.onnx"
    assert export(results, "--format", "qonnx", "--out", file) == 0
    import onnx

    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("BipolarQuant") == 6 and kinds.count("Quant") == 6


def test_plain_numpy_reads_the_packed_weights(results, tmp_path, monkeypatch):
    assert export(results, "--format", "packed", "--out", tmp_path / "network.packed.safetensors") == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(python_blocks("packed-format.md")[0], found)
    layer = read_file(tmp_path / "network.packed.safetensors").get_submodule(str(found["name"]))
    np.testing.assert_array_equal(found["weight"], layer.weight.numpy())


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing(bits):
    codes = torch.randint(0, 2**bits, (37,), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    data = pack(codes, bits)
    whole = sum(int(code) << (i * bits) for i, code in enumerate(codes))  # the definition, as one integer
    assert data.numpy().tobytes() == whole.to_bytes(-(-37 * bits // 8), "little")
    assert torch.equal(unpack(data, bits, 37), codes)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["digits", "svhn"])
def test_a_fresh_process_reads_the_packed_file(dataset, tmp_path, request):
    data = request.getfixturevalue("real_data") if dataset != "digits" else tmp_path
    chosen = dataset if dataset == "digits" else {"kind": "npz", "name": "svhn_subset.npz"}
    config = make_config(dataset=chosen, strategy=STRATEGIES["concat"], quantizer="syq", bits="2/2")
    assert run_trial(Job(config, ID, {}, Store(tmp_path), data)) == "done"
    words = ("--format", "packed", "--data", data, "--images", tmp_path / "test.npz")
    assert export(tmp_path, *words, "--out", tmp_path / "x.safetensors") == 0
    script = (
        "import bench, numpy, torch\n"
        "torch.set_num_threads(1)\n"
        "test = numpy.load('test.npz')\n"
        "images = torch.from_numpy(test['images']).contiguous(memory_format=torch.channels_last)\n"
        "network = bench.load('x.safetensors')\n"
        "with torch.no_grad():\n"
        "    logits = torch.cat([network(part) for part in images.split(256)])\n"
        "assert torch.equal(logits, torch.from_numpy(test['logits']))\n"
    )
    root = {"PYTHONPATH": str(DOCS.parent), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
