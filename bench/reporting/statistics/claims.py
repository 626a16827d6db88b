"""From the tests of the declared claims to one verdict each.

A claim is tested twice: for a difference (``pairs.sign_flip``) and for equivalence within its margin
(``pairs.equivalence``). Holm's correction runs over the tests for a difference of all claims of an
experiment, and separately over their tests for equivalence, so each of the two kinds of statement is wrong in
at most 5 % of the experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.reporting.statistics.intervals import LEVEL, Interval
from bench.reporting.statistics.pairs import SignFlip
from bench.text import plural

BETTER, WORSE, EQUIVALENT, NOT_SETTLED = "better", "worse", "equivalent", "not settled"
EXPLORATORY, NO_CLAIM, NOT_YET = "exploratory", "no claim", "not yet decided"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm (1979); rejecting up to 0.05 keeps the family-wise error at 5 %.

    The correction needs no independence, so arms may share a baseline.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def holm_of_known(p_values: Sequence[float | None], unknown: float = 1.0) -> list[float | None]:
    """Return ``holm`` of the known p-values, with None for the others.

    The others count as tests, too, since their claims were declared: None, which waits for runs, as
    ``unknown``; NaN, a claim that cannot be tested, as 1.
    """
    counted = [unknown if p is None else 1.0 if math.isnan(p) else p for p in p_values]
    pairs = zip(p_values, holm(counted), strict=True)
    return [None if p is None or math.isnan(p) else a for p, a in pairs]


def verdict_on_claim(
    gain: Interval,
    test: SignFlip | None,
    p_difference: float | None,
    p_equivalence: float | None,
    obstacle: str = "",
    level: float = LEVEL,
) -> str:
    """Return the verdict on a declared claim: better, worse, equivalent, not settled, or why there is none.

    A difference is claimed where the corrected exact test and the interval both exclude "none". Equivalence
    is claimed only where no difference is.

    Args:
        gain: The mean paired difference in points, and its t-interval.
        test: The sign-flip test of the differences; None without any pair.
        p_difference: The p-value of ``test`` after Holm's correction.
        p_equivalence: The p-value of equivalence within the margin after Holm's correction; None where not
            tested.
        obstacle: Why no claim can be made at all (a pair lost to a diverged run, both sides at chance), else
            "".
        level: 1 minus the family-wise error.
    """
    if obstacle:
        return f"{NO_CLAIM}: {obstacle}"
    if test is None or p_difference is None or gain.mean is None:
        return f"{NO_CLAIM}: {gain.note or 'no pair'}"
    limit = 1 - level + 1e-12
    outside = gain.low is not None and gain.high is not None and not gain.low <= 0 <= gain.high
    if p_difference <= limit and outside:
        return BETTER if gain.mean > 0 else WORSE
    if p_equivalence is not None and p_equivalence <= limit:
        return EQUIVALENT
    if test.smallest > limit:
        pairs = plural(gain.n, "pair")
        return f"{NOT_SETTLED}: {pairs} cannot show it (smallest possible p {test.smallest:.3g})"
    return NOT_SETTLED
