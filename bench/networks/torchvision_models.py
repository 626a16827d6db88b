"""Networks of torchvision, through the transformation; weights are never downloaded, the initialisation is the suite's.

What the transformation decides and why is in ``bench/networks/transform.py``; ``bench show FILE --layers`` prints it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bench.errors import InputError, nearest
from bench.experiments import permission
from bench.networks.builder import Builder, Network
from bench.networks.convert.plan import Choices
from bench.networks.convert.rewrite import transform
from bench.randomness import fold
from bench.text import clean

ENTRIES = [
    {
        "name": "mobilenet_v2",
        "factory": "mobilenet_v2",
        "help": "MobileNetV2 of torchvision, transformed; width is its width_mult",
        "title": "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        "arxiv": "1801.04381",
        "input_size": 224,
        "macs": 300_774_272,
        "options": {
            "input_size": {
                "type": "int",
                "default": 224,
                "min": 8,
                "max": 1024,
                "help": "pixels, height and width",
            },
            "first": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the first convolution (low: of its weights)",
            },
            "last": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the last layer",
            },
            "depthwise": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of depthwise convolutions",
            },
            "projection": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of shortcuts' 1x1 convolutions",
            },
        },
    },
    {
        "name": "squeezenet1_1",
        "factory": "squeezenet1_1",
        "help": "SqueezeNet 1.1 of torchvision, transformed; its last layer is a convolution; width 1 alone",
        "title": "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size",
        "arxiv": "1602.07360",
        "input_size": 224,
        "macs": 349_151_936,
        "options": {
            "input_size": {
                "type": "int",
                "default": 224,
                "min": 8,
                "max": 1024,
                "help": "pixels, height and width",
            },
            "first": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the first convolution (low: of its weights)",
            },
            "last": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the last layer",
            },
            "depthwise": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of depthwise convolutions",
            },
            "projection": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of shortcuts' 1x1 convolutions",
            },
        },
    },
    {
        "name": "torchvision",
        "factory": "torchvision",
        "help": "any classification network of torchvision by its name there, transformed",
        "input_size": 224,
        "options": {
            "name": {"type": "str", "help": "torchvision's name, for instance shufflenet_v2_x1_0"},
            "input_size": {
                "type": "int",
                "default": 224,
                "min": 8,
                "max": 1024,
                "help": "pixels, height and width",
            },
            "first": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the first convolution (low: of its weights)",
            },
            "last": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the last layer",
            },
            "depthwise": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of depthwise convolutions",
            },
            "projection": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of shortcuts' 1x1 convolutions",
            },
        },
    },
    {
        "name": "python",
        "factory": "own_network",
        "help": 'a network of your own, "python:module.factory", transformed; needs --allow-code module',
        "input_size": None,
        "open": True,
        "options": {
            "source": {
                "type": "str",
                "default": None,
                "nullable": True,
                "shown": False,
                "help": "the checksum of its code, put there when an experiment is expanded: edited code is another trial",
            },
            "input_size": {
                "type": "int",
                "default": None,
                "nullable": True,
                "min": 1,
                "max": 1024,
                "help": "pixels, height and width; null: the attribute input_size of what the factory returns",
            },
            "first": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the first convolution (low: of its weights)",
            },
            "last": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of the last layer",
            },
            "depthwise": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of depthwise convolutions",
            },
            "projection": {
                "type": "str",
                "choices": ["full", "low"],
                "default": "full",
                "help": "precision of shortcuts' 1x1 convolutions",
            },
        },
    },
]

log = logging.getLogger("bench.networks")


def mobilenet_v2(builder: Builder, num_classes: int, **options: Any) -> Network:
    """Return MobileNetV2, 17 inverted residuals; the linear bottlenecks are quantized where the next block reads them."""
    return _torchvision("mobilenet_v2", builder, num_classes, **options)


def squeezenet1_1(builder: Builder, num_classes: int, **options: Any) -> Network:
    """Return SqueezeNet 1.1, eight fire modules, without batch norm; its classifier is a 1x1 convolution."""
    return _torchvision("squeezenet1_1", builder, num_classes, **options)


def torchvision(builder: Builder, num_classes: int, *, name: str, **options: Any) -> Network:
    """Return the classification network that torchvision calls ``name``; raises ``InputError`` for a name that it lacks."""
    return _torchvision(name, builder, num_classes, **options)


def _torchvision(
    name: str, builder: Builder, num_classes: int, *, input_size: int, **choices: str
) -> Network:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"network.name: torchvision has no network {name[:80]!r}.{nearest(name, known)}")
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False}
    if builder.config.width != 1.0:
        if not name.startswith("mobilenet"):
            raise InputError(f"width: {builder.config.width:g}, but torchvision's {name} has no width; use 1")
        arguments["width_mult"] = builder.config.width
    root = _made(lambda: models.get_model(name, **arguments), builder, f"torchvision's {name}")
    return transform(root, builder, num_classes, input_size=input_size, choices=Choices(**choices), who=name)


def own_network(
    builder: Builder,
    num_classes: int,
    *,
    source: str | None,
    input_size: int | None,
    first: str,
    last: str,
    depthwise: str,
    projection: str,
    **options: Any,
) -> Network:
    """Return ``factory(num_classes=..., **options)`` of the user's module, transformed.

    The factory is also given ``width``, where that is not 1, and ``input_size``, where the experiment sets it and the
    factory takes it. Without it the module has an attribute ``input_size``. Raises ``InputError`` for code that is not
    allowed or has changed, and for whatever the factory raises; the traceback goes to the trial's log.
    """
    kind, width = builder.config.network["kind"], builder.config.width
    arguments = {"num_classes": num_classes, **options}
    name = kind.removeprefix(permission.PREFIX)

    def make() -> Any:
        factory = permission.load(builder.config.network)
        takes = _parameters(factory)
        if width != 1.0:
            if "width" not in takes:
                raise InputError(f"width: {width:g}, but {name} takes no argument width; use 1")
            arguments["width"] = width
        if input_size is not None and "input_size" in takes:
            arguments["input_size"] = input_size
        return factory(**arguments)

    root = _made(make, builder, name)
    if not isinstance(root, nn.Module):
        raise InputError(f"network: {name} returned {type(root).__name__}, not a torch.nn.Module")
    size = input_size if input_size is not None else getattr(root, "input_size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(
            f"network: the input size of {name} is not known: give it as input_size, or as an attribute of the module"
        )
    choices = Choices(first=first, last=last, depthwise=depthwise, projection=projection)
    return transform(root, builder, num_classes, input_size=size, choices=choices, who=name)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of C
        return {}


def _made(make: Callable[[], Any], builder: Builder, who: str) -> Any:
    """Return what ``make`` returns; parameters that the suite does not initialise are drawn from the trial's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(builder.clock.seed, "init", who))
        try:
            return make()
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # code of the user's can raise anything
            log.info("%s raised", who, exc_info=True)
            raise InputError(f"network: {who} raised {type(error).__name__}: {clean(error, 300)}") from None
