"""Networks of anybody: how they are transformed, and that no code runs without the command line's leave."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.ops import SqueezeExcitation, StochasticDepth

from bench.cli.main import main
from bench.errors import InputError
from bench.experiments import permission
from bench.experiments.config import TrialConfig
from bench.experiments.identity import identity_document
from bench.launch.execute import Task, execute
from bench.layers.branch import Branch
from bench.layers.diagnostics import layer_diagnostics
from bench.layers.dropout import Dropout
from bench.layers.low_precision import LowPrecisionLayer, strip
from bench.machine.foreign import Grant, current, granted
from bench.networks import Builder, build, costs, describe_layers, initialize
from bench.networks.convert.layers import Bound, ConvertedConv2d
from bench.networks.convert.plan import Choices
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock
from bench.records.store import Store
from bench.reporting import cells
from bench.strategies import make_strategy
from tests.configs import make_config
from tests.networks.plain_networks import Chain, PlainResNet

MERGES = ["sum", "difference", "concat", "preactivation"]


def config(network="vgg_small", quantizer="dorefa", bits="1/2", **fields) -> TrialConfig:
    return make_config(**{"network": network, "quantizer": quantizer, "bits": bits, "width": 1.0, **fields})


def transformed(
    root, merge=None, *, size=16, classes=10, quantizer="dorefa", bits="1/2", choices=None, blend=None, **more
):
    """Return (network, clock), initialised."""
    clock = Clock(3)
    branch = Branch(merge, **more) if merge else None
    builder = Builder(config(quantizer=quantizer, bits=bits), clock, branch, blend)
    network = builder.finish(transform(root, builder, classes, input_size=size, choices=choices))
    initialize(network, 5, "he_normal")
    return network, clock


def decisions(network):
    return {row.name: (row.decision, row.reason) for row in network.decisions}


def images(network, count=4, seed=1):
    size = network.input_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def check_removal(network, clock):
    """Train at f > 0: every parameter has a gradient; then the branch goes: equal to the stripped network."""
    x = images(network)
    for module in network.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # so that nothing vanishes in evaluation
    clock.set(1, 0.5)
    network(x).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    if any(layer.branch is not None for layer in network.modules() if isinstance(layer, LowPrecisionLayer)):
        network.eval()
        with torch.no_grad():
            expanded = network(x)
            clock.set_factor(0.0)
            assert not torch.equal(network(x), expanded)
        clock.set_factor(0.5)
        ratios = [
            o["branch_ratio"]
            for name, o in layer_diagnostics(network, x).items()
            if "branch" in str(dict(network.named_modules())[name])
        ]
        assert ratios and None not in ratios
    clock.set_factor(0.0)
    stripped = strip(network)
    assert not {"branch", "weight_extra"} & {
        part for name in stripped.state_dict() for part in name.split(".")
    }
    with torch.no_grad():
        assert torch.equal(network.eval()(x), stripped.eval()(x))
    expanded, removed = costs(network), costs(stripped)
    assert expanded.macs == removed.macs and expanded.parameters == removed.parameters
    assert removed.parameters == sum(p.numel() for p in stripped.parameters())


# -- against the networks of this package, written as their papers' users would write them -------------------


CASES = (
    [("chain", merge) for merge in MERGES]
    + [("post", merge) for merge in MERGES]
    + [("pre", "concat"), ("pre", None)]
)


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("dorefa", "1/2"), ("dorefa_bitorch", "2/2"), ("xnor", "1/1"), ("syq", "2/2")]
)
@pytest.mark.parametrize(("kind", "merge"), CASES)
def test_a_plain_network_becomes_the_one_of_this_package(kind, merge, quantizer, bits):
    """Same parameters by name, same logits and gradients while the branch fades."""
    native = {"kind": "resnet20", "block": kind, "shortcut": "B"} if kind != "chain" else "vgg_small"
    fields = config(native, quantizer, bits, width=0.125 if kind != "chain" else 1 / 64)
    clock = Clock(3)
    branch = Branch(merge) if merge else None
    ours = build(fields, num_classes=10, clock=clock, branch=branch)
    initialize(ours, 5, "he_normal")
    root = Chain([2, 2, 4, 4, 8, 8]) if kind == "chain" else PlainResNet(kind == "pre")
    made, _ = transformed(root, merge, size=32, quantizer=quantizer, bits=bits)
    assert made.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in ours.state_dict().items())
    for layer in made.modules():
        if isinstance(layer, LowPrecisionLayer):
            layer.clock = clock
    x = images(ours, 6) * 2 - 0.5
    clock.set(1, 0.6)
    for network in (ours, made):
        network.train()
        network(x).square().mean().backward()
    torch.testing.assert_close(ours(x), made(x), rtol=1e-4, atol=1e-5)
    others = dict(made.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=2e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("quantizer", "bits"), [("pact", "2/2"), ("tang", "1/2"), ("reactnet", "1/1")])
@pytest.mark.parametrize("kind", ["chain", "pre"])
def test_learned_activations_act_once_in_each_layer_with_parameters_of_its_own(kind, quantizer, bits):
    """The layers of the package's network and of the converted one, with unlike learned values, are the same."""
    native = {"kind": "resnet20", "block": kind, "shortcut": "B"} if kind != "chain" else "vgg_small"
    fields = config(native, quantizer, bits, width=0.125 if kind != "chain" else 1 / 64)
    ours = build(fields, num_classes=10, clock=Clock(3), branch=None)
    initialize(ours, 5, "he_normal")
    root = Chain([2, 2, 4, 4, 8, 8]) if kind == "chain" else PlainResNet(kind == "pre")
    made, _ = transformed(root, None, size=32, quantizer=quantizer, bits=bits)
    low = [name for name, _ in made.low_precision_layers()]
    activations = [name for name, _ in ours.named_parameters() if name.rpartition(".quantizer.")[0] in low]
    assert len(activations) >= len(low)
    others = dict(made.named_parameters())
    generator = torch.Generator().manual_seed(8)
    for name in activations:
        parameter = ours.get_parameter(name)
        assert others[name].shape == parameter.shape, name
        values = 0.1 + torch.rand(parameter.shape, generator=generator)
        parameter.data, others[name].data = values, values.clone()
    x = images(ours, 6) * 2 - 0.5
    for network in (ours, made):
        network.train()
        network(x).square().mean().backward()
    torch.testing.assert_close(ours(x), made(x), rtol=1e-4, atol=1e-5)
    shared = [(name, parameter) for name, parameter in ours.named_parameters() if name in others]
    assert set(activations) < {name for name, _ in shared}
    for name, parameter in shared:
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=2e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("quantizer", "bits", "stage"),
    [("hwgq", "1/2", "1/4"), ("dorefa", "2/2", "4/4"), ("xnor", "1/1", "32/32"), ("pact", "2/2", "32/32")],
)
@pytest.mark.parametrize("kind", ["chain", "post"])
def test_a_stage_of_a_converted_network_is_that_of_the_package_s(kind, quantizer, bits, stage):
    """The bounding maps in front of shortcuts and the last layer follow the stage as well: HWGQ's does."""
    native = {"kind": "resnet20", "block": kind, "shortcut": "B"} if kind != "chain" else "vgg_small"
    strategy = {"kind": "staged", "stages": [stage]}
    fields = config(
        native, quantizer, bits, width=0.125 if kind != "chain" else 1 / 64, strategy=strategy, epochs=2
    )
    clock = Clock(3)
    ours = build(fields, num_classes=10, clock=clock, branch=None)
    initialize(ours, 5, "he_normal")
    root = Chain([2, 2, 4, 4, 8, 8]) if kind == "chain" else PlainResNet(False)
    made, own_clock = transformed(root, None, size=32, quantizer=quantizer, bits=bits)
    found, x = [], images(ours, 6) * 2 - 0.5
    for network in (ours, made):
        make_strategy(fields, 5).prepare(network, None, {})
        for set_clock in (clock, own_clock):
            set_clock.set(0, 1.0)
        found.append([network.train()(x), strip(network).train()(x)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(*found[0])


def test_each_place_has_a_learned_bounding_map_of_its_own():
    """The functions of its blocks have 2, 4 and 8 channels; the shortcuts and the last layer read the maps."""
    network, clock = transformed(PlainResNet(False), None, size=32, quantizer="reactnet", bits="1/1")
    bounds = {name: m for name, m in network.named_modules() if isinstance(m, Bound)}
    slopes = [m.quantizer.slope for m in bounds.values()]
    assert len({id(slope) for slope in slopes}) == len(slopes) > 9
    assert sorted({slope.numel() for slope in slopes}) == [2, 4, 8]
    clock.set(0, 0.0)
    network(images(network)).sum().backward()
    assert all(slope.grad is not None for slope in slopes)
    check_removal(network, clock)


# -- single constructions ------------------------------------------------------------------------------------


def sequential(*layers, channels=4, size=16):
    """Return conv, ReLU, the layers given, ReLU, pooling, linear."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        *layers,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


@pytest.mark.parametrize("merge", [None, *MERGES])
def test_conv_after_conv_bias_dilation_rectangles_and_strings(merge):
    root = sequential(
        nn.Conv2d(4, 6, (1, 3), padding="same"),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2, stride=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0), bias=False),
    )
    network, clock = transformed(root, merge)
    found = decisions(network)
    assert found["2"] == ("low precision", "")
    for name in ("3", "5"):
        assert found[name] == ("low precision", "bounds its input itself: no activation stands before it")
    check_removal(network, clock)
    assert [name for name, _ in network.low_precision_layers()] == ["2", "3", "5"]
    layer, x = network.get_submodule("3"), torch.rand(2, 6, 9, 9)
    signs = torch.where(layer.weight >= 0, 1.0, -1.0) * layer.weight.abs().mean()
    want = F.conv2d(torch.round(3 * x) / 3, signs, layer.bias, 2, 2, 2)
    torch.testing.assert_close(layer(x)[0], want)
    rows = {row.name: row for row in describe_layers(network)}
    assert rows["2"].parameters == 6 * 4 * 3 + 6 and rows["2"].macs == 16 * 16 * 72
    assert rows["3"].macs == 8 * 8 * 4 * 6 * 9 and rows["3"].bits == 216 + 32 * (4 + 1)


def test_a_wide_padding_or_a_dilation_has_no_input_scale():
    root = sequential(
        nn.Conv2d(4, 4, 3, padding=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, padding=1)
    )
    network, _ = transformed(root, None, quantizer="xnor", bits="1/1")
    found = decisions(network)
    wide = "padded by more than half its kernel, for which the quantizer's input scale is not defined"
    assert found["2"][1] == wide and found["3"][1].startswith("dilated")
    assert [name for name, _ in network.low_precision_layers()] == ["4"]
    assert network(torch.rand(2, 3, 16, 16)).shape == (2, 10)


class BeforeAndBehindPools(nn.Module):
    """A layer right behind an activation, one behind a max pool, one behind an average pool, one behind both."""

    def __init__(self):
        super().__init__()
        for i in range(5):
            self.add_module(f"conv{i}", nn.Conv2d(3 if i == 0 else 8 if i == 4 else 4, 4, 3, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(4))
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        x = self.conv1(F.relu(self.bn0(self.conv0(x))))
        x = self.conv2(self.pool(F.relu(self.bn1(x))))
        x = F.relu(self.bn2(x))
        x = torch.cat([x, F.relu(self.bn3(self.conv3(F.avg_pool2d(x, 3, 1, 1))))], 1)
        x = F.relu(self.bn4(self.conv4(self.pool(x))))
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("merge", [None, *MERGES])
def test_the_input_scale_is_that_of_the_values_before_the_bounding_map(merge):
    """Behind max-pooling and concatenation too, with which the bounding map commutes; not behind an average."""
    torch.manual_seed(0)
    network, clock = transformed(BeforeAndBehindPools(), merge, quantizer="xnor", bits="1/1")
    seen = {}
    for name, module in network.named_modules():
        if name.startswith(("conv", "bn")):
            module.register_forward_hook(
                lambda module, inputs, out, name=name: seen.update({name: (inputs[0], out)})
            )
    pooled, bounded = [], []
    network.bounding.register_forward_hook(lambda module, inputs, out: bounded.append(out))
    network.pool.register_forward_hook(lambda module, inputs, out: pooled.append(out))
    clock.set(0, 0.0)
    network(3 * torch.rand(2, 3, 16, 16))
    read = {name: seen[f"conv{name}"][0] for name in (1, 2, 3, 4)}
    norm = {name: seen[f"bn{name}"][1] for name in (0, 1, 2, 3)}
    assert norm[0].abs().max() > 1.5
    assert torch.equal(read[1], norm[0])
    assert torch.equal(read[2], F.max_pool2d(norm[1], 2))
    assert torch.equal(read[3], F.avg_pool2d(norm[2].clamp(-1, 1), 3, 1, 1))
    assert torch.equal(read[4], F.max_pool2d(torch.cat([norm[2], norm[3]], 1), 2))
    layer = network.get_submodule("conv1")
    scale = F.avg_pool2d(norm[0].abs().mean(1, keepdim=True), 3, 1, 1)
    torch.testing.assert_close(layer.input_scale(norm[0]), scale)
    # only the average pool and the last layer read bounded values (and a side's zeros, which have their shape)
    assert len(bounded) == (3 if merge in ("sum", "difference") else 2)
    assert len(pooled) == 2
    check_removal(network, clock)


class OneReLU(nn.Module):
    """One ReLU before a depthwise convolution, which stays, and before two others."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.first, self.second, self.linear = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.relu(self.depthwise(self.relu(self.stem(x))))
        return self.linear(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize("quantizer", ["dorefa", "pact"])
def test_a_shared_activation_is_replaced_only_where_low_precision_layers_read_it(quantizer):
    network, clock = transformed(OneReLU(), quantizer=quantizer, bits="2/2" if quantizer == "pact" else "1/2")
    assert decisions(network)["relu"] == ("left as is", "no low-precision layer reads it")
    others = [row.decision for row in network.decisions if row.name.startswith("relu (")]
    assert others == ["replaced"] * 3
    seen = {}
    for name in ("stem", "depthwise"):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i[0], o)}))
    network(100 * images(network))
    assert torch.equal(seen["depthwise"][0], F.relu(seen["stem"][1])) and seen["depthwise"][0].max() > 20
    check_removal(network, clock)


class Functions(nn.Module):
    """Its first and its last layer are functions; tensors are given by name."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(10, 8))
        self.conv1, self.conv2, self.hidden = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 4, 4), nn.Linear(36, 8)

    def forward(self, x):
        x = F.relu(self.conv1(F.relu(F.conv2d(x, self.stem))))
        x = F.relu(self.conv2(torch.cat(tensors=[x, x], dim=1)))
        return F.linear(F.relu(self.hidden(torch.flatten(input=x, start_dim=1))), self.head)


@pytest.mark.parametrize("merge", [None, *MERGES])
def test_functions_count_as_first_and_last_layer(merge):
    network, clock = transformed(Functions(), merge)
    assert [name for name, _ in network.low_precision_layers()] == ["conv1", "conv2", "hidden"]
    check_removal(network, clock)


def test_a_smaller_kernel_of_the_branch_sees_the_centre():
    network, clock = transformed(
        sequential(nn.Conv2d(4, 4, (1, 5), padding=(0, 2))), "preactivation", kernel=3
    )
    layer = network.get_submodule("2")
    assert layer.branch.weight.shape == (4, 4, 1, 3)
    clock.set(0, 0.5)
    x = torch.rand(2, 4, 8, 8)
    one, _ = layer(x)
    layer.one_convolution = False
    torch.testing.assert_close(one, layer(x)[0])
    with pytest.raises(InputError, match="no place at the centre"):
        transformed(sequential(nn.Conv2d(4, 4, (1, 5), padding=(0, 2))), "sum", kernel=2)


@pytest.mark.parametrize("merge", MERGES)
def test_depthwise_convolutions_stay_unless_asked(merge):
    def make():
        return sequential(
            nn.Conv2d(4, 8, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU6(),
            nn.Conv2d(8, 4, 1),
        )

    low, clock = transformed(make(), merge, choices=Choices(depthwise="low"))
    assert decisions(low)["4"][0] == "low precision"
    check_removal(low, clock)
    if merge == "concat":
        with pytest.raises(InputError, match=r"concat.*2 \(they would reach 4\).*strategy.layers: 6\."):
            transformed(make(), merge)
        network, clock = transformed(make(), merge, layers=("6",))
    else:
        network, clock = transformed(make(), merge)
    found = decisions(network)
    assert found["4"] == ("full precision", "depthwise: one filter a channel, few weights")
    assert found["3"] == ("left as is", "no low-precision layer reads it") and found["5"][0] == "replaced"
    assert isinstance(network.get_submodule("3"), nn.ReLU6)
    assert not hasattr(network, "5"), "the layer behind it bounds its input itself"
    check_removal(network, clock)


class Fork(nn.Module):
    """Two branches behind one convolution, concatenated, with pooling and a batch norm behind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)  # called five times
        self.squeeze = nn.Conv2d(4, 3, 1)
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(9)
        self.out = nn.Conv2d(9, 6, 3)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(6 * 36, 10)

    def forward(self, x):
        x = self.relu(self.squeeze(self.relu(self.stem(x))))
        x = torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], dim=1)
        x = self.bn(F.max_pool2d(x, 2))
        return self.linear(self.dropout(self.relu(self.out(x)).flatten(1)))


def test_channels_are_followed_through_concatenation_pooling_norm_and_flattening():
    network, clock = transformed(Fork(), "concat", width_ratio=2)
    extra = {
        n: tuple(m.weight_extra.shape)
        for n, m in network.named_modules()
        if getattr(m, "weight_extra", None) is not None
    }
    assert extra == {
        "left": (4, 6, 1, 1),
        "right": (5, 6, 3, 3),
        "out": (6, 8 + 10, 3, 3),
        "linear": (10, 12 * 36),
    }
    check_removal(network, clock)
    assert isinstance(network.relu, Bound) and not hasattr(network, "dropout")
    assert isinstance(network.linear.dropout, Dropout) and network.linear.dropout.p == 0.5
    clock.set(7, 0.5)
    x = images(network)
    assert torch.equal(network.train()(x), network(x)), "the draws are those of the step"
    clock.set(8, 0.5)
    assert not torch.equal(network(x), network.eval()(x))


@pytest.mark.parametrize("merge", ["sum", "difference"])
def test_what_goes_beside_is_joined_behind_the_quantizer(merge):
    network, clock = transformed(Fork(), merge)
    clock.set(1, 0.5)
    seen = {}
    network.out.register_forward_pre_hook(lambda _, inputs: seen.update(y=inputs[0], rest=inputs[1]))
    network.eval()(images(network))
    sign = -1 if merge == "difference" else 1
    want = torch.round(3 * seen["y"].clamp(0, 1)) / 3 + sign * seen["rest"]
    torch.testing.assert_close(network.out.prepare(seen["y"], seen["rest"]), want)
    assert seen["rest"].shape == seen["y"].shape == (4, 9, 8, 8)
    check_removal(network, clock)


class Bottleneck(nn.Module):
    """A residual stream without activations, as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 8, 1)
        self.second = nn.Conv2d(8, 4, 1)
        self.third = nn.Conv2d(4, 8, 1)
        self.fourth = nn.Conv2d(8, 4, 1)
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.second(F.relu(self.first(x)))
        x = x + self.fourth(F.relu(self.third(x)))
        return self.linear(x.mean([2, 3]))


def test_where_the_stream_forks_the_merge_stands_at_the_convolution():
    network, clock = transformed(Bottleneck(), "sum")
    here = {name: layer.merge_here for name, layer in network.low_precision_layers()}
    assert here == {"first": False, "second": True, "third": False, "fourth": False}
    check_removal(network, clock)
    network, clock = transformed(Bottleneck(), "concat")
    assert network.third.weight_extra.shape[1] == 4 and network.linear.weight_extra.shape[1] == 4
    check_removal(network, clock)


class Own(nn.Module):
    """Stem, ``body``, pooling, linear."""

    def __init__(self, body, forward=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.body = body
        self.linear = nn.Linear(4, 10)
        self.between = forward or (lambda self, x: self.body(x))

    def forward(self, x):
        return self.linear(F.relu(self.conv(self.between(self, F.relu(self.stem(x))))).mean((2, 3)))


class Flat(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2)).view(x.shape)


class MyConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * 2, self.bias, padding=1)


KEPT = [
    (lambda: Flat(nn.Conv1d(4, 4, 1)), "body.layer", "Conv1d: only nn.Conv2d and nn.Linear"),
    (lambda: nn.ConvTranspose2d(4, 4, 1), "body", "ConvTranspose2d: only"),
    (nn.PReLU, "body", "PReLU: only"),
    (lambda: MyConv(4, 4, 3), "conv2d in body", "weights of its own"),
    (lambda: nn.Linear(16, 16), "body", "applied at every position"),
    (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "body", "padded by 'reflect'"),
    (lambda: nn.Conv2d(4, 4, 2, padding="same"), "body", "padded more on one side"),
    (lambda: SqueezeExcitation(4, 2), "body.fc1", "squeeze and excitation"),
]


@pytest.mark.parametrize(
    ("body", "name", "reason"), KEPT, ids=[reason.split(":")[0] for _, _, reason in KEPT]
)
def test_what_is_left_as_it_is_says_why(body, name, reason):
    torch.manual_seed(0)  # for the layers that keep the initialisation of torch.nn
    network, clock = transformed(Own(body()), "sum")
    found = {key: value for key, value in decisions(network).items() if key.startswith(name)}
    assert found and all(
        reason in text and verdict in ("left as is", "full precision") for verdict, text in found.values()
    )
    check_removal(network, clock)


def test_a_convolution_with_two_places_is_named_and_counted_twice():
    root = Own(nn.Conv2d(4, 4, 1), lambda self, x: self.body(F.relu(self.body(x))))
    network, clock = transformed(root, "sum")
    assert decisions(network)["body"] == (
        "full precision",
        "called 2 times: a low-precision layer has one place",
    )
    assert {row.name: row.macs for row in describe_layers(network)}["body"] == 2 * 256 * 16
    check_removal(network, clock)


def data_dependent(self, x):
    return x if x.sum() > 0 else -x


def noisy(self, x):
    return x + torch.rand_like(x)


def constant_noise(self, x):
    return x + torch.randn(1)


def other_in_training(self, x):
    return self.body(x) if self.training else x


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


REFUSED = [
    (
        nn.Identity(),
        lambda self, x: F.dropout(x, 0.5, self.training),
        r"dropout in the network itself.*nn\.Dropout",
    ),
    (nn.Dropout2d(0.5), None, r"body \(Dropout2d\) draws random numbers"),
    (nn.RReLU(), None, r"body \(RReLU\)"),
    (nn.MultiheadAttention(4, 2, dropout=0.1), lambda self, x: x, r"body \(MultiheadAttention\)"),
    (nn.Identity(), noisy, "rand_like in the network itself"),
    (nn.Identity(), constant_noise, "not the same in training and in evaluation"),
    (nn.Conv2d(4, 4, 1), other_in_training, "not the same in training and in evaluation"),
    (nn.Identity(), data_dependent, "cannot be followed by torch.fx"),
    (nn.Identity(), lambda self, x: Doubling.apply(x), "cannot be followed by torch.fx"),
    (nn.Conv2d(5, 4, 1), None, "does not read images of 16 pixels"),
]


@pytest.mark.parametrize(("body", "forward", "words"), REFUSED)
def test_what_cannot_be_right_is_refused_by_name(body, forward, words):
    with pytest.raises(InputError, match=words):
        transformed(Own(body, forward))


def test_shared_weights_wrong_logits_and_nothing_to_do_are_refused():
    root = Own(nn.Conv2d(4, 4, 3, padding=1))
    root.body.weight = root.conv.weight
    with pytest.raises(InputError, match=r"conv\.weight and body\.weight are one parameter"):
        transformed(root)
    with pytest.raises(InputError, match=r"returns \(1, 10\) for one image, not 7 logits"):
        transformed(Own(nn.Identity()), classes=7)
    with pytest.raises(
        InputError, match="nothing of Sequential can become low precision: 1: the last linear layer"
    ):
        transformed(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))
    with pytest.raises(InputError, match=r"no low-precision layer called 'conve'.*conv"):
        transformed(Own(nn.Identity()), "sum", layers=("conve",))


def test_unused_layers_go_and_in_place_operations_become_others():
    class Inplace(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head, self.linear = nn.Linear(9, 9), nn.Linear(4, 10)

        def forward(self, x):
            y = self.stem(x)
            z = F.relu_(y)
            z = self.conv(z)
            z.add_(y)  # y is what relu_ made of it
            return self.linear(z.mean((2, 3)))

    root = Inplace()
    x = torch.rand(2, 3, 16, 16)
    network, _ = transformed(root, quantizer="full_precision", bits="32/32")
    assert decisions(network)["head"] == ("removed", "forward does not call it") and not hasattr(
        network, "head"
    )
    original = Inplace()
    original.load_state_dict(network.state_dict(), strict=False)
    torch.testing.assert_close(network(x), original(x))


@pytest.mark.parametrize("first", ["full", "low"])
def test_first_last_and_projection_when_asked(first):
    choices = Choices(first=first, last="low", projection="low")
    network, clock = transformed(PlainResNet(False), "sum", size=32, choices=choices)
    low = dict(network.low_precision_layers())
    assert "linear" in low and "blocks.3.shortcut.0" in low and ("conv0" in low) == (first == "low")
    if first == "low":
        x = images(network) * 9 - 4
        assert torch.equal(network.conv0.activate(x), x) and network.conv0.quantizer.a_bits == 32
        with pytest.raises(InputError, match=r"network\.first.*a_bits: 32"):
            transformed(PlainResNet(False), quantizer="bnn", bits="1/1", size=32, choices=choices)
    check_removal(network, clock)


def test_stochastic_depth_is_a_function_of_the_step():
    class Deep(Own):
        def __init__(self):
            super().__init__(nn.Conv2d(4, 4, 1), lambda self, x: x + self.depth(self.body(x)))
            self.depth = StochasticDepth(0.5, "row")

    for merge in (None, "sum", "concat"):
        network, clock = transformed(Deep(), merge)
        clock.set(3, 0.5)
        x = images(network, 16)
        assert torch.equal(network.train()(x), network(x))
        keep = network.depth(torch.ones(16, 2, 3, 3))
        assert keep.flatten(1).unique(dim=1).shape[1] == 1 and set(keep.unique().tolist()) == {0.0, 2.0}
        check_removal(network, clock)


def test_each_call_of_a_dropout_has_draws_of_its_own_and_its_readers_the_same():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.left, self.right, self.linear = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 10)
            self.drop, self.depth = nn.Dropout(0.5), StochasticDepth(0.5, "row")

        def forward(self, x):
            x = self.depth(self.drop(self.conv(F.relu(self.stem(x)))))
            x = self.drop(F.relu(self.depth(x)).mean((2, 3)))
            return self.linear(self.drop(self.left(x) * self.right(x)).relu())

    network, clock = transformed(Dropping())
    x, seen = images(network, 8), []
    for module in network.modules():
        if isinstance(module, Dropout):
            keep = module(torch.ones(8, 8)) != 0
            seen.append(keep)
    masks = {str(keep.tolist()) for keep in seen}
    assert len(seen) == 6 and len(masks) == 5
    left, right = (network.get_submodule(name).dropout(torch.ones(8, 4)) for name in ("left", "right"))
    assert torch.equal(left, right)
    clock.set(1, 0.0)
    assert torch.equal(network.train()(x), network(x))
    check_removal(network, clock)


@pytest.mark.parametrize("what", ["both", "activations"])
def test_anneal_begins_as_the_bounded_network_in_full_precision(what):
    network, clock = transformed(sequential(nn.Conv2d(4, 4, 3, padding=1)), blend=what)
    clock.set_factor(1.0)
    layer, x = network.get_submodule("2"), torch.randn(2, 4, 5, 5)
    weight = layer.weight if what == "both" else layer.quantizer.weight(layer.weight)
    torch.testing.assert_close(
        layer(x)[0], F.conv2d(x.clamp(0, 1), weight, layer.bias, padding=1), rtol=1e-4, atol=1e-5
    )


def test_compiled_is_eager():
    network, clock = transformed(Fork(), "concat")
    x = images(network)
    compiled = torch.compile(network.eval(), backend="eager", fullgraph=True)
    for factor in (0.5, 0.0):
        clock.set_factor(factor)
        with torch.no_grad():
            assert torch.equal(compiled(x), network(x))


# -- torchvision ---------------------------------------------------------------------------------------------

# Every kind of merge with one of them, and concat with those that read it; ``make soak`` takes all networks.
ZOO = {
    "mobilenet_v2": MERGES,
    "squeezenet1_1": ["concat"],
    "shufflenet_v2_x0_5": ["sum", "concat"],
    "resnet18": ["preactivation", "concat"],
    "mnasnet0_5": ["difference"],
    "googlenet": ["concat"],
    "efficientnet_b0": ["sum"],
}
READABLE = {"squeezenet1_1", "resnet18", "googlenet"}  # whose every layer's extra channels are read


def zoo(name, merge, layers=None, **fields):
    clock = Clock(1)
    kind = name if name in ("mobilenet_v2", "squeezenet1_1") else "torchvision"
    network = {"kind": kind, "input_size": 32} | ({"name": name} if kind == "torchvision" else {})
    network = build(
        config(network, **fields),
        num_classes=10,
        clock=clock,
        branch=Branch(merge, layers=layers) if merge else None,
    )
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith("weight_extra"):
                parameter.normal_(0, 0.1)
    return network, clock


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "merge"), [(name, merge) for name, merges in ZOO.items() for merge in merges]
)
def test_networks_of_torchvision(name, merge):
    if merge == "concat" and name not in READABLE:
        with pytest.raises(InputError, match="extra channels reach no layer that reads them") as refused:
            zoo(name, merge)
        able = str(refused.value).partition("strategy.layers: ")[2].rstrip(".").split(", ")
        if able == [""]:
            return
        network, clock = zoo(name, merge, tuple(able))
    else:
        network, clock = zoo(name, merge)
    check_removal(network, clock)


def test_parameters_and_macs_are_those_of_the_originals():
    """torchvision's figures at 224 pixels: 3,504,872 and 1,235,496 parameters; 0.3 and 0.35 GMAC."""
    for name, parameters, macs in (
        ("mobilenet_v2", 3_504_872, 300_774_272),
        ("squeezenet1_1", 1_235_496, 349_151_936),
    ):
        network = build(config(name), num_classes=1000, clock=Clock())
        found = costs(network)
        assert (found.parameters, found.macs) == (parameters, macs)
        original = models.get_model(name, weights=None).state_dict()
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in original.items()
        }


def test_in_full_precision_it_is_torchvisions_network():
    network, _ = zoo("mobilenet_v2", None, quantizer="full_precision", bits="32/32")
    original = models.mobilenet_v2(weights=None, num_classes=10)
    original.load_state_dict(network.state_dict())
    x = images(network)
    assert torch.equal(network.eval()(x), original.eval()(x)) and network.low_precision_layers() == []


@pytest.mark.parametrize("merge", MERGES)
def test_vgg_with_dropout_between_linear_layers(merge):
    with torch.device("meta"):
        root = models.VGG(models.vgg.make_layers([8, "M", 8, "M"]), num_classes=10, init_weights=False)
        root.avgpool, head = nn.AdaptiveAvgPool2d(2), root.classifier
        head[0], head[3], head[6] = nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 10)
    network, clock = transformed(
        root.to_empty(device="cpu"), merge, layers=("features.3", "classifier.0", "classifier.3")
    )
    assert network.get_submodule("classifier.3").dropout.p == 0.5
    check_removal(network, clock)


@pytest.mark.parametrize("merge", MERGES)
def test_densenet(merge):
    """Each layer's extra channels go beside all the concatenations that its main ones go into."""
    root = models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=10)
    network, clock = transformed(root, merge, size=32)
    if merge == "concat":
        last = network.get_submodule("features.denseblock2.denselayer2.conv1")
        assert last.weight_extra.shape[1] == 7 + 4  # the transition's 7 channels and the layer's before
        assert network.classifier.weight_extra.shape[1] == 7 + 4 + 4
    check_removal(network, clock)


def test_names_and_widths_of_torchvision():
    with pytest.raises(InputError, match=r"network\.name: torchvision has no network 'resnet81'.*resnet18"):
        zoo("resnet81", None)
    with pytest.raises(InputError, match=r"width: 0\.5, but torchvision's squeezenet1_1 has no width"):
        zoo("squeezenet1_1", None, width=0.5)
    assert zoo("mobilenet_v2", None, width=0.5)[0].get_submodule("features.1.conv.0.0").out_channels == 16
    network, _ = zoo("squeezenet1_1", None)
    assert network.classifier.get_submodule("1").full_precision_reason == "the last convolution"


# -- code of the user's --------------------------------------------------------------------------------------

MODULE = """
open({witness!r}, "a").write("imported")
from torch import nn

def tiny(num_classes, channels=4, size=8):
    net = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels),
                        nn.ReLU(), nn.Flatten(), nn.Linear(channels * (size - 4) ** 2, num_classes))
    net.scale = nn.Parameter(__import__("torch").randn(3))
    net.input_size = size
    return net

def sized(num_classes, input_size, width=1.0):
    return tiny(num_classes, int(4 * width), input_size)

def nameless(num_classes):
    net = tiny(num_classes)
    del net.input_size
    return net

def broken(num_classes):
    raise KeyError("no such thing")

def leaves(num_classes):
    raise SystemExit(0)

def text(num_classes):
    return "a network"

class OfTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)

def centred(num_classes):
    net = tiny(num_classes)
    net.insert(3, OfTheBatch())
    net.input_size = 8
    return net

number = 3
"""
FILE = """
[defaults]
dataset = "digits"
recipe = "digits"
epochs = 1
network = NETWORK
bits = "1/2"
quantizer = "dorefa"
[[arms]]
name = "a"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module ``mynets_of_tests`` in the current folder, an experiment file, and a witness of its import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    witness = tmp_path / "witness"
    (tmp_path / "mynets_of_tests.py").write_text(MODULE.format(witness=str(witness)))
    package = tmp_path / "mypackage_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("from mynets_of_tests import tiny\n")

    def write(network, **extra):
        text = FILE.replace("NETWORK", network) + "".join(
            f"{key} = {value}\n" for key, value in extra.items()
        )
        (tmp_path / "own.toml").write_text(text)
        return str(tmp_path / "own.toml")

    yield write, witness
    for name in [n for n in sys.modules if n.startswith(("mynets_of_tests", "mypackage_of_tests"))]:
        del sys.modules[name]


TINY = '"python:mynets_of_tests.tiny"'


@pytest.mark.parametrize("command", ["show", "run", "status"])
@pytest.mark.parametrize(
    "network",
    [
        TINY,
        '{kind = "python:mynets_of_tests.tiny", channels = 8, source = "0123456789abcdef"}',
        '"python:mypackage_of_tests.inner.tiny"',
        '"python:os.system"',
    ],
)
def test_nothing_is_imported_without_the_flag(own, capsys, command, network):
    write, witness = own
    file = write(network)
    for flags in ([], ["--allow-code", "mynets"], ["--allow-code", "mynets_of_tests.other"]):
        assert main([command, file, *flags]) == 2
        error = capsys.readouterr().err
        assert "would run code of its own" in error and "--allow-code" in error and error.count("\n") == 1
    assert not witness.exists() and "mynets_of_tests" not in sys.modules


@pytest.mark.parametrize(
    "network",
    ["python:os", "python:", "python:.evil.f", "python:../evil.f", "python:a b.f", "python:__import__('os').f", "python",
     "python:evil:f", "python:a..f", "python:a.f\\u0000", "python:évil.f", "python:a.lambda", "python:" + "a." * 200 + "f"],
)  # fmt: skip
def test_tricks_with_paths_are_no_names(own, capsys, network):
    write, witness = own
    file = write(f'"{network}"')
    assert main(["show", file, "--allow-code", "os", "--allow-code", "a", "--allow-code", "evil"]) == 2
    error = capsys.readouterr().err
    assert 'expected "python:module.factory"' in error and error.count("\n") == 1 and not witness.exists()


@pytest.mark.parametrize("module", ["os.path;x", "../evil", "", "a-b", "import"])
def test_the_flag_takes_names_of_modules(own, capsys, module):
    write, _ = own
    assert main(["show", write(TINY), "--allow-code", module]) == 2
    assert "is no module" in capsys.readouterr().err


def test_no_file_can_grant_it(own, capsys, tmp_path):
    write, witness = own
    for key in ("allow_code", "allow-code"):
        assert main(["show", write(TINY, **{key: '["mynets_of_tests"]'})]) == 2
        assert f"{key}: there is no such key" in capsys.readouterr().err
        assert main(["show", write('"vgg_small"'), "--set", f"{key}=mynets_of_tests"]) == 2
        assert "no field is called" in capsys.readouterr().err
        (tmp_path / "own.toml").write_text(f'{key} = ["mynets_of_tests"]\n' + FILE.replace("NETWORK", TINY))
        assert main(["show", str(tmp_path / "own.toml")]) == 2
        capsys.readouterr()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text('epochs = 1\nallow_code = ["mynets_of_tests"]\n')
    (tmp_path / "own.toml").write_text(
        FILE.replace("NETWORK", TINY).replace('"digits"\nepochs', '"mine"\nepochs')
    )
    assert main(["show", str(tmp_path / "own.toml"), "--allow-code", "mynets_of_tests"]) == 2
    assert "allow_code: there is no such key" in capsys.readouterr().err
    assert not witness.exists()


def test_the_flag_is_forgotten_when_the_command_ends(own, capsys):
    write, witness = own
    assert main(["show", write(TINY), "--allow-code", "mynets_of_tests"]) == 0
    assert not witness.exists(), "an identity needs the source, not its import"
    assert current() == Grant() and main(["show", write(TINY)]) == 2
    with granted(Grant(("mypackage_of_tests",))):
        permission.check("python:mypackage_of_tests.inner.tiny")
        with pytest.raises(InputError):
            permission.check("python:mypackage_of_tests_too.tiny")
    with granted(Grant(("mypackage_of_tests.inner",))), pytest.raises(InputError):
        permission.check("python:mypackage_of_tests.other.tiny")


def test_the_layers_of_an_own_network(own, capsys):
    write, witness = own
    file = write('{kind = "python:mynets_of_tests.tiny", channels = 6}')
    assert main(["show", file, "--layers", "--allow-code", "mynets_of_tests"]) == 0
    out = capsys.readouterr().out
    assert "python:mynets_of_tests.tiny (channels 6)" in out and "the bounding map of 'dorefa'" in out
    assert "6x6x3x3" in out and witness.exists()


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ('"python:mynets_of_tests.broken"', "mynets_of_tests.broken raised KeyError: 'no such thing'"),
        (
            '"python:mynets_of_tests.centred"',
            "mynets_of_tests.centred cannot be trained here: in evaluation an image's logits depend on",
        ),
        ('"python:mynets_of_tests.leaves"', "mynets_of_tests.leaves raised SystemExit"),
        ('"python:mynets_of_tests.text"', "returned str, not a torch.nn.Module"),
        ('"python:mynets_of_tests.number"', "mynets_of_tests has no function number"),
        ('"python:mynets_of_tests.gone"', "mynets_of_tests has no function gone"),
        ('"python:mynets_of_tests.nameless"', "the input size of mynets_of_tests.nameless is not known"),
        ('"python:mynets_of_tests.sized"', "mynets_of_tests.sized raised TypeError"),
        (
            '{kind = "python:mynets_of_tests.tiny", colour = 3}',
            "raised TypeError: tiny() got an unexpected keyword",
        ),
        ('{kind = "python:mynets_of_tests.tiny", input_size = 9}', "does not read images of 9 pixels"),
        ('{kind = "python:mynets_of_tests.tiny", size = {a = 1}}', "network.size: expected text, a number"),
        (
            '{kind = "python:mynets_of_tests.tiny", num_classes = 3}',
            "no function can be given an option of this name",
        ),
        ('{kind = "python:mynets_of_tests.tiny", source = "0"}', "is not what it was"),
        ('"python:mynets_of_tests_gone.tiny"', "there is no module mynets_of_tests_gone"),
        ('"python:mynets_of_tests.tiny.deeper"', "there is no module mynets_of_tests.tiny"),
    ],
)
def test_errors_of_own_code_are_one_message(own, capsys, network, words):
    write, _ = own
    allow = ["--allow-code", "mynets_of_tests", "--allow-code", "mynets_of_tests_gone"]
    assert main(["show", write(network), "--layers", *allow]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1


def sealed(network):
    return config(
        permission.sealed(TrialConfig.model_validate({**config().dump(), "network": network}).network),
        epochs=1,
    )


def test_settings_of_the_process_stay_as_they_were(own, tmp_path):
    """Code that asks PyTorch for TF32, other threads or float64 as it is imported gets none of it."""
    asked = (
        "set_float32_matmul_precision('medium')",
        "set_num_threads(3)",
        "set_default_dtype(torch.float64)",
    )
    lines = [f"torch.{each}\n" for each in (*asked, "set_grad_enabled(False)")]
    with (tmp_path / "mynets_of_tests.py").open("a") as file:
        file.write("import torch\ntorch.backends.cudnn.benchmark = True\n" + "".join(lines))
        file.write("def late(num_classes):\n    return tiny(num_classes).float()\n")

    def settings():
        asked = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_default_dtype()
        return *asked, torch.is_grad_enabled(), torch.backends.cudnn.benchmark

    before = settings()
    with granted(Grant(("mynets_of_tests",), str(tmp_path))):
        build(sealed("python:mynets_of_tests.late"), num_classes=10, clock=Clock(5))
    assert settings() == before


def test_edited_code_is_another_trial(own, tmp_path):
    with granted(Grant(("mynets_of_tests", "mypackage_of_tests"), str(tmp_path))):
        first = sealed("python:mynets_of_tests.tiny")
        assert first.network["source"] == permission.checksum("python:mynets_of_tests.sized")
        assert identity_document(first)["network"] == {
            "kind": "python:mynets_of_tests.tiny",
            "source": first.network["source"],
            "revision": 5,
        }
        more = sealed({"kind": "python:mynets_of_tests.tiny", "channels": 8})
        assert identity_document(more)["network"]["channels"] == 8
        inner = sealed("python:mypackage_of_tests.inner.tiny")
        (tmp_path / "mypackage_of_tests" / "helper.py").write_text("x = 1\n")
        assert sealed("python:mypackage_of_tests.inner.tiny").network["source"] != inner.network["source"]
        with (tmp_path / "mynets_of_tests.py").open("a") as file:
            file.write("# a comment\n")
        assert sealed("python:mynets_of_tests.tiny").network["source"] != first.network["source"]
        with pytest.raises(InputError, match="has changed: checksum"):
            permission.load(first.network)
    TrialConfig.model_validate(first.dump())  # reading a record asks for nothing


def test_parameters_of_its_own_are_drawn_from_the_seed(own, tmp_path):
    with granted(Grant(("mynets_of_tests",), str(tmp_path))):
        fields = sealed({"kind": "python:mynets_of_tests.sized", "input_size": 12})
        torch.manual_seed(1)
        first = build(fields, num_classes=10, clock=Clock(5))
        torch.manual_seed(2)
        second = build(fields, num_classes=10, clock=Clock(5), branch=Branch("sum"))
        other = build(fields, num_classes=10, clock=Clock(6))
        assert (
            first.input_size == 12
            and torch.equal(first.scale, second.scale)
            and not torch.equal(first.scale, other.scale)
        )
        wide = build(fields.model_copy(update={"width": 2.0}), num_classes=10, clock=Clock(5))
        assert wide.get_submodule("0").out_channels == 8
        with pytest.raises(InputError, match=r"width: 2, but mynets_of_tests.tiny takes no argument width"):
            build(
                sealed("python:mynets_of_tests.tiny").model_copy(update={"width": 2.0}),
                num_classes=10,
                clock=Clock(5),
            )


def test_the_grant_travels_with_the_trial(own, tmp_path, capsys):
    """A task made under the grant is trained, another refused; verify wants the flag, and the code."""
    _, witness = own
    with granted(Grant(("mynets_of_tests",), str(tmp_path))):
        fields = sealed("python:mynets_of_tests.tiny")
        from bench.experiments import catalog
        from bench.experiments.identity import identity

        trial = identity(fields, catalog.checksum(fields.dataset, tmp_path))
        task = Task(trial, fields.dump(), {}, str(tmp_path / "runs"), str(tmp_path))
    refused = execute(Task(trial, fields.dump(), {}, str(tmp_path / "runs"), str(tmp_path)))
    assert (
        refused.status == "refused" and "would run code of its own" in refused.reason and not witness.exists()
    )
    outcome = execute(task)
    assert outcome.status == "done", outcome.reason
    assert current() == Grant()
    record = json.loads((Store(tmp_path / "runs").folder(trial) / "trial.json").read_text())
    assert record["config"]["network"]["source"] == fields.network["source"]
    for name in [n for n in sys.modules if n.startswith("mynets_of_tests")]:
        del sys.modules[name]
    witness.unlink()
    assert main(["verify", trial]) == 2 and "would run code of its own" in capsys.readouterr().err
    assert main(["status", "--results", "runs"]) == 0
    assert cells.label("networks", record["config"]["network"]) == "python:mynets_of_tests.tiny"
    (tmp_path / "mynets_of_tests.py").write_text("raise SystemExit\n")
    assert main(["verify", trial, "--allow-code", "mynets_of_tests"]) == 2
    error = capsys.readouterr().err
    assert "is not what it was" in error and fields.network["source"] in error and not witness.exists()


def test_a_trial_is_refused_before_its_first_step_where_the_network_is_not_the_original(own, tmp_path):
    with granted(Grant(("mynets_of_tests",), str(tmp_path))):
        fields = sealed("python:mynets_of_tests.centred")
        outcome = execute(Task("0" * 16, fields.dump(), {}, str(tmp_path / "runs"), str(tmp_path)))
    assert outcome.status == "failed" and "depend on the other images of its batch" in outcome.reason


def test_the_traceback_of_a_factory_is_in_the_log(own, tmp_path, capfd):
    with granted(Grant(("mynets_of_tests",), str(tmp_path))):
        fields = sealed("python:mynets_of_tests.broken")
        outcome = execute(Task("0" * 16, fields.dump(), {}, str(tmp_path / "runs"), str(tmp_path)))
    assert outcome.status == "failed" and "raised KeyError" in outcome.reason
    assert "Traceback" in Store(tmp_path / "runs").log("0" * 16).read_text()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_general_layers_keep_their_names():
    network, _ = transformed(sequential(nn.Conv2d(4, 4, 3, padding=1)), "sum")
    layer = network.get_submodule("2")
    assert (
        isinstance(layer, ConvertedConv2d) and layer.name == "2" and "branch" in dict(layer.named_children())
    )
