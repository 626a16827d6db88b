"""Synchronous successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): pure functions.

All configurations of a rung are trained to its epoch, then the best part goes on. A trial's schedules span
the whole budget from the first rung on, so a survivor is the same trial as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.tuning.choice import ranking
from bench.tuning.space import Configuration


@dataclass(frozen=True)
class Rung:
    """``count`` configurations are trained up to the end of epoch ``epoch``."""

    epoch: int
    count: int


def rungs(
    epochs: int, effort: int, reduction: int, every: int = 1, *, shape: int | None = None
) -> list[Rung]:
    """Return the rungs: counts effort, effort/reduction, ..., at epochs that grow by this factor to the last.

    ``every`` is the number of epochs from one evaluation to the next: a rung ends at an evaluation. The
    last rung trains at least one configuration to the end. Rungs that would end at the same epoch are one.
    With ``shape`` the rungs end at the epochs that they have with this effort.
    """
    count, steps = effort if shape is None else shape, 0
    while count > 1:
        count, steps = math.ceil(count / reduction), steps + 1
    found: list[Rung] = []
    count = effort
    for number in range(steps + 1):
        epoch = math.ceil(epochs / reduction ** (steps - number))
        epoch = min(epochs, math.ceil(epoch / every) * every)
        if found and found[-1].epoch == epoch:  # too few epochs for another rung: the larger one stays
            count = math.ceil(count / reduction)
            continue
        found.append(Rung(epoch, count))
        count = math.ceil(count / reduction)
    return found


def survivors(
    configurations: Sequence[Configuration], scores: Sequence[float | None], count: int
) -> list[int]:
    """Return the positions of the ``count`` best scores, in their old order; None (diverged) never survives.

    Equal scores are ranked as in the choice at the end (``choice.ranking``).
    """
    return sorted(ranking(configurations, scores)[:count])
