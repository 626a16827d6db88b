"""Networks of others stay what they were: norms, formulas, constants; the rest is refused by name."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.start import sealed
from bench.networks import Builder, build, initialize
from bench.networks.adoption import renamed
from bench.networks.convert.invariant import check_is_original
from bench.networks.convert.layers import Bound
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock
from bench.training import start
from tests.configs import make_config

SIZE = 12


def config(quantizer="dorefa", bits="1/1", network="vgg_small") -> TrialConfig:
    return make_config(network=network, quantizer=quantizer, bits=bits, width=1.0)


def transformed(root, quantizer="dorefa", bits="1/1"):
    builder = Builder(config(quantizer, bits), Clock(3))
    return builder.finish(transform(root, builder, 10, input_size=SIZE))


def full(root):
    return transformed(root, "full_precision", "32/32")


def decisions(network):
    return {row.name: (row.decision, row.reason) for row in network.decisions}


def images(count=6, seed=1):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def check(make):
    check_is_original(make, config(), 10, SIZE, "the network")


class Net(nn.Module):
    """Twice conv, norm, activation; pooling, linear. ``between`` stands before the second convolution."""

    def __init__(self, norm=nn.BatchNorm2d, act=nn.ReLU, between=None):
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(3, 4, 3), norm(4), act()
        self.between = between or nn.Identity()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(4, 4, 3, bias=False), norm(4), act()
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        x = self.between(self.act1(self.norm1(self.conv1(x))))
        return self.linear(self.act2(self.norm2(self.conv2(x))).mean((2, 3)))


# -- norms ---------------------------------------------------------------------------------------------------


class Positional(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a batch norm with a forward of its own, which counts its batches."""

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        flag = self.training or (self.running_mean is None and self.running_var is None)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, flag, self.momentum, self.eps
        )


class OwnNames(nn.Module):
    """A batch norm whose tensors have other names, called by keyword, with another momentum and eps."""

    def __init__(self, channels):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(
            x,
            running_mean=self.centre,
            running_var=self.spread,
            weight=self.gain,
            bias=self.shift,
            training=self.training,
            momentum=0.3,
            eps=1e-3,
        )


class Branches(Positional):
    """Both branches of ``if self.training`` call batch norm."""

    def forward(self, x):
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        if self.training:
            return F.batch_norm(x, *tensors, training=True, momentum=self.momentum, eps=self.eps)
        return F.batch_norm(x, *tensors, training=False, momentum=self.momentum, eps=self.eps)


class Frozen(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 2.0), ("bias", 0.5), ("running_mean", 0.1), ("running_var", 3.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class FrozenArithmetic(Frozen):
    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Instance(OwnNames):
    def forward(self, x):
        return F.instance_norm(
            x, self.centre, self.spread, self.gain, self.shift, use_input_stats=self.training, momentum=0.3
        )


def timm_norm(channels):
    return pytest.importorskip("timm.layers").BatchNormAct2d(channels)


def cumulative(channels):
    return nn.BatchNorm2d(channels, momentum=None)


EXACT = [Positional, OwnNames, Branches, Frozen, FrozenArithmetic, Instance, timm_norm, cumulative]
EXACT += [lambda channels: nn.BatchNorm2d(channels, affine=False), lambda channels: nn.GroupNorm(2, channels)]


@pytest.mark.parametrize("norm", EXACT)
def test_norms_of_others_are_what_they_were(norm):
    check(lambda: Net(norm))


@pytest.mark.parametrize("norm", [Positional, OwnNames, Branches, timm_norm])
def test_a_norm_by_function_becomes_the_layer(norm):
    """Statistics of the batch in training alone; evaluation changes nothing, whatever the images' order."""
    root = Net(norm)
    original, network = copy.deepcopy(root), transformed(root)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 2
    want = (0.3, 1e-3) if norm is OwnNames else (0.1, 1e-5)
    assert [(layer.momentum, layer.eps) for layer in layers] == [want] * 2
    assert set(network.original_keys) == set(original.state_dict())
    network.train()(images())
    mean = layers[0].running_mean.clone()
    assert not torch.equal(mean, torch.zeros(4)) and int(layers[0].num_batches_tracked) == 1
    with torch.no_grad():
        logits = network.eval()(images())
        turned = network(images().flip(0)).flip(0)
    torch.testing.assert_close(logits, turned)
    assert torch.equal(layers[0].running_mean, mean)


def test_names_of_a_norm_are_those_of_torch_and_old_names_are_known():
    network = transformed(Net(OwnNames))
    assert network.original_keys["norm1.gain"] == "norm1.batch_norm.weight"
    state = {name: value + 1 for name, value in Net(OwnNames).state_dict().items()}
    network.load_state_dict(renamed(network, state), strict=False)
    assert torch.equal(network.norm1.batch_norm.running_var, state["norm1.spread"])


def test_a_norm_keeps_its_activation_with_several_workers():
    from bench.training.distributed import SOLO, SharedBatchNorm

    class WithActivation(Positional):
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.PReLU()

        def forward(self, x):
            return self.act(super().forward(x))

    network = transformed(Net(WithActivation))
    assert "norm1.act.weight" in network.state_dict()
    network.norm1 = SharedBatchNorm(network.norm1, SOLO, 3)
    assert network(images()).shape == (6, 10) and "norm1.act.weight" in network.state_dict()


class AlwaysBatch(OwnNames):
    def forward(self, x):
        return F.batch_norm(x, self.centre, self.spread, self.gain, self.shift, True)


class NoStatistics(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


class ByHand(OwnNames):
    """Batch norm in arithmetic: in training by the batch's mean, which no graph of both modes has."""

    def forward(self, x):
        mean = x.mean((0, 2, 3)) if self.training else self.centre
        return x - mean.view(1, -1, 1, 1)


class Rewrites(OwnNames):
    def forward(self, x):
        self.centre.copy_(x.mean((0, 2, 3)))
        return x


class OfTheBatch(OwnNames):
    def forward(self, x):
        return x - x.mean((0, 2, 3), keepdim=True)


class Computed(OwnNames):
    def forward(self, x):
        return F.batch_norm(x, self.centre, self.spread, self.gain * 2, self.shift, self.training)


class Cumulative(Positional):
    def forward(self, x):
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=momentum)


class Noise(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return F.alpha_dropout(x, 0.2, self.training)


WRONG_NORMS = [
    (
        AlwaysBatch,
        "batch_norm in norm1 .AlwaysBatch. uses the statistics of the batch in evaluation, and rewrites",
    ),
    (NoStatistics, "batch_norm in norm1 .NoStatistics. uses the statistics of the batch in evaluation"),
    (lambda c: nn.BatchNorm2d(c, track_running_stats=False), "norm1 .BatchNorm2d. has no running statistics"),
    (nn.SyncBatchNorm, "norm1 .SyncBatchNorm. is for several processes; use nn.BatchNorm2d"),
    (ByHand, "in norm1 .ByHand. is not the same in training and in evaluation"),
    (Rewrites, "copy_ in norm1 changes the tensor norm1.centre in forward"),
    (OfTheBatch, "in evaluation an image's logits depend on the other images"),
    (
        Computed,
        "batch_norm in norm1 .Computed. cannot become a layer of torch.nn exactly: its weight is computed",
    ),
    (Cumulative, "norm1 of the network cannot be followed"),
    (Noise, "alpha_dropout in norm1 draws random numbers"),
]


@pytest.mark.parametrize(("norm", "words"), WRONG_NORMS)
def test_norms_that_are_no_layer_are_refused_by_name(norm, words):
    with pytest.raises(InputError, match=words):
        check(lambda: Net(norm))


# -- activations and formulas --------------------------------------------------------------------------------


def by_hand(function):
    class Formula(nn.Module):
        def forward(self, x):
            return function(x)

    return Formula


FORMULAS = [
    (nn.Hardswish, lambda x: x * F.relu6(x + 3) / 6),
    (nn.Hardswish, lambda x: x.mul(F.hardtanh(x + 3, 0.0, 6.0)).div(6)),
    (nn.SiLU, lambda x: x * torch.sigmoid(x)),
    (nn.Mish, lambda x: x * torch.tanh(F.softplus(x))),
    (
        lambda: nn.GELU(approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
]


@pytest.mark.parametrize("quantizer", ["dorefa", "bnn"])
@pytest.mark.parametrize(("layer", "formula"), FORMULAS)
def test_an_activation_by_hand_is_its_layer(layer, formula, quantizer):
    """Equal logits at 1/1 bits: the formula stays, and the layer behind it bounds its input."""
    torch.manual_seed(1)
    first = transformed(Net(act=layer), quantizer)
    second = transformed(Net(act=by_hand(formula)), quantizer)
    second.load_state_dict(first.state_dict())
    for network in (first, second):
        network.train()
    torch.testing.assert_close(first(images()), second(images()), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, Bound) for m in second.modules())


def test_the_layer_behind_a_formula_reads_the_bounded_formula():
    network = transformed(Net(act=by_hand(lambda x: x * F.relu6(x + 3) / 6)), bits="1/2").eval()
    seen = {}
    network.norm1.register_forward_hook(lambda _m, _i, out: seen.update(y=out))
    network.conv2.register_forward_pre_hook(lambda _m, inputs: seen.update(x=inputs[0]))
    network(images())
    torch.testing.assert_close(seen["x"], F.hardswish(seen["y"]))
    codes = network.conv2.activate(seen["x"]) * 3
    assert torch.equal(codes, torch.round(F.hardswish(seen["y"]).clamp(0, 1) * 3))
    rows = decisions(network)
    assert rows["relu6 in act1 (relu6)"][0] == "left as is" and "formula" in rows["relu6 in act1 (relu6)"][1]


CLAMPS = [
    (nn.ReLU, lambda x: x.clamp(min=0)),
    (nn.ReLU, lambda x: torch.clamp_min(x, 0.0)),
    (nn.ReLU, lambda x: x.clamp_(min=0)),
    (nn.ReLU6, lambda x: torch.clip(x, 0, 6)),
    (nn.Hardtanh, lambda x: torch.clamp(x, min=-1.0, max=1.0)),
]


@pytest.mark.parametrize("quantizer", ["dorefa", "bnn", "xnor"])
@pytest.mark.parametrize(("layer", "formula"), CLAMPS)
def test_an_activation_written_as_a_clamp_is_its_layer(layer, formula, quantizer):
    """Equal logits; the layer behind the clamp reads both levels."""
    torch.manual_seed(1)
    first = transformed(Net(act=layer), quantizer)
    second = transformed(Net(act=by_hand(formula)), quantizer)
    second.load_state_dict(first.state_dict())
    seen = []
    second.conv2.register_forward_pre_hook(lambda _m, inputs: seen.append(second.conv2.activate(inputs[0])))
    torch.testing.assert_close(first.train()(images()), second.train()(images()), rtol=0, atol=0)
    assert len(torch.unique(seen[0])) == 2


NEVER_NEGATIVE = {
    "squared ReLU": lambda x: F.relu(x) ** 2,
    "a square": lambda x: x * x,
    "absolute value": lambda x: x.abs(),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "a gated ReLU": lambda x: F.relu(x) * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "ReLU in half precision": lambda x: F.relu(x).half().float(),
    "detached ReLU": lambda x: F.max_pool2d(F.relu(x).detach(), 1),
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, 1),
    "two ReLUs": lambda x: 0.5 * F.relu(x) + 2 * F.relu(x),
}
BOTH_SIGNS = {
    "minus ReLU": lambda x: -F.relu(x),
    "centred ReLU": lambda x: F.relu(x) - 0.4,
    "leaky ReLU": lambda x: torch.where(x > 0, x, 0.1 * x),
    "gated": lambda x: x * torch.sigmoid(x),
    "cube": lambda x: F.relu(x) * x,
    "norm behind": lambda x: F.layer_norm(F.relu(x) ** 2, x.shape[1:]),
}


@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_a_quantizer_of_signs_refuses_values_without_signs(name):
    """Every value would be +1: the layer could learn nothing, and the accuracy would say nothing of it."""
    make = by_hand(NEVER_NEGATIVE[name])
    for quantizer in ("bnn", "xnor"):
        with pytest.raises(InputError, match=r"what conv2 would read is never negative.*sign of activations"):
            transformed(Net(act=make), quantizer)
    assert decisions(transformed(Net(act=make), "dorefa"))["conv2"][0] == "low precision"


@pytest.mark.parametrize("name", BOTH_SIGNS)
def test_a_quantizer_of_signs_takes_values_of_both_signs(name):
    network = transformed(Net(act=by_hand(BOTH_SIGNS[name])), "bnn")
    assert decisions(network)["conv2"][0] == "low precision"


class Gate(nn.Module):
    """Squeeze and excitation by hand: the gate is a hard sigmoid that is written out."""

    def __init__(self, gate):
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), gate

    def forward(self, x):
        y = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * self.gate(y)


GATES = [
    torch.sigmoid,
    F.hardsigmoid,
    lambda y: F.relu6(y + 3) / 6,
    lambda y: (y / 6 + 0.5).clamp(0, 1),
    torch.tanh,
]


@pytest.mark.parametrize("gate", GATES)
def test_gates_stay(gate):
    network = transformed(Net(between=Gate(gate)))
    rows = decisions(network)
    assert rows["between.up"][0] == rows["between.down"][0] == "full precision"
    assert rows["conv2"][0] == "low precision" and not isinstance(network.act1, Bound)
    assert all(row[0] == "left as is" for name, row in rows.items() if " in between" in name)
    check(lambda: Net(between=Gate(gate)))


def test_a_sum_of_one_value_is_a_formula_and_a_sum_of_paths_is_none():
    double = transformed(Net(between=by_hand(lambda x: x + x)()))
    assert not isinstance(double.act1, Bound)
    leaky = by_hand(lambda x: F.relu(x) + -0.1 * F.relu(-x))
    assert decisions(transformed(Net(act=leaky)))["relu in act1 (relu)"][0] == "left as is"

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x):
            return x + self.act(self.conv(x))

    network = transformed(Net(between=Residual()))
    assert isinstance(network.between.act, Bound) and isinstance(network.act1, Bound)


# -- constants, hooks, types, arguments ----------------------------------------------------------------------


class Constants(Net):
    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
        self.between = Scale()

    def forward(self, x, detail=False, *more, scale=1.0, **options):
        return super().forward((x - self.mean) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)

    def forward(self, x):
        return x * self.factors + torch.arange(4.0).view(4, 1, 1)


def test_constants_are_kept_move_along_and_are_not_stored():
    check(Constants)
    network = transformed(Constants())
    assert {"mean", "between.factors"} <= {name for name, _ in network.named_buffers()}
    assert not {"mean", "between.factors", "_tensor_constant0"} & set(network.state_dict())
    assert network.to("meta").mean.device.type == "meta"


def spectral(channels=4):
    return parametrizations.spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))


@pytest.mark.parametrize(
    "layer", [spectral, lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))]
)
def test_parametrized_layers_stay_in_full_precision(layer):
    check(lambda: Net(between=layer()))
    decision, reason = decisions(transformed(Net(between=layer())))["between"]
    assert decision == "left as is" and "remove_parametrizations" in reason


def test_shared_modules_are_what_they_were():
    class Twice(Net):
        def __init__(self):
            super().__init__(between=nn.Conv2d(4, 4, 3, padding=1))
            self.also = self.between

        def forward(self, x):
            x = self.act1(self.norm1(self.conv1(x)))
            x = self.norm1(self.also(F.relu(self.between(x))))
            return self.linear(self.act2(self.norm2(self.conv2(x))).mean((2, 3)))

    check(Twice)
    network = transformed(Twice())
    assert decisions(network)["between"][0] == "full precision"
    assert network.original_keys["also.weight"] == "between.weight"


def test_a_layer_with_two_names_below_the_root_has_its_first_one():
    class Inner(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.shared = shared

        def forward(self, x):
            return self.shared(x)

    def make():
        shared = nn.Conv2d(4, 4, 1)
        return Net(between=nn.Sequential(Inner(shared), Inner(shared)))

    check(make)
    assert transformed(make()).original_keys["between.1.shared.weight"] == "between.0.shared.weight"


def weight_norm(root):
    nn.utils.weight_norm(root.conv2)


def spectral_norm(root):
    nn.utils.spectral_norm(root.conv2)


def same_memory(root):
    root.conv2.weight.data = root.between.weight.data


def pruned(root):
    prune.l1_unstructured(root.conv2, "weight", 0.5)


def hooked(root):
    root.conv2.register_forward_hook(lambda module, inputs, output: output * 2)


def hooked_root(root):
    root.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def lazy(root):
    root.conv2 = nn.LazyConv2d(4, 3)


def half(root):
    root.conv2.half()


def complex_weight(root):
    root.conv2.weight = nn.Parameter(torch.zeros(4, 4, 3, 3, dtype=torch.complex64))


def double(root):
    root.double()


PROBLEMS = [
    (weight_norm, r"conv2 \(Conv2d\) has a hook \(WeightNorm\).*remove_weight_norm"),
    (spectral_norm, r"conv2 \(Conv2d\) has a hook \(SpectralNorm\).*remove_spectral_norm"),
    (pruned, r"conv2 \(Conv2d\) has a hook.*prune\.remove"),
    (hooked, r"conv2 \(Conv2d\) has a hook.*compute in forward"),
    (hooked_root, "the network itself .Net. has a hook"),
    (lazy, r"conv2 \(LazyConv2d\) does not know the shape of its weight yet"),
    (half, "conv2 .Conv2d. has weight of float16; the suite trains float32 weights"),
    (complex_weight, "conv2 .Conv2d. has weight of complex64"),
    (double, "conv1 .Conv2d. has weight of float64"),
    (same_memory, r"between\.weight and conv2\.weight are one parameter"),
]


@pytest.mark.parametrize(("change", "words"), PROBLEMS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_layers_that_cannot_be_taken_over_are_refused_by_name(change, words):
    root = Net(between=nn.Conv2d(4, 4, 3, padding=1, bias=False))
    change(root)
    with pytest.raises(InputError, match=words):
        transformed(root)


class Outer(nn.Module):
    """Calls a network and returns what ``output`` makes of its logits."""

    def __init__(self, output):
        super().__init__()
        self.inner, self.output = Net(), output

    def forward(self, x):
        return self.output(self.inner(x))


class TwoInputs(Net):
    def forward(self, x, mask):
        return super().forward(x * mask)


class WithoutGradient(Net):
    def forward(self, x):
        with torch.no_grad():
            x = self.act1(self.norm1(self.conv1(x)))
        return self.linear(self.act2(self.norm2(self.conv2(x))).mean((2, 3)))


class Counts(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x * self.calls)


class FrozenBelow(Net):
    """Keeps its first norm in evaluation, as detectors do: the transformed network would not know of it."""

    def train(self, mode=True):
        super().train(mode)
        self.norm1.eval()
        return self


class Half(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x.mT


class InPlaceAlone(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x).copy_(x)


class Drawn(nn.Module):
    """Its parameter comes from a generator that no seed of the suite reaches."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(random.SystemRandom().random()))

    def forward(self, x):
        return x * self.scale


ONE_NET, ONE_DROPOUT = Net(), nn.Dropout(0.5)
REFUSED = [
    (lambda: ONE_NET, r"two calls of the network return one and the same Conv2d \(conv1\)"),
    (lambda: Net(between=ONE_DROPOUT), r"one and the same Dropout \(between\).*default argument"),
    (lambda: Net(between=Drawn()), r"two calls of the network with one seed give between\.scale different"),
    (lambda: Net(between=Half()), "between of the network cannot be followed.*autocast.*precision"),
    (lambda: Net(between=InPlaceAlone()), "copy_ in between changes a tensor in place"),
    (lambda: Outer(lambda y: {"logits": y}), "returns dict for one image.*the tensor of logits alone"),
    (lambda: Outer(lambda y: (y, y)), "returns tuple for one image"),
    (lambda: Outer(lambda y: y[None]), r"returns \(1, 1, 10\) for one image"),
    (TwoInputs, r"forward of the network takes \(x, mask\).*Give every further argument a default"),
    (WithoutGradient, r"the gradient of conv1\.weight differs"),
    (Counts, "is not the same in training and in evaluation"),
    (FrozenBelow, "logits in training differ from the original's.*first in norm1 .BatchNorm2d."),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_networks_that_are_not_the_original_any_more_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        check(make)


def test_one_activation_without_state_may_serve_two_networks():
    act = nn.ReLU(inplace=True)
    check(lambda: Net(act=lambda: act))


def test_what_needs_no_gradient_keeps_its_values():
    """A fixed filter and a frozen norm are what the network's code made them."""
    blur = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False).requires_grad_(False)
    nn.init.constant_(blur.weight, 1 / 9)
    root = Net(between=blur)
    nn.init.constant_(root.norm1.requires_grad_(False).weight, 3.0)
    network = transformed(root)
    initialize(network, 5, "he_normal")
    assert torch.equal(network.between.weight, torch.full((4, 1, 3, 3), 1 / 9))
    assert network.norm1.weight.tolist() == [3.0] * 4 and network.norm2.weight.tolist() == [1.0] * 4
    assert network.conv2.weight.std() > 0.1


def test_the_check_leaves_the_generator_of_random_numbers_alone():
    state = torch.get_rng_state()
    check(Net)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fields", [{"batch_size": 1}, {"batch_size": 4, "micro_batches": 4}])
def test_one_image_a_batch_is_refused_where_a_norm_sees_one_value_a_channel(fields):
    def made(network):
        return build(config(network=network).model_copy(update=fields), num_classes=10, clock=Clock())

    with pytest.raises(InputError, match=r"batch_size: .*batch norm bn_fc1 .*take at least 2 images"):
        made({"kind": "bnn_convnet"})
    made({"kind": "vgg_small"})(torch.rand(1, 3, 32, 32))


# -- by name -------------------------------------------------------------------------------------------------


def named(kind, name):
    network = {"kind": kind, "name": name, "input_size": 32}
    return build(config(network=network), num_classes=10, clock=Clock(1), check_original=True)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnety_002", "resnet10t"])
def test_networks_of_timm(name):
    pytest.importorskip("timm")
    network = named("timm", name)
    initialize(network, 1, "he_normal")
    assert len(network.low_precision_layers()) > 5
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        network.eval()(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_unknown_names_and_absent_weights(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    from bench.networks import timm_models, torchvision_models

    with pytest.raises(InputError, match=r"network\.name: timm has no network 'resnet10x'.*resnet10t"):
        named("timm", "resnet10x")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"start: torchvision:resnet18: the weights are not in the local cache"
    ):
        torchvision_models.trained_file("resnet18")
    with pytest.raises(InputError, match=r"start: timm:resnet10t: .*downloads nothing"):
        timm_models.trained_file("resnet10t")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "resnet18-f37072fd.pth"
    file.write_bytes(b"no weights")
    assert torchvision_models.trained_file("resnet18") == file
    given = sealed({"torchvision": "resnet18"}, tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        start.read(given, tmp_path)
    torch.save({"fc.bias": torch.ones(3)}, file)
    assert start.read(sealed({"torchvision": "resnet18"}, tmp_path), tmp_path).state.keys() == {"fc.bias"}
