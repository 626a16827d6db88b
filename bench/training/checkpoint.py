"""Checkpoints: everything an interrupted trial needs to end as if it had not been interrupted.

Random numbers, schedules and batches are functions of the global step, so a checkpoint is weights, optimizer,
step and the sums of the epoch under way. It is written to a temporary name, flushed to disk and renamed; the
one before it is kept until the next, so that a good one survives whatever happens.
"""

from __future__ import annotations

import io
import logging
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from bench.errors import InputError
from bench.records.files import write_atomic

SCHEMA = 1
LARGEST_INDEX = 64 << 20  # bytes of the part of a checkpoint that names its tensors
# What a pickle of tensors, numbers and texts asks for; everything else that ``weights_only`` would let pass
# is refused.
_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)"
    r"|torch [A-Za-z0-9]*Storage|torch\.storage UntypedStorage|torch [a-z]+[0-9]+"
)
log = logging.getLogger("bench.checkpoint")


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, nested in dicts and lists) to ``path``, atomically."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    if path.exists():
        path.replace(_previous(path))
    write_atomic(path, buffer.getvalue())


def load(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    """Return the newest readable checkpoint at ``path``, None where there is none.

    Nothing in the file is executed: it is looked through before (``_inspect``) and read with
    ``weights_only``. A damaged file is passed over for the one before it. Raises ``InputError`` where a file
    is there and cannot be opened.
    """
    for candidate in (path, _previous(path)):
        try:
            state = read(candidate, device)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{candidate}: cannot be read ({error.strerror or error})") from None
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever the readers make of bytes that are no checkpoint
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("%s cannot be used and is passed over: %s", candidate, reason[:300])
            continue  # damaged: the one before it, or the beginning
        if isinstance(state, dict) and type(state.get("schema")) is int and state["schema"] == SCHEMA:
            return state
    return None


def read(path: Path, device: torch.device | str) -> Any:
    """Return the tensors, numbers and texts in a file of ``torch.save``; raises for anything else."""
    _inspect(path)
    return torch.load(path, map_location=device, weights_only=True)


def _inspect(path: Path) -> None:
    """Raise ``ValueError`` unless the file is whole, unpacks to its size and names parts of tensors alone.

    ``weights_only`` keeps code from being executed; this keeps memory from being taken: packed members (a
    bomb), and the constructors it allows that allocate what they are told (``bytearray``). ``torch.load``
    does not look at the checksums of the parts.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it unpacks to more than it is")
        indices = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(indices) != 1 or indices[0].file_size > LARGEST_INDEX:
            raise ValueError("no index of its tensors, or several")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its part {damaged} is damaged")
        content = archive.read(indices[0])
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it asks for something by {operation.name}")
        if operation.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise ValueError(f"it asks for {str(argument)[:80]!r}")


def misfit(found: Any, expected: Any, where: str = "") -> str | None:
    """Return where nested dicts and lists of ``found`` differ in form from ``expected``; None for nowhere.

    Keys, types, and shapes and dtypes of tensors are compared; the values are not.
    """
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return f"{where}: no tensor"
        if (found.shape, found.dtype) != (expected.shape, expected.dtype) or found.layout != expected.layout:
            return (
                f"{where}: {found.dtype} {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}"
            )
        return None
    if type(found) is not type(expected) and not (isinstance(found, dict) and isinstance(expected, dict)):
        return f"{where}: {type(found).__name__}, not {type(expected).__name__}"
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            odd = sorted(map(str, found.keys() ^ expected.keys()))
            return f"{where}: keys differ: {', '.join(odd)[:100]}"
        pairs = [(str(key), found[key], value) for key, value in expected.items()]
    elif isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return f"{where}: {len(found)} items, not {len(expected)}"
        pairs = [(str(i), one, other) for i, (one, other) in enumerate(zip(found, expected, strict=True))]
    else:
        return None
    for key, one, other in pairs:
        problem = misfit(one, other, f"{where}.{key}".lstrip("."))
        if problem is not None:
            return problem
    return None


def discard(path: Path) -> None:
    """Remove the checkpoints at ``path``: the trial is finished."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)
