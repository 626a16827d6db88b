"""Networks against the formulas of ``network_oracles``, hand-counted sizes, removal of the branch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.layers.branch import MERGES, Branch
from bench.layers.diagnostics import layer_diagnostics
from bench.layers.low_precision import strip
from bench.layers.max_pool import MaxPool2
from bench.networks import Builder, build, costs, describe_layers, initialize
from bench.networks.convnets import ConvNet, Spec
from bench.networks.resnet import ResNet
from bench.randomness import Clock
from bench.training.evaluate import reestimate_batch_norm
from tests.configs import make_config
from tests.networks import network_oracles as oracle

PRE = {"kind": "resnet20"}
POST = {"kind": "resnet20", "block": "post", "shortcut": "B"}
NETWORKS = ["svhn_convnet", "vgg_small", "bnn_convnet", PRE, POST]
QUANTIZERS = [
    ("full_precision", "32/32"),
    ("dorefa", "1/2/4"),
    ("dorefa_released", "1/1"),
    ("dorefa_channelwise", "1/2"),
    ("dorefa", "2/2"),
    ("bnn", "1/1"),
    ("xnor", "1/1"),
    ({"kind": "xnor", "input_scale": False}, "1/1"),
    ("syq", "1/2"),
    ("syq", "2/2"),
    ("ttq", "2/2"),
]


def in_turn(network, merge, chosen, every):
    """Return a part of ``chosen``, another for each pair: all networks meet all of them, and all merges."""
    first = NETWORKS.index(network) + MERGES.index(merge)
    return chosen[first % every :: every]


def label(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value).replace("/", "")


def config(network="svhn_convnet", quantizer="dorefa", bits="1/2", width=0.125, **changes) -> TrialConfig:
    return make_config(network=network, quantizer=quantizer, bits=bits, width=width, **changes)


def make(network="svhn_convnet", quantizer="dorefa", bits="1/2", *, branch=None, blend=None, **changes):
    """Return (network, clock), float32, training mode; of full width, where sizes count, not initialised."""
    clock = Clock(0)
    made = config(network, quantizer, bits, **changes)
    built = build(made, num_classes=10, clock=clock, branch=branch, blend=blend)
    if made.width < 1:
        initialize(built, 0, "he_truncated_normal")
    return built.train(), clock


def images(network, count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    size = network.input_size
    return torch.rand(count, 3, size, size, generator=generator).to(dtype)


def shaken(network):
    """Return the network, its batch norms with scales not 1 and shifts not 0, so that errors show."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator))
    return network


# -- against formulas ----------------------------------------------------------------------------------------

RESNET = [1, 1, 1, 2, 1, 1, 2, 1, 1]  # strides of ResNet-20's blocks
FORMULAS = {
    "svhn_convnet": (
        {"kind": "svhn_convnet", "dropout": 0.0},
        partial(oracle.chain, convs=oracle.SVHN, eps=1e-4, first_padding=0, first_pool=True),
    ),
    "vgg_small": (
        {"kind": "vgg_small"},
        partial(oracle.chain, convs=oracle.VGG, eps=1e-5, first_padding=1, first_pool=False),
    ),
    "bnn_convnet": (
        {"kind": "bnn_convnet"},
        partial(
            oracle.chain,
            convs=oracle.VGG,
            eps=1e-4,
            first_padding=1,
            first_pool=False,
            pool_first=True,
            hidden=2,
        ),
    ),
    **{
        f"resnet20_{block}_{shortcut}": (
            {"kind": "resnet20", "block": block, "shortcut": shortcut},
            partial(oracle.residual, block=block, blocks=RESNET),
        )
        for block in ("pre", "post")
        for shortcut in "AB"
    },
}


@pytest.mark.parametrize("merge", [None, *MERGES])
@pytest.mark.parametrize("name", FORMULAS)
def test_network_and_its_gradients_are_the_formulas(name, merge):
    """The comparison is in float64.

    Sums of binary weights and 2-bit activations tie exactly, and the position that max-pooling then sends its
    gradient to is chance: gradients through pools are compared with activations that are bounded alone.
    """
    kind, formula = FORMULAS[name]
    for bits, act in (("1/2", oracle.activation_2bit), ("1/32", oracle.clip01)):
        network, clock = make(kind, "dorefa", bits, branch=Branch(merge) if merge else None)
        shaken(network).double()
        factor = 0.75 if merge else 0.0
        clock.set(0, factor)
        x = images(network, dtype=torch.float64)
        probe = torch.randn(3, 10, generator=torch.Generator().manual_seed(3)).double()
        logits = network(x)
        (logits * probe).sum().backward()
        parameters = {key: p.detach().clone().requires_grad_() for key, p in network.named_parameters()}
        expected = formula(parameters, x, merge, factor, act=act)
        (expected * probe).sum().backward()
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
        if bits == "1/2" and "resnet" not in name:
            continue
        for key, p in network.named_parameters():
            assert p.grad is not None, key
            own = parameters[key].grad
            scale = own.abs().max().item()
            torch.testing.assert_close(
                p.grad,
                own,
                rtol=1e-6,
                atol=1e-12 + 1e-8 * scale,
                msg=lambda m, k=key, b=bits: f"{k} at {b}: {m}",
            )


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("relu", [False, True])
def test_branches_with_factors_of_their_own_and_with_a_relu_are_the_formulas(merge, relu):
    if relu and merge == "preactivation":
        pytest.skip("the branch of preactivation has nothing between the convolution and the sum")
    kind, formula = FORMULAS["svhn_convnet"]
    network, clock = make(kind, "dorefa", "1/32", branch=Branch(merge, relu=relu))
    shaken(network).double()
    own = {f"conv{i}": factor for i, factor in enumerate((0.75, 0.5, 0.25, 0.75, 0.0, 0.125), start=1)}
    clock.give_layers_factors(lambda step: own)
    clock.set(0, 0.75)
    x = images(network, dtype=torch.float64)
    parameters = {key: p.detach().clone().requires_grad_() for key, p in network.named_parameters()}
    logits = network(x)
    expected = formula(parameters, x, merge, own, act=oracle.clip01, relu=relu)
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-8)
    probe = torch.randn(3, 10, generator=torch.Generator().manual_seed(3)).double()
    (logits * probe).sum().backward()
    (expected * probe).sum().backward()
    for key, p in network.named_parameters():
        theirs = parameters[key].grad
        torch.testing.assert_close(p.grad, theirs, rtol=1e-5, atol=1e-12 + 1e-6 * theirs.abs().max().item())
    clock.set_factor(0.0)
    assert torch.equal(network(x), strip(network)(x)), (
        "the deployed network has no branch, whatever the layers' factors"
    )


def test_activation_abs_puts_the_magnitude_before_the_quantizer():
    network, _ = make({"kind": "svhn_convnet", "activation": "abs"}, "full_precision", "32/32")
    y = torch.tensor([-2.0, -0.25, 0.0, 0.5, 3.0]).reshape(1, 5, 1, 1)
    assert network.conv1.activate(y).flatten().tolist() == [1.0, 0.25, 0.0, 0.5, 1.0]
    assert network.linear.bounded(y).flatten().tolist() == [1.0, 0.25, 0.0, 0.5, 1.0]
    low, _ = make({"kind": "svhn_convnet", "activation": "abs"}, "dorefa", "1/1")
    assert low.conv1.activate(y).flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]  # 0.5 is a tie: to even, 0


# -- removal -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_removal_leaves_the_low_precision_network(network, merge):
    """At f = 0 the training, the stripped, and a plain network with the stripped weights are equal."""
    for quantizer, bits in in_turn(network, merge, QUANTIZERS, every=4):
        expanded, clock = make(network, quantizer, bits, branch=Branch(merge))
        x = images(expanded)
        clock.set(5, 0.5)
        expanded(x)  # moves the running statistics
        clock.set_factor(0.0)
        expanded.eval()
        with torch.no_grad():
            logits = expanded(x)
            bare = strip(expanded)
            assert torch.equal(logits, bare(x)), (quantizer, bits)
            plain, _ = make(network, quantizer, bits)
            assert list(bare.state_dict()) == list(plain.state_dict()), (quantizer, bits)
            plain.load_state_dict(bare.state_dict())
            assert torch.equal(logits, plain.eval()(x)), (quantizer, bits)
            assert torch.isfinite(logits).all() and logits.std() > 0
            clock.set_factor(0.5)
            assert torch.equal(bare(x), logits), "nothing of the branch is left"
            assert not torch.equal(expanded(x), logits), "the branch did nothing"
            clock.set_factor(0.0)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_factor_zero_from_the_start_is_the_plain_network(network, merge):
    for quantizer, bits in in_turn(network, merge, QUANTIZERS[1:7:2], every=3):
        plain, _ = make(network, quantizer, bits)
        expanded, clock = make(network, quantizer, bits, branch=Branch(merge))
        clock.set(0, 0.0)
        x = images(plain)
        first, second = plain(x), expanded(x)
        assert torch.equal(first, second)
        first.square().sum().backward()
        second.square().sum().backward()
        own = dict(plain.named_parameters())
        for name, parameter in expanded.named_parameters():
            if name in own:
                assert torch.equal(parameter, own[name]) and torch.equal(parameter.grad, own[name].grad), name
            else:
                assert parameter.grad is None, name
        assert {n for n, _ in plain.named_buffers()} <= {n for n, _ in expanded.named_buffers()}
        for name, buffer in plain.named_buffers():
            assert torch.equal(buffer, expanded.get_buffer(name)), name


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_every_parameter_learns_while_the_factor_is_on(network, merge):
    expanded, clock = make(network, "dorefa", "1/2", branch=Branch(merge))
    clock.set(0, 0.5)
    expanded(images(expanded)).square().sum().backward()
    extra = [n for n, _ in expanded.named_parameters() if "branch" in n or "extra" in n]
    assert (
        len(extra) >= len(expanded.low_precision_layers()) - 2
    )  # the two linear layers of bnn_convnet have none
    for name, parameter in expanded.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_joint_statistics_keep_their_scale_after_removal():
    network, clock = make(branch=Branch("concat", statistics="joint"))
    x = images(network)
    layer = network.conv3
    scale = torch.cat([layer.weight.flatten(), layer.weight_extra.flatten()]).abs().mean().item()
    clock.set(0, 0.5)
    network(x)
    both = layer.low_precision_weight(with_extra=True)
    assert both.shape[1] == 2 * layer.weight.shape[1]
    np.testing.assert_allclose(both.abs().detach(), scale, rtol=1e-6)
    clock.set(1, 0.0)
    assert torch.equal(layer.low_precision_weight(with_extra=False), both[:, : layer.weight.shape[1]])
    network(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight_extra.grad is None
    network.eval()
    bare = strip(network)
    assert torch.equal(network(x), bare(x))
    assert bare.conv3.fixed_statistics.item() == pytest.approx(scale, rel=1e-6)
    main, _ = make(branch=Branch("concat"))
    own = main.conv3.weight.abs().mean().item()
    assert main.conv3.low_precision_weight(with_extra=True)[0, 0, 0, 0].abs().item() == pytest.approx(
        own, rel=1e-6
    )
    assert abs(own - scale) > 1e-3 * scale


@pytest.mark.parametrize("network", [PRE, POST], ids=label)
def test_concat_never_touches_the_shortcut(network):
    """With extra weights of zero nothing of the branch reaches the logits, whatever the factor."""
    plain, _ = make(network)
    expanded, clock = make(network, branch=Branch("concat"))
    with torch.no_grad():
        for name, parameter in expanded.named_parameters():
            if "extra" in name:
                parameter.zero_()
    clock.set(0, 1.0)
    x = images(plain, dtype=torch.float64)
    torch.testing.assert_close(expanded.double()(x), plain.double()(x), rtol=1e-10, atol=1e-10)


def test_concat_bookkeeping_with_few_layers_and_narrow_branches():
    network, clock = make(branch=Branch("concat", width_ratio=0.5, layers=("conv2", "conv6")), width=1.0)
    shapes = {
        name: tuple(p.shape)
        for name, p in network.named_parameters()
        if "branch.w" in name or "extra" in name
    }
    assert shapes == {
        "conv2.branch.weight": (32, 64, 3, 3),  # half of conv2's 64 channels
        "conv3.weight_extra": (128, 32, 3, 3),
        "conv6.branch.weight": (256, 128, 5, 5),
        "linear.weight_extra": (10, 256),
    }
    clock.set(0, 0.5)
    assert network(images(network, 2)).shape == (2, 10)
    full, _ = make(branch=Branch("concat"), width=1.0)
    assert full.conv2.branch.weight.shape == (64, 128, 3, 3)  # it reads conv1's 64 main and 64 extra channels
    assert full.conv2.weight_extra.shape == (64, 64, 3, 3)
    binary, _ = make("bnn_convnet", branch=Branch("concat"), width=1.0)
    assert binary.fc1.weight_extra.shape == (1024, 512 * 4 * 4)  # conv5's branch, pooled to 4x4 and flattened
    assert binary.fc2.weight_extra is None and binary.linear.weight_extra is None
    named, clock = make("bnn_convnet", branch=Branch("concat", layers=("fc1",)))
    assert named.fc2.weight_extra.shape == named.fc2.weight.shape
    clock.set(0, 0.5)
    named(images(named)).sum().backward()
    assert named.fc1.branch.weight.grad is not None


def test_dropout_of_the_main_channels_is_the_same_with_and_without_extra_ones():
    plain, first = make()
    wide, second = make(branch=Branch("concat"))
    x = torch.ones(2, plain.conv6.in_channels, 5, 5)
    for clock in (first, second):
        clock.set(7, 0.5)
    kept = plain.conv6.prepare(x, None)
    both = wide.conv6.prepare(x, torch.full_like(x, 0.25))
    assert torch.equal(both[:, : x.shape[1]], kept)
    assert sorted(kept.unique().tolist()) == [0.0, 2.0] and sorted(
        both[:, x.shape[1] :].unique().tolist()
    ) == [
        0.0,
        0.5,
    ]
    first.set(8, 0.5)
    assert not torch.equal(plain.conv6.prepare(x, None), kept)
    plain.eval()
    assert torch.equal(plain.conv6.prepare(x, None), x)


# -- sizes counted by hand -----------------------------------------------------------------------------------


def test_svhn_convnet_by_hand():
    network, _ = make(branch=Branch("concat"), width=1.0)
    rows = {row.name: row for row in describe_layers(network)}
    # name: (weights, output positions): 40 -conv0 valid-> 36 -pool-> 18, conv2 pooled -> 9, 9 -> 7, 7 -> 5, 5
    # -> 1
    sizes = {
        "conv0": (48 * 3 * 25, 36 * 36),
        "conv1": (64 * 48 * 9, 18 * 18),
        "conv2": (64 * 64 * 9, 18 * 18),
        "conv3": (128 * 64 * 9, 7 * 7),
        "conv4": (128 * 128 * 9, 7 * 7),
        "conv5": (128 * 128 * 9, 5 * 5),
        "conv6": (512 * 128 * 25, 1),
        "linear": (512 * 10, 1),
    }
    for name, (weights, positions) in sizes.items():
        assert math.prod(rows[name].shape) == weights and rows[name].macs == weights * positions, name
        assert (rows[name].full_precision is None) == (name not in ("conv0", "linear"))
        assert rows[name].branch == (name not in ("conv0", "linear"))
    total = costs(network, 40)
    # weights 2,075,152 = 3600 + 27648 + 36864 + 73728 + 2 * 147456 + 1638400; linear 5120; biases 48 + 10;
    # batch norms 2 * (64 + 64 + 128 + 128 + 128 + 512) = 2048
    assert total.parameters == 2_075_152 + 5_120 + 58 + 2_048 == 2_082_378
    low = 27_648 + 36_864 + 73_728 + 2 * 147_456 + 1_638_400
    assert low == 2_071_552
    # 1 bit a low-precision weight and one 32-bit scale a layer; conv0, linear, biases and 4 numbers a norm
    # channel at 32
    assert total.model_bits == low + 6 * 32 + 32 * (3_600 + 48 + 5_120 + 10 + 2 * 2_048)
    macs = [4_665_600, 8_957_952, 11_943_936, 3_612_672, 7_225_344, 3_686_400, 1_638_400, 5_120]
    assert total.macs == sum(macs)
    assert total.bit_operations == 2 * sum(macs[1:-1]) + 1024 * (macs[0] + macs[-1])
    # the branch reads what the layer reads: conv1 once, every later layer twice the channels, main and branch
    # alike
    on = macs[0] + 2 * macs[1] + 4 * sum(macs[2:-1]) + 2 * macs[-1]
    assert total.train_flops_per_image == 6 * on and total.train_flops_per_image_plain == 6 * sum(macs)
    merged, _ = make(branch=Branch("preactivation"), width=1.0)
    assert costs(merged, 40).train_flops_per_image == 6 * sum(macs)  # one convolution
    assert costs(merged, 40).parameters == total.parameters


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        # conv0 432, stages 2n * 2304, 4608 + (2n - 1) * 9216, 18432 + (2n - 1) * 36864, norms 2 * (16 + 2n *
        # 112), FC 650; one norm more than convolutions in a block: behind conv0 (post, 16) or before the
        # pooling (pre, 64 for 16)
        ("resnet20", 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 2 * (16 + 6 * 112) + 650),
        ("resnet32", 432 + 10 * 2304 + 4608 + 9 * 9216 + 18432 + 9 * 36864 + 2 * (16 + 10 * 112) + 650),
        ("resnet44", 432 + 14 * 2304 + 4608 + 13 * 9216 + 18432 + 13 * 36864 + 2 * (16 + 14 * 112) + 650),
        ("resnet56", 432 + 18 * 2304 + 4608 + 17 * 9216 + 18432 + 17 * 36864 + 2 * (16 + 18 * 112) + 650),
    ],
)
@pytest.mark.parametrize("block", ["pre", "post"])
def test_resnets_by_hand(kind, parameters, block):
    network, _ = make({"kind": kind, "block": block}, width=1.0)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert (
        parameters
        == {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018}[kind]
    )
    wide, _ = make({"kind": kind, "block": block, "shortcut": "B"}, width=1.0)
    # two projections 1x1 with their norms: 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert sum(p.numel() for p in wide.parameters()) == parameters + 2_752


def test_resnet20_macs_and_reasons_by_hand():
    network, _ = make({"kind": "resnet20", "shortcut": "B"}, width=1.0)
    first, fc = 1024 * 432, 640
    stage1 = 1024 * 6 * 2304
    stage2 = 256 * (4608 + 5 * 9216)
    stage3 = 64 * (18432 + 5 * 36864)
    projections = 256 * 512 + 64 * 2048
    low = stage1 + stage2 + stage3
    total = costs(network, 32)
    assert low + first + fc == 40_551_040  # the 41 million of every table of ResNet-20, whose shortcut is A
    assert total.macs == low + first + fc + projections
    assert total.bit_operations == 2 * low + 1024 * (first + fc + projections)
    reasons = {row.name: row.full_precision for row in describe_layers(network) if row.type != "batch norm"}
    assert {name for name, reason in reasons.items() if reason} == {
        "conv0",
        "linear",
        "blocks.3.shortcut.0",
        "blocks.6.shortcut.0",
    }
    assert len(network.low_precision_layers()) == 18
    assert sum(row.parameters for row in describe_layers(network)) == sum(
        p.numel() for p in network.parameters()
    )


def test_vgg_small_and_bnn_convnet_by_hand():
    convs = 3456 + 147_456 + 294_912 + 589_824 + 1_179_648 + 2_359_296  # 3x128, 128x128, 128x256, ... times 9
    norms = 2 * (128 + 128 + 256 + 256 + 512 + 512)
    vgg, _ = make("vgg_small", width=1.0)
    assert sum(p.numel() for p in vgg.parameters()) == convs + norms + 512 * 16 * 10 + 10 == 4_660_106
    bnn, _ = make("bnn_convnet", "bnn", "1/1", width=1.0)
    hidden = 512 * 16 * 1024 + 1024 * 1024 + 2 * 2048
    assert sum(p.numel() for p in bnn.parameters()) == convs + norms + hidden + 10_250 == 14_029_706
    assert [name for name, _ in bnn.low_precision_layers()] == [
        *(f"conv{i}" for i in range(1, 6)),
        "fc1",
        "fc2",
    ]
    half, _ = make("bnn_convnet", "bnn", "1/1", width=0.5)
    shapes = [tuple(layer.weight.shape[:2]) for _, layer in half.low_precision_layers()]
    assert shapes == [(64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 4096), (512, 512)]


@pytest.mark.parametrize(
    ("width", "channels"), [(0.125, [6, 8, 16, 64]), (0.3, [14, 19, 38, 154]), (0.001, [1, 1, 1, 1])]
)
def test_width_is_rounded_and_at_least_one(width, channels):
    network, _ = make(width=width)
    assert [c.out_channels for c in (network.conv0, network.conv1, network.conv3, network.conv6)] == channels
    assert network.linear.out_features == 10


def test_facts_and_full_precision():
    for name, entry in registry.entries("networks").items():
        if entry.module.endswith(("torchvision_models", "timm_models", "own_networks")):  # see test_convert
            continue
        network, _ = make(name, "full_precision", "32/32")
        assert network.input_size == entry.facts["input_size"]
        assert network.low_precision_layers() == []
        assert all(row.full_precision for row in describe_layers(network))
        total = costs(network, network.input_size)
        assert total.bit_operations == 1024 * total.macs


def test_learned_scales_are_counted_once():
    network, _ = make("svhn_convnet", "syq", "2/2", width=1.0)
    rows = {row.name: row for row in describe_layers(network)}
    assert rows["conv1"].parameters == 64 * 48 * 9 + 9  # a scale a position of the 3x3 kernel
    assert rows["conv1"].bits == 2 * 64 * 48 * 9 + 32 * 9
    channelwise, _ = make("svhn_convnet", "dorefa_channelwise", "1/2", width=1.0)
    rows = {row.name: row for row in describe_layers(channelwise)}
    assert rows["conv1"].bits == 64 * 48 * 9 + 32 * 64 and rows["conv1"].parameters == 64 * 48 * 9


def test_costs_leave_clock_and_mode_alone():
    network, clock = make(branch=Branch("sum"))
    clock.set(3, 0.5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    costs(network, 40)
    assert clock.active and clock.factor == 0.5 and network.training and network.bn1.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


# -- initialisation ------------------------------------------------------------------------------------------


def test_initialisation_depends_on_seed_and_name_alone():
    plain, _ = make(width=0.5)
    expanded, _ = make(branch=Branch("concat"), width=0.5)
    own = dict(plain.named_parameters())
    for name, parameter in expanded.named_parameters():
        if name in own:
            assert torch.equal(parameter, own[name]), name
    assert not torch.equal(expanded.conv2.weight, expanded.conv2.weight_extra)
    # own fan-in: 32 channels of 9 positions for main and extra, 64 for the branch that reads both
    for tensor, fan_in in ((expanded.conv2.weight, 288), (expanded.conv2.weight_extra, 288)):
        deviation = math.sqrt(2 / fan_in)
        assert tensor.abs().max() <= 2 * deviation * (1 + 1e-6) and tensor.abs().max() > 1.9 * deviation
        assert tensor.std().item() == pytest.approx(0.8796 * deviation, rel=0.03)
    assert expanded.conv2.branch.weight.std().item() == pytest.approx(0.8796 * math.sqrt(2 / 576), rel=0.03)
    assert not plain.linear.bias.any() and not plain.conv0.bias.any()
    other, _ = make(width=0.5)
    initialize(other, 1, "he_truncated_normal")
    assert not torch.equal(other.conv1.weight, plain.conv1.weight)


def test_exact_initialisation_has_the_deviation_that_its_formula_says():
    network, _ = make(width=1.0)
    initialize(network, 3, "he_truncated_exact")
    weights = network.conv6.weight.detach().double().numpy()
    n, fan_in = weights.size, weights[0].size
    # the deviation of an estimate from n numbers of kurtosis below 3 is below 1 / sqrt(2 n)
    assert abs(weights.std() * math.sqrt(fan_in / 2.0) - 1.0) < 4.0 / math.sqrt(2.0 * n)
    # the cut at two deviations of the untruncated normal, in deviations of what is left (integral of x^2 phi
    # on +-2)
    x = np.linspace(-2.0, 2.0, 200_001)
    density = np.exp(-(x**2) / 2.0)
    left = math.sqrt((x**2 * density).sum() / density.sum())
    assert abs(np.abs(weights).max() * math.sqrt(fan_in / 2.0) * left - 2.0) < 1e-4


def test_exact_initialisation_counts_the_inputs_of_a_joint_layer_together():
    released = Branch("concat", statistics="joint", layers=("conv1", "conv3", "conv4", "conv5", "conv6"))
    for branch, count in ((released, 2), (Branch("concat"), 1)):
        network, _ = make(branch=branch, width=1.0)
        initialize(network, 0, "he_truncated_exact")
        for tensor, fan_in in (
            (network.conv5.weight, 1152 * count),
            (network.conv5.weight_extra, 1152 * count),
            (network.linear.weight, 512 * count),
            (network.conv5.branch.weight, 2304),
        ):
            error = 4.0 / math.sqrt(2.0 * tensor.numel())
            assert tensor.std().item() == pytest.approx(math.sqrt(2.0 / fan_in), rel=error)


def test_other_initialisations():
    network, _ = make(width=0.5)
    initialize(network, 0, "he_normal")
    assert network.conv4.weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    initialize(network, 0, "glorot_uniform")
    limit = math.sqrt(6 / (576 + 576))
    assert 0.99 * limit < network.conv4.weight.abs().max() <= limit
    assert network.conv4.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)


# -- what the loop asks for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", ["svhn_convnet", PRE, POST], ids=label)
def test_observe_changes_nothing_and_sees_every_layer(network, merge):
    expanded, clock = make(network, branch=Branch(merge))
    clock.set(2, 0.5)
    expanded.conv0.eval()
    before = {key: value.clone() for key, value in expanded.state_dict().items()}
    seen = layer_diagnostics(expanded, images(expanded))
    assert list(seen) == [name for name, _ in expanded.low_precision_layers()]
    assert all(row["branch_ratio"] > 0 for row in seen.values())
    assert all(torch.equal(before[key], value) for key, value in expanded.state_dict().items())
    assert expanded.training and not expanded.conv0.training and expanded.linear.training
    clock.set_factor(0.0)
    assert all(row["branch_ratio"] is None for row in layer_diagnostics(expanded, images(expanded)).values())


def test_observed_ratio_and_dead_layer_by_formula():
    network, clock = make({"kind": "svhn_convnet", "dropout": 0.0}, branch=Branch("sum"))
    shaken(network).eval()
    clock.set(0, 0.5)
    x = images(network)
    with torch.no_grad():
        y = network.pool(network.conv0(x))
        u = oracle.activation_2bit(y)
        main = oracle.activation_2bit(network.bn1(network.conv1(y)[0]))
        norm = network.conv1.branch.norm
        side = torch.nn.functional.conv2d(u, network.conv1.branch.weight, padding=1)
        side = 0.5 * (side / math.sqrt(1 + 1e-4) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
        network.bn4.bias.fill_(-100.0)
    seen = layer_diagnostics(network, x)
    assert seen["conv1"]["branch_ratio"] == pytest.approx((side.norm() / main.norm()).item(), rel=1e-4)
    assert [name for name, row in seen.items() if row["one_level"]] == [
        "conv5"
    ]  # it reads conv4's, all clipped to 0
    assert seen["conv4"]["branch_ratio"] is None  # nothing to compare with: the main path is zero


@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_after_step_clips_main_and_extra_weights(network):
    expanded, _ = make(network, "bnn", "1/1", branch=Branch("concat"))
    with torch.no_grad():
        for parameter in expanded.parameters():
            parameter.fill_(3.0)
    expanded.after_step_()
    for name, parameter in expanded.named_parameters():
        layer = expanded.get_submodule(name.rpartition(".")[0])
        clipped = layer in [low for _, low in expanded.low_precision_layers()]
        assert parameter.unique().tolist() == [1.0 if clipped else 3.0], name


def test_batch_norm_of_an_expanded_network_can_be_reestimated():
    network, clock = make(branch=Branch("sum"))
    clock.set(0, 0.5)
    batches = [(images(network), None), (images(network) * 0.5, None)]
    reestimate_batch_norm(network, batches)
    norm = network.conv1.branch.norm
    assert norm.momentum == 0.1 and torch.isfinite(norm.running_var).all() and (norm.running_var != 1).all()


def test_stochastic_signs_depend_on_layer_and_step():
    network, clock = make("vgg_small", {"kind": "bnn", "stochastic": True}, "1/1")
    y = torch.zeros(2, 16, 8, 8)
    clock.set(1, 0.0)
    first, other = network.conv1.activate(y), network.conv2.activate(y)
    assert torch.equal(first, network.conv1.activate(y)) and not torch.equal(first, other)
    clock.set(2, 0.0)
    assert not torch.equal(first, network.conv1.activate(y))
    network.eval()
    assert network.conv1.activate(y).unique().tolist() == [1.0]


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "quantizer", "branch", "words"),
    [
        (
            "svhn_convnet",
            "dorefa",
            Branch("sum", layers=("conv7",)),
            ["strategy.layers", "conv7", "Did you mean 'conv", "conv6"],
        ),
        ("resnet20", "dorefa", Branch("sum", layers=("conv1",)), ["strategy.layers", "blocks.0.conv1"]),
        ("svhn_convnet", "dorefa", Branch("sum", layers=()), ["strategy.layers", "no layer"]),
        ("svhn_convnet", "dorefa", Branch("sum", kernel=2), ["strategy.kernel", "2", "conv1", "odd"]),
        ("svhn_convnet", "dorefa", Branch("sum", kernel=7), ["strategy.kernel", "7", "5"]),
        ("svhn_convnet", "dorefa", Branch("sum", width_ratio=0.5), ["strategy.width_ratio", "concat"]),
        ("svhn_convnet", "dorefa", Branch("sum", statistics="joint"), ["strategy.statistics", "concat"]),
        ("svhn_convnet", "dorefa", Branch("summ"), ["strategy.merge", "Did you mean 'sum'"]),
        ({"kind": "svhn_convnet", "activation": "abs"}, "bnn", None, ["network.activation", "bnn", "clip"]),
    ],
)
def test_what_cannot_be_built_is_named(network, quantizer, branch, words):
    with pytest.raises(InputError) as error:
        make(network, quantizer, "1/1", branch=branch)
    for word in words:
        assert word in str(error.value), str(error.value)


# -- compiled, mixed precision -------------------------------------------------------------------------------


def small(kind, quantizer, bits, merge):
    """Return (network, clock): three low-precision layers with dropout and pool, or a block a stage."""
    clock = Clock(0)
    builder = Builder(
        config(quantizer=quantizer, bits=bits, width=0.25), clock, Branch(merge) if merge else None
    )
    if kind == "chain":
        specs = [Spec(64, 3, 1, MaxPool2), Spec(64, 3, 0, dropout=0.25)]
        width = builder.channels(32)
        front = {"conv0": builder.first_conv(width, 3, padding=1), "bn0": builder.norm(width)}
        made = ConvNet(builder, 10, input_size=12, front=front, size=12, convs=specs, hidden=[])
    else:
        made = ResNet(builder, 10, depth=1, shortcut="B", block=kind)
    initialize(made, 0, "he_truncated_normal")
    return shaken(builder.finish(made)).train(), clock


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quantizer", "bits", "merge"),
    [
        ("chain", "dorefa", "1/2", None),
        ("chain", "dorefa", "1/2/4", "concat"),
        ("chain", "dorefa", "2/2/4", "preactivation"),
        ("pre", "syq", "2/2", "sum"),
        ("post", "xnor", "1/1", "difference"),
        ("post", "bnn", "1/1", "concat"),
    ],
)
def test_one_graph_for_every_factor(kind, quantizer, bits, merge):
    """No graph break in forward and backward, and a new factor or step does not trace again."""
    network, clock = small(kind, quantizer, bits, merge)
    x = images(network, 2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for step, factor in enumerate((0.75, 0.5, 0.25)):
        clock.set(step, factor if merge else 0.0)
        logits = compiled(x)
        logits.sum().backward()
        torch.testing.assert_close(logits, network(x), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert all(p.grad is not None for p in network.parameters())
    clock.set(9, 0.0)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_step_equals_eager():
    """Inductor's forward and backward with a concat branch; activations, only bounded, do not flip."""
    torch._dynamo.reset()
    eager, _ = small("chain", "dorefa", "1/32", "concat")
    other, _ = small("chain", "dorefa", "1/32", "concat")
    for clock in (eager.conv1.clock, other.conv1.clock):
        clock.set(4, 0.5)
    compiled = torch.compile(other, fullgraph=True)
    x = images(eager, 4)
    first, second = eager(x), compiled(x)
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)
    first.square().sum().backward()
    second.square().sum().backward()
    for (name, p), (_, q) in zip(eager.named_parameters(), other.named_parameters(), strict=True):
        scale = p.grad.abs().max().item()
        torch.testing.assert_close(
            q.grad, p.grad, rtol=1e-3, atol=1e-4 + 1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(other.bn1.running_var, eager.bn1.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merge", [None, *MERGES])
def test_bf16_training_goes_through_autocast(merge):
    network, clock = make(branch=Branch(merge) if merge else None)
    clock.set(0, 0.5 if merge else 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(images(network))
    logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in network.parameters())
