"""Schedules, Adam, images, AlexNet's layers and initial weights against the released scripts' files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.datasets import augmentation
from bench.datasets.photographs import crops
from bench.datasets.resize import RESIZES
from bench.experiments.config import make_config
from bench.networks import Network, build, describe_layers, initialize
from bench.randomness import Clock
from bench.schedules import factor_value, learning_rate_value
from bench.strategies import make_strategy
from bench.training.optimizer import decayed_parameters, make_optimizer, set_step
from tests.golden.released.base import EXACT, HERE, Row, arrays, difference, facts, presets
from tests.golden.released.svhn_rows import settings

# -- schedules -----------------------------------------------------------------------------------------------

SCRIPTS = {
    "svhn_baseline": ("svhn_released", "DoReFa-Net (released)"),
    "svhn_expnet": ("svhn_released", "EXP-Net (DoReFa, released)"),
    "alexnet_baseline": ("imagenet_alexnet_released", "SYQ (released)"),
    "alexnet_expnet": ("imagenet_alexnet_released", "EXP-Net (SYQ, released)"),
}


def schedules() -> Iterator[Row]:
    """Yield the rows of learning rates and factors, at the first step of each epoch."""
    with (HERE / "schedules.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for script, (experiment, arm) in SCRIPTS.items():
        config = presets(experiment)[arm]
        per_epoch = 4721 if script.startswith("svhn") else 20_000
        total = config.epochs * per_epoch
        rate = factor = 0.0
        for line in lines:
            if line["script"] != script:
                continue
            step = int(line["first_step"])
            theirs = float(line["learning_rate"])
            ours = learning_rate_value(config.learning_rate, step, total, per_epoch)
            rate = max(rate, abs(ours - theirs) / theirs)
            if line["factor"]:
                value = factor_value(config.strategy["factor"], step, total, per_epoch)
                factor = max(factor, abs(value - float(line["factor"])))
        yield Row(
            "Schedules",
            f"learning rate, {script}",
            "float64",
            rate,
            1e-6,
            "float32",
            f"{experiment}, {arm}",
            "float32 holds a rate to 6e-8 of its value",
            relative=True,
        )
        if "expnet" in script:
            yield Row(
                "Schedules",
                f"factor, {script}",
                "float64",
                factor,
                1e-6,
                "float32",
                f"{experiment}, {arm}",
                "a cosine in float32",
            )
    concat = arrays("svhn_expanded_concat")
    config = presets("svhn_released")["EXP-Net (DoReFa, released)"]
    largest = max(
        abs(
            factor_value(config.strategy["factor"], int(concat[f"{s}.step"]), 200 * 4721, 4721)
            - float(concat[f"{s}.factor"])
        )
        for s in settings("svhn_expanded_concat")
    )
    yield Row(
        "Schedules",
        "factor within an epoch, svhn_expnet",
        "float64",
        largest,
        1e-6,
        "float32",
        "svhn_released, EXP-Net (DoReFa, released)",
        "a cosine in float32",
    )


def adam() -> Iterator[Row]:
    """Yield the row of Adam's epsilon: five steps of the preset's optimizer against TensorFlow's formula."""
    for experiment, arm in (SCRIPTS["svhn_expnet"], SCRIPTS["alexnet_expnet"]):
        config = presets(experiment)[arm]
        generator = np.random.default_rng(0)
        w = generator.standard_normal(1000)
        gradients = generator.standard_normal((5, 1000)) * 10.0 ** generator.uniform(-8, 0, 1000)
        module = torch.nn.Module()
        module.w = torch.nn.Parameter(torch.tensor(w))
        optimizer = make_optimizer(config, [module])
        m, v = np.zeros(1000), np.zeros(1000)
        for step, g in enumerate(gradients):
            module.w.grad = torch.tensor(g)
            set_step(optimizer, config, step, 1e-3)
            optimizer.step()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            rate = 1e-3 * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            w = w - rate * m / (np.sqrt(v) + 1e-5)  # epsilon before the bias correction
        yield Row(
            "Schedules",
            f"Adam with epsilon 1e-5, five steps, {experiment}",
            "float64",
            difference(module.w, w),
            1e-12,
            "epsilon before the bias correction",
            f"{experiment}, {arm}",
            "the formula of TensorFlow in float64",
        )


# -- images --------------------------------------------------------------------------------------------------


def images() -> Iterator[Row]:
    """Yield the rows of the SVHN pipeline: brightness and contrast from given draws, and the resize."""
    data = arrays("preprocess")
    draws = torch.tensor(data["whole.draws"].astype(np.int64))
    found = augmentation.svhn(torch.tensor(data["resized"]), draws)
    yield Row(
        "Images",
        "brightness, then contrast",
        "bytes",
        difference(found, data["whole.after_contrast"]),
        0.0,
        "clipped and truncated twice",
        "augmentation `svhn`",
        EXACT,
    )
    for kind, allowed, why in (
        ("opencv", 0.0, EXACT),
        ("exact", 1.0, "OpenCV's 8-bit arithmetic is one level darker on 13 % of the values"),
    ):
        resized = RESIZES[kind](32, 32, 40, 3).to_uint8(torch.tensor(data["raw"]))
        yield Row(
            "Images",
            f"resize from 32 to 40, resize = `{kind}`",
            "bytes",
            difference(resized, data["resized"]),
            allowed,
            "OpenCV, bilinear",
            "the released presets" if kind == "opencv" else "every other recipe",
            why,
        )
    theirs = facts("alexnet")["augmentation"]
    sizes, views = theirs["size_examples"], theirs["test_view_examples"]
    jittered = crops.jittered_size(
        *(_column(sizes, key) for key in ("height", "width", "short")),
        np.stack([_column(sizes, "scale_x"), _column(sizes, "scale_y")], 1),
        224,
    )
    wrong = sum((side != _column(sizes, key)).sum() for side, key in zip(jittered, _TARGET, strict=True))
    yield Row(
        "Images",
        "AlexNet, sizes of training views",
        "facts",
        float(wrong),
        0.0,
        f"{len(sizes)} examples",
        "augmentation `scale_jitter_released`",
        EXACT,
    )
    window = crops.view_released(_column(views, "height"), _column(views, "width"), 224)
    found = (window.to_height, window.to_width, window.row, window.column)
    wrong = sum(
        (side != _column(views, key)).sum()
        for side, key in zip(found, (*_TARGET, "crop_row", "crop_column"), strict=True)
    )
    yield Row(
        "Images",
        "AlexNet, sizes and crops of test views",
        "facts",
        float(wrong),
        0.0,
        f"{len(views)} examples",
        "augmentation `scale_jitter_released`",
        EXACT,
    )


_TARGET = ("to_height", "to_width")


def _column(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """Return one key of all examples."""
    return np.array([row[key] for row in rows])


# -- AlexNet and initial weights -----------------------------------------------------------------------------


def alexnet_layers(arm: str) -> list[dict[str, Any]]:
    """Return what the preset's AlexNet is, layer by layer, in the words of alexnet.json."""
    config = presets("imagenet_alexnet_released")[arm]
    config = make_config({**config.dump(), "width": 0.125})
    network = build(config, num_classes=1000, clock=Clock(0), branch=make_strategy(config, 20_000).branch)
    decayed = decayed_parameters([network], config.weight_decay_on)
    rows = {row.name: row for row in describe_layers(network)}
    found = []
    for ours in ("conv0", "conv1", "conv2", "conv3", "conv4", "fc1", "fc2", "linear"):
        layer = network.get_submodule(ours)
        conv = isinstance(layer, torch.nn.Conv2d)
        scale = 1000 if ours == "linear" else layer.weight.shape[0] * 8
        branch = getattr(layer, "branch", None)
        found.append(
            {
                "kind": "conv" if conv else "dense",
                "out_channels": scale,
                "bias": layer.bias is not None,
                "weights_quantized": rows[ours].w_bits < 32,
                "weight_decay": config.weight_decay if id(layer.weight) in decayed else 0.0,
                "kernel": list(layer.kernel_size) if conv else None,
                "stride": layer.stride[0] if conv else None,
                "groups": layer.groups if conv else None,
                "branch": branch is not None,
            }
        )
    return found


def alexnet() -> Iterator[Row]:
    """Yield the rows of the AlexNet presets: layers, optimizer, rates."""
    for script, (experiment, arm) in SCRIPTS.items():
        if not script.startswith("alexnet"):
            continue
        theirs = facts("alexnet")[script]
        config = presets(experiment)[arm]
        differing = 0
        for own, layer in zip(alexnet_layers(arm), theirs["layers"], strict=True):
            for key, value in own.items():
                expected = layer.get(key)
                differing += bool(expected) != value if key == "branch" else expected != value
        yield Row(
            "AlexNet",
            f"layers, {script}",
            "facts",
            differing,
            0,
            "conv1, conv3, conv4 quantized",
            f"{experiment}, {arm}",
            "kinds, channels, kernels, groups, biases, decay, branches: equal or not",
        )
        optimizer = theirs["optimizer"]
        pairs = [
            (config.optimizer, optimizer["kind"].lower()),
            (config.batch_size, theirs["batch_size"]),
            (config.epochs, theirs["epochs"]),
            (config.weight_decay, theirs["weight_decay"]),
        ]
        if config.optimizer == "adam":
            pairs += [([config.beta1, config.beta2], optimizer["betas"]), (config.epsilon, optimizer["eps"])]
        else:
            pairs += [(config.momentum, optimizer["momentum"]), (config.nesterov, optimizer["nesterov"])]
        yield Row(
            "AlexNet",
            f"optimizer, {script}",
            "facts",
            sum(a != b for a, b in pairs),
            0,
            optimizer["kind"],
            f"{experiment}, {arm}",
            "kind, constants, batch, epochs, decay: equal or not",
        )
        rates = [
            learning_rate_value(config.learning_rate, epoch * 20_000, 100 * 20_000, 20_000)
            for epoch in range(100)
        ]
        yield Row(
            "AlexNet",
            f"learning rates, {script}",
            "float64",
            difference(rates, theirs["learning_rate_by_epoch"]),
            1e-12,
            "100 epochs",
            f"{experiment}, {arm}",
            EXACT,
        )


def initial_weights() -> Iterator[Row]:
    """Yield the rows of initial weights: their deviation over sqrt(2 / fan_in), and the largest one."""
    for script, arm in (
        ("svhn_baseline", "DoReFa-Net (released)"),
        ("svhn_expnet", "EXP-Net (DoReFa, released)"),
    ):
        config = presets("svhn_released")[arm]
        network = build(config, num_classes=10, clock=Clock(0), branch=make_strategy(config, 4721).branch)
        initialize(network, 0, config.initialization)
        theirs = facts("init")[script]
        worst = largest = 0.0
        for name, value in theirs.items():
            if name in ("constants", "weak2"):
                continue
            weight = _initial(network, name)
            assert list(weight.shape) == value["shape"], name
            ratio = weight.std().item() * math.sqrt(value["fan_in"] / 2)
            error = 4 / math.sqrt(2 * weight.numel()) + 4 / math.sqrt(2 * value["numbers"])
            worst = max(worst, abs(ratio - value["std_over_sqrt_2_by_fan_in"]) / max(error, 0.01))
            largest = max(largest, (weight.abs().max() / weight.std()).item())
        yield Row(
            "Initial weights",
            f"deviation of each layer, {script}",
            "of the allowed",
            worst,
            1.0,
            "1.0029 sqrt(2 / fan_in)",
            "`he_truncated_exact`: sqrt(2 / fan_in)",
            "four standard errors of both samples, or 1 %; the formulas differ by 0.29 %",
            relative=True,
        )
        yield Row(
            "Initial weights",
            f"largest magnitude, {script}",
            "deviations",
            abs(largest - 2.274),
            0.1,
            "2.274 deviations",
            "`he_truncated_exact`",
            "four standard errors of the smallest layer's deviation",
        )


def _initial(network: Network, name: str) -> Tensor:
    """Return a kernel under the release's name, main and extra inputs together."""
    if name.startswith("weak"):
        return network.get_submodule(f"conv{name.removeprefix('weak')}").branch.weight.detach()
    layer = network.get_submodule("linear" if name == "fc1" else name)
    extra = getattr(layer, "weight_extra", None)
    return (layer.weight if extra is None else torch.cat([layer.weight, extra], 1)).detach()
