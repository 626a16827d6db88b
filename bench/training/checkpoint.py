"""Checkpoints: everything an interrupted trial needs to end as if it had not been interrupted.

Random numbers, schedules and batches are functions of the global step, so a checkpoint is weights, optimizer, step and
the sums of the epoch under way. It is written to a temporary name, flushed to disk and renamed; the one before it is
kept until the next, so that a good one survives whatever happens.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from bench.store import write_atomic

SCHEMA = 1


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

    Read with ``weights_only``: nothing in the file is executed. A damaged file is passed over for the one before it.
    """
    for candidate in (path, _previous(path)):
        try:
            state = torch.load(candidate, map_location=device, weights_only=True)
        except FileNotFoundError:
            continue
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            continue  # damaged: the one before it, or the beginning
        if isinstance(state, dict) and state.get("schema") == SCHEMA:
            return state
    return None


def discard(path: Path) -> None:
    """Remove the checkpoints at ``path``: the trial is finished."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)
