"""Networks of torchvision, transformed.

``bench/networks/convert/plan.py`` makes the decisions of the transformation; ``bench show FILE --layers``
prints them with their reasons.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torchvision import models

from bench.errors import InputError
from bench.networks.adoption import adopted, cached_file, check_known
from bench.networks.builder import Builder, Network

ENTRIES = [
    {
        "name": "mobilenet_v2",
        "help": "MobileNetV2 of torchvision, transformed; width is its width_mult",
        "revision": 2,
        "title": "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        "arxiv": "1801.04381",
        "input_size": 224,
        "macs": 300_774_272,
        "options": ["input_size", "first", "last", "depthwise", "projection"],
    },
    {
        "name": "squeezenet1_1",
        "help": "SqueezeNet 1.1 of torchvision, transformed; its last layer is a convolution; width 1 alone",
        "revision": 2,
        "title": "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size",
        "arxiv": "1602.07360",
        "input_size": 224,
        "macs": 349_151_936,
        "options": ["input_size", "first", "last", "depthwise", "projection"],
    },
    {
        "name": "torchvision",
        "help": "any classification network of torchvision by its name there, transformed",
        "input_size": 224,
        "revision": 4,
        "options": {
            "name": {"type": "str", "help": "torchvision's name, for instance shufflenet_v2_x1_0"},
            "input_size": "shared",
            "first": "shared",
            "last": "shared",
            "depthwise": "shared",
            "projection": "shared",
        },
    },
]


def torchvision(builder: Builder, num_classes: int, *, name: str, input_size: int, **choices: str) -> Network:
    """Return torchvision's classification network ``name``; raises ``InputError`` for unknown names."""
    check_known("torchvision", models.list_models(module=models), name, "network.name")
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False}
    if builder.config.width != 1.0:
        if not name.startswith("mobilenet"):
            raise InputError(f"width: {builder.config.width:g}, but torchvision's {name} has no width; use 1")
        arguments["width_mult"] = builder.config.width
    return adopted(
        lambda: models.get_model(name, **arguments),
        builder,
        num_classes,
        f"torchvision's {name}",
        input_size=input_size,
        **choices,
    )


# 17 inverted residuals; a block quantizes the linear bottleneck that it reads
mobilenet_v2 = partial(torchvision, name="mobilenet_v2")
# eight fire modules, without batch norm; the classifier is a 1x1 convolution
squeezenet1_1 = partial(torchvision, name="squeezenet1_1")


def trained_file(name: str) -> Path:
    """Return the file of torchvision's default trained weights of ``name``, in torch's local cache.

    Nothing is downloaded. Raises ``InputError`` for an unknown name, for a network without trained weights,
    and where the file is absent.
    """
    check_known("torchvision", models.list_models(module=models), name, "start")
    weights = models.get_model_weights(name).DEFAULT
    return cached_file(f"torchvision:{name}", weights.url)
