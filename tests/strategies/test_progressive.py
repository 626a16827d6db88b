"""The progressive strategy: factors of single layers, and what a file may say of them."""

from __future__ import annotations

import pytest
import torch

from bench.errors import InputError
from bench.experiments.identity import identity_document
from bench.experiments.labels import label
from bench.networks import build, initialize
from bench.randomness import Clock
from bench.schedules import factor_value
from bench.strategies import make_strategy
from tests.configs import make_config

FIFTY, EIGHTY = ({"kind": "cosine", "until_epochs": epochs} for epochs in (5, 8))


def config(**strategy):
    return make_config(
        network={"kind": "svhn_convnet", "dropout": 0.0},
        epochs=10,
        strategy={"kind": "progressive", "merge": "sum", "factor": FIFTY, **strategy},
    )


def prepared(config):
    """Return (strategy, network, clock) as training sets them up."""
    clock = Clock(0)
    strategy = make_strategy(config, 4)
    network = build(config, num_classes=10, clock=clock, branch=strategy.branch)
    initialize(network, 0, config.initialization)
    strategy.prepare(network, lambda config: network, {})
    return strategy, network, clock


def test_each_layer_has_its_own_factor_and_the_others_the_common_one():
    made = config(layer_factors={"conv5": EIGHTY, "conv6": EIGHTY})
    strategy, network, clock = prepared(made)
    spec = made.strategy
    for step in range(40):
        common = factor_value(spec["factor"], step, 40, 4)
        longer = factor_value(spec["layer_factors"]["conv6"], step, 40, 4)
        assert strategy.factor(step) == max(common, longer)
        clock.set(step, strategy.factor(step))
        assert clock.active == (step < 32)
        assert clock.factor_of("conv1").item() == pytest.approx(common, rel=1e-6)
        assert clock.factor_of("conv6").item() == pytest.approx(longer, rel=1e-6)
    assert [step for step in range(40) if strategy.removal(step)] == [32]
    clock.set(0, strategy.factor(0))
    images = torch.rand(2, 3, 40, 40)
    before = network.eval()(images)
    clock.set(30, strategy.factor(30))  # conv1 to conv4 are at 0, conv5 and conv6 are not
    assert not torch.equal(network(images), before)


def test_without_own_factors_nothing_changes():
    plain = config()
    strategy, _, clock = prepared(plain)
    clock.set(3, strategy.factor(3))
    assert clock.shares == {} and clock.factor_of("conv1") is clock.factor
    assert "layer_factors" not in identity_document(plain)["strategy"]
    assert "relu" not in identity_document(plain)["strategy"]


def test_names_and_labels():
    made = config(layer_factors={"conv6": EIGHTY}, relu=True)
    document = identity_document(made)["strategy"]
    assert document["layer_factors"] == {"conv6": {"kind": "cosine", "until_epochs": 8.0}}
    assert "conv6 cosine (until_epochs 8)" in label("strategies", made.strategy)
    with pytest.raises(InputError, match=r"layer_factors: no branch stands at 'conv7'.*Branches: conv1, "):
        prepared(config(layer_factors={"conv7": EIGHTY}))
    with pytest.raises(InputError, match=r"strategy.layer_factors: expected a table of layers"):
        config(layer_factors=["conv1"])
    with pytest.raises(InputError, match=r"strategy.layer_factors.conv1.until: "):
        config(layer_factors={"conv1": {"kind": "cosine", "until": 2}})
    with pytest.raises(InputError, match=r"strategy.relu: .*merge"):
        config(merge="preactivation", relu=True)
