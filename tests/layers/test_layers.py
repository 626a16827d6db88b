"""The parts of a low-precision layer, each against a formula written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.experiments.config import TrialConfig
from bench.layers.batch_norm import FactorBatchNorm
from bench.layers.branch import Branch
from bench.layers.dropout import Dropout
from bench.layers.low_precision import LowPrecisionConv2d
from bench.networks import Builder
from bench.quantizers.dorefa import quantize_gradient
from bench.randomness import Clock, Draws


def builder(quantizer="dorefa", bits="1/2", *, branch=None, blend=None) -> Builder:
    fields = {
        "dataset": "digits",
        "network": "svhn_convnet",
        "quantizer": quantizer,
        "bits": bits,
        "epochs": 1,
    }
    return Builder(TrialConfig.model_validate(fields), Clock(3), branch, blend)


def conv(
    quantizer="dorefa",
    bits="1/2",
    *,
    branch=None,
    blend=None,
    extra=0,
    kernel=3,
    padding=1,
    stride=1,
    factor=0.75,
):
    """Return a convolution of 4 (and ``extra``) to 6 channels in float64, with random weights everywhere."""
    made = builder(quantizer, bits, branch=branch, blend=blend)
    layer = made.conv("conv1", 4, 6, kernel, padding=padding, stride=stride, extra=extra).double()
    made.clock.set(5, factor)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def tensor(*shape, seed=1):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True
    )


def gradients(output, *inputs):
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype)
    return torch.autograd.grad((output * probe).sum(), inputs)


def binary(w):
    return w.abs().mean() * torch.where(w >= 0, 1.0, -1.0).to(w.dtype)


def two_bits(x):
    return torch.round(3 * x.clamp(0, 1)) / 3


# -- preactivation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [None, 1])
@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [("dorefa", "1/2"), ("dorefa", "2/2"), ("bnn", "1/1"), ("syq", "2/2"), ("ttq", "2/2")],
)
def test_preactivation_in_one_convolution_equals_two(quantizer, bits, kernel):
    """LP x + f FP x and its gradients, computed in one convolution of Q(w) + f v and in two."""
    layer = conv(quantizer, bits, branch=Branch("preactivation", kernel=kernel), stride=2)
    assert layer.one_convolution
    y = tensor(2, 4, 9, 9)
    inputs = [y, *layer.parameters()]
    one, rest = layer(y)
    assert rest is None
    layer.one_convolution = False
    two, rest = layer(y)
    assert rest is None
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    for first, second in zip(gradients(one, *inputs), gradients(two, *inputs), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def test_preactivation_quantizes_the_gradient_of_the_low_precision_convolution_alone():
    layer = conv("dorefa", "1/2/3", branch=Branch("preactivation"))
    assert not layer.one_convolution
    y = tensor(2, 4, 5, 5)
    out, _ = layer(y)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    to_weight, to_branch = torch.autograd.grad((out * probe).sum(), [layer.weight, layer.branch.weight])
    x, shape = two_bits(y).detach(), layer.weight.shape
    low = quantize_gradient(probe, 7, layer.quantizer.draws.uniform(probe))
    assert not torch.equal(low, probe)
    torch.testing.assert_close(to_weight, torch.nn.grad.conv2d_weight(x, shape, low, padding=1))
    torch.testing.assert_close(to_branch, torch.nn.grad.conv2d_weight(x, shape, probe * 0.75, padding=1))


def test_the_input_scale_multiplies_the_low_precision_convolution_alone():
    layer = conv("xnor", "1/1", branch=Branch("preactivation"))
    y = tensor(2, 4, 5, 5)
    signs = torch.where(y >= 0, 1.0, -1.0).double()
    alpha = layer.weight.abs().mean((1, 2, 3), keepdim=True)
    scale = F.conv2d(y.abs().mean(1, keepdim=True), torch.full((1, 1, 3, 3), 1 / 9).double(), padding=1)
    main = F.conv2d(signs, alpha * torch.where(layer.weight >= 0, 1.0, -1.0), padding=1) * scale
    out, _ = layer(y)
    torch.testing.assert_close(out, main + 0.75 * F.conv2d(signs, layer.branch.weight, padding=1))
    layer.clock.set_factor(0.0)
    torch.testing.assert_close(layer(y)[0], main)


def test_the_input_scale_reads_the_main_channels_alone():
    layer = conv("xnor", "1/1", branch=Branch("concat"), extra=3)
    y, rest = tensor(2, 4, 5, 5), tensor(2, 3, 5, 5, seed=2)
    seen = layer.input_scale(y)
    assert torch.equal(seen, layer.quantizer.input_scale(y, 3, 1, 1))
    weight = layer.low_precision_weight(with_extra=True)
    signs = torch.where(y >= 0, 1.0, -1.0).double()
    main, _ = layer(y, rest)
    torch.testing.assert_close(main, seen * F.conv2d(torch.cat([signs, rest], 1), weight, padding=1))
    linear = builder("xnor", "1/1").linear("fc1", 4 * 25, 6).double()
    torch.testing.assert_close(linear.input_scale(y), y.abs().mean((1, 2, 3)).reshape(2, 1))


# -- the branch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "kernel", "padding", "stride"),
    [
        (3, 1, 1, 1),
        (3, 1, 0, 1),
        (3, 1, 0, 2),
        (3, 1, 1, 2),
        (5, 3, 0, 1),
        (5, 1, 0, 2),
        (5, 3, 2, 1),
        (3, 5, 1, 1),
    ],
)
def test_a_smaller_kernel_sees_the_centre_of_the_window(main, kernel, padding, stride):
    """The geometry is the main convolution's, zeros around the branch's kernel; a larger kernel is cut."""
    branch = Branch("sum", kernel=kernel, batch_norm=False)
    layer = conv(branch=branch, kernel=main, padding=padding, stride=stride)
    y = tensor(2, 4, 8, 8)
    out, rest = layer(y)
    size = min(main, kernel)
    assert layer.branch.weight.shape[2:] == (size, size) and rest.shape == out.shape
    margin = (main - size) // 2
    whole = np.zeros((6, 4, main, main))
    whole[:, :, margin : margin + size, margin : margin + size] = layer.branch.weight.detach().numpy()
    expected = 0.75 * F.conv2d(two_bits(y), torch.from_numpy(whole), padding=padding, stride=stride)
    torch.testing.assert_close(rest, expected, rtol=1e-12, atol=1e-12)
    whole_again = layer.branch.centred()
    assert np.array_equal(whole_again.detach().numpy(), whole)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("pool_first", [False, True])
def test_the_branch_is_pooled_like_the_main_path(batch_norm, pool_first):
    made = builder(branch=Branch("difference", batch_norm=batch_norm))
    layer = made.conv("conv1", 4, 6, 3, padding=1, pool=nn.MaxPool2d(2), pool_first=pool_first).double()
    made.clock.set(0, 0.75)
    side = F.conv2d(two_bits(y := tensor(3, 4, 8, 8)), layer.branch.weight, padding=1)
    if batch_norm:
        with torch.no_grad():
            layer.branch.norm.weight.copy_(torch.tensor([0.5, 1, 2, 3, 0.1, 1]))
            layer.branch.norm.bias.copy_(torch.tensor([0.5, -1, 2, -3, 0, 1]))
    if pool_first:
        side = F.max_pool2d(side, 2)
    if batch_norm:
        mean, variance = side.mean((0, 2, 3), keepdim=True), side.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (p.view(1, -1, 1, 1) for p in (layer.branch.norm.weight, layer.branch.norm.bias))
        side = (side - mean) / torch.sqrt(variance + 1e-5) * scale + shift
    if not pool_first:
        side = F.max_pool2d(side, 2)
    torch.testing.assert_close(layer(y)[1], 0.75 * side, rtol=1e-9, atol=1e-9)


def test_factor_batch_norm_is_batch_norm_times_the_factor():
    torch.manual_seed(0)
    ours, theirs = FactorBatchNorm(3, eps=1e-3).double(), nn.BatchNorm2d(3, eps=1e-3).double()
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, -2.0]))
    factor = torch.tensor(0.25)
    for count in (1, 2):
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * count + count
        torch.testing.assert_close(ours(x, factor), 0.25 * theirs(x), rtol=1e-10, atol=1e-10)
    assert ours.num_batches_tracked == 2
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x, factor), 0.25 * theirs.eval()(x))
    for norm in (ours, theirs):  # a cumulative average, as for re-estimation
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for count in (1, 2, 3):
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * count
        ours(x, factor), theirs(x)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_merges_at_the_reading_layer():
    y, rest = tensor(2, 4, 5, 5), tensor(2, 4, 5, 5, seed=2)
    expected = {
        "sum": two_bits(y) + rest,
        "difference": two_bits(y) - rest,
        "concat": torch.cat([two_bits(y), rest], 1),
    }
    for merge, x in expected.items():
        layer = conv(branch=Branch(merge), extra=4 if merge == "concat" else 0)
        torch.testing.assert_close(layer.prepare(y, rest), x)
        bounded = y.clamp(0, 1)
        carried = {"sum": bounded + rest, "difference": bounded - rest, "concat": bounded}[merge]
        torch.testing.assert_close(layer.carried(y, rest), carried)
        w = binary(layer.weight)
        if merge == "concat":
            w = torch.cat([w, binary(layer.weight_extra)], 1)
        torch.testing.assert_close(layer(y, rest)[0], F.conv2d(x, w, padding=1))


def test_branch_and_main_path_read_the_same_tensor_and_share_its_gradient():
    layer = conv(branch=Branch("concat", batch_norm=False), extra=2)
    y, rest = tensor(2, 4, 5, 5), tensor(2, 2, 5, 5, seed=2)
    _, side = layer(y, rest)
    assert layer.branch.weight.shape == (6, 6, 3, 3)
    torch.testing.assert_close(
        side, 0.75 * F.conv2d(torch.cat([two_bits(y), rest], 1), layer.branch.weight, padding=1)
    )
    (to_rest,) = gradients(side, rest)
    probe = torch.randn(side.shape, generator=torch.Generator().manual_seed(9), dtype=side.dtype)
    expected = torch.nn.grad.conv2d_input((2, 6, 5, 5), layer.branch.weight, 0.75 * probe, padding=1)[:, 4:]
    torch.testing.assert_close(to_rest, expected)


def test_the_branch_is_not_computed_at_factor_zero():
    layer = conv(branch=Branch("sum"), factor=0.0)
    layer.branch.forward = None  # any call would raise
    main, rest = layer(tensor(2, 4, 5, 5))
    assert rest is None
    main.sum().backward()
    assert layer.branch.weight.grad is None


# -- the control without a branch ----------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["both", "weights", "activations"])
def test_anneal_blends_full_into_low_precision(blend):
    layer = conv(blend=blend, factor=0.25)
    y = tensor(2, 4, 5, 5)
    w, x = binary(layer.weight), two_bits(y)
    if blend != "activations":
        w = 0.75 * w + 0.25 * layer.weight
    if blend != "weights":
        x = 0.75 * x + 0.25 * y.clamp(0, 1)
    out, rest = layer(y)
    assert rest is None
    torch.testing.assert_close(out, F.conv2d(x, w, padding=1))
    (to_weight,) = gradients(out, layer.weight)
    (expected,) = gradients(
        F.conv2d(x.detach(), v := layer.weight.detach().clone().requires_grad_(), padding=1), v
    )
    torch.testing.assert_close(to_weight, expected)  # both shares pass it straight
    layer.clock.set_factor(0.0)
    torch.testing.assert_close(layer(y)[0], F.conv2d(two_bits(y), binary(layer.weight), padding=1))


@pytest.mark.parametrize(("quantizer", "slope"), [("dorefa", [1.0] * 5), ("bnn", [1.0, 1.0, 1.0, 1.0, 0.0])])
def test_signs_are_lines_that_grow_steep(quantizer, slope):
    layer = conv(quantizer, "1/1", blend="signs", factor=0.5)
    made = [-0.25, 0.0, 0.125, 0.5, 1.25]
    with torch.no_grad():
        layer.weight.zero_().view(-1)[:5] = torch.tensor(made)
    scale = layer.quantizer.weight(layer.weight).abs().max().item()
    low = layer.low_precision_weight(False).reshape(-1)
    assert low[:5].tolist() == pytest.approx([scale * x for x in (-0.5, 0.0, 0.25, 1.0, 1.0)])
    (to_weight,) = torch.autograd.grad(low.sum(), layer.weight)
    assert to_weight.reshape(-1)[:5].tolist() == slope, (
        "the gradient is the quantizer's, not that of the line"
    )
    layer.clock.set_factor(0.0)
    deployed = layer.low_precision_weight(False)
    assert torch.equal(deployed, layer.quantizer.weight(layer.weight)), "at f = 0 the sign alone"


def test_anneal_starts_in_full_precision_with_an_input_scale_too():
    layer = conv("xnor", "1/1", blend="both", factor=1.0)
    y = tensor(2, 4, 5, 5)
    torch.testing.assert_close(layer(y)[0], F.conv2d(y.clamp(-1, 1), layer.weight, padding=1))


# -- dropout and streams -------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_is_new_each_step():
    clock = Clock(0)
    dropout = Dropout(0.25, Draws(clock, "dropout", "conv6")).train()
    x = torch.ones(40, 25, 10, 10)
    first = dropout(x)
    np.testing.assert_allclose(first.unique().numpy(), [0, 4 / 3], rtol=1e-6)
    # 100,000 draws: the standard error of the share is sqrt(0.25 * 0.75 / 1e5) = 0.0014
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.007)
    assert torch.equal(first, dropout(x))
    clock.set(1, 0.0)
    assert not torch.equal(first, dropout(x))
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0, Draws(clock, "dropout", "x")).train()(x), x)


def test_layers_draw_from_streams_of_their_own():
    made = builder("dorefa", "1/2/4")
    first, second = (made.conv(name, 4, 6, 3) for name in ("conv1", "conv2"))
    g = torch.ones(2, 6, 3, 3)
    assert not torch.equal(first.quantizer.draws.uniform(g), second.quantizer.draws.uniform(g))


def test_a_layer_alone_is_a_convolution_module():
    layer = conv()
    assert isinstance(layer, LowPrecisionConv2d) and isinstance(layer, nn.Conv2d)
    assert layer.branch is None and list(layer.state_dict()) == ["weight"]
    assert list(conv("syq", "2/2").state_dict()) == ["weight", "quantizer.scale"]
