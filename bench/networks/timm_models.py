"""Networks of timm (PyTorch Image Models), transformed; timm is an extra of this package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import InputError
from bench.networks.adoption import adopted, cached_file, check_known
from bench.networks.builder import Builder, Network
from bench.text import clean

ENTRIES = [
    {
        "name": "timm",
        "help": "any network of timm by its name there, transformed; needs the extra timm",
        "input_size": 224,
        "revision": 3,
        "options": {
            "name": {"type": "str", "help": "timm's name, for instance resnet10t"},
            "input_size": "shared",
            "first": "shared",
            "last": "shared",
            "depthwise": "shared",
            "projection": "shared",
        },
    }
]


def timm(builder: Builder, num_classes: int, *, name: str, input_size: int, **choices: str) -> Network:
    """Return timm's network ``name``; raises ``InputError`` for unknown names and where timm is absent."""
    library = _library("network.name")
    check_known("timm", library.list_models(), name, "network.name")
    if builder.config.width != 1.0:
        raise InputError(f"width: {builder.config.width:g}, but timm's networks have no width; use 1")

    def make() -> Any:
        arguments = {"pretrained": False, "num_classes": num_classes}
        try:  # most networks with embedded patch positions need the size
            return library.create_model(name, **arguments, img_size=input_size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return library.create_model(name, **arguments)

    return adopted(make, builder, num_classes, f"timm's {name}", input_size=input_size, **choices)


def _library(field: str) -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError(
            f"{field}: timm cannot be imported ({clean(error, 100)}); install it: pip install "
            "'progressive-bench[timm]'"
        ) from None


def trained_file(name: str) -> Path:
    """Return the file of timm's default trained weights of ``name``, in the local cache.

    timm keeps its weights in the cache of huggingface_hub or in torch's. Nothing is downloaded. Raises
    ``InputError`` for an unknown name, for a network without trained weights, and where the file is absent.
    """
    library = _library("start")
    check_known("timm", library.list_models(), name, "start")
    settings = library.get_pretrained_cfg(name)
    if settings is not None and settings.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(settings.hf_hub_id, "model.safetensors")
        if isinstance(found, str):
            return Path(found)
    if settings is not None and settings.url:
        return cached_file(f"timm:{name}", settings.url)
    where = f"https://huggingface.co/{settings.hf_hub_id}" if settings and settings.hf_hub_id else ""
    reason = (
        f"the weights of {where} are not in the local cache, and the suite downloads nothing"
        if where
        else "timm has no trained weights of it"
    )
    raise InputError(f"start: timm:{name}: {reason}")
