"""The errors that end a command with one clear message instead of a traceback."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class InputError(Exception):
    """The user's input is wrong; the command ends with exit status 2 before anything is trained.

    The message names the file and key, what was expected, and the nearest valid name where there is one.
    Several problems of one file are reported together, a line each.
    """


class NetworkError(InputError):
    """A network that the suite did not write cannot be made or adopted, perhaps with this seed alone.

    Where a trial raises this error, the trial is recorded as failed, with the message as its reason.
    """


@contextlib.contextmanager
def readable(path: object) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``InputError``: ``path`` cannot be read, and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the valid name closest to ``name``, "" where none is close."""
    found = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""


def shown(value: Any, length: int = 80) -> str:
    """Return ``repr(value)``, cut to ``length`` characters: fit for a message whatever the value is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a table nested too deeply
        return "that value"
    return text if len(text) <= length else text[: length - 3] + "..."
