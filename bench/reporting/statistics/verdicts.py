"""Verdicts on published accuracies: reproduced, not reproduced, inconclusive or not comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.reporting.statistics.intervals import Interval
from bench.text import signed

MARGIN = 1.0  # points: how close to a published accuracy counts as the same
_CANNOT_FAIL = {  # kinds of published values that a run of ours cannot fail to reproduce, and why
    "quoted": "the value is quoted without a recipe",
    "superseded": "its own source has replaced the value",
}


@dataclass(frozen=True)
class Verdict:
    """``reproduced``, ``not reproduced``, ``inconclusive`` or ``not comparable``, and why."""

    word: str
    reason: str


def verdict(
    ours: Interval, published: float, kind: str, not_comparable: Sequence[str] = (), margin: float = MARGIN
) -> Verdict:
    """Return the verdict on a mean of ours beside a published accuracy (both in percent).

    1. ``not comparable``: a run on a subset, at a short budget, on another network or data set, however close
       it comes.
    2. ``inconclusive``: no interval (one run, identical runs).
    3. ``reproduced``: the whole 95 % interval lies within ``margin`` points of the published value, so a wide
       interval cannot reproduce anything. Published values carry no interval; the margin stands for theirs.
    4. ``not reproduced``: the whole interval lies more than ``margin`` away. A ``quoted`` value, printed by a
       later paper without a recipe, and a ``superseded`` one, replaced by its own source, cannot fail like
       that: both are ``inconclusive``.
    5. ``inconclusive``: anything between.

    Args:
        ours: The mean over seeds, and its 95 % interval.
        published: The published accuracy.
        kind: The kind of the published row.
        not_comparable: Why the two cannot be compared; none: they can.
        margin: In points.
    """
    if not_comparable:
        return Verdict("not comparable", "; ".join(not_comparable))
    if ours.mean is None:
        return Verdict("inconclusive", "no finished run")
    difference = f"{signed(ours.mean - published)} points"
    if ours.low is None or ours.high is None:
        return Verdict("inconclusive", f"{difference}; {ours.note}")
    low, high = ours.low - published, ours.high - published
    if -margin <= low and high <= margin:
        return Verdict("reproduced", f"{difference}, interval within {margin:g}")
    if high < -margin or low > margin:
        if kind in _CANNOT_FAIL:
            return Verdict("inconclusive", f"{difference}, but {_CANNOT_FAIL[kind]}")
        side = "below" if high < 0 else "above"
        return Verdict("not reproduced", f"{difference}, interval {side} by more than {margin:g}")
    interval = f"interval {signed(low)} to {signed(high)} against a margin of {margin:g}"
    return Verdict("inconclusive", f"{difference}, {interval}")
