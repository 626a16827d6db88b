"""Incremental quantization: which weights are frozen first, that they stay, and who gets a gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.layers.low_precision import strip
from bench.layers.partition import Partition
from bench.strategies import make_strategy
from tests.configs import make_config


def incremental(**options):
    return {"kind": "incremental", **options}


def run_to(config, steps):
    """Return a run after so many of its 10 steps."""
    run = make_run(config, synthetic(96), "cpu")
    for _ in range(steps):
        run.train_step()
    return run


def test_the_largest_are_frozen_first_and_what_is_frozen_stays_frozen():
    weight = torch.nn.Parameter(torch.tensor([[0.1, -0.4], [0.3, -0.2]]))
    partition = Partition(weight)
    partition.freeze_(weight, 0.5)
    assert partition.frozen.tolist() == [[False, True], [True, False]]
    weight.data = torch.tensor([[9.0, 8.0], [7.0, 6.0]])  # an update that also moved the frozen ones
    partition.restore_(weight)
    expected = torch.tensor([[9.0, -0.4], [0.3, 6.0]])
    assert torch.equal(weight.detach(), expected)
    partition.freeze_(weight, 0.75)  # the frozen two are the smallest now, and stay
    assert partition.frozen.tolist() == [[True, True], [True, False]]
    assert torch.equal(partition.held[0], expected[0])


def test_frozen_weights_are_quantized_and_get_no_gradient():
    weight = torch.nn.Parameter(torch.tensor([[0.1, -0.4], [0.3, -0.2]]))
    partition = Partition(weight)
    partition.freeze_(weight, 0.5)
    mixed = partition.mixed(weight, weight.detach() * 10)
    mixed.backward(torch.ones(2, 2))
    np.testing.assert_allclose(mixed.detach(), [[0.1, -4.0], [3.0, -0.2]], rtol=1e-6)
    assert weight.grad.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_portions_are_frozen_at_even_distances():
    strategy = make_strategy(make_config(epochs=4, strategy=incremental(begin=0.2, until=0.8)), 5)
    expected = [0.0] * 4 + [0.5] * 4 + [0.75] * 4 + [0.875] * 4 + [1.0] * 4
    assert [strategy.portion(step) for step in range(20)] == expected
    assert [strategy.factor(step) for step in range(20)] == pytest.approx([1 - p for p in expected])
    at_once = make_strategy(make_config(strategy=incremental(portions=[1.0], begin=0.0, until=0.5)), 5)
    assert [at_once.portion(step) for step in range(10)] == [0.0] * 5 + [1.0] * 5


@pytest.mark.parametrize("fields", [{}, {"optimizer": "sgd", "weight_decay": 0.1}])
def test_training_moves_free_weights_alone_and_none_at_the_end(fields):
    config = make_config(
        bits="2/32", strategy=incremental(portions=[0.5, 1.0], begin=0.2, until=0.6), **fields
    )
    run = make_run(config, synthetic(96), "cpu")
    layer = run.network.conv2
    states = [layer.weight.detach().clone()]
    for _ in range(10):
        run.train_step()
        states.append(layer.weight.detach().clone())
    frozen = layer.partition.frozen
    assert frozen.all()
    assert (states[2] != states[1]).float().mean() > 0.9  # before the first portion, step 2, all are free
    half = [after == before for before, after in itertools.pairwise(states[2:7])]
    assert all(0.49 < same.float().mean() < 0.6 and torch.equal(same, same & half[0]) for same in half)
    assert all(torch.equal(state, states[6]) for state in states[7:])
    run.clock.set_factor(0.0)
    assert torch.equal(layer.low_precision_weight(False), layer.quantizer.weight(layer.weight))
    assert not any("partition" in name for name in strip(run.network).state_dict())


def test_learned_scales_learn_from_the_frozen_weights():
    """TTQ's dL/dWp is the sum of dL/dq over the frozen weights above the threshold, that of Wn of -dL/dq."""
    config = make_config(quantizer="ttq", bits="2/32", strategy=incremental(portions=[0.5, 1.0], begin=0.2))
    run = run_to(config, 3)
    layer = run.network.conv2
    weight, frozen = layer.weight.detach(), layer.partition.frozen
    threshold = 0.05 * weight.abs().max()
    up = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    run.network.zero_grad()
    layer.low_precision_weight(False).backward(up)
    positive, negative = layer.quantizer.positive, layer.quantizer.negative
    assert positive.grad.item() == pytest.approx(up[frozen & (weight > threshold)].sum().item(), rel=1e-4)
    assert negative.grad.item() == pytest.approx(-up[frozen & (weight < -threshold)].sum().item(), rel=1e-4)
    assert torch.equal(layer.weight.grad, torch.where(frozen, 0.0, up))


def test_learned_steps_begin_with_the_weights_that_are_frozen_first():
    """LSQ's first step is 2 mean |w| / sqrt(2^(k-1) - 1), here with k = 2, of the weights at that step."""
    config = make_config(quantizer="lsq", bits="2/32", strategy=incremental(portions=[0.5, 1.0], begin=0.2))
    run = run_to(config, 2)  # step 2 of 10 is the first with a frozen portion
    layer = run.network.conv2
    assert not layer.partition.frozen.any()
    run.strategy.before_step(run.network, 2)
    assert layer.quantizer.weight_step.item() == pytest.approx(2 * layer.weight.abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"portions": [0.5, 0.25, 1.0]}, r"strategy.portions: .* rising shares"),
        ({"portions": [0.5, 0.75]}, r"the last of them 1"),
        ({"begin": 0.8, "until": 0.5}, r"strategy.until: 0.5 must be above begin, 0.8"),
    ],
)
def test_what_cannot_be_is_said(options, words):
    with pytest.raises(InputError, match=words):
        make_strategy(make_config(strategy=incremental(**options)), 5)
