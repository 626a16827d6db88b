"""Stages of precision: the points at which they change, what is quantized in each, and the guiding twin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.layers.diagnostics import in_evaluation
from bench.networks import Builder, initialize
from bench.networks.convert.rewrite import transform
from bench.quantizers import make_quantizer
from bench.quantizers.functional import round_unit
from bench.randomness import Clock
from bench.strategies import make_strategy
from tests.configs import make_config
from tests.strategies.toys import FULL


def staged(**options):
    return {"kind": "staged", **options}


def run_of(bits="1/1", quantizer="dorefa", epochs=2, **options):
    """Return a run of 5 steps an epoch."""
    config = make_config(bits=bits, quantizer=quantizer, epochs=epochs, strategy=staged(**options))
    return make_run(config, synthetic(96), "cpu")


def test_stages_share_the_first_part_of_the_steps_and_the_last_one_has_the_rest():
    strategy = make_strategy(
        make_config(epochs=4, strategy=staged(stages=["8/8", "4/4", "2/2"], until=0.6)), 5
    )  # 20 steps, of which 12 in three stages of 4
    assert [strategy.stage(step) for step in range(20)] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 8
    expected = [1.0] * 4 + [2 / 3] * 4 + [1 / 3] * 4 + [0.0] * 8
    assert [strategy.factor(step) for step in range(20)] == pytest.approx(expected)
    assert [step for step in range(20) if strategy.removal(step)] == [12]


def test_each_stage_quantizes_at_its_own_widths_and_evaluation_at_the_trials():
    run = run_of("1/1", stages=["32/32", "2/4"], until=0.8)  # stages begin at the steps 0, 4 and 8
    layer = run.network.conv2
    y = torch.linspace(-0.5, 1.5, 21)
    stored = layer.weight.detach()
    unit = torch.tanh(stored) / (2 * torch.tanh(stored).abs().max()) + 0.5
    one_bit = stored.abs().mean() * torch.where(stored >= 0, 1.0, -1.0)
    expected = {
        0: (stored, y.clamp(0, 1)),
        4: (2 * round_unit(unit, 2) - 1, round_unit(y, 4)),
        8: (one_bit, round_unit(y, 1)),
    }
    for step, (weight, activation) in expected.items():
        run.clock.set(step, run.strategy.factor(step))
        torch.testing.assert_close(layer.low_precision_weight(False), weight)
        torch.testing.assert_close(layer.activate(y), activation)
        run.clock.set_factor(0.0)  # deployed
        torch.testing.assert_close(layer.low_precision_weight(False), one_bit)
        torch.testing.assert_close(layer.activate(y), round_unit(y, 1))


def test_a_layer_in_full_precision_stays_so_in_every_stage():
    """The last layer of a converted network: its weights and its input are not quantized at 4 bits either."""
    root = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
    )
    config = make_config(bits="2/2", strategy=staged(stages=["4/4"]), epochs=2)
    clock = Clock(3)
    builder = Builder(config, clock, None, None)
    network = builder.finish(transform(root, builder, 10, input_size=16))
    initialize(network, 5, "he_normal")
    make_strategy(config, 5).prepare(network, None, {})
    clock.set(0, 1.0)
    y, last = torch.linspace(0.0, 1.0, 24).reshape(6, 4), root.get_submodule("8")
    assert torch.equal(network.get_submodule("8")(y)[0], F.linear(y, last.weight, last.bias))
    layer = network.get_submodule("3")
    assert len(layer.low_precision_weight(False).unique()) > 4 and len(layer.activate(y).unique()) == 16


def test_two_step_quantization_learns_the_codes_before_the_weights_are_quantized():
    run = run_of("2/2", "tsq", stages=["32/2"])  # 10 steps, 5 of each kind
    layer = run.network.conv2
    y = torch.tensor([-1.0, 0.3, 0.67, 0.68, 1.2, 9.0])
    step = 0.786785
    for at, full in ((0, True), (4, True), (5, False), (9, False)):
        run.clock.set(at, run.strategy.factor(at))
        torch.testing.assert_close(layer.activate(y), step * torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]))
        assert torch.equal(layer.low_precision_weight(False), layer.weight) == full
    for _ in range(10):
        run.train_step()
    levels = [len(filter.unique()) for filter in layer.low_precision_weight(False)]
    assert torch.isfinite(run.loss_sum) and max(levels) <= 3


@pytest.mark.parametrize(("stage", "begins"), [("32/32", True), ("32/2", True), ("2/32", False)])
def test_learned_steps_of_weights_begin_where_the_weights_are_quantized(stage, begins):
    """LSQ's first step is 2 mean |w| / sqrt(2^(k-1) - 1), here with k = 2, of the weights at that step."""
    run = run_of("2/2", "lsq", stages=[stage])
    layer = run.network.conv2
    for _ in range(5):
        run.train_step()
    before = layer.quantizer.weight_step.item()
    layer.weight.data *= 3.0  # as after a long training
    run.strategy.before_step(run.network, 5)  # the first step of the second half
    after = layer.quantizer.weight_step.item()
    assert after == (pytest.approx(2 * layer.weight.abs().mean().item(), rel=1e-6) if begins else before)


def test_what_draws_in_training_alone_does_so_at_the_widths_of_a_stage_too():
    """BinaryConnect's stochastic weights are sign(w) in evaluation, the expanded network's as well."""
    run = run_of("1/2", {"kind": "binaryconnect", "stochastic": True}, stages=["1/8"])
    run.clock.set(0, run.strategy.factor(0))
    layer = run.network.conv2
    sign = torch.where(layer.weight >= 0, 1.0, -1.0)
    assert layer.acting.a_bits == 8
    for _ in range(2):
        assert not torch.equal(layer.low_precision_weight(False), sign)
        with in_evaluation(run.network):
            assert torch.equal(layer.low_precision_weight(False), sign)
    run.network.eval()
    assert torch.equal(layer.low_precision_weight(False), sign)


@pytest.mark.parametrize("quantizer", ["bnn", "xnor", "tang"])
def test_weights_first_takes_quantizers_without_such_a_width(quantizer):
    run = run_of("1/1", quantizer, stages=["1/32"])
    layer = run.network.conv2
    run.clock.set(0, run.strategy.factor(0))
    assert not layer.acting.scales_input
    y = torch.linspace(-2, 2, 32).reshape(1, 8, 2, 2)
    assert torch.equal(layer.activate(y), layer.quantizer.bound(y))
    assert torch.equal(layer.low_precision_weight(False), layer.quantizer.weight(layer.weight))
    for _ in range(10):
        run.train_step()
    assert torch.isfinite(run.loss_sum)


def test_guided_both_networks_are_drawn_to_each_other():
    run = run_of("1/2", stages=["1/32"], guided=True, twin=FULL, guidance=3.0, layers=["conv3", "linear"])
    run.clock.set(0, run.strategy.factor(0))
    images, labels = torch.rand(4, 3, 40, 40), torch.arange(4)
    read = {}
    for name, network in (("own", run.network), ("twin", run.strategy.twin)):
        for layer in ("conv3", "linear"):
            module = network.get_submodule(layer)
            module.register_forward_pre_hook(
                lambda m, inputs, key=(name, layer): read.__setitem__(key, m.activate(inputs[0]))
            )
    logits = run.network(images)
    nothing = lambda logits, labels: logits.sum() * 0.0  # noqa: E731
    loss = run.strategy.loss(logits, images, labels, nothing)
    distance = sum(
        0.5 * (read["own", name] - read["twin", name]).square().mean() for name in ("conv3", "linear")
    )
    assert loss.item() == pytest.approx(3.0 * distance.item(), rel=1e-5)
    loss.backward()
    for network in (run.network, run.strategy.twin):
        assert network.conv6.weight.grad.abs().sum() > 0  # read by the classifier
        assert network.linear.weight.grad.abs().sum() == 0  # behind what is compared


def test_guided_compares_what_was_read_and_moves_levels_once():
    """LQ-Nets' levels move when activations are read; the comparison reads them as the layer did."""
    run = run_of("2/2", "lqnets", guided=True, twin=FULL, guidance=3.0, layers=["conv3"])
    alone = make_run(make_config(bits="2/2", quantizer="lqnets"), synthetic(96), "cpu")
    start = make_quantizer("lqnets", 2, 2).eval()  # at the levels of the first step
    images, read = torch.rand(4, 3, 40, 40), []
    for network, maps in ((run.network, start.activation), (run.strategy.twin, torch.relu)):
        network.conv3.register_forward_pre_hook(lambda _, inputs, maps=maps: read.append(maps(inputs[0])))
    nothing = lambda logits, labels: logits.sum() * 0.0  # noqa: E731
    loss = run.strategy.loss(run.network(images), images, torch.arange(4), nothing)
    assert loss.item() == pytest.approx(1.5 * (read[0] - read[1]).square().mean().item(), rel=1e-5)
    alone.network(images)
    moved, once = (r.network.conv3.quantizer.input_basis for r in (run, alone))
    assert torch.equal(moved, once) and not torch.equal(once, start.input_basis)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stages": ["16/16"]}, r"'16/16'"),
        ({"stages": ["1/1"]}, r"other than the trial's own"),
        ({"stages": ["1/32/8"]}, r'expected "W/A"'),
        ({}, r"stages or guided = true is needed"),
        ({"stages": ["8/8"], "quantizer": "bnn"}, r"quantizer 'bnn' takes 1, 32 bits of weights"),
        ({"stages": ["4/4"], "quantizer": "lsq", "bits": "2/2"}, r"the quantizer 'lsq' learns scales"),
        ({"guided": True, "twin": {**FULL, "width": 0.25}}, r"strategy.twin: its layers read"),
        ({"guided": True, "twin": FULL, "layers": ["conv0"]}, r"strategy.layers: .*'conv0'"),
    ],
)
def test_what_cannot_be_is_said(fields, words):
    with pytest.raises(InputError, match=words):
        run_of(**fields)
