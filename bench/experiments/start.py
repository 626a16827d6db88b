"""The weights that a trial begins with, ``start = { file = ... }``: the field and its identity. No torch.

start = { file = "weights.safetensors" }      a file, absolute or in the data folder (or of torch.save)
start = { trial = "0123456789abcdef" }        the final weights of a finished trial in the same results
start = { torchvision = "resnet18" }          the library's trained weights, from its local cache
start = { timm = "resnet18" }
start = { file = "trial:0123456789abcdef" }   the same kinds as KIND:NAME
start = "timm:resnet18"                       the same as plain text
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bench import registry
from bench.errors import InputError, nearest, shown

KINDS = ("file", "trial", "torchvision", "timm")
ROLE = "initial"  # of the trial whose weights another one begins with
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_TRIAL = re.compile(r"[0-9a-f]{16}")


def canonical(value: Any) -> dict[str, str] | None:
    """Return ``{kind: name}``, with ``checksum`` where it is known. Raises ``InputError``."""
    if value is None:
        return None
    if isinstance(value, str):
        value = {"file": value}
    if not isinstance(value, Mapping):
        raise InputError(f"start: expected a table such as {{ file = ... }}, not {shown(value)}")
    unknown = [key for key in value if key not in (*KINDS, "checksum")]
    if unknown:
        raise InputError(f"start.{unknown[0]}: there is no such key.{nearest(unknown[0], KINDS)}")
    given = [kind for kind in KINDS if kind in value]
    if len(given) != 1:
        raise InputError(f"start: exactly one of {', '.join(KINDS)} is needed, not {len(given)}")
    kind, name = given[0], value[given[0]]
    if not isinstance(name, str) or not name:
        raise InputError(f"start.{kind}: expected text, not {shown(name)}")
    prefix, colon, rest = name.partition(":")
    if kind == "file" and colon and prefix in KINDS:
        kind, name = prefix, rest
    if kind == "trial" and not _TRIAL.fullmatch(name):
        raise InputError(f"start.trial: expected the 16 hexadecimal digits of a trial, not {shown(name)}")
    checksum = value.get("checksum")
    if checksum is None:
        return {kind: name}
    if kind == "trial" or not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
        raise InputError(f"start.checksum: expected the SHA-256 of a file, not {shown(checksum)}")
    return {kind: name, "checksum": checksum}


def kind_and_name(start: Mapping[str, str]) -> tuple[str, str]:
    """Return the kind of a canonical ``start`` and its name: a path, a trial's id, a network's name."""
    kind = next(kind for kind in KINDS if kind in start)
    return kind, start[kind]


def identity_of(start: Mapping[str, str]) -> dict[str, str]:
    """Return what is hashed of a canonical ``start``: a trial's id, else only the checksum of the bytes."""
    return {key: value for key, value in start.items() if key in ("trial", "checksum")}


def needed_trial(start: Mapping[str, str] | None) -> dict[str, str]:
    """Return the trial that has to be finished before, by its role; empty for none."""
    return {ROLE: start["trial"]} if start and "trial" in start else {}


def file_of(start: Mapping[str, str], data_dir: Path) -> Path:
    """Return the file of a canonical ``start`` that is no trial. Raises ``InputError`` where it is absent."""
    kind, name = kind_and_name(start)
    if kind != "file":  # the library's own name for it, which its module knows
        return import_module(registry.get("networks", kind).module).trained_file(name)
    path = data_dir / Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"start.file: {path} is not there; a relative path is one in the data folder")
    return path


def sealed(start: Mapping[str, str] | None, data_dir: Path) -> dict[str, str] | None:
    """Return ``start`` with its file's checksum. Raises ``InputError`` for an absent or another file."""
    if start is None or "trial" in start:
        return None if start is None else dict(start)
    path = file_of(start, data_dir)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if start.get("checksum", found) != found:
        raise InputError(f"start: {path} is another file than the one named: its SHA-256 is {found}")
    return {**start, "checksum": found}
