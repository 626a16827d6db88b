"""Accurate batch norm against NumPy in float64, and where PyTorch's own is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bench.experiments.config import make_config
from bench.layers.batch_norm import AccurateBatchNorm, FactorBatchNorm
from bench.networks import build, initialize
from bench.randomness import Clock
from bench.training.distributed import SOLO, batch_norm_for

CHANNELS = 16


def made(shift: float, count: int = 128, size: int = 18):
    """Return PyTorch's norm, the accurate one (scales not 1, shifts not 0), and a channels-last batch."""
    generator = torch.Generator().manual_seed(0)
    norms = [nn.BatchNorm2d(CHANNELS, eps=1e-4), nn.BatchNorm2d(CHANNELS, eps=1e-4)]
    for norm in norms:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 1.5, CHANNELS))
            norm.bias.copy_(torch.linspace(-1.0, 1.0, CHANNELS))
    x = torch.randn(count, CHANNELS, size, size, generator=generator) + shift
    return norms[0], AccurateBatchNorm(norms[1]), x.contiguous(memory_format=torch.channels_last)


def formula(norm, x):
    """Return y, mean and unbiased variance in NumPy float64."""
    v = x.detach().double().numpy()
    mean, variance = v.mean((0, 2, 3)), v.var((0, 2, 3))
    w, b = (p.detach().double().numpy()[None, :, None, None] for p in (norm.weight, norm.bias))
    y = (v - mean[None, :, None, None]) / np.sqrt(variance + norm.eps)[None, :, None, None] * w + b
    return y, mean, v.var((0, 2, 3), ddof=1)


@pytest.mark.parametrize("shift", [0.0, 3.0, 10.0])
def test_outputs_and_running_statistics_are_the_formula(shift):
    plain, accurate, x = made(shift)
    y, mean, variance = formula(plain, x)
    found = accurate(x)
    assert np.abs(found.detach().numpy() - y).max() < 5e-6
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(accurate.running_mean.numpy(), 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(accurate.running_var.numpy(), 0.9 + 0.1 * variance, rtol=1e-6)
    assert accurate.num_batches_tracked == 1
    plain(x)
    torch.testing.assert_close(plain.running_var, accurate.running_var, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_float64():
    plain, accurate, x = made(3.0)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    found = torch.autograd.grad(accurate(x), [x, accurate.weight, accurate.bias], g)
    wide = x.detach().double().requires_grad_()
    norm = plain.double()
    want = torch.autograd.grad(norm(wide), [wide, norm.weight, norm.bias], g.double())
    for ours, theirs in zip(found, want, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_factor_multiplies_and_evaluation_is_pytorchs():
    _, accurate, x = made(1.0, count=8)
    own = FactorBatchNorm(CHANNELS, eps=1e-4)
    own.load_state_dict(accurate.state_dict())
    factor = torch.tensor(0.25)
    torch.testing.assert_close(accurate(x, factor), own(x, factor), rtol=1e-4, atol=1e-5)
    own.load_state_dict(accurate.state_dict())
    assert torch.equal(accurate.eval()(x, factor), own.eval()(x, factor))
    other = AccurateBatchNorm(nn.BatchNorm2d(CHANNELS)).train()
    contiguous = x.contiguous()
    assert torch.equal(other(contiguous), nn.BatchNorm2d(CHANNELS).train()(contiguous))


@pytest.mark.slow
def test_a_recipe_asks_for_it():
    fields = {
        "dataset": "digits",
        "network": "svhn_convnet",
        "quantizer": "dorefa",
        "bits": "1/1",
        "epochs": 1,
    }
    strategy = {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}}
    for statistics, kind in (("framework", None), ("accurate", AccurateBatchNorm)):
        config = make_config(
            {**fields, "width": 0.125, "strategy": strategy, "batch_norm_statistics": statistics}
        )
        network = build(config, num_classes=10, clock=Clock(0))
        initialize(network, 0, config.initialization)
        names = list(network.state_dict())
        batch_norm_for(network, config, SOLO)
        assert list(network.state_dict()) == names
        assert (type(network.bn1) is kind) == (kind is not None)
        network.to(memory_format=torch.channels_last)
        images = torch.rand(4, 3, 40, 40).contiguous(memory_format=torch.channels_last)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), network(images), rtol=1e-4, atol=1e-4)
