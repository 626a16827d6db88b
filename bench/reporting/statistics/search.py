"""How good the best of several tried configurations is expected to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_best(scores: Sequence[float]) -> list[float]:
    """Return the expected best score after 1, ..., n tried configurations (Dodge et al. 2019, 1909.03004).

    ``scores`` are the n validation scores of a random search. Entry k - 1 is the expected largest of k scores
    drawn, with replacement, from their empirical distribution (equation 2 there): with the scores sorted, the
    sum over i of score_i ((i / n)^k - ((i - 1) / n)^k). Drawing with replacement makes the estimate for k
    near n a little low. Scores of a search that is not random (quasirandom or grid) make it a description,
    not an expectation.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = ordered.size
    ranks = np.arange(n + 1) / max(n, 1)
    return [float(ordered @ np.diff(ranks**k)) for k in range(1, n + 1)]
