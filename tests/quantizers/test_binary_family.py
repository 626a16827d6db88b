"""What the quantizers of 1-bit networks promise beyond the conformance checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.layers.branch import MERGES, Branch
from bench.layers.low_precision import strip
from bench.networks import build, initialize
from bench.quantizers import make_quantizer
from bench.quantizers.hwgq import FREE_LEVELS, UNIFORM_STEPS, half_gaussian_levels
from bench.randomness import Clock, Draws
from tests.configs import make_config
from tests.conformance.checks import run, values
from tests.quantizers import quantizer_oracles as oracle


def _moments(edges):
    """Mass and first moment of a standard normal variable between edges."""
    tail = np.array([0.5 * math.erfc(e / math.sqrt(2)) for e in edges])
    density = np.array(
        [0.0 if math.isinf(e) else math.exp(-e * e / 2) / math.sqrt(2 * math.pi) for e in edges]
    )
    return tail[:-1] - tail[1:], density[:-1] - density[1:]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_levels_of_hwgq_are_fixed_points_of_lloyds_iteration(bits):
    for uniform in (True, False):
        levels = np.array(half_gaussian_levels(bits, uniform))
        edges = [0.0, *(levels[1:] + levels[:-1]) / 2, math.inf]
        mass, moment = _moments(edges)
        if uniform:
            codes = np.arange(1, len(levels) + 1)
            step = (codes * moment).sum() / (codes**2 * mass).sum()
            assert step == pytest.approx(UNIFORM_STEPS[bits], abs=2e-9)
        else:
            np.testing.assert_allclose(moment / mass, FREE_LEVELS[bits], atol=2e-9)
    assert UNIFORM_STEPS[2] == pytest.approx(0.538, abs=1e-3), "the released step"


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_hwgq_with_free_levels(bits):
    q = make_quantizer("hwgq", 1, bits, uniform=False)
    x, g = values(2_000), values(2_000, seed=1)
    y, dx = run(q.activation, x, g)
    levels = np.float32(FREE_LEVELS[bits]).astype(np.float64)
    np.testing.assert_array_equal(y, np.where(x > 0, oracle.nearest(x, levels), 0.0))
    np.testing.assert_array_equal(dx, np.float32(g * ((x > 0) & (x <= levels[-1]))))
    bounded, dx = run(q.bound, x, g)
    np.testing.assert_allclose(bounded, np.clip(x, 0, levels[-1]), rtol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_derivative_of_irnet_sharpens_with_the_progress(progress):
    q = make_quantizer("irnet", 1, 1)
    clock = Clock()
    q.draws = Draws(clock, "quantizer", "x")
    clock.total_steps = 8
    clock.set(round(8 * progress), 0.0)
    x, g = values(500, scale=0.5), values(500, seed=1)
    y, dx = run(q.activation, x, g)
    want, want_dx = oracle.decaying_sign(x, g * (np.abs(x) <= 1), progress)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-6)
    w, g = values((4, 3, 3, 3), scale=0.2), values((4, 3, 3, 3), seed=1)
    q_w, dw = run(q.weight, w, g)
    want, want_dw = oracle.libra(w, g, progress)
    np.testing.assert_array_equal(q_w, want)
    np.testing.assert_allclose(dw, want_dw, rtol=1e-3, atol=1e-4)


def test_irnet_takes_scale_and_shift_of_the_weights_for_nothing():
    w = torch.tensor(values((4, 3, 3, 3))).float()
    q = make_quantizer("irnet", 1, 1)
    assert torch.equal(q.weight(w), q.weight(0.001 * w + 5e-4))
    assert (q.weight(torch.full((2, 3), 0.3)) == 0).all()


def test_a_filter_of_one_weight():
    for kind in ("irnet", "bireal", "twn", "bwn"):
        w = torch.tensor([[0.5], [-0.25]], requires_grad=True)
        q = make_quantizer(kind, 2 if kind == "twn" else 1, 32 if kind in ("twn", "bwn") else 1)
        y = q.weight(w)
        y.sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(w.grad).all(), kind


def test_reactnet_has_parameters_for_each_channel():
    q = make_quantizer("reactnet", 1, 1, weight_shape=(6, 3, 3, 3), channels=3)
    assert {name: tuple(p.shape) for name, p in q.named_parameters()} == dict.fromkeys(
        ("shift_in", "slope", "shift_out", "threshold"), (3,)
    )
    assert q.stored_scales(torch.zeros(6, 3, 3, 3)) == 6 + 4 * 3
    generator = np.random.default_rng(3)
    for p in q.parameters():
        p.data = torch.tensor(generator.uniform(-0.5, 0.5, 3)).float()
    x, g = values((2, 3, 4, 4)), values((2, 3, 4, 4), seed=1)
    names, parameters = zip(*q.named_parameters(), strict=True)
    y, dx, *grads = run(q.activation, x, g, parameters=parameters)
    for channel in range(3):
        own = [p.detach().double().numpy()[channel] for p in parameters]
        want, want_dx, want_grads, _ = oracle.shifted_sign(x[:, channel], g[:, channel], *own)
        np.testing.assert_array_equal(y[:, channel], want)
        np.testing.assert_allclose(dx[:, channel], want_dx, atol=1e-5)
        for name, grad in zip(names, grads, strict=True):
            assert grad[channel] == pytest.approx(want_grads[name], abs=1e-4), name


@pytest.mark.parametrize("merge", [None, *MERGES])
def test_reactnets_shortcut_carries_what_rprelu_gives(merge):
    network = {"kind": "resnet18", "block": "react", "shortcut": "D", "input_size": 32}
    config = make_config(network=network, quantizer="reactnet", bits="1/1", width=0.0625)
    clock = Clock(0)
    built = build(config, num_classes=10, clock=clock, branch=merge and Branch(merge))
    initialize(built, 0, config.initialization)
    assert len(built.blocks) == 16, "a block for each 3x3 convolution"
    first = built.blocks[0]
    assert first.conv1.quantizer.slope.shape == (4,) and built.linear.quantizer.slope.shape == (32,)
    x = torch.rand(3, 3, 32, 32)
    clock.set(0, 0.5)
    built.train()(x)
    built.eval()
    clock.set_factor(0.0)
    with torch.no_grad():
        stream = torch.randn(2, 4, 5, 5)
        y, _ = first(stream, None)
        quantizer = first.conv1.quantizer
        want = first.bn1(first.conv1(stream)[0]) + first.shortcut(quantizer.bound(stream))
        assert torch.equal(y, want)
        assert torch.equal(strip(built)(x), built(x))


def test_bireals_start_is_a_network_with_clipped_activations():
    q = make_quantizer("bireal", 32, 32)
    w, x = torch.randn(3, 4), torch.tensor([-3.0, 0.5, 2.0])
    assert torch.equal(q.weight(w), w) and q.activation(x).tolist() == [-1.0, 0.5, 1.0]
    start = build(make_config(quantizer="bireal", bits="32/32"), num_classes=10, clock=Clock(0))
    later = build(make_config(quantizer="bireal", bits="1/1"), num_classes=10, clock=Clock(0))
    later.load_state_dict(start.state_dict())


@pytest.mark.parametrize(
    ("kind", "bits"), [("qnn", b) for b in (1, 2, 3, 4, 8)] + [("qnn_log", b) for b in (1, 2, 3, 5)]
)
def test_k_bits_of_qnn_are_2_to_the_k_levels(kind, bits):
    x = torch.linspace(-1.5, 1.5, 200_001)
    levels = make_quantizer(kind, bits, bits).activation(x).unique()
    assert len(levels) == 2**bits and levels.abs().max() == 1.0
    assert (0.0 in levels.tolist()) == (kind == "qnn" and bits > 1)
