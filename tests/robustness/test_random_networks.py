"""Random networks of other people, few here, more in ``make soak``: ``BENCH_NETWORK_CASES`` of them."""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, given, settings

from tests.robustness.random_networks import hold, merges, networks, quantizers

CASES = int(os.environ.get("BENCH_NETWORK_CASES", "40"))


def test_random_networks_are_what_they_were_and_lose_their_branches():
    ends: Counter[str] = Counter()

    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(networks, quantizers, merges)
    def check(drawn, quantizer, merge):
        ends[hold(drawn, quantizer, merge)] += 1

    check()
    print(f"{sum(ends.values())} random networks: {dict(ends)}")
    assert ends["kept"] >= CASES / 2
