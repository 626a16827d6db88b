"""Whatever is registered gets its checks; a part without its line in ``tables.py`` fails by its name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bench import registry
from tests.conformance import checks, tables

TABLES: dict[str, dict[str, Any]] = {
    "quantizers": tables.QUANTIZERS,
    "factors": tables.FACTORS,
    "learning_rates": tables.LEARNING_RATES,
    "strategies": tables.STRATEGIES,
    "networks": tables.NETWORKS,
    "datasets": tables.DATASETS,
}


def own(group: str) -> list[str]:
    """Return the suite's own parts of a group. Installed packages check theirs."""
    return [name for name, entry in registry.entries(group).items() if not entry.package]


def row(group: str, name: str) -> Any:
    """Return the line of a part; fails naming the table where there is none."""
    if name not in TABLES[group]:
        pytest.fail(f"{name}: no line in {group.upper()} of tests/conformance/tables.py", pytrace=False)
    return TABLES[group][name]


@pytest.mark.parametrize("group", registry.GROUPS)
def test_no_line_is_left_of_a_part_that_is_gone(group):
    assert set(TABLES[group]) <= set(own(group))


@pytest.mark.parametrize("kind", own("quantizers"))
class TestQuantizers:
    def test_weights(self, kind):
        checks.check_quantizer_weights(kind, row("quantizers", kind))

    def test_activations(self, kind):
        checks.check_quantizer_activations(kind, row("quantizers", kind))

    def test_autocast(self, kind):
        checks.check_quantizer_autocast(kind)

    @pytest.mark.slow
    def test_compiled(self, kind):
        checks.check_quantizer_compiled(kind)

    def test_declared_bits_are_stored(self, kind):
        checks.check_declared_bits(kind)

    def test_levels(self, kind):
        checks.check_levels(kind, row("quantizers", kind))

    def test_deployed_activations(self, kind):
        checks.check_deployed_activations(kind)

    def test_the_paper_is_named(self, kind):
        entry = registry.get("quantizers", kind)
        published = entry.arxiv or re.search(r"\((AAAI|CVPR) \d{4}\)$", entry.title)  # four are not on arXiv
        assert kind == "full_precision" or (entry.title and published)


@pytest.mark.parametrize("kind", own("strategies"))
def test_the_paper_of_a_strategy_is_named(kind):
    entry = registry.get("strategies", kind)
    published = entry.arxiv or re.search(r"\(CVPR 2018\)$", entry.title)
    assert kind in ("plain", "anneal") or (entry.title and published)  # the two controls are no papers


@pytest.mark.parametrize("kind", own("factors"))
def test_factor(kind):
    checks.check_factor(kind, row("factors", kind))


@pytest.mark.parametrize("kind", own("learning_rates"))
def test_learning_rate(kind):
    checks.check_learning_rate(kind, row("learning_rates", kind))


def strategy_cases() -> list[Any]:
    """Return a case for each line of a strategy. The first is quick, and every scheme of apprentice."""
    return [
        pytest.param(
            kind, i, id=f"{kind}-{i}", marks=[pytest.mark.slow] if i > 0 and kind != "apprentice" else []
        )
        for kind in own("strategies")
        for i in range(len(tables.STRATEGIES.get(kind, [None])))
    ]


@pytest.mark.parametrize(("kind", "number"), strategy_cases())
def test_strategy(kind, number, tmp_path):
    checks.check_strategy(kind, row("strategies", kind)[number], tmp_path)


@pytest.mark.parametrize("merge", tables.MERGES)
@pytest.mark.parametrize("kind", own("networks"))
def test_network(kind, merge):
    case = row("networks", kind)
    if case is not None:  # instances of these are built by tests of their own
        checks.check_network(kind, case, merge)


@pytest.mark.parametrize("kind", own("networks"))
def test_declared_size(kind):
    if row("networks", kind) is not None:
        checks.check_declared_size(kind)


@pytest.mark.parametrize("kind", own("datasets"))
def test_dataset(kind, tmp_path):
    checks.check_dataset(kind, row("datasets", kind), tmp_path)
