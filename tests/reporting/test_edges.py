"""A chosen number at an edge of what an arm tried is told wherever the choice or a verdict stands."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.experiments.selection import Selection
from bench.reporting.records import read_experiment
from bench.reporting.tuned import Searched, choices_at_edges, searches
from bench.reporting.tuning_table import tuning_table
from bench.reporting.write import write_report
from bench.tuning.space import edge_sides
from tests.reporting.fake_records import SUM, Results

RATE, UNTIL = "learning_rate.initial", "strategy.factor.until"
Configuration = Mapping[str, Any]


def _lines(
    arm: str, tried: Sequence[Configuration], chosen: int | None, widened: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """Return the lines of a search; ``widened`` has the widenings that asked for a configuration."""
    return [
        {
            "profile": None,
            "arm": arm,
            "grid": {},
            "configuration": configuration,
            "trials": {"100": f"{number:016x}"},
            "accuracies": [80.0],
            "mean": 80.0,
            "dropped_at": None,
            "widening": (widened or {}).get(number),
            "seconds": 1.0,
            "sampler": "grid",
            "chosen": number == chosen,
        }
        for number, configuration in enumerate(tried)
    ]


def _search(
    tried: Sequence[Configuration], chosen: int | None, widened: Mapping[int, str] | None = None
) -> Searched:
    (search,) = searches(_lines("A", tried, chosen, widened))
    return search


def _texts(search: Searched) -> list[str]:
    return [edge.text for edge in search.edges]


def _rates(*rates: float) -> list[Configuration]:
    return [{RATE: rate} for rate in rates]


@pytest.mark.parametrize(
    ("value", "tried", "sides"),
    [
        (1, [1, 2, 3], ["low"]),
        (3, [1, 2, 3], ["high"]),
        (2, [1, 2, 3], []),
        (2, [2, 1, 2], ["high"]),
        (5, [5, 5], []),  # one number alone: nothing was searched
        (5, [5], []),
    ],
)
def test_the_sides_of_a_number_beyond_which_none_was_tried(value, tried, sides):
    assert edge_sides(value, tried) == sides


def test_a_rate_at_either_end_of_a_range_is_at_an_edge_and_one_between_is_not():
    rates = _rates(0.004, 0.008, 0.016, 0.032)
    assert _texts(_search(rates, 0)) == [f"{RATE} 0.004 is the smallest value tried (range not extended)"]
    assert _texts(_search(rates, 3)) == [f"{RATE} 0.032 is the largest value tried (range not extended)"]
    assert _texts(_search(rates, 1)) == _texts(_search(rates, 2)) == []


def test_what_counts_is_what_was_tried_and_not_the_ends_of_the_range():
    """Quasirandom rates of [1e-3, 1e-1]: none is an end; the largest one tried is at an edge all the same."""
    rates = _rates(0.0137, 0.0021, 0.0846, 0.0052)
    assert _texts(_search(rates, 2)) == [f"{RATE} 0.0846 is the largest value tried (range not extended)"]
    assert _texts(_search(rates, 0)) == []


def test_a_configuration_that_diverged_was_tried():
    lines = _lines("A", _rates(0.1, 0.2, 0.4), 1)
    lines[2] |= {"accuracies": [None], "mean": None}
    (search,) = searches(lines)
    assert search.edges == []


def test_widenings_are_counted_on_the_side_of_the_edge_alone():
    tried = _rates(0.01, 0.02, 0.04, 0.08, 0.005)
    widened = {2: f"{RATE} high 1", 3: f"{RATE} high 2", 4: f"{RATE} low 1"}
    assert _texts(_search(tried, 3, widened)) == [
        f"{RATE} 0.08 is the largest value tried (range extended 2 times)"
    ]
    assert _texts(_search(tried, 4, widened)) == [
        f"{RATE} 0.005 is the smallest value tried (range extended 1 time)"
    ]
    other = {2: f"{UNTIL} high 1", 3: "not a widening", 4: None}
    assert _texts(_search(tried, 3, other)) == [
        f"{RATE} 0.08 is the largest value tried (range not extended)"
    ]


@pytest.mark.parametrize(
    ("values", "edge"),
    [
        ([32, 64, 128], True),  # a list of numbers is ordered, however it is written
        ([128, 32, 64], True),
        (["sgd", "adam"], False),
        ([True, False], False),
        ([{"kind": "constant"}, {"kind": "cosine"}], False),
        ([1, "auto"], False),
        ([128], False),  # one value: not tuned
    ],
)
def test_only_numbers_have_an_edge(values, edge):
    chosen = values.index(128) if 128 in values else 0
    found = _search([{"batch_size": value} for value in values], chosen).edges
    assert bool(found) == edge
    assert all((one.name, one.value, one.side) == ("batch_size", 128, "high") for one in found)


def test_every_number_of_a_configuration_counts_and_a_search_that_goes_on_has_no_edge():
    tried = [{RATE: 0.1, UNTIL: 0.25}, {RATE: 0.2, UNTIL: 0.5}, {RATE: 0.4, UNTIL: 0.25}]
    assert _texts(_search(tried, 2)) == [
        f"{RATE} 0.4 is the largest value tried (range not extended)",
        f"{UNTIL} 0.25 is the smallest value tried (range not extended)",
    ]
    assert _search(tried, None).edges == []
    found = searches([*_lines("A", tried, 2), *_lines("B", tried, None), *_lines("C", _rates(1, 2, 3), 1)])
    assert choices_at_edges(found) == "1 of 3 choices at an edge of the values tried"
    assert choices_at_edges(found[1:]) == ""


FILE = """title = "Tuned"
[[arms]]
name = "Plain"
[[arms]]
name = "EXP-Net"
baseline = "Plain"
[[claims]]
arm = "EXP-Net"
over = "Plain"
at = "equal epochs"
"""


def _report(tmp_path: Path, capsys: Any, plain: float, other: float) -> tuple[str, Path]:
    """Report two arms that chose these rates of 0.01, 0.02 and 0.04; return what is printed, and the folder.

    The gains are 2.0, 2.2, ... 3.2 points: their mean is 2.6, and half the interval 2.447 x 0.432 / sqrt(7).
    """
    results = Results(tmp_path)
    results.experiment("tuned", FILE)
    lines = []
    for arm, rate, add in (("Plain", plain, 0.0), ("EXP-Net", other, 2.0)):
        learning_rate = {"kind": "constant", "initial": rate}
        baseline, strategy = ("Plain", SUM) if add else (None, {"kind": "plain"})
        common: dict[str, Any] = {"learning_rate": learning_rate, "strategy": strategy, "grid": {}}
        for seed in range(7):
            accuracy = 60.0 + add + 0.1 * seed * (1 + add)
            results.trial("tuned", arm, [10.0, accuracy], seed=seed, baseline=baseline, epochs=2, **common)
        rates = (0.01, 0.02, 0.04)
        lines += _lines(arm, _rates(*rates), rates.index(rate))
        for line, tried in zip(lines[-3:], rates, strict=True):
            line["grid"] = {"bits": "1/1", "width": 0.25}
            values = {**common, "learning_rate": {**learning_rate, "initial": tried}}
            id = results.trial("tuned", None, [80.0], role="tuning", seed=100, epochs=1, **values)
            line["trials"] = {"100": id}
    results.tuning_lines["tuned"] = lines
    assert write_report(None, Selection(), results.write(), tmp_path / "out", ["md", "csv", "html"]) == 0
    return capsys.readouterr().out, tmp_path / "out" / "tuned"


def _text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


def test_an_edge_is_told_in_the_tables_on_the_page_and_in_the_terminal(tmp_path, capsys):
    told, folder = _report(tmp_path, capsys, plain=0.02, other=0.04)
    edge = f"{RATE} 0.04 is the largest value tried (range not extended)"
    assert "1 of 2 choices at an edge of the values tried" in told
    assert f"EXP-Net over Plain: better, +2.60 [+2.20, +3.00] points, 7 pairs. EXP-Net: {edge}." in told
    table = (folder / "tuning.md").read_text()
    assert edge.replace("_", r"\_") in table and "may be under-tuned" in table
    chosen = [row for row in csv.DictReader((folder / "tuning.csv").open()) if row["chosen"] == "yes"]
    assert [row["at_edge"] for row in chosen] == ["", edge]
    (claim,) = csv.DictReader((folder / "claims.csv").open())
    assert (claim["verdict"], claim["at_edge"]) == ("better", f"EXP-Net: {edge}")
    assert f"EXP-Net: {edge}".replace("_", r"\_") in (folder / "claims.md").read_text()
    page = _text((folder / "index.html").read_text())
    assert f"7 pairs. EXP-Net: {edge}." in page
    assert "1 of 2 choices at an edge of the values tried" in page


def test_the_baseline_of_a_claim_may_be_the_one_that_is_under_tuned(tmp_path, capsys):
    told, _ = _report(tmp_path, capsys, plain=0.01, other=0.02)
    assert f"7 pairs. Plain: {RATE} 0.01 is the smallest value tried (range not extended)." in told


def test_a_report_without_an_edge_says_so_and_has_no_column_for_edges(tmp_path, capsys):
    told, folder = _report(tmp_path, capsys, plain=0.02, other=0.02)
    assert "at an edge" not in told
    table = (folder / "tuning.md").read_text()
    assert "No chosen number lies at an edge of those that its arm tried." in table
    assert "At an edge" not in table and "at an edge" not in (folder / "claims.md").read_text()


def test_nothing_is_said_of_edges_before_anything_is_chosen(tmp_path):
    results = Results(tmp_path)
    results.experiment("tuned", FILE)
    tried = _lines("Plain", _rates(0.01, 0.02), None)
    table = tuning_table(read_experiment(results.write(), "tuned"), searches(tried))
    assert table is not None and not any("edge" in note for note in table.notes)
