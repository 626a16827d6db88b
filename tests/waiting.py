"""Waiting for a condition, never for a time: no verdict depends on how busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 600.0  # seconds after which something hangs: a limit that a slow machine does not reach


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return when ``condition()`` is true; fail, naming ``what``, where the wait hangs."""
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end, f"hangs: {what}"
        time.sleep(0.02)
