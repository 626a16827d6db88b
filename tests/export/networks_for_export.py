"""Networks trained for a few steps on real images, for the tests of the export.

The images are SVHN's where ``BENCH_DATA`` has ``svhn_subset.npz``, else scikit-learn's digits.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from bench import datasets, registry
from bench.experiments import permission
from bench.experiments.config import TrialConfig
from bench.export.modules import Activation
from bench.export.rounding import TOLERANCE, judge
from bench.networks import Network
from bench.quantizers.deployed import ActivationMap
from bench.randomness import Clock
from bench.training import setup
from tests.configs import make_config
from tests.conformance import tables

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
# torchvision's and timm's networks are chosen by what they consist of, each the smallest of its kind.
_TORCHVISION = (
    "resnet18",
    "vgg11_bn",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "densenet121",
    "squeezenet1_0",
)
_TIMM = ("test_resnet", "test_byobnet", "test_efficientnet", "test_convnext", "regnety_002", "test_vit")
NETWORKS: dict[str, dict[str, Any]] = {
    **{
        name: {"network": {"kind": name, **case.options}, "width": case.width}
        for name, case in tables.NETWORKS.items()
        if case is not None
    },
    "svhn_convnet_abs": {"network": {"kind": "svhn_convnet", "activation": "abs"}},
    "resnet20_post": {"network": {"kind": "resnet20", "block": "post", "shortcut": "B"}},
    **{
        f"torchvision_{name}": {
            "network": {"kind": "torchvision", "name": name, "input_size": 32},
            "width": 1.0,
        }
        for name in _TORCHVISION
    },
    **{
        f"timm_{name}": {"network": {"kind": "timm", "name": name, "input_size": 64}, "width": 1.0}
        for name in _TIMM
    },
    "own": {"network": {"kind": f"python:{OWN_MODULE}.tiny", "input_size": 16}, "width": 1.0},
}


def images_of() -> Any:
    """Return the data set that the networks are trained on, as a configuration has it."""
    here = (_data_dir() / "svhn_subset.npz").is_file()
    return {"kind": "npz", "name": "svhn_subset.npz"} if here else "digits"


def _data_dir() -> Path:
    return Path(os.environ.get("BENCH_DATA", "."))


@functools.cache
def _loaded(kind: str) -> Any:
    config = make_config(dataset=images_of() if kind == "npz" else "digits")
    return datasets.load(config.dataset, _data_dir())


def trained(merge: str = "plain", steps: int = 2, **changes: Any) -> tuple[Network, Tensor, TrialConfig]:
    """Return (network at f = 0 in evaluation mode, a batch of test images, the configuration)."""
    config = make_config(strategy=STRATEGIES[merge], **changes)
    config = config.model_copy(update={"network": permission.sealed(config.network)})
    clock = Clock(config.seed)
    data = setup.make_batches(config, _loaded(config.dataset["kind"]), clock)
    run = setup.make_run(config, data, clock, weights={})
    for _ in range(steps):
        run.train_step()
    clock.set_factor(0.0)
    return run.network.eval(), next(iter(data.test_batches(32)))[0], config


def _has_many_levels(map: ActivationMap) -> bool:
    """Return whether a map of activations gives more than 16 levels."""
    if map.form == "steps":
        return map.high - map.low >= 16
    return map.form in ("round", "scaled_round", "fixed") and 4 < map.bits < 32


@torch.no_grad()
def assert_near(network: Network, plain: fx.GraphModule, images: Tensor, found: Tensor) -> None:
    """Assert that another program's logits ``found`` are those of ``network`` but for rounding.

    Few images are moved, and hardly a prediction. With many levels, as at 8 bits, nearly every image has an
    activation near a threshold, but a level more or less moves the logits little: there the size is bounded.
    """
    wanted = network(images)
    judged = judge(plain, images, wanted, found, float(wanted.std()))
    off = (wanted - found).abs().amax(1) / wanted.std()
    differ = wanted.argmax(1) != found.argmax(1)
    wrong = judged.wrong | (differ & ~judged.moved & (off > 2.0 * TOLERANCE))
    assert not bool(wrong.any()), f"{int(wrong.sum())} images, by up to {float(off[wrong].max()):.1e} spreads"
    moved = off[judged.moved]
    if any(_has_many_levels(m.map) for m in plain.modules() if isinstance(m, Activation)):
        assert bool((moved < 0.05).all()), f"moved by rounding, by up to {float(moved.max()):.1e} spreads"
    else:
        assert len(moved) <= len(images) // 8, f"{len(moved)} were moved by rounding"
    assert int(differ.sum()) <= max(1, len(images) // 300), f"{int(differ.sum())} predictions were moved"
