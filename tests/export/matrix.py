"""Every network x quantizer x merge x precision: trained, exported in all formats, read by fresh processes.

``python -m tests.export.matrix [--cells N] [--only TEXT] [--results FILE.jsonl]``

The cells come in an order in which any beginning covers networks, quantizers, merges and precisions evenly.
FILE gets a line a cell, and cells that have one are not run again, so that a run goes on after an
interruption. Prints a line a cell that failed, and the counts; ends with 1 where a cell failed.

A cell fails unless safetensors, packed and pt2 give the trained network's logits on 32 real images bit for
bit, in a process that was started for it; ONNX and QONNX give them but for rounding, run by onnxruntime and
by qonnx without this package; and the plain network has the parameters of the never-expanded one. A cell is
refused where the network or the quantizer cannot be trained so, with the message.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from bench.errors import InputError
from bench.export import foreign_formats as foreign
from bench.export.files import write_file
from bench.export.modules import Activation, InferenceConv2d, InferenceLinear
from bench.export.plain import inference_layers, plain_network
from bench.export.pt2 import write_pt2
from bench.machine.foreign import Grant, granted
from bench.networks import Network, build
from bench.randomness import Clock
from tests.export.networks_for_export import (
    NETWORKS,
    OWN,
    OWN_MODULE,
    QUANTIZERS,
    STRATEGIES,
    assert_near,
    images_of,
    trained,
    widths,
)

ROOT = Path(__file__).resolve().parents[2]
_AT_ONCE = 12  # cells that the same two fresh processes read
_WITH_PYTORCH = """
import json, sys, bench, numpy, torch
torch.set_num_threads(1)

def load(folder, name):
    if name.endswith(".safetensors"):
        return bench.load(f"{folder}/{name}", allow_code=[sys.argv[1]])
    return bench.load(f"{folder}/x.pt2") if name == "x.pt2" else torch.export.load(f"{folder}/x.pt2").module()

for folder in sys.argv[2:]:
    images = torch.from_numpy(numpy.load(f"{folder}/images.npy"))
    images = images.contiguous(memory_format=torch.channels_last)
    logits = torch.from_numpy(numpy.load(f"{folder}/logits.npy"))
    for name in ("x.safetensors", "x.packed.safetensors", "x.pt2", "torch.export.load"):
        try:
            with torch.no_grad():
                assert torch.equal(load(folder, name)(images), logits), "other logits"
        except Exception as error:
            print(json.dumps([folder, f"{name}: {type(error).__name__}: {error}"]))
"""
_WITHOUT_BENCH = """
import json, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3

def with_onnxruntime(folder, images):
    session = onnxruntime.InferenceSession(f"{folder}/x.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]

def with_qonnx(folder, images):
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes
    model = ModelWrapper(f"{folder}/x.qonnx.onnx")
    model.set_tensor_shape("images", list(images.shape))
    return execute_onnx(model.transform(InferShapes()), {"images": images})["logits"]

for form, run in (("onnx", with_onnxruntime), ("qonnx", with_qonnx)):
    for folder in sys.argv[1:]:
        try:
            numpy.save(f"{folder}/{form}.npy", run(folder, numpy.load(f"{folder}/images.npy")))
        except Exception as error:
            print(json.dumps([folder, f"{form}: {type(error).__name__}: {error}"]))
    assert not ({"bench", "torch"} if form == "onnx" else {"bench"}) & sys.modules.keys()
"""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    network: str
    quantizer: str
    bits: str
    merge: str
    precision: str

    @property
    def name(self) -> str:
        """The cell as the name of a folder."""
        return "-".join(astuple(self)).replace("/", "_")


@dataclass(frozen=True)
class Written:
    """What was written: the trained network, what ships, and the images that both are compared on."""

    network: Network
    plain: fx.GraphModule
    images: Tensor


def all_cells() -> list[Cell]:
    """Return every network x quantizer x merge x precision once; bits take turns from cell to cell.

    Each round over the networks takes the next quantizer, merge and precision for each of them.
    """
    pairs = [(merge, precision) for precision in ("fp32", "bf16") for merge in STRATEGIES]
    found = []
    for turn in range(len(QUANTIZERS) * len(pairs)):
        shift, lap = turn % len(QUANTIZERS), turn // len(QUANTIZERS)
        for i, network in enumerate(NETWORKS):
            quantizer = QUANTIZERS[(7 * i + shift) % len(QUANTIZERS)]
            bits = widths(quantizer)
            merge, precision = pairs[(5 * i + 7 * shift + lap) % len(pairs)]
            found.append(Cell(network, quantizer, bits[(i + turn) % len(bits)], merge, precision))
    return found


def write(cell: Cell, folder: Path) -> Written | str:
    """Train the network of a cell and write its files to ``folder``, with images and logits.

    Returns the message where the network or the quantizer cannot be trained so.
    """
    fields = {"quantizer": cell.quantizer, "bits": cell.bits, "precision": cell.precision}
    try:
        network, images, config = trained(cell.merge, dataset=images_of(), **fields, **NETWORKS[cell.network])
    except InputError as error:
        return str(error)
    folder.mkdir()
    plain = plain_network(network)
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(plain(images), logits), "the plain network has other logits"
    assert bool(logits.isfinite().all()) and bool(logits.std() > 0), "the logits say nothing"
    _check_nothing_of_training(plain)
    with torch.random.fork_rng(devices=[]):
        never_expanded = build(config, num_classes=logits.shape[1], clock=Clock(0))
    counts = {n: p.numel() for n, p in never_expanded.named_parameters() if ".quantizer." not in n}
    assert {n: p.numel() for n, p in plain.named_parameters()} == counts, "other parameters"
    np.save(folder / "logits.npy", logits.numpy())
    np.save(folder / "images.npy", images.contiguous().numpy())
    classes = logits.shape[1]
    write_file(folder / "x.safetensors", plain_network(network), config, classes, packed=False)
    write_file(folder / "x.packed.safetensors", plain_network(network), config, classes, packed=True)
    write_pt2(folder / "x.pt2", plain)
    foreign.write_onnx(folder / "x.onnx", plain)
    foreign.write_qonnx(folder / "x.qonnx.onnx", plain)
    for file in folder.glob("x.*"):
        assert str(ROOT).encode() not in file.read_bytes(), f"{file.name} names files of this machine"
    return Written(network, plain, images)


def _check_nothing_of_training(plain: fx.GraphModule) -> None:
    for module in plain.modules():
        if module is not plain and isinstance(module, InferenceConv2d | InferenceLinear | Activation):
            continue
        rooms = ("bench.layers", "bench.strategies", "bench.quantizers")
        assert not type(module).__module__.startswith(rooms), f"{type(module)} is of training"
    assert not any(p.requires_grad for p in plain.parameters()) and not plain.training
    for name, layer in inference_layers(plain):
        if (levels := layer.levels) is not None:
            assert torch.equal(levels.weight(), layer.weight), f"{name}: its levels are not its weights"


def check(cells: list[Cell], folder: Path) -> dict[Cell, tuple[str, str]]:
    """Write the files of the cells, let fresh processes read them; return a verdict and its reason each.

    Verdicts are "equal", "refused" and "failed". ``folder`` must be empty.
    """
    (folder / f"{OWN_MODULE}.py").write_text(OWN)
    written, found = {}, {}
    with granted(Grant((OWN_MODULE,), str(folder))):
        for cell in cells:
            try:
                made = write(cell, folder / cell.name)
            except Exception as error:  # a fault of the export, which is what is looked for
                found[cell] = ("failed", f"{type(error).__name__}: {error}")
                continue
            if isinstance(made, str):
                found[cell] = ("refused", made)
            else:
                written[cell] = made
    problems = collections.defaultdict(list)
    names = [cell.name for cell in written]
    said = _run(folder, "-c", _WITH_PYTORCH, OWN_MODULE, *names)
    said += _run(folder, "-I", "-c", _WITHOUT_BENCH, *names)
    for name, problem in map(json.loads, said.splitlines()):
        problems[name].append(problem)
    for cell, made in written.items():
        for file in (folder / cell.name).glob("*onnx.npy"):
            try:
                assert_near(made.network, made.plain, made.images, torch.from_numpy(np.load(file)))
            except AssertionError as error:
                problems[cell.name].append(f"{file.stem}: {error}")
        wrong = problems[cell.name]
        found[cell] = ("failed", "; ".join(wrong)) if wrong else ("equal", "")
    return found


def _run(folder: Path, *words: str) -> str:
    """Return what a fresh Python printed, run in ``folder`` on one thread.

    Raises ``AssertionError`` with its errors where it failed.
    """
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def _finished(file: Path) -> dict[str, dict[str, str]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {line["cell"]: line for line in map(json.loads, lines)}


def main() -> int:
    """Check the cells that have no line yet, and print the counts of all."""
    what = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.export.matrix", description=what)
    parser.add_argument("--cells", type=int, default=None, help="the first so many (all)")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--results", type=Path, default=Path("build/export_matrix.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [cell for cell in all_cells() if args.only in cell.name][: args.cells]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    finished = _finished(args.results)
    left = [cell for cell in chosen if cell.name not in finished]
    for start in range(0, len(left), _AT_ONCE):
        with tempfile.TemporaryDirectory(prefix="export") as folder:
            found = check(left[start : start + _AT_ONCE], Path(folder))
        with args.results.open("a") as file:
            for cell, (verdict, reason) in found.items():
                file.write(json.dumps({"cell": cell.name, "verdict": verdict, "reason": reason}) + "\n")
        for cell, (verdict, reason) in found.items():
            if verdict == "failed":
                print(f"{cell.name}: {reason}", flush=True)
    finished = _finished(args.results)
    counts = collections.Counter(finished[cell.name]["verdict"] for cell in chosen)
    print(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()), f"of {len(chosen)} cells"
    )
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
