"""Every quantizer trains in a small network, and a removed branch leaves no jump."""

from __future__ import annotations

import pytest
import torch

from bench import registry
from bench.layers.branch import MERGES, Branch
from bench.layers.low_precision import strip
from bench.networks import build, initialize
from bench.randomness import Clock
from tests.configs import make_config

KINDS = [name for name, entry in registry.entries("quantizers").items() if not entry.package]
STEPS = 60


OPTIONS = {"pact": {"alpha": 2.0}}  # its default start clips nothing that batch norm hands on


def bits_of(kind: str) -> str:
    """The fewest bits of weights, and 2 bits of activations where the quantizer takes them."""
    facts = registry.get("quantizers", kind).facts
    return f"{facts['w_bits'][0]}/{2 if 2 in facts['a_bits'] else facts['a_bits'][0]}"


def small_network(kind: str, clock: Clock, branch: Branch | None = None):
    quantizer = {"kind": kind, **OPTIONS.get(kind, {})}
    network = {"kind": "svhn_convnet", "dropout": 0.0}
    config = make_config(quantizer=quantizer, bits=bits_of(kind), network=network)
    built = build(config, num_classes=10, clock=clock, branch=branch)
    initialize(built, 0, config.initialization)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again(kind):
    clock = Clock(0)
    clock.total_steps = STEPS
    network = small_network(kind, clock).train()
    generator = torch.Generator().manual_seed(0)
    size = network.input_size
    labels = torch.arange(20) % 4
    images = torch.rand(4, 3, size, size, generator=generator)[labels]
    images = images + 0.1 * torch.rand(20, 3, size, size, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    losses = []
    for step in range(STEPS):
        clock.set(step, 0.0)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        network.add_penalty_()
        optimizer.step()
        network.after_step_()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0], losses[:: STEPS // 10]
    assert all(torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_branch_leaves_the_logits_alone(kind, merge):
    clock = Clock(0)
    network = small_network(kind, clock, Branch(merge))
    size = network.input_size
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    clock.set(0, 0.5)
    network.train()(x)
    network.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    clock.set_factor(0.0)
    with torch.no_grad():
        logits = network(x)
        assert torch.isfinite(logits).all() and torch.equal(strip(network)(x), logits)
        assert torch.allclose(network(x[:2]), logits[:2], atol=1e-4), "an image's logits depend on its batch"
        clock.set_factor(0.5)
        assert not torch.equal(network(x), logits), "the branch did nothing"
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), (
        "evaluation changed a tensor"
    )
