"""Networks trained for a few steps on real digits, for the tests of the export."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import datasets, registry
from bench.experiments import permission
from bench.experiments.config import TrialConfig
from bench.export.rounding import NEAR, threshold_distance
from bench.networks import Network
from bench.randomness import Clock
from bench.training import setup
from bench.training.deploy import TOLERANCE
from tests.configs import make_config

FACTOR = {"kind": "linear", "until": 0.5}
STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    **{
        merge: {"kind": "progressive", "merge": merge, "factor": FACTOR}
        for merge in ("sum", "difference", "concat", "preactivation")
    },
    "joint": {"kind": "progressive", "merge": "concat", "statistics": "joint", "factor": FACTOR},
}

# A module of a user's own, and the network in it.
OWN_MODULE = "network_of_a_user"
OWN = """
from torch import nn


def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, bias=True),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )
"""


def widths(kind: str) -> list[str]:
    """Return the fewest bits of a quantizer, the most, and 2 bits of activations where it has them."""
    facts = registry.get("quantizers", kind).facts
    w, a = facts["w_bits"], facts["a_bits"]
    middle = [f"{w[0]}/2"] if 2 in a else []
    return list(dict.fromkeys([f"{w[0]}/{a[0]}", *middle, f"{w[-1]}/{a[-1]}"]))


QUANTIZERS = [name for name, entry in registry.entries("quantizers").items() if not entry.package]
NETWORKS = {
    "svhn_convnet": {"network": "svhn_convnet"},
    "svhn_convnet_abs": {"network": {"kind": "svhn_convnet", "activation": "abs"}},
    "bnn_convnet": {"network": "bnn_convnet"},
    "resnet20_post": {"network": {"kind": "resnet20", "block": "post", "shortcut": "B"}},
    "resnet20": {"network": "resnet20", "width": 0.25},
    "torchvision": {"network": {"kind": "torchvision", "name": "resnet18", "input_size": 32}, "width": 1.0},
    "mobilenet_v2": {"network": {"kind": "mobilenet_v2", "input_size": 32}, "width": 0.25},
    "own": {"network": {"kind": f"python:{OWN_MODULE}.tiny", "input_size": 16}, "width": 1.0},
}
ALL = [
    (network, kind, bits, merge, precision)
    for network, kind, merge, precision in itertools.product(
        NETWORKS, QUANTIZERS, STRATEGIES, ("fp32", "bf16")
    )
    for bits in widths(kind)
]
DRAWN = int(os.environ.get("BENCH_EXPORT_CASES", "0"))


def trained(merge: str = "plain", steps: int = 2, **changes: Any) -> tuple[Network, Tensor, TrialConfig]:
    """Return (network at f = 0 in evaluation mode, a batch of test images, the configuration)."""
    config = make_config(strategy=STRATEGIES[merge], **changes)
    config = config.model_copy(update={"network": permission.sealed(config.network)})
    clock = Clock(config.seed)
    data = setup.make_batches(config, datasets.load(config.dataset, Path()), clock)
    run = setup.make_run(config, data, clock, weights={})
    for _ in range(steps):
        run.train_step()
    clock.set_factor(0.0)
    return run.network.eval(), next(iter(data.test_batches(32)))[0], config


@torch.no_grad()
def assert_near(network: Network, plain: nn.Module, images: Tensor, found: Tensor) -> None:
    """Assert that another program's logits ``found`` are those of ``network`` but for rounding.

    Logits are within the tolerance, and predictions are equal, of every image without an activation that lies
    on a threshold but for rounding. Few images are moved, and hardly a prediction.
    """
    wanted = network(images)
    off = (wanted - found).abs().amax(1) > TOLERANCE * wanted.std()
    differ = wanted.argmax(1) != found.argmax(1)
    tie = threshold_distance(plain, images) < NEAR
    unexplained = (off | differ) & ~tie
    largest = float((wanted - found).abs().amax() / wanted.std())
    assert not bool(unexplained.any()), f"{int(unexplained.sum())} images, by up to {largest:.1e} spreads"
    assert int(off.sum()) <= len(images) // 8, f"{int(off.sum())} images were moved by rounding"
    assert int(differ.sum()) <= max(1, len(images) // 300), f"{int(differ.sum())} predictions were moved"
