"""What quantizers with learned activation parameters promise: penalties, starts, shapes, progress."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.networks import build, costs, describe_layers
from bench.quantizers import make_quantizer
from bench.randomness import Clock, Draws
from tests.configs import make_config


def test_pact_decays_its_clipping_level_as_a_penalty_of_the_loss():
    q = make_quantizer("pact", 2, 2, alpha=0.75, decay=0.5)
    q.add_penalty_(torch.zeros(2, 3))
    assert q.alpha.grad is None, "without a gradient nothing is added"
    x = torch.tensor([-1.0, 0.5, 0.75, 2.0])
    q.activation(x).sum().backward()
    q.add_penalty_(torch.zeros(2, 3))
    assert q.alpha.grad.item() == 2.0 + 0.5 * 0.75


def test_pact_clips_at_alpha_and_gives_the_gradient_of_eq_3_at_the_ends():
    q = make_quantizer("pact", 2, 32, alpha=0.75)
    x = torch.tensor([-1.0, 0.0, 0.5, 0.75, 2.0], requires_grad=True)
    y = q.activation(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 0.5, 0.75, 0.75] and x.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_clipping_level_or_step_below_zero_can_rise_again():
    for kind, name in (("pact", "alpha"), ("lsq", "input_step")):
        q = make_quantizer(kind, 2, 2)
        parameter = getattr(q, name)
        parameter.data.fill_(-1.0)
        y = q.activation(torch.tensor([1.0, 2.0]))
        y.sum().backward()
        assert torch.isfinite(y).all() and parameter.grad.item() > 0


def test_the_network_adds_the_penalty_of_every_layer_and_of_the_classifier_once():
    config = make_config(quantizer={"kind": "pact", "alpha": 0.5, "decay": 2.0}, bits="1/2")
    network = build(config, num_classes=10, clock=Clock(0))
    levels = {name: p for name, p in network.named_parameters() if name.endswith(".alpha")}
    assert len(levels) == len(network.low_precision_layers()) + 1
    for level in levels.values():
        level.grad = torch.full((), 3.0)
    network.add_penalty_()
    assert all(level.grad.item() == 4.0 for level in levels.values())


def test_learned_levels_are_counted():
    plain = build(make_config(quantizer="dorefa", bits="1/2"), num_classes=10, clock=Clock(0))
    learned = build(make_config(quantizer="pact", bits="1/2"), num_classes=10, clock=Clock(0))
    layers = len(plain.low_precision_layers()) + 1
    assert costs(learned).parameters - costs(plain).parameters == layers
    assert costs(learned).parameters == sum(p.numel() for p in learned.parameters())
    bits = [sum(row.bits for row in describe_layers(network)) for network in (plain, learned)]
    assert bits[1] - bits[0] == 32 * layers


def test_lsq_starts_at_twice_the_mean_magnitude_over_the_root_of_the_highest_code():
    w = np.random.default_rng(0).normal(0, 0.1, (6, 5, 3, 3))
    for bits, high in ((2, 1), (3, 3), (4, 7), (8, 127)):
        q = make_quantizer("lsq", bits, bits, weight_shape=w.shape)
        q.start_(torch.tensor(w).float())
        assert q.weight_step.item() == pytest.approx(2 * np.abs(w).mean() / high**0.5, rel=1e-6)
        assert q.input_step.item() == pytest.approx(0.8 / (2**bits - 1) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("quantizer", "bits", "of_classifier"),
    [("lsq", "2/2", 0), ("pact", "2/2", 1), ("tang", "1/1", 1), ("reactnet", "1/1", 3)],
)
def test_a_layer_creates_the_parameters_that_it_reads(quantizer, bits, of_classifier):
    """The classifier bounds its input and the extra weights of concat read none: each parameter learns."""
    factor = {"kind": "cosine", "until": 0.5}
    strategy = {"kind": "progressive", "merge": "concat", "factor": factor}
    run = make_run(make_config(quantizer=quantizer, bits=bits, strategy=strategy), synthetic(96), "cpu")
    learned = list(run.network.linear.quantizer.parameters())
    assert sum(parameter.numel() for parameter in learned) == of_classifier
    run.train_step()
    without = [name for name, p in run.network.named_parameters() if p.grad is None]
    assert without == []


def test_the_gradient_of_an_input_step_is_slowed_by_the_activations_of_one_sample():
    x, g = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    grads = []
    for batch in (1, 3):
        q = make_quantizer("lsq", 2, 2)
        (q.activation(x[:batch]) * g[:batch]).sum().backward()
        grads.append(q.input_step.grad.item())
    q = make_quantizer("lsq", 2, 2)
    (q.activation(x[1:]) * g[1:]).sum().backward()
    assert grads[1] == pytest.approx(grads[0] + q.input_step.grad.item(), rel=1e-5)


def test_binaryconnect_draws_its_weights_once_a_step():
    q = make_quantizer("binaryconnect", 1, 32, stochastic=True)
    clock = Clock(seed=1)
    q.draws = Draws(clock, "quantizer", "x")
    w = torch.linspace(-1.5, 1.5, 31).repeat(64, 1).requires_grad_()
    total = torch.zeros(31)
    for step in range(200):
        clock.set(step, 0.0)
        clock.samples = torch.arange(step, step + 64)  # another batch, as many samples as filters
        drawn = q.weight(w)
        clock.samples = None
        assert torch.equal(drawn, q.weight(w)), "one draw serves the whole step"
        assert set(drawn.unique().tolist()) == {-1.0, 1.0}
        total += drawn.detach().mean(0)
    np.testing.assert_allclose(total / 200, np.clip(w[0].detach(), -1, 1), atol=0.045)
    u = q.draws.uniform_weights(w).numpy()
    np.testing.assert_array_equal(drawn.detach(), np.where(u < (w.detach().numpy() + 1) / 2, 1, -1))
    assert torch.equal(torch.autograd.grad(drawn.sum(), w)[0], torch.ones_like(w))
    q.eval()
    assert torch.equal(q.weight(w), torch.where(w >= 0, 1.0, -1.0))


def test_the_clock_tells_the_progress():
    q = make_quantizer("dorefa", 1, 1)
    assert q.progress.item() == 0.0
    clock = Clock()
    q.draws = Draws(clock, "quantizer", "x")
    clock.total_steps = 8
    clock.set(2, 0.0)
    assert q.progress.item() == 0.25 and q.progress.dtype == torch.float32
