"""The file of a deployed network: safetensors with codes and values, plain or packed to their bits.

``docs/packed-format.md`` specifies the format. A file holds numbers and texts alone; nothing in it is
executed. A file is read only if its version is known, its checksum is right and its tensors fit the network
that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.export.folding import fold_, foldable, put_thresholds_
from bench.export.modules import Thresholds
from bench.export.plain import inference_layers, plain_network
from bench.networks import build
from bench.quantizers.deployed import Levels, bits_of
from bench.randomness import Clock
from bench.records.files import write_atomic
from bench.text import clean

FORMAT = "progressive-bench network"
VERSION = 1
_KEYS = {"format", "version", "form", "config", "classes", "layers", "folded", "sha256"}
_THRESHOLDS = ("thresholds", "directions", "values")


@dataclass(frozen=True)
class Written:
    """What a file takes: its ``file_bytes``, and of them ``tensor_bytes``; the rest is the header."""

    file_bytes: int
    tensor_bytes: int


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes (uint8, any shape, each below 2^bits) as bytes: uint8 (ceil(count x bits / 8),).

    Bit j of code i is bit i x bits + j of the whole, counted from the lowest bit of the first byte.
    """
    flat = codes.cpu().contiguous().flatten().numpy()
    each = (flat[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(each.astype(np.uint8).ravel(), bitorder="little"))


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` codes that ``pack`` packed, uint8 (count,)."""
    each = np.unpackbits(data.numpy(), bitorder="little", count=count * bits).reshape(count, bits)
    return torch.from_numpy((each << np.arange(bits, dtype=np.uint8)).sum(1).astype(np.uint8))


def write_file(
    path: Path,
    plain: fx.GraphModule,
    config: TrialConfig,
    classes: int,
    *,
    packed: bool,
    latent: Mapping[str, Tensor] | None = None,
) -> Written:
    """Write a plain network to ``path``, atomically.

    Args:
        path: The file.
        plain: What ``plain_network`` returned. With ``packed`` its batch norms are folded in place where this
            is exact (``bench.export.folding``).
        config: The trial's configuration, from which the file's reader builds the network.
        classes: The length of an image's logits.
        packed: Whether codes take their bits, else a byte each.
        latent: Full-precision weights by layer, stored beside the codes, to go on training.
    """
    folded = fold_(plain) if packed else {}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in plain.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    layers: dict[str, Any] = {}
    for name, layer in inference_layers(plain):
        levels = layer.levels
        if levels is None:
            continue
        del tensors[f"{name}.weight"]
        shape = list(levels.codes.shape)
        layers[name] = {
            "shape": shape,
            "levels": len(levels.values),
            "values_shape": list(layer.values_shape),
        }
        codes = levels.codes.cpu().contiguous()
        tensors[f"{name}.codes"] = pack(codes, levels.bits) if packed else codes
        tensors[f"{name}.values"] = levels.values.flatten(1).cpu().contiguous()
    for name, weight in (latent or {}).items():
        tensors[f"{name}.latent"] = weight.cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "form": "packed" if packed else "levels",
        "config": json.dumps(config.dump(), sort_keys=True, separators=(",", ":")),
        "revisions": json.dumps(_revisions(config)),
        "classes": str(classes),
        "layers": json.dumps(layers, separators=(",", ":")),
        "folded": json.dumps(folded, separators=(",", ":")),
    }
    metadata["sha256"] = checksum(metadata, tensors)
    data = save(tensors, metadata)
    write_atomic(path, data, "--out")
    return Written(len(data), sum(tensor.nbytes for tensor in tensors.values()))


def read_file(path: Path) -> fx.GraphModule:
    """Return the plain network in ``path``, in evaluation mode, on the CPU in channels-last memory.

    Raises ``InputError`` for a file that cannot be read, is damaged or edited, was written by a newer
    version, names a network that this process cannot or may not build, or was written with another revision
    of the network or quantizer, which computes other numbers.
    """
    metadata, tensors = _read(path)
    try:
        config = TrialConfig.model_validate(json.loads(metadata["config"]))
        revisions = dict(json.loads(metadata.get("revisions", "{}")))
        layers, folded = json.loads(metadata["layers"]), json.loads(metadata["folded"])
        classes = int(metadata["classes"])
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: config: not one of this version ({clean(error, 300)})") from None
    for part, now in _revisions(config).items():
        if (then := revisions.get(part, 1)) != now:
            kind = getattr(config, part)["kind"]
            raise InputError(
                f"{path}: it was written with revision {clean(then, 20)} of the {part} '{kind}', which has "
                f"revision {now} here and computes other numbers; export the trial again"
            )
    with torch.random.fork_rng(devices=[]):
        network = build(config, num_classes=classes, clock=Clock(config.seed))
    plain = plain_network(network.to(memory_format=torch.channels_last))
    try:
        _fill_(plain, tensors, layers, folded, packed=metadata["form"] == "packed")
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: it does not fit the network that it names ({clean(error, 300)})") from None
    return plain


def form_and_bytes(path: Path) -> tuple[str, int]:
    """Return the form of a file, "levels" or "packed", and what its tensors take; raises as ``read_file``."""
    metadata, tensors = _read(path)
    return metadata["form"], sum(tensor.nbytes for tensor in tensors.values())


def latent_of(path: Path) -> dict[str, Tensor]:
    """Return the full-precision weights that a file holds, by layer; nothing where it was written without."""
    _, tensors = _read(path)
    return {n.removesuffix(".latent"): t for n, t in tensors.items() if n.endswith(".latent")}


def _revisions(config: TrialConfig) -> dict[str, int]:
    """Return the revision of the network and of the quantizer of this version of the suite."""
    return {
        "network": registry.get("networks", config.network["kind"]).revision,
        "quantizer": registry.get("quantizers", config.quantizer["kind"]).revision,
    }


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of texts and tensors, in the order of their names; the text ``sha256`` is left out.

    Hashed are, each followed by a line feed: "key=text", and "name dtype shape" before a tensor's bytes.
    """
    found = hashlib.sha256()
    for key in sorted(metadata):
        if key != "sha256":
            found.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        found.update(f"{name} {array.dtype} {','.join(map(str, array.shape))}\n".encode())
        found.update(array.tobytes())
        found.update(b"\n")
    return found.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the texts and tensors of a file whose version is known and whose checksum is right."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path}: no network that `bench export` wrote")
            version = metadata.get("version", "")
            if version != str(VERSION):
                newer = version.isdecimal() and int(version) > VERSION
                what = "was written by a newer version" if newer else "is none that was ever written"
                raise InputError(f"{path}: format version {version[:20]!r} {what}; this one reads {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: truncated or damaged ({clean(error, 200)})") from None
    if not metadata.keys() >= _KEYS or checksum(metadata, tensors) != metadata["sha256"]:
        raise InputError(f"{path}: its checksum is wrong: the file is damaged or was edited; export it again")
    return metadata, tensors


@torch.no_grad()
def _fill_(
    plain: fx.GraphModule, tensors: dict[str, Tensor], layers: Any, folded: Any, *, packed: bool
) -> None:
    """Put the tensors of a file into a network of its configuration; raises where they do not fit."""
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith(".latent")}
    can_fold = foldable(plain)
    for name, readers in folded.items():
        if can_fold.get(name) != readers:
            raise ValueError(f"{name}: its thresholds are not those of {', '.join(readers)[:80]}")
        made = Thresholds(*(left[f"{name}.{part}"] for part in _THRESHOLDS))
        put_thresholds_(plain, name, readers, made)
    quantized = dict(inference_layers(plain))
    for name, about in layers.items():
        shape, count = about["shape"], about["levels"]
        codes, values = left.pop(f"{name}.codes"), left.pop(f"{name}.values")
        if packed:
            codes = unpack(codes, bits_of(count), int(np.prod(shape))).reshape(shape)
        quantized[name].take_levels_(Levels(codes, values.reshape(count, *about["values_shape"])))
    state = plain.state_dict()
    expected = {n for n in state if not n.endswith("num_batches_tracked")}
    expected -= {f"{name}.weight" for name in layers}
    if odd := sorted(expected ^ left.keys()):
        raise ValueError(f"missing or superfluous: {', '.join(odd[:3])}")
    for name, tensor in left.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, not {tuple(state[name].shape)}")
        state[name].copy_(tensor)
