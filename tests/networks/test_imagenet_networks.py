"""Networks for ImageNet: TensorFlow's padding, second formulas, removal of the branch, hand-counted sizes."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.expand import load_experiment
from bench.experiments.options import complete
from bench.experiments.toml_files import load_recipe
from bench.layers.branch import MERGES, Branch
from bench.layers.diagnostics import layer_diagnostics
from bench.layers.low_precision import strip
from bench.networks import build, costs, describe_layers, initialize, resnet_imagenet
from bench.networks.padding import SameMaxPool2d, same_padding
from bench.randomness import Clock
from bench.schedules import factor_value, learning_rate_value
from tests.configs import make_config
from tests.networks import imagenet_oracles as oracle
from tests.networks.network_oracles import activation_2bit, clip01

ROOT = Path(__file__).parents[2]

# small inputs with odd and even sizes before the pools: 22 -> 11 -> 6 -> 2 and 24 -> 11 -> 5 -> 2
SYQ = {"kind": "alexnet_syq", "input_size": 96}
AS_RUN = {**SYQ, "quantized": ["conv1", "conv3", "conv4"]}  # as the released scripts run
DOREFA = {"kind": "alexnet_dorefa", "input_size": 96}
XNOR = {"kind": "alexnet_xnor", "input_size": 99}


def residual(name, **options):
    return {"kind": name, "input_size": 64, **options}


REAL = residual("resnet18", block="post", shortcut_per="convolution", shortcut="D")
NETWORKS = [
    SYQ,
    XNOR,
    residual("resnet18"),
    residual("resnet18", block="post", shortcut="A"),
    REAL,
    residual("resnet50", shortcut="D"),
]


def label(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value).replace("/", "")


def config(network, quantizer="dorefa", bits="1/2", width=0.08, **changes) -> TrialConfig:
    return make_config(network=network, quantizer=quantizer, bits=bits, width=width, **changes)


def make(network, quantizer="dorefa", bits="1/2", *, classes=10, branch=None, blend=None, **changes):
    """Return (network, clock), initialised unless it is of full width, where only sizes are counted."""
    clock = Clock(0)
    made = config(network, quantizer, bits, **changes)
    built = build(made, num_classes=classes, clock=clock, branch=branch, blend=blend)
    if made.width < 1:
        initialize(built, 0, "he_truncated_normal")
        for (
            name,
            module,
        ) in built.named_modules():  # scales and shifts that are not 1 and 0, so that a wrong one is seen
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                with torch.no_grad():
                    module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                    module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.25)
    return built.train(), clock


def images(network, count=4, dtype=torch.float32):
    size = network.input_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


# -- TensorFlow's padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (
            54,
            3,
            2,
            (0, 1),
        ),  # the pool behind conv1: 27 windows, the last from 52 to 54, one pixel beyond the last
        (27, 3, 2, (1, 1)),  # the pool behind conv2: 14 windows need 29 pixels
        (14, 3, 2, (0, 1)),
        (224, 7, 2, (2, 3)),  # 112 windows need 229 pixels
        (224, 12, 4, (4, 4)),  # 56 windows need 232
        (224, 11, 4, (3, 4)),  # 231
        (225, 11, 4, (5, 5)),  # 57 windows need 235
        (5, 5, 1, (2, 2)),
        (5, 4, 1, (1, 2)),
        (4, 1, 2, (0, 0)),
        (2, 1, 4, (0, 0)),
    ],
)
def test_same_padding_by_hand(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def test_strided_convolutions_with_same_padding_by_hand():
    """Ones over 1..n: each output is the sum of the pixels in its window."""
    ones = torch.ones(1, 1, 1, 3)

    def convolved(size, stride):
        x = torch.arange(1.0, size + 1).reshape(1, 1, 1, size)
        return F.conv2d(F.pad(x, same_padding(size, 3, stride)), ones, stride=stride).flatten().tolist()

    assert convolved(6, 2) == [6, 12, 11]  # 1+2+3, 3+4+5, 5+6: even, so nothing before the first pixel
    assert convolved(5, 2) == [3, 9, 9]  # 1+2, 2+3+4, 4+5: odd, one on each side
    assert convolved(8, 4) == [6, 18]  # 1+2+3, 5+6+7: the windows fit without padding
    assert convolved(9, 4) == [3, 15, 17]  # 1+2, 4+5+6, 8+9


def test_max_pool_with_same_padding_by_hand():
    pool = SameMaxPool2d(3, 2)
    x = -torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)  # negative: a zero of the padding would win
    assert pool(x).squeeze().tolist() == [[-1, -3], [-9, -11]]  # windows begin at the first pixel
    assert F.max_pool2d(x, 3, 2, 1).squeeze().tolist() == [
        [-1, -2],
        [-5, -6],
    ]  # what symmetric padding would give
    odd = -torch.arange(1.0, 26.0).reshape(1, 1, 5, 5)
    assert pool(odd).squeeze().tolist() == [[-1, -2, -4], [-6, -7, -9], [-16, -17, -19]]
    assert pool(torch.rand(2, 3, 54, 27)).shape == (2, 3, 27, 14)
    assert (
        SameMaxPool2d(3, 4)(x).squeeze().tolist() == -1
    )  # one window, over the first three rows and columns


# -- against formulas ----------------------------------------------------------------------------------------

PAIRS = [
    [1, 1],
    [1, 1],
    [2, 1],
    [1, 1],
    [2, 1],
    [1, 1],
    [2, 1],
    [1, 1],
]  # strides of ResNet-18's convolutions
SINGLES = [[stride] for pair in PAIRS for stride in pair]
DEPTHS = (1, 2, 1, 1)  # bottlenecks; all 16 amplify the rounding of float64 into the sixth decimal
BOTTLENECKS = [[1, 1, 1], [1, 2, 1], [1, 1, 1], [1, 2, 1], [1, 2, 1]]
FORMULAS = {
    "alexnet_syq": (SYQ, {"form": "syq"}),
    "alexnet_syq_as_run": (AS_RUN, {"form": "syq", "quantized": AS_RUN["quantized"]}),
    "alexnet_dorefa": (DOREFA, {"form": "dorefa"}),
    "alexnet_xnor": (XNOR, {"form": "xnor"}),
    "resnet18_pre_B": (residual("resnet18"), {"order": "pre", "blocks": PAIRS}),
    "resnet18_post_A": (residual("resnet18", block="post", shortcut="A"), {"order": "post", "blocks": PAIRS}),
    "resnet18_pre_single": (
        residual("resnet18", shortcut_per="convolution", shortcut="A"),
        {"order": "pre", "blocks": SINGLES},
    ),
    "resnet18_real_D": (REAL, {"order": "real", "blocks": SINGLES}),
    "resnet50_pre_D": (residual("resnet50", shortcut="D"), {"order": "pre", "blocks": BOTTLENECKS}),
    "resnet50_post_B": (residual("resnet50", block="post"), {"order": "post", "blocks": BOTTLENECKS}),
}


@pytest.mark.parametrize("merge", [None, *MERGES])
@pytest.mark.parametrize("name", FORMULAS)
def test_network_and_its_gradients_are_the_formulas(name, merge, monkeypatch):
    """In float64; with 2-bit activations values alone, because sums of few levels tie in the pools."""

    def shallow(builder, num_classes, **options):
        return resnet_imagenet.ImageNetResNet(builder, num_classes, depths=DEPTHS, bottleneck=True, **options)

    monkeypatch.setattr(resnet_imagenet, "resnet50", shallow)
    kind, options = FORMULAS[name]
    formula = oracle.alexnet if "form" in options else oracle.residual
    for bits, act in (("1/2", activation_2bit), ("1/32", clip01)):
        network, clock = make(kind, "dorefa", bits, branch=Branch(merge) if merge else None)
        network.double()
        clock.set(0, 0.75 if merge else 0.0)
        x = images(network, dtype=torch.float64)
        parameters = {key: p.detach().clone().requires_grad_() for key, p in network.named_parameters()}
        logits = network(x)
        expected = formula(parameters, x, merge, 0.75, act=act, **options)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
        if bits == "1/2":
            continue
        probe = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
        (logits * probe).sum().backward()
        (expected * probe).sum().backward()
        for key, p in network.named_parameters():
            own = parameters[key].grad
            torch.testing.assert_close(
                p.grad,
                own,
                rtol=1e-6,
                atol=1e-10 + 1e-8 * own.abs().max().item(),
                msg=lambda m, k=key: f"{k}: {m}",
            )


def test_layers_that_are_not_quantized_read_quantized_activations():
    for quantizer, bits in (("syq", "1/2"), ("xnor", "1/1"), ("ttq", "2/2"), ("dorefa", "1/2/4")):
        network, clock = make(AS_RUN, quantizer, bits, branch=Branch("concat"))
        clock.set(0, 0.5)
        network(images(network, 2)).sum().backward()
        widths = config(AS_RUN, quantizer, bits).bit_widths
        for name, layer in network.low_precision_layers():
            kept = name not in AS_RUN["quantized"]
            assert layer.quantizer.a_bits == widths[1] and layer.quantizer.g_bits == widths[2]
            assert layer.quantizer.w_bits == (32 if kept else widths[0])
            assert torch.equal(layer.low_precision_weight(with_extra=False), layer.weight) == kept, name
            assert list(layer.quantizer.parameters()) == [] or not kept
    rows = {row.name: (row.w_bits, row.a_bits) for row in describe_layers(make(AS_RUN, "syq", "1/2")[0])}
    assert {name: rows[name] for name in ("conv1", "conv2", "fc1")} == {
        "conv1": (1, 2),
        "conv2": (32, 2),
        "fc1": (32, 2),
    }
    with pytest.raises(InputError, match=r"network.quantized: .*'conv5'.*Layers: conv1, "):
        make({**SYQ, "quantized": ["conv1", "conv5"]})


def test_what_the_classifier_reads():
    y = torch.tensor([[-2.0, -0.25, 0.0, 0.3, 0.6, 3.0]])
    expected = {
        "alexnet_syq": [0.0, 0.0, 0.0, 1 / 3, 2 / 3, 1.0],
        "alexnet_dorefa": [0.0, 0.0, 0.0, 0.3, 0.6, 1.0],
        "alexnet_xnor": [0.0, 0.0, 0.0, 0.3, 0.6, 3.0],
    }
    for network, (kind, values) in zip((SYQ, DOREFA, XNOR), expected.items(), strict=True):
        made, _ = make(network)
        assert made.linear.activate(y).flatten().tolist() == pytest.approx(values), kind
        rows = {row.name: row for row in describe_layers(made)}
        assert (rows["linear"].w_bits, rows["linear"].a_bits) == (32, 2 if kind == "alexnet_syq" else 32)
    annealed, clock = make(SYQ, blend="both")
    clock.set(0, 1.0)  # full precision is where annealing starts, the classifier's input included
    assert annealed.linear.activate(y).flatten().tolist() == pytest.approx(expected["alexnet_dorefa"])
    real, _ = make(REAL)
    assert torch.equal(real.linear.activate(y), y)


def test_input_scale_of_groups_is_that_of_their_own_channels():
    network, _ = make(SYQ, "xnor", "1/1", width=0.125)
    layer = network.conv1
    x = torch.randn(2, layer.in_channels, 6, 6, generator=torch.Generator().manual_seed(4))
    scale = layer.input_scale(x)
    halves = [x.abs().chunk(2, 1)[g].mean(1, keepdim=True) for g in (0, 1)]
    box = torch.full((1, 1, 5, 5), 1 / 25)
    expected = torch.cat(
        [F.conv2d(h, box, padding=2).expand(-1, layer.out_channels // 2, -1, -1) for h in halves], 1
    )
    torch.testing.assert_close(scale, expected)


def test_width_keeps_channels_even_where_there_are_groups():
    network, _ = make(SYQ, width=0.3, branch=Branch("concat", width_ratio=0.3))
    assert [network.get_submodule(n).out_channels for n in ("conv0", "conv1", "conv2", "conv4")] == [
        28,
        76,
        116,
        76,
    ]
    assert network.conv1.branch.out_channels == 22 and network.conv1.branch.weight.shape == (22, 14, 5, 5)
    assert network.conv3.weight_extra.shape == (116, 17, 3, 3)  # half of conv2's 34 branch channels a group
    quarter, _ = make({"kind": "alexnet_syq"}, width=0.25)
    assert [c.out_channels for c in (quarter.conv0, quarter.conv1, quarter.conv2, quarter.conv3)] == [
        24,
        64,
        96,
        96,
    ]
    assert quarter.fc1.weight.shape == (1024, 64 * 36)


# -- removal -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_removal_leaves_the_low_precision_network(network, merge):
    """At f = 0 the training, the stripped, and a plain network with the stripped weights are equal."""
    place = NETWORKS.index(network) + MERGES.index(merge)  # every network meets every quantizer
    quantizer, bits = (("dorefa", "1/2"), ("xnor", "1/1"), ("syq", "1/2"))[place % 3]
    expanded, clock = make(network, quantizer, bits, branch=Branch(merge))
    plain, _ = make(network, quantizer, bits)
    own = dict(plain.named_parameters())
    named = dict(expanded.named_parameters())
    assert own.keys() <= named.keys() and all(torch.equal(named[k], own[k]) for k in own)
    assert all("branch" in k or "extra" in k for k in named.keys() - own.keys())
    x = images(expanded)
    clock.set(5, 0.5)
    expanded(x).square().sum().backward()  # moves the running statistics as well
    for key, parameter in named.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (quantizer, key)
    clock.set_factor(0.0)
    expanded.eval()
    with torch.no_grad():
        logits = expanded(x)
        bare = strip(expanded)
        assert torch.equal(logits, bare(x)), quantizer
        assert list(bare.state_dict()) == list(plain.state_dict())
        plain.load_state_dict(bare.state_dict())
        assert torch.equal(logits, plain.eval()(x)), quantizer
        assert torch.isfinite(logits).all() and logits.std() > 0
        clock.set_factor(0.5)
        assert torch.equal(bare(x), logits), "nothing of the branch is left"
        assert not torch.equal(expanded(x), logits), "the branch did nothing"


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("network", [SYQ, XNOR, REAL], ids=label)
def test_every_branch_is_observed(network, merge):
    expanded, clock = make(network, branch=Branch(merge))
    clock.set(2, 0.5)
    seen = layer_diagnostics(expanded, images(expanded))
    assert list(seen) == [name for name, _ in expanded.low_precision_layers()]
    assert all(row["branch_ratio"] > 0 for name, row in seen.items() if "conv" in name)


def test_linear_layers_get_a_branch_only_by_name():
    network, _ = make(SYQ, branch=Branch("difference"))
    assert [name for name, layer in network.low_precision_layers() if layer.branch is not None] == [
        "conv1",
        "conv2",
        "conv3",
        "conv4",
    ]
    named, clock = make(SYQ, branch=Branch("concat", layers=("fc1", "fc2")))
    assert named.conv1.branch is None and named.fc2.weight_extra.shape == named.fc2.weight.shape
    clock.set(0, 0.5)
    named(images(named)).sum().backward()
    assert named.fc2.branch.weight.grad.abs().sum() > 0 and named.linear.weight_extra.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("network", "merge"), [(SYQ, "concat"), (REAL, "sum")], ids=label)
def test_one_graph_for_every_factor(network, merge):
    made, clock = make(network, branch=Branch(merge))
    x = images(made, 2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for step, factor in enumerate((0.75, 0.5)):
        clock.set(step, factor)
        logits = compiled(x)
        logits.sum().backward()
        torch.testing.assert_close(logits, made(x), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# -- layers by hand, at full width and 1,000 classes ---------------------------------------------------------

# weight shape, output height: 224 -12/4-> 54 -pool-> 27 -pool-> 14 -pool-> 6
TENSORPACK = {
    "conv0": ((96, 3, 12, 12), 54),
    "conv1": ((256, 48, 5, 5), 54),
    "conv2": ((384, 256, 3, 3), 27),
    "conv3": ((384, 192, 3, 3), 14),
    "conv4": ((256, 192, 3, 3), 14),
    "fc1": ((4096, 256 * 6 * 6), 1),
    "fc2": ((4096, 4096), 1),
    "linear": ((1000, 4096), 1),
}
# 224 -11/4, padding 2-> 55 -pool-> 27 -pool-> 13 -pool-> 6
XNOR_TABLE = {
    "conv0": ((96, 3, 11, 11), 55),
    "conv1": ((256, 96, 5, 5), 27),
    "conv2": ((384, 256, 3, 3), 13),
    "conv3": ((384, 384, 3, 3), 13),
    "conv4": ((256, 384, 3, 3), 13),
    "fc1": ((4096, 256 * 6 * 6), 1),
    "fc2": ((4096, 4096), 1),
    "linear": ((1000, 4096), 1),
}


def resnet_table(depths, bottleneck):
    """Rows of table 1 of 1512.03385, projections where the shape changes; 112 -pool-> 56, 28, 14, 7."""
    rows, before, block = {"conv0": ((64, 3, 7, 7), 112)}, 64, 0
    for depth, width, size in zip(depths, (64, 128, 256, 512), (56, 28, 14, 7), strict=True):
        for position in range(depth):
            entering = size * 2 if position == 0 and size < 56 else size
            name = f"blocks.{block}"
            if bottleneck:
                after = 4 * width
                rows[f"{name}.conv1"] = ((width, before, 1, 1), entering)
                rows[f"{name}.conv2"] = ((width, width, 3, 3), size)
                rows[f"{name}.conv3"] = ((after, width, 1, 1), size)
            else:
                after = width
                rows[f"{name}.conv1"] = ((width, before, 3, 3), size)
                rows[f"{name}.conv2"] = ((width, width, 3, 3), size)
            if before != after:
                rows[f"{name}.shortcut.0"] = ((after, before, 1, 1), size)
            before, block = after, block + 1
    return {**rows, "linear": ((1000, before), 1)}


# network: table, parameters of batch norms and biases, all parameters, MACs
BY_HAND = {
    # norms behind conv1 to fc2: 2 * (256 + 384 + 384 + 256 + 4096 + 4096); bias 1000; weights 41,472 +
    # 307,200 + 884,736 + 663,552 + 442,368 + 37,748,736 + 16,777,216 + 4,096,000 = 60,961,280
    "alexnet_syq": (TENSORPACK, 2 * 9_472 + 1_000, 60_981_224, 1_937_082_368),
    "alexnet_dorefa": (TENSORPACK, 2 * 9_472 + 1_000, 60_981_224, 1_937_082_368),
    # two more norms of 96; weights 34,848 + 614,400 + 884,736 + 1,327,104 + 884,736 + 58,621,952 = 62,367,776
    "alexnet_xnor": (XNOR_TABLE, 2 * (9_472 + 2 * 96) + 1_000, 62_388_104, 1_135_256_096),
    # a norm a convolution (pre: one before each and one at the end, none behind conv0; the same sum), and a
    # projection
    "resnet18": (
        resnet_table((2, 2, 2, 2), False),
        2 * (64 + 4 * 960 + 896) + 1_000,
        11_689_512,
        1_814_073_344,
    ),
    "resnet34": (
        resnet_table((3, 4, 6, 3), False),
        2 * (64 + 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512) + 896) + 1_000,
        21_797_672,
        3_663_761_408,
    ),
    # a bottleneck of width w has norms of w, w and 4w; projections of 256, 512, 1024 and 2048
    "resnet50": (
        resnet_table((3, 4, 6, 3), True),
        2 * (64 + 6 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512) + 3_840) + 1_000,
        25_557_032,
        4_089_184_256,
    ),
}
REASONS = {"conv0": "the first convolution", "linear": "the last linear layer"}


KINDS = [
    *(name for name in BY_HAND if "alexnet" in name),
    *({"kind": name, "block": block} for name in BY_HAND if "resnet" in name for block in ("pre", "post")),
]


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_layers_by_hand(kind):
    name = kind["kind"] if isinstance(kind, dict) else kind
    table, rest, parameters, macs = BY_HAND[name]
    network, _ = make(kind, width=1.0, classes=1000)
    rows = {row.name: row for row in describe_layers(network) if row.type != "batch norm"}
    assert rows.keys() == table.keys()
    for layer, (shape, size) in table.items():
        row = rows[layer]
        assert row.shape == shape and row.macs == math.prod(shape) * size**2, layer
        projection = "shortcut" in layer
        assert row.full_precision == ("reads the residual stream" if projection else REASONS.get(layer)), (
            layer
        )
    total = costs(network)
    assert sum(math.prod(shape) for shape, _ in table.values()) + rest == total.parameters == parameters
    assert sum(math.prod(shape) * size**2 for shape, size in table.values()) == total.macs == macs
    assert registry.get("networks", name).facts["macs"] == macs
    low = sum(row.macs for row in rows.values() if row.full_precision is None)
    expected = 2 * low + 1024 * (macs - low)
    if name == "alexnet_syq":  # the classifier's full-precision weights read 2-bit activations
        expected += (32 * 2 - 1024) * 4_096_000
    assert total.bit_operations == expected


def test_bi_real_arrangement_by_hand():
    """Identity shortcuts around 13 of 16 convolutions are free; pooling halves before 3 projections."""
    network, _ = make({**REAL, "input_size": 224}, width=1.0, classes=1000)
    rows = {row.name: row for row in describe_layers(network) if row.type != "batch norm"}
    plain = BY_HAND["resnet18"][0]
    renamed = [name for name in plain if "shortcut" not in name]
    assert [rows[name].shape for name in rows if "shortcut" not in name] == [
        plain[name][0] for name in renamed
    ]
    projections = {name: row.macs for name, row in rows.items() if "shortcut" in name}
    assert projections == {
        "blocks.4.shortcut.1": 28**2 * 64 * 128,
        "blocks.8.shortcut.1": 14**2 * 128 * 256,
        "blocks.12.shortcut.1": 7**2 * 256 * 512,
    }
    assert costs(network).macs == 1_814_073_344 and costs(network).parameters == 11_689_512


RANKED = [
    name
    for name, entry in registry.entries("networks").items()
    if "macs" in entry.facts and name not in BY_HAND
]


@pytest.mark.parametrize("name", RANKED)
def test_macs_in_the_registry_are_the_networks(name):
    facts = registry.get("networks", name).facts
    network, _ = make(name, width=1.0, classes=1000 if facts["input_size"] == 224 else 10)
    assert facts["macs"] == costs(network).macs


# -- recipes -------------------------------------------------------------------------------------------------


def test_released_recipes_are_the_scripts():
    """Values as the two scripts have them; 20,018 steps an epoch of 64 images."""
    baseline, progressive = (load_recipe(f"imagenet_released_{name}") for name in ("baseline", "progressive"))
    differing = {key for key in baseline | progressive if baseline.get(key) != progressive.get(key)}
    assert differing == {"learning_rate", "optimizer", "momentum", "epsilon", "epsilon_mode"}
    assert {key: baseline[key] for key in ("epochs", "batch_size", "weight_decay", "weight_decay_on")} == {
        "epochs": 100,
        "batch_size": 64,
        "weight_decay": 5e-6,
        "weight_decay_on": "linear",
    }
    steps = 1_281_167 // 64
    for recipe, expected in (
        (baseline, {0: 2e-4, 55: 2e-4, 56: 1e-4, 63: 1e-4, 64: 2e-5, 99: 2e-5}),
        (progressive, {0: 2e-4, 59: 2e-4, 60: 1e-4, 79: 1e-4, 80: 1e-5, 99: 1e-5}),
    ):
        rate = complete("learning_rates", recipe["learning_rate"])
        found = {epoch: learning_rate_value(rate, epoch * steps, 100 * steps, steps) for epoch in expected}
        assert found == expected
    matched = load_recipe("imagenet_matched")
    differing = {key for key in baseline | matched if baseline.get(key) != matched.get(key)}
    assert differing == {"holdout", "augmentation", "batch_norm_statistics"}


def test_released_factor_halves_ten_times():
    """1 for four epochs, then halved every four; 2^-10 < 0.001, so the branch goes after 40 of 100 epochs."""
    experiment = load_experiment(ROOT / "experiments" / "imagenet_alexnet_released.toml", data_dir=ROOT)
    progressive = next(t.config for t in experiment.trials if t.config.strategy["kind"] == "progressive")
    assert progressive.strategy["merge"] == "difference" and progressive.quantizer["eta"] == 0.0
    factor = progressive.strategy["factor"]
    found = [factor_value(factor, epoch * 10, 1000, 10) for epoch in (0, 3, 4, 8, 39, 40, 99)]
    assert found == [1.0, 1.0, 0.5, 0.25, 2.0**-9, 0.0, 0.0]


# -- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alexnet_syq", "alexnet_dorefa", "alexnet_xnor", "resnet18", "resnet50"])
def test_input_size_is_an_option(kind):
    assert config(kind).input_size == 224 and config({"kind": kind, "input_size": 160}).input_size == 160
    smallest = registry.get("networks", kind).options["input_size"]["min"]
    for size in (smallest, smallest + 1, 130):
        network, _ = make({"kind": kind, "input_size": size})
        assert network.input_size == size and network.eval()(images(network, 1)).shape == (1, 10)
    with pytest.raises(InputError, match=r"network\.input_size: \d+ must be at least"):
        complete("networks", {"kind": kind, "input_size": smallest - 1})


def test_resnet50_has_one_shortcut_a_block_only():
    with pytest.raises(InputError, match=r"network\.shortcut_per: 'resnet50' has no such option"):
        complete("networks", {"kind": "resnet50", "shortcut_per": "convolution"})


def test_show_lists_what_stays_full_precision(tmp_path, capsys):
    from bench.cli.main import main

    file = tmp_path / "networks.toml"
    arms = "".join(
        f'[[arms]]\nname = "{kind}"\nnetwork = {{ kind = "{kind}", input_size = 64 }}\n'
        for kind in ("alexnet_syq", "resnet18")
    )
    head = '[defaults]\ndataset = "digits"\nquantizer = "dorefa"\nbits = "1/2"\nwidth = 0.1\nepochs = 1\n'
    file.write_text('title = "t"\n' + head + arms, encoding="utf-8")
    assert main(["show", str(file), "--layers"]) == 0
    text = capsys.readouterr().out
    for reason in [*REASONS.values(), "reads the residual stream"]:
        assert reason in text
    assert "conv1" in text and "blocks.7.conv2" in text
