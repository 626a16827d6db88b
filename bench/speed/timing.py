"""Times of actions that take turns, so that a change of the machine's speed changes all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def timed(action: Callable[[], object], device: str) -> float:
    """Return the seconds of ``action``, with the work of the device."""
    begin = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def interleaved(actions: Sequence[Callable[[], object]], device: str, rounds: int) -> list[list[float]]:
    """Return the seconds of each action, one value a round, after a first round that does not count."""
    for action in actions:
        timed(action, device)
    taken = [[timed(action, device) for action in actions] for _ in range(rounds)]
    return [list(column) for column in zip(*taken, strict=True)]


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def summary(seconds: Sequence[float], unit: Sequence[float]) -> dict[str, float]:
    """Return the statistics of a row from its seconds and those of the unit in the same rounds."""
    return {
        "seconds": statistics.median(seconds),
        "spread": spread(seconds),
        "ratio": statistics.median(a / b for a, b in zip(seconds, unit, strict=True)),
    }
