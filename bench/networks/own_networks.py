"""A network of the user's own, ``network = "python:module.factory"``, transformed.

Only the command line can allow its code to run, never a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bench.errors import InputError
from bench.experiments import permission
from bench.networks.adoption import adopted
from bench.networks.builder import Builder, Network

ENTRIES = [
    {
        "name": "python",
        "factory": "own_network",
        "help": 'a network of your own, "python:module.factory", transformed; needs --allow-code module',
        "input_size": None,
        "revision": 5,
        "open": True,
        "options": {
            "source": {
                "type": "str",
                "default": None,
                "shown": False,
                "help": "the checksum of its code, set when an experiment is expanded: edited code is "
                "another trial",
            },
            "input_size": {
                "type": "int",
                "default": None,
                "min": 1,
                "max": 1024,
                "help": "pixels, height and width; null: the attribute input_size of the network",
            },
            "first": "shared",
            "last": "shared",
            "depthwise": "shared",
            "projection": "shared",
        },
    }
]


def own_network(
    builder: Builder, num_classes: int, *, source: str | None, input_size: int | None, **options: Any
) -> Network:
    """Return ``factory(num_classes=..., **options)`` of the user's module, transformed.

    The factory also gets ``width`` where the width is not 1.

    Args:
        builder: Makes the low-precision layers; its ``config`` names the factory.
        num_classes: The length of the logits of an image.
        source: The checksum of the code, which is part of the trial's identity; it is checked when the code
            is loaded.
        input_size: Height and width of the images in pixels, handed to a factory that takes it; None: the
            module has an attribute ``input_size``.
        **options: The factory's, and what else becomes low precision.

    Raises:
        InputError: The code is not allowed or has changed, or the factory raises; the traceback goes to the
            trial's log.
    """
    kind, width = builder.config.network["kind"], builder.config.width
    choices = {key: options.pop(key) for key in ("first", "last", "depthwise", "projection")}
    arguments = {"num_classes": num_classes, **options}
    name = kind.removeprefix(permission.PREFIX)

    def make() -> nn.Module:
        factory = permission.load(builder.config.network)
        takes = _parameters(factory)
        if width != 1.0:
            if "width" not in takes:
                raise InputError(f"width: {width:g}, but {name} takes no argument width; use 1")
            arguments["width"] = width
        if input_size is not None and "input_size" in takes:
            arguments["input_size"] = input_size
        return factory(**arguments)

    return adopted(make, builder, num_classes, name, input_size=input_size, **choices)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a function written in C
        return {}
