"""Values of fields in words, as tables and lines of trials show them."""

from __future__ import annotations

import pytest

from bench.cli.status import label, results_table
from bench.experiments.labels import value_text, values_text
from bench.records.store import State

COSINE = {"kind": "cosine", "until": 0.25, "until_epochs": None, "keep": False}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (COSINE, "cosine (until 0.25)"),
        (0.00929259, "0.00929259"),
        (1 / 3, "0.3333333333333333"),
        (1e-3, "0.001"),
        (True, "true"),
        ([0.5, 1.0], "[0.5, 1.0]"),
        ({"linear": [0.0, 0.8]}, '{"linear": [0.0, 0.8]}'),
        ("crop_flip", "crop_flip"),
        (None, "null"),
    ],
)
def test_a_value(value, text):
    assert value_text(value) == text


def test_no_line_about_a_trial_shows_a_table_of_python():
    line = {"id": "0" * 16, "arm": "A", "grid": {"strategy.factor": COSINE, "seed": 0}}
    assert values_text(line["grid"]) == "strategy.factor=cosine (until 0.25) seed=0"
    assert label(line) == "A strategy.factor=cosine (until 0.25) seed=0"
    assert "cosine (until 0.25)" in results_table([line], {"0" * 16: State("done")})
