"""The auxiliary module: its arithmetic by hand, what its loss reaches, where it reads a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.layers.low_precision import strip
from bench.networks import Builder, build
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock
from bench.strategies.auxiliary import AuxiliaryModule
from bench.strategies.taps import Taps, block_inputs, class_count
from tests.configs import make_config

RESIDUAL = {"network": "resnet20", "width": 0.25}


def test_the_module_is_the_formula():
    """Two places, (2, 4, 4) and (3, 2, 2): matrices are drawn; batch norm evaluates, mean 0, variance 1."""
    dice = np.random.default_rng(0)
    module = AuxiliaryModule([(2, 4, 4), (3, 2, 2)], classes=4).double().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.tensor(dice.normal(size=tuple(parameter.shape)))
    first, second = dice.normal(size=(5, 2, 4, 4)), dice.normal(size=(5, 3, 2, 2))
    found = module([torch.tensor(first), torch.tensor(second)])

    def pointwise(sequence, x):
        w = sequence[0].weight.detach().numpy()[:, :, 0, 0]
        return np.einsum("oi,bihw->bohw", w, x) / np.sqrt(1 + 1e-5)

    gathered = pointwise(module.adaptors[0], first)
    moved = pointwise(module.changes[0], gathered[:, :, ::2, ::2])
    gathered = np.maximum(moved + pointwise(module.adaptors[1], second), 0)
    logits = (
        gathered.mean((2, 3)) @ module.linear.weight.detach().numpy().T + module.linear.bias.detach().numpy()
    )
    np.testing.assert_allclose(found.detach().numpy(), logits, rtol=1e-9)
    assert module.macs == 2 * 2 * 16 + 3 * 3 * 4 + 2 * 3 * 4 + 3 * 4


def test_a_size_that_does_not_divide_is_cropped_to_the_centre():
    module = AuxiliaryModule([(1, 9, 9), (1, 7, 7)], classes=2).eval()
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data.fill_(1.0)
    x = torch.arange(81.0).reshape(1, 1, 9, 9)
    module.linear.weight.data.fill_(1.0)
    module.linear.bias.data.fill_(0.0)
    expected = x[:, :, 1:8, 1:8].mean() / (1 + 1e-5)
    assert module([x, torch.zeros(1, 1, 7, 7)])[0, 0].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "count", "first", "last"),
    [({}, 7, "conv1", "linear"), (RESIDUAL, 10, "blocks.0.conv1", "linear")],
)
def test_it_reads_each_block_once(fields, count, first, last):
    found = block_inputs(build(make_config(**fields), num_classes=10, clock=Clock(0)))
    assert (len(found), found[0], found[-1]) == (count, first, last)


@pytest.mark.parametrize("fields", [{}, RESIDUAL])
def test_its_loss_reaches_every_block_and_the_network_is_as_it_was(fields):
    run = make_run(make_config(**fields, strategy={"kind": "auxiliary"}), synthetic(96), "cpu")
    plain = make_run(make_config(**fields), synthetic(96), "cpu")
    mine, other = run.network.state_dict(), plain.network.state_dict()
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    x = torch.rand(4, 3, run.network.input_size, run.network.input_size)
    labels = torch.arange(4)
    logits = run.network(x)
    nothing = run.strategy.loss(logits.detach(), x, labels, run.loss)
    nothing.backward()  # through the module alone
    before_last = [name for name, _ in run.network.low_precision_layers()][:-1]
    for name, layer in run.network.low_precision_layers():
        assert (
            layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
        ) or name not in before_last
    assert run.network.linear.weight.grad is None  # the network's own classifier is not on the module's way
    assert all(p.grad is not None for p in run.trained["auxiliary"].parameters())


def test_nothing_of_it_is_deployed_and_evaluation_keeps_nothing():
    run = make_run(make_config(strategy={"kind": "auxiliary"}), synthetic(96), "cpu")
    run.train_step()
    assert set(strip(run.network).state_dict()) == set(
        build(run.config, num_classes=10, clock=Clock(0)).state_dict()
    )
    taps = run.strategy.taps
    run.network.eval()(torch.rand(1, 3, 40, 40))
    assert taps._kept == {}


def test_an_unknown_layer_is_named_with_the_nearest_one():
    network = build(make_config(), num_classes=10, clock=Clock(0))
    with pytest.raises(InputError, match=r"strategy\.layers: .*'conv9'.*Layers: conv1, "):
        Taps(network, ["conv9"], "strategy.layers")


@pytest.mark.parametrize(
    "last", [torch.nn.Linear(24, 7), torch.nn.Conv2d(6, 7, 2)], ids=["linear", "convolution"]
)
def test_the_classes_of_anybody_s_network_are_counted(last):
    """A converted network has no classifier of the suite's; its last layer may be a convolution."""
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU()]
    ends = [torch.nn.Flatten()]
    ends = [last, *ends] if isinstance(last, torch.nn.Conv2d) else [*ends, last]
    builder = Builder(make_config(width=1.0), Clock(0))
    network = builder.finish(transform(torch.nn.Sequential(*layers, *ends), builder, 7, input_size=6))
    network.train()
    assert class_count(network) == 7 and network.training


def test_the_module_of_uneven_maps_is_counted():
    """4 x 6 positions of 2 channels become 2 x 3 of 3: adaptors 4 and 9, change 6 a position, linear 15."""
    module = AuxiliaryModule([(2, 4, 6), (3, 2, 3)], classes=5)
    assert module.macs == 4 * 24 + 9 * 6 + 6 * 6 + 15
