"""ONNX, QONNX and pt2 of every registered quantizer: the trained network's predictions on all test digits.

Each file is run by its own program; ``test_matrix.py`` lets fresh processes run them. The formats take turns;
with ``BENCH_EXPORT_CASES=all``, as in ``make soak``, every case is exported in each of them.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import datasets
from bench.export import foreign_formats as foreign
from bench.export.modules import Activation
from bench.export.plain import inference_layers, plain_network
from bench.export.pt2 import run_pt2, write_pt2
from bench.randomness import Clock
from bench.training import setup
from tests.configs import make_config
from tests.export.networks_for_export import QUANTIZERS, assert_near, trained, widths

pytestmark = pytest.mark.slow
CASES = list(dict.fromkeys((quantizer, widths(quantizer)[i]) for quantizer in QUANTIZERS for i in (0, -1)))
EVERY = 1 if os.environ.get("BENCH_EXPORT_CASES") == "all" else 3


def in_turn(first: int):
    """Let a test take every third case; a quantizer's fewest and most bits are in two different formats."""
    return pytest.mark.parametrize("case", CASES[first % EVERY :: EVERY], ids="-".join)


@pytest.fixture(scope="module")
def networks():
    """Return (network trained a few steps, its plain network) of each case."""
    made = {}
    for quantizer, width in CASES:
        network, _, _ = trained(quantizer=quantizer, bits=width, steps=4, train_size=None)
        made[quantizer, width] = network, plain_network(network)
    return made


@pytest.fixture(scope="module")
def images():
    config = make_config(train_size=None)
    data = setup.make_batches(config, datasets.load(config.dataset, Path()), Clock(0))
    return torch.cat([batch for batch, _ in data.test_batches(602)])


@in_turn(0)
def test_onnx(case, networks, images, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs progressive-bench[export]")
    pytest.importorskip("onnxscript", reason="needs progressive-bench[export]")
    network, plain = networks[case]
    foreign.write_onnx(tmp_path / "x.onnx", plain)
    assert_near(network, plain, images, foreign.run_onnx(tmp_path / "x.onnx")(images))
    stored = weights_of(tmp_path / "x.onnx")
    for name, layer in inference_layers(plain):
        if layer.levels is not None:
            np.testing.assert_array_equal(stored[f"{name}.weight"], layer.weight.numpy())


def weights_of(file: Path) -> dict[str, np.ndarray]:
    """Return the stored numbers of an ONNX file by name."""
    import onnx

    graph = onnx.load(file).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


@in_turn(1)
def test_qonnx_own_executor(case, networks, images, tmp_path):
    pytest.importorskip("qonnx", reason="needs progressive-bench[export]")
    network, plain = networks[case]
    without = foreign.write_qonnx(tmp_path / "x.onnx", plain)
    assert_near(network, plain, images, foreign.run_qonnx(tmp_path / "x.onnx")(images))
    evenly_spaced = {"dorefa", "bnn", "xnor", "bwn", "twn", "lsq", "pact"}
    assert not (without and case[0] in evenly_spaced)


@in_turn(2)
def test_pt2_bit_for_bit(case, networks, images, tmp_path):
    network, plain = networks[case]
    write_pt2(tmp_path / "x.pt2", plain)
    with torch.no_grad():
        assert torch.equal(network(images), run_pt2(tmp_path / "x.pt2")(images))


class Activations(nn.Module):
    """Every activation map of the suite, each of a constant image: (B, 3, 16, 16) -> (B, all channels)."""

    input_size = 16

    def __init__(self, plains) -> None:
        super().__init__()
        first = [next(m for m in plain.modules() if quantizing(m)) for plain in plains]
        self.each = nn.ModuleList(copy.deepcopy(first))
        self.columns = [
            activation.slope.numel() if activation.map.form == "rsign" else 1 for activation in first
        ]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        pairs = zip(self.each, self.columns, strict=True)
        return torch.cat([each(flat[:, :channels, None, None]).flatten(1) for each, channels in pairs], 1)


def quantizing(module: nn.Module) -> bool:
    """Return whether the module quantizes numbers one by one; "residual" takes means of a sample."""
    return isinstance(module, Activation) and module.map.quantizes and module.map.form != "residual"


def on_the_edges(activation: Activation) -> torch.Tensor:
    """Return thresholds of an activation map as float32 numbers; without the shifts of RSign."""
    map = activation.map
    if map.form == "table":
        return activation.thresholds
    if map.form in ("sign", "rsign"):
        return torch.zeros(1)
    step = activation.scale.double() if map.form == "steps" else 1.0 / (2.0**map.bits - 1)
    if map.form == "scaled_round":
        step = step * activation.scale.double()
    if map.form == "fixed":
        step = 2.0 ** (1 - map.bits)
    return ((torch.arange(-3.0, 2**map.bits + 2.0, dtype=torch.float64) + 0.5) * step).float()


def on_threshold(activation: Activation, numbers: torch.Tensor) -> torch.Tensor:
    """Return of which numbers (N, 3, 16, 16), as (N, 1), the activation's level depends on rounding."""
    at = on_the_edges(activation)
    x = numbers[:, 0, 0, :1]
    return ((x - at).abs() <= 4e-7 * at.abs()).any(1, keepdim=True)


@pytest.fixture(scope="module")
def edges(networks):
    """Return (all activation maps, images of one number each): thresholds, their neighbours, and a grid."""
    with_map = [plain for _, plain in networks.values() if any(quantizing(m) for m in plain.modules())]
    all_maps = Activations(with_map)
    at = torch.cat([on_the_edges(activation) for activation in all_maps.each])
    at = at[at.isfinite()].unique()
    inf = torch.tensor(torch.inf)
    at = torch.cat(
        [at, torch.nextafter(at, inf), torch.nextafter(at, -inf), torch.tensor([0.0, -0.0, 100.0])]
    )
    at = torch.cat([at, torch.linspace(-2.0, 2.0, 401)])
    return all_maps, at[:, None, None, None].repeat(1, 3, 16, 16)


def test_onnx_is_exact_on_thresholds_and_at_zero(edges, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs progressive-bench[export]")
    pytest.importorskip("onnxscript", reason="needs progressive-bench[export]")
    all_maps, numbers = edges
    assert len(all_maps.each) > 20 and len(numbers) > 1000
    foreign.write_onnx(tmp_path / "x.onnx", all_maps)
    with torch.no_grad():
        assert torch.equal(foreign.run_onnx(tmp_path / "x.onnx")(numbers), all_maps(numbers))


def test_qonnx_is_exact_at_zero_and_near_where_no_number_is_on_a_threshold(edges, tmp_path):
    pytest.importorskip("qonnx", reason="needs progressive-bench[export]")
    all_maps, numbers = edges
    foreign.write_qonnx(tmp_path / "x.onnx", all_maps)
    found = foreign.run_qonnx(tmp_path / "x.onnx")(numbers)
    with torch.no_grad():
        wanted = all_maps(numbers)
    off = (found - wanted).abs() > 1e-6 * wanted.abs().clamp(min=1.0)
    zeros, columns = numbers[:, 0, 0, 0] == 0.0, all_maps.columns
    assert not bool(off[zeros].any())
    for activation, part in zip(all_maps.each, off.split(columns, 1), strict=True):
        name = activation.map.form
        assert name not in ("sign", "table", "fixed") or not bool(part.any()), name
        assert not bool((part & ~on_threshold(activation, numbers)).any()), name
