"""The mathematics of the report, as pure functions of numbers; one module a subject.

- ``intervals``: means, and accuracies of single networks;
- ``pairs``: two arms, seed by seed; ``claims``: verdicts on declared claims;
- ``verdicts``: published values; ``times``: convergence and removal;
- ``search``: the best of several configurations.

SciPy provides the distributions, Welch's and Wilson's intervals and the one-sided t-tests.
"""

from __future__ import annotations

from bench.reporting.statistics.claims import EXPLORATORY, NO_CLAIM, NOT_YET, holm_of_known, verdict_on_claim
from bench.reporting.statistics.intervals import Interval, mean_interval, welch, wilson
from bench.reporting.statistics.pairs import (
    DeviationRatio,
    Gain,
    SignFlip,
    deviation_ratio,
    differences,
    equivalence,
    paired_gain,
    sign_flip,
)
from bench.reporting.statistics.search import expected_best
from bench.reporting.statistics.times import (
    Removal,
    TimeTo,
    common_threshold,
    first_reached,
    held_from,
    removal,
    time_to,
)
from bench.reporting.statistics.verdicts import MARGIN, Verdict, verdict
