"""Networks on integers: every registered quantizer, layers that stay in float32 by name, fresh processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import datasets
from bench.experiments import permission
from bench.export.files import read_file, write_file
from bench.export.modules import Thresholds
from bench.export.plain import inference_layers, plain_network
from bench.integer.convert import integer_network, layer_runs, layers_text
from bench.machine.foreign import Grant, granted
from bench.networks import build
from bench.randomness import Clock
from bench.training import setup
from tests.configs import make_config
from tests.export.networks_for_export import QUANTIZERS, assert_near, trained, widths
from tests.integer.test_kernel import HERE

ROOT = Path(__file__).resolve().parents[2]
LAST = torch.channels_last
BOUND = 5.0 * 2.0**-24  # of the sum of the magnitudes of the products: as bench.integer.layers states it


def network(quantizer: str, bits: str, **changes):
    """Return a network and random images: random scales, batch norms of either sign, their own statistics."""
    config = make_config(quantizer=quantizer, bits=bits, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build(config, num_classes=10, clock=Clock(0)).to(memory_format=LAST)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (layer for _, layer in made.low_precision_layers()):
            layer.quantizer.start_(layer.weight)
            for parameter in layer.quantizer.parameters():
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5).clamp_(max=1.0)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
                module.momentum = None  # running statistics are means
    size = made.input_size
    images = torch.rand(8, 3, size, size, generator=generator).contiguous(memory_format=LAST)
    with torch.no_grad():
        made.train()(images)
    return made.eval(), images


def plain_of(quantizer: str, bits: str, **changes):
    made, images = network(quantizer, bits, **changes)
    return plain_network(made), images


def node_of(graph, target: str):
    return next(node for node in graph.nodes if node.op == "call_module" and node.target == target)


def sums_in_float64(plain, name: str, y: Tensor, fused: bool) -> tuple[Tensor, Tensor]:
    """Return the layer's sums of float32 levels in float64, and the sums of the magnitudes.

    ``fused``: ``y`` is what batch norm reads, else what the layer reads.
    """
    layer = plain.get_submodule(name)
    if fused:
        y = plain.get_submodule(node_of(plain.graph, name).args[0].target)(y)
    x, w = layer.activation(y).double(), layer.weight.double()
    if isinstance(layer, torch.nn.Linear):
        pair = [F.linear(a.flatten(1), b) for a, b in ((x, w), (x.abs(), w.abs()))]
        return pair[0], pair[1]
    place = (None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.conv2d(x, w, *place), F.conv2d(x.abs(), w.abs(), *place)


@torch.no_grad()
def check_every_layer(plain, made, images: Tensor) -> int:
    """Assert that layers on integers are in their bounds, exact ones equal; return their number."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for run in layer_runs(made):
        if run.arithmetic == "integers":
            module = made.get_submodule(run.name)

            def keep(product, inputs, output, run=run, module=module):
                seen[run.name] = module.last_input, output

            module.register_forward_pre_hook(lambda m, inputs: setattr(m, "last_input", inputs[0]))
            handles.append(module.product.register_forward_hook(keep))
    made(images)
    for run in layer_runs(made):
        if run.arithmetic == "float32":
            assert run.reason
            continue
        y, found = seen[run.name]
        target = node_of(made.graph, run.name).args[0].target
        fused = target != node_of(plain.graph, run.name).args[0].target
        wanted, magnitude = sums_in_float64(plain, run.name, y, fused)
        found = found.permute(0, 3, 1, 2) if wanted.dim() == 4 else found.flatten(1)
        assert found.shape == wanted.shape
        assert bool(((found - wanted).abs() <= BOUND * magnitude).all()), run.name
        if run.exact:
            assert torch.equal(found.double(), wanted), run.name
    return len(seen)


# At 1 and 2 bits every other quantizer's layers all run on integers.
STAYS = {"clipq", "full_precision", "lqnets", "syq_four_levels", "tang", "weq"}  # in float32 at some of them
FULL = "its weights are full precision"
NOT_QUANTIZED = "its input is not quantized to levels that are the same for every image"
IN_FLOAT32 = {
    ("tang", "1/2"): NOT_QUANTIZED,
    ("lqnets", "1/2"): "the levels of its input are not multiples of one step",
    ("weq", "1/2"): "the levels of its input are not multiples of one step",
    ("clipq", "2/2"): "it would multiply 6 pairs of bit planes; up to 4 are worth it",
    ("syq_four_levels", "2/2"): "it would multiply 8 pairs of bit planes; up to 4 are worth it",
    ("dorefa_bitorch", "8/8"): "its input has 256 levels; up to 16 run on integers",
    ("dorefa", "32/32"): FULL,
    ("ttq", "2/32"): NOT_QUANTIZED,
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_at_its_fewest_bits(quantizer):
    check_quantizer(quantizer, widths(quantizer)[0])


@pytest.mark.slow
@pytest.mark.parametrize(("quantizer", "bits"), [(q, bits) for q in QUANTIZERS for bits in widths(q)[1:]])
def test_every_quantizer_at_other_bits(quantizer, bits):
    check_quantizer(quantizer, bits)


def check_quantizer(quantizer: str, bits: str) -> None:
    plain, images = plain_of(quantizer, bits)
    made = integer_network(plain)
    runs = layer_runs(made)
    layers = [
        (name, m) for name, m in plain.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert [run.name for run in runs] == [name for name, _ in layers]
    on_integers = check_every_layer(plain, made, images)
    assert all(node.users or node.op == "output" for node in made.graph.nodes), (
        "something is computed in vain"
    )
    if quantizer not in STAYS and bits in ("1/1", "1/2", "2/1", "2/2"):
        assert on_integers == len(inference_layers(plain)), layers_text(made)
    if (quantizer, bits) in IN_FLOAT32:
        assert {run.reason for run in runs} == {IN_FLOAT32[quantizer, bits], FULL}
    if "32" in bits:
        assert on_integers == 0
    with torch.no_grad():
        wanted = plain(images)
        assert bool((wanted.std(0) > 0).all())
        if all(run.exact or run.arithmetic == "float32" for run in runs):
            assert torch.equal(made(images), wanted)
        else:
            assert_near(plain, plain, images, made(images))


@pytest.mark.parametrize("case", IN_FLOAT32, ids="-".join)
def test_what_stays_in_float32_is_named(case):
    plain, images = plain_of(*case)
    made = integer_network(plain)
    found = {(run.arithmetic, run.reason) for run in layer_runs(made)}
    assert found == {("float32", IN_FLOAT32[case]), ("float32", FULL)}
    assert IN_FLOAT32[case] in layers_text(made)
    with torch.no_grad():
        assert torch.equal(made(images), plain(images))  # nothing of it was changed


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(
    ("quantizer", "bits", "changes"),
    [
        ("xnor", "1/1", {"network": {"kind": "resnet20", "block": "post", "shortcut": "B"}}),
        ("dorefa", "2/2", {"network": "resnet20"}),
        ("bnn", "1/1", {"network": "bnn_convnet"}),
        ("syq", "2/2", {"network": {"kind": "svhn_convnet", "activation": "abs"}}),
        (
            "dorefa",
            "1/2",
            {"network": {"kind": "torchvision", "name": "resnet18", "input_size": 32}, "width": 1.0},
        ),
    ],
)
def test_other_networks(quantizer, bits, changes, name):
    plain, images = plain_of(quantizer, bits, **changes)
    before = copy.deepcopy(plain.state_dict())
    made = integer_network(plain, name)
    quantized = [run for run in layer_runs(made) if run.reason != FULL]
    assert check_every_layer(plain, made, images) == len(quantized) > 3
    assert {run.instructions for run in quantized} == {name}
    with torch.no_grad():
        wanted = plain(images)
        if quantizer == "bnn":  # float32 adds up +1 and -1 exactly
            assert all(run.exact for run in quantized) and torch.equal(made(images), wanted)
        assert_near(plain, plain, images, made(images))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("depthwise", ["full", "low"])
def test_depthwise_layers_stay_in_float32_and_pointwise_ones_do_not(depthwise):
    changes = {"network": {"kind": "mobilenet_v2", "input_size": 32, "depthwise": depthwise}, "width": 0.25}
    plain, images = plain_of("dorefa", "1/2", **changes)
    made = integer_network(plain)
    grouped = {name for name, layer in plain.named_modules() if getattr(layer, "groups", 1) > 1}
    found = {run.name: run.reason for run in layer_runs(made) if run.arithmetic == "float32"}
    assert {found.pop("classifier.1"), found.pop("features.0.0")} == {FULL}
    assert len(grouped) > 10 and grouped <= set(found)
    few = "its groups have 1 input channels, too few for a word"
    assert set(found.values()) == {FULL if depthwise == "full" else few}
    assert check_every_layer(plain, made, images) > 10


def test_groups_bias_and_dilation_of_a_user_s_network(tmp_path, monkeypatch):
    (tmp_path / "grouped.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n    return nn.Sequential(\n"
        "        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),\n"
        "        nn.Conv2d(32, 24, 3, 1, (1, 2), (1, 2), groups=2), nn.BatchNorm2d(24), nn.ReLU(),\n"
        "        nn.Conv2d(24, 16, (1, 3)), nn.BatchNorm2d(16), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 20), nn.ReLU(),\n"
        "        nn.Linear(20, num_classes),\n    )\n"
    )
    with granted(Grant(("grouped",), str(tmp_path))):
        kind = permission.sealed({"kind": "python:grouped.net", "input_size": 16})
        plain, images = plain_of("dorefa", "1/2", network=kind, width=1.0)
    made = integer_network(plain)
    arithmetic = [run.arithmetic for run in layer_runs(made)]
    # the first and the last layer are full precision
    assert arithmetic == ["float32"] + ["integers"] * 3 + ["float32"], layers_text(made)
    assert check_every_layer(plain, made, images) == 3
    with torch.no_grad():
        assert_near(plain, plain, images, made(images))


def no_batch_norm(tmp_path, quantizer: str, bits: str, shift: str):
    """Return a chain of three layers, with ``shift`` behind the second one, and images."""
    module = f"bare_{tmp_path.name}"  # a process imports a name once
    (tmp_path / f"{module}.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n    return nn.Sequential(\n"
        "        nn.Conv2d(3, 16, 3), nn.Hardtanh(),\n"
        f"        nn.Conv2d(16, 24, 3, bias={shift == 'bias'}),\n"
        f"        {shift if '(' in shift else ''} nn.Hardtanh(),\n"
        "        nn.Conv2d(24, 16, 3), nn.Hardtanh(),\n"
        "        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),\n    )\n"
    )
    with granted(Grant((module,), str(tmp_path))):
        kind = permission.sealed({"kind": f"python:{module}.net", "input_size": 16})
        return plain_of(quantizer, bits, network=kind, width=1.0)


@pytest.mark.parametrize(
    ("quantizer", "bits", "shift", "stays"),
    [
        ("xnor", "1/1", "", True),  # -a + a in float32: the sum of 144 numbers is rarely 0 where it should be
        ("dorefa_pytorch", "2/1", "nn.MaxPool2d(2),", True),
        ("bireal", "1/1", "nn.AvgPool2d(2),", True),
        ("bireal", "1/1", "nn.BatchNorm2d(24),", False),
        ("bireal", "1/1", "bias", False),
        ("bnn", "1/1", "", False),  # float32 adds up +1 and -1 exactly
        ("dorefa", "1/2", "", False),  # no threshold at 0
    ],
)
def test_sums_of_zero_whose_sign_is_read_stay_in_float32(quantizer, bits, shift, stays, tmp_path):
    plain, images = no_batch_norm(tmp_path, quantizer, bits, shift)
    made = integer_network(plain)
    first, second, third, last = layer_runs(made)
    wanted = f"{third.name} tells its sums from 0, and float32 rounds sums of 0 to either side"
    assert second.reason == (wanted if stays else None)
    assert third.arithmetic == "integers" and {first.reason, last.reason} == {FULL}
    with torch.no_grad():
        torch.testing.assert_close(made(images), plain(images), rtol=1e-5, atol=1e-5)


def test_a_packed_file_of_fewer_channels_than_levels_runs_on_integers(tmp_path):
    """Its thresholds hold a table of four levels beside values of two channels."""
    narrow = {"network": {"kind": "resnet20", "block": "post", "shortcut": "B"}, "width": 0.125}
    made, images = network("dorefa", "1/2", **narrow)
    config = make_config(quantizer="dorefa", bits="1/2", **narrow)
    write_file(tmp_path / "x.safetensors", plain_network(made), config, 10, packed=True)
    plain = read_file(tmp_path / "x.safetensors")
    assert any(isinstance(m, Thresholds) and len(m.directions) < 4 for m in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(integer_network(plain)(images), plain(images), rtol=1e-4, atol=1e-4)


def test_batch_norm_without_a_shift_leaves_zero_where_it_is(tmp_path):
    plain, _ = no_batch_norm(tmp_path, "xnor", "1/1", "nn.BatchNorm2d(24),")
    norm = next(m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert layer_runs(integer_network(plain))[1].arithmetic == "integers"
    norm.running_mean[3], norm.bias[3] = 0.0, 0.0
    assert "sums of 0" in str(layer_runs(integer_network(plain))[1].reason)
    norm.weight[3] = 0.0  # the channel is constant
    assert layer_runs(integer_network(plain))[1].arithmetic == "integers"


def test_copies_and_pickles_compute_the_same():
    plain, images = plain_of("ttq", "2/2")
    made = integer_network(plain)
    with torch.no_grad():
        wanted = made(images)
        assert torch.equal(copy.deepcopy(made)(images), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(made))(images), wanted)
        assert torch.equal(made(images.contiguous()), wanted) or torch.allclose(
            made(images.contiguous()), wanted
        )
        assert made(images[:0]).shape == (0, 10)


def test_other_dtypes_are_refused():
    plain, _ = plain_of("dorefa", "1/1")
    layer = integer_network(plain).get_submodule("conv1")
    with pytest.raises(TypeError, match=r"reads float32 on the CPU, not torch\.float64 on cpu"):
        layer(torch.zeros(1, layer.bits.channels, 9, 9, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("quantizer", "bits"), [("bnn", "1/1"), ("dorefa", "2/2"), ("xnor", "1/1")])
def test_predictions_of_all_test_digits_and_a_fresh_process(quantizer, bits, tmp_path):
    net, _, config = trained("sum", 30, quantizer=quantizer, bits=bits, train_size=None)
    data = setup.make_batches(config, datasets.load(config.dataset, Path()), Clock(0))
    images = torch.cat([batch for batch, _ in data.test_batches(602)])
    write_file(tmp_path / "x.safetensors", plain_network(net), config, 10, packed=True)
    made = integer_network(read_file(tmp_path / "x.safetensors"))
    with torch.no_grad():
        wanted, found = net(images), made(images)
    assert torch.equal(wanted.argmax(1), found.argmax(1))
    assert_near(net, plain_network(net), images, found)
    if quantizer == "bnn":
        assert torch.equal(wanted, found)
    np.savez(tmp_path / "x.npz", images=images.contiguous().numpy(), logits=found.numpy())
    code = (
        "import bench, numpy, torch\n"
        "torch.set_num_threads(1)\n"
        "known = numpy.load('x.npz')\n"
        "network = bench.load('x.safetensors', integers=True)\n"
        "images = torch.from_numpy(known['images']).contiguous(memory_format=torch.channels_last)\n"
        "with torch.no_grad():\n"
        "    assert numpy.array_equal(network(images).numpy(), known['logits'])\n"
    )
    for name in HERE[:1] if quantizer == "bnn" else HERE[-1:]:
        env = {
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "BENCH_INTEGER": name,
        }
        env["XDG_CACHE_HOME"] = str(tmp_path)
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
