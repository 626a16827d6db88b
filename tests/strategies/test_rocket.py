"""Rocket launching: the loss, the gradient block, and what both networks share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from tests.configs import make_config
from tests.strategies import toys
from tests.strategies.toys import FULL, IMAGES, Linear, cross_entropy, hard, hard_gradient

LIGHT, BOOSTER = ([[0.3, -0.2], [0.1, 0.4]], [[1.0, -1.0], [0.5, 0.2]])


def run_of(**options):
    strategy = {"kind": "rocket", "booster": FULL, **options}
    return make_run(make_config(strategy=strategy), synthetic(96), "cpu")


@pytest.mark.parametrize("block", [True, False])
def test_loss_and_gradients_by_hand(block, monkeypatch):
    monkeypatch.setattr("bench.strategies.rocket._first_convolution", lambda network: [])
    monkeypatch.setattr("bench.strategies.rocket.class_count", lambda network: 2)
    light, booster = Linear(LIGHT), Linear(BOOSTER)
    strategy = toys.strategy("rocket", booster, booster=FULL, weight=0.3, block=block)
    loss = strategy.loss(light(toys.images()), toys.images(), toys.labels(), cross_entropy)
    loss.backward()
    z, b = IMAGES @ np.array(LIGHT), IMAGES @ np.array(BOOSTER)
    assert loss.item() == pytest.approx(hard(z) + hard(b) + 0.3 * ((z - b) ** 2).sum(1).mean(), rel=1e-6)
    pull = 0.3 * 2 * (z - b) / len(z)
    np.testing.assert_allclose(light.weight.grad, IMAGES.T @ (hard_gradient(z) + pull), rtol=1e-5)
    expected = hard_gradient(b) - (0.0 if block else pull)
    np.testing.assert_allclose(booster.weight.grad, IMAGES.T @ expected, rtol=1e-5)


def test_shared_weights_are_one_tensor_that_both_move_once_a_step():
    run = run_of(shared=["conv0", "conv1"])
    network, booster = run.network, run.trained["booster"]
    assert network.conv0.weight is booster.conv0.weight and network.conv1.weight is booster.conv1.weight
    assert network.conv2.weight is not booster.conv2.weight
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters))
    before = network.conv2.weight.detach().clone(), booster.conv2.weight.detach().clone()
    run.train_step()
    assert torch.equal(network.conv1.weight, booster.conv1.weight)
    after = network.conv2.weight, booster.conv2.weight
    assert not any(torch.equal(p, old) for p, old in zip(after, before, strict=True))
    assert run_of().trained["booster"].conv1.weight is not run_of().network.conv1.weight


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shared": ["conv9"]}, r"strategy.shared: the network has no module called 'conv9'"),
        ({"shared": ["pool"]}, r"strategy.shared: 'pool' has parameters of \{\}"),
        ({"booster": {**FULL, "width": 0.25}}, r"strategy.shared: 'conv0' has parameters of"),
    ],
)
def test_what_cannot_be_shared_is_said(options, words):
    with pytest.raises(InputError, match=words):
        run_of(**options)
