"""The weights that a trial begins with: read, checked name by name, put into the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import InputError
from bench.experiments import start as field
from bench.experiments.config import TrialConfig
from bench.layers.activation_input import Quantizing
from bench.networks import Network
from bench.networks.adoption import renamed
from bench.text import clean
from bench.training import checkpoint
from bench.training.divergence import not_finite

NAMED = 40  # of the names in a message
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_USUAL = ("network", "state_dict", "model")  # below which key programs store a state dict


@dataclass(frozen=True)
class Start:
    """A state dict under the names of the network it was made for; ``where`` says in messages what it is."""

    state: Mapping[str, Tensor]
    where: str

    def put_into(self, network: Network) -> None:
        """Copy the weights into ``network``, in place; branches and learned scales keep their own start.

        Raises ``InputError`` with every missing name, unknown name, other shape and lost number in one
        message.
        """
        given, expected = renamed(network, dict(self.state)), network.state_dict()
        own = _own_names(network)
        problems = {
            "missing": [name for name in expected if name not in given and not name.startswith(own)],
            "not in the network": [name for name in given if name not in expected],
            "of another shape": [
                f"{name} {tuple(value.shape)}, not {tuple(expected[name].shape)}"
                for name, value in given.items()
                if name in expected and value.shape != expected[name].shape
            ],
        }
        problems |= _wrong_numbers(given, expected)
        problems["missing"] = [n for n in problems["missing"] if not n.endswith("num_batches_tracked")]
        found = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
        if found:
            raise InputError(f"start: {self.where} does not fit the network. " + "; ".join(found))
        network.load_state_dict(given, strict=False)


def _own_names(network: nn.Module) -> tuple[str, ...]:
    """Return how names begin that the suite adds: branches, extra weights, learned scales and bounds."""
    parts = ("branch.", "weight_extra", "quantizer.", "quantizer_extra.", "fixed_statistics")
    layers = [name for name, m in network.named_modules() if isinstance(m, Quantizing)]
    return tuple(f"{name}.{part}" for name in layers for part in parts)


def _wrong_numbers(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return what is wrong with values of ``given`` -> their names: what a copy into float32 would lose."""
    dense = {name: value for name, value in given.items() if _is_dense(value)}
    weights = {n: v for n, v in dense.items() if n not in expected or expected[n].is_floating_point()}
    floats = {name: value.float() for name, value in weights.items() if value.dtype in _DTYPES}
    return {
        "not dense numbers in memory": [name for name in given if name not in dense],
        "not floating-point numbers of 16 bits or more": [
            f"{name} ({str(value.dtype).removeprefix('torch.')})"
            for name, value in weights.items()
            if name in expected and value.dtype not in _DTYPES
        ],
        "not finite": not_finite(floats.items()),
        "negative variances": [
            name
            for name, value in floats.items()
            if name.rpartition(".")[2] == "running_var" and (value < 0).any()
        ],
    }


def _is_dense(value: Tensor) -> bool:
    """Return whether a tensor is a plain array of numbers: not sparse, quantized, or without memory."""
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return clean(", ".join(names[:NAMED]), 4000) + more


def beginning(config: TrialConfig) -> str:
    """Return, in a sentence, which weights training begins with."""
    if config.start is not None:
        return f"Training begins with the weights of {':'.join(field.kind_and_name(config.start))}."
    return (
        f"Every weight is drawn anew (initialization = {config.initialization}), also where the network came "
        "with trained ones; `start` begins with given weights."
    )


def read(start: Mapping[str, str], data_dir: Path) -> Start:
    """Return the weights of a ``start`` that is no trial; nothing but tensors is read from the file.

    Raises ``InputError`` where the file is absent, another one than when the experiment was expanded, or no
    weights.
    """
    field.sealed(start, data_dir)
    kind, name = field.kind_and_name(start)
    path = field.file_of(start, data_dir)
    where = str(path) if kind == "file" else f"{kind}:{name} ({path})"
    try:
        state = _tensors(path)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a reader makes of bytes that are no weights
        raise InputError(f"start: {where} cannot be read as weights ({clean(error, 300)})") from None
    return Start(state, where)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of safetensors or of ``torch.save``; there also below a usual key."""
    if path.suffix == ".safetensors":
        return load_file(path)
    found = checkpoint.read(path, "cpu")
    if isinstance(found, dict) and any(isinstance(found.get(key), dict) for key in _USUAL):
        chosen = next(key for key in _USUAL if isinstance(found.get(key), dict))
        rivals = [k for k, v in found.items() if _is_state_dict(v) and not v.keys().isdisjoint(found[chosen])]
        if len(rivals) > 1:
            raise ValueError(
                f"several state dicts, {', '.join(map(str, rivals))}: save the one that is meant"
            )
        found = found[chosen]
    if not _is_state_dict(found):
        raise ValueError("no state dict: a table of names and tensors")
    return dict(found)


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(torch.is_tensor(v) for v in value.values())
