"""The SVHN network of the released presets, with both merges, held against svhn_*.npz."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.experiments.config import TrialConfig, make_config
from bench.networks import Network, build
from bench.randomness import Clock
from bench.strategies import make_strategy
from bench.training.distributed import SOLO, batch_norm_for
from bench.training.optimizer import decayed_parameters
from tests.golden.released.base import DTYPES, Row, arrays, difference, presets

ARMS = {"svhn_baseline": "DoReFa-Net (released)", "svhn_expanded_concat": "EXP-Net (DoReFa, released)"}


def svhn_network(file: str, bits: str, precision: str) -> tuple[Network, Clock, TrialConfig]:
    """Return the network of a released preset with the weights of ``file``, its clock and its configuration.

    The preset is the one of experiments/svhn_released.toml, at the width of the arrays and without dropout.
    """
    preset = presets("svhn_released")[ARMS[file]].dump()
    changes = {"width": 0.125, "bits": bits, "network": {**preset["network"], "dropout": 0.0}}
    config = make_config({**preset, **changes})
    clock = Clock(0)
    network = build(config, num_classes=10, clock=clock, branch=make_strategy(config, 4721).branch)
    data = arrays(file)
    state = network.state_dict()
    loaded = {}
    for name, tensor in _split(
        network, {k[6:]: v for k, v in data.items() if k.startswith("param.")}
    ).items():
        assert tensor.shape == state[name].shape, name
        loaded[name] = tensor
    missing = network.load_state_dict(loaded, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in key for key in missing.missing_keys)
    return network.to(DTYPES[precision]), clock, config


def _split(network: Network, named: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return tensors under the suite's names; a kernel that reads main and extra inputs becomes two."""
    found = {}
    own = network.state_dict()
    for name, value in named.items():
        tensor = torch.tensor(value)
        ours = name
        if name.startswith("branch"):
            layer, _, rest = name.partition(".")
            ours = f"conv{layer.removeprefix('branch')}.branch.{rest.replace('bn.', 'norm.')}"
        extra = ours.replace(".weight", ".weight_extra")
        if ours.endswith(".weight") and extra in own:
            inputs = own[ours].shape[1]
            found[ours], found[extra] = tensor[:, :inputs], tensor[:, inputs:]
        else:
            found[ours] = tensor
    return found


@dataclass
class Step:
    """What a forward and a backward pass of the preset give in one setting."""

    logits_train: Tensor
    logits_eval: Tensor
    cost: Tensor
    cross_entropy: Tensor
    gradients: dict[str, Tensor]
    after: dict[str, Tensor]


def svhn_step(file: str, setting: str, precision: str) -> Step:
    """Run the preset on the images of ``file`` at given bits and factor, in a trial's memory format."""
    data = arrays(file)
    w, a, _ = data[f"{setting}.bits"]
    network, clock, config = svhn_network(file, f"{w}/{a}", precision)
    batch_norm_for(network, config, SOLO)
    network = network.to(memory_format=torch.channels_last)
    factor = data.get(f"{setting}.factor")
    clock.set(0, 0.0 if factor is None else float(factor))
    images = torch.tensor(data["images"], dtype=DTYPES[precision])
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(data["labels"], dtype=torch.int64)
    with torch.no_grad():
        logits_eval = network.eval()(images)
    logits = network.train()(images)
    cross_entropy = F.cross_entropy(logits, labels)
    decayed = decayed_parameters([network], config.weight_decay_on)
    squares = sum(p.square().sum() for p in network.parameters() if id(p) in decayed)
    cost = cross_entropy + config.weight_decay / 2 * squares
    cost.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return Step(logits, logits_eval, cost, cross_entropy, gradients, network.state_dict())


def settings(file: str) -> list[str]:
    """Return the settings (bits and factor) of an SVHN file."""
    return sorted({key.partition(".")[0] for key in arrays(file) if key.endswith(".bits")})


def svhn_gradients(file: str, setting: str, step: Step) -> dict[str, float]:
    """Return the largest difference of each gradient, as a part of the tensor's largest value."""
    data = arrays(file)
    network, _, _ = svhn_network(file, "1/1", "float32")
    named = {
        k.removeprefix(f"{setting}.grad."): v for k, v in data.items() if k.startswith(f"{setting}.grad.")
    }
    found = {}
    for name, theirs in named.items():
        for ours, expected in _split(network, {name: theirs}).items():
            gradient = step.gradients.get(ours)
            if gradient is None:  # a branch at factor 0 is not computed
                gradient = torch.zeros_like(expected)
            found[ours] = difference(gradient[: len(expected)], expected.numpy(), relative=True)
    return found


ZERO_BUT_FOR_ROUNDING = ("conv4.branch.norm.bias", "conv5.branch.norm.bias")


def svhn(file: str, precision: str) -> Iterator[Row]:
    """Yield the rows of the SVHN network with one of its two merges, over all settings."""
    data = arrays(file)
    logits = cost = statistics = gradients = shifts = 0.0
    for setting in settings(file):
        step = svhn_step(file, setting, precision)
        logits = max(
            logits,
            difference(step.logits_train, data[f"{setting}.logits_train"]),
            difference(step.logits_eval, data[f"{setting}.logits_eval"]),
        )
        cost = max(
            cost,
            difference(step.cross_entropy, data[f"{setting}.cross_entropy"]),
            difference(step.cost, data[f"{setting}.cost"]),
        )
        network, _, _ = svhn_network(file, "1/1", "float32")
        prefix = f"{setting}.after."
        after = _split(network, {k[len(prefix) :]: v for k, v in data.items() if k.startswith(prefix)})
        for name, theirs in after.items():
            if setting.endswith("_f0") and "branch" in name:
                continue
            statistics = max(statistics, difference(step.after[name], theirs.numpy()))
        for name, found in svhn_gradients(file, setting, step).items():
            if name in ZERO_BUT_FOR_ROUNDING:
                shifts = max(shifts, found)
            else:
                gradients = max(gradients, found)
    arm = ARMS[file]
    row = partial(Row, f"SVHN network, {'plain' if file == 'svhn_baseline' else 'concat'}")
    ours = f"svhn_released, {arm}"
    yield row(
        "logits, batch and running statistics",
        precision,
        logits,
        1e-5,
        "1/1 and 1/2 bits",
        ours,
        "no activation lies within 1e-5 of a threshold, so rounding moves none; what is left is the "
        "rounding of seven layers",
    )
    yield row(
        "cross entropy, and with weight decay",
        precision,
        cost,
        1e-5,
        "1e-7 of the classifier",
        ours,
        "the rounding of the logits",
    )
    yield row(
        "running means and variances after a step",
        precision,
        statistics,
        1e-5,
        "momentum 0.9, n - 1",
        ours,
        "float32 sums over up to 2,592 positions",
    )
    yield row(
        "gradients",
        precision,
        gradients,
        5e-5,
        "of all weights, scales and shifts",
        ours,
        "ties in pools have one winner on both sides; sums of up to 25,600 terms in another order",
        relative=True,
    )
    if file == "svhn_expanded_concat":
        yield row(
            "gradients of two shifts",
            precision,
            shifts,
            1e-3,
            "branch 4 and 5",
            ours,
            "0 but for rounding: a shift before an unpadded convolution and batch norm; 1e-6 absolute",
            relative=True,
        )
