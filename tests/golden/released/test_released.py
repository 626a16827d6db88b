"""Every ``released`` preset against the numbers that the authors' released code computes."""

from __future__ import annotations

import pytest

from bench.experiments.expand import load_experiment
from tests.golden.released import comparison, fidelity
from tests.golden.released.base import EXPERIMENTS, arrays
from tests.golden.released.quantizer_rows import WEIGHTS
from tests.golden.released.svhn_rows import settings


@pytest.mark.parametrize("group", comparison.GROUPS)
def test_the_presets_compute_what_the_release_computes(group):
    rows = list(comparison.GROUPS[group]())
    assert rows
    wrong = [
        (row.item, row.precision, row.difference, row.allowed) for row in rows if row.difference > row.allowed
    ]
    assert not wrong


def test_every_allowed_difference_is_justified():
    for page_row in fidelity.committed_rows():
        assert page_row["why"], page_row


def test_the_page_is_what_the_comparison_writes():
    """All but the differences, whose last digits depend on the machine; they stay within what is allowed."""
    rows = [row for group in comparison.GROUPS.values() for row in group()]
    assert fidelity.masked(fidelity.page(rows)) == fidelity.masked(fidelity.PAGE.read_text(encoding="utf-8"))
    for page_row in fidelity.committed_rows():
        for column in ("largest difference", "in float64"):
            assert float(page_row[column] or 0) <= float(page_row["allowed"]), page_row


def test_no_array_of_the_folder_is_left_out():
    """Each function of quantizers.npz has a call here, and each setting of the SVHN files a run."""
    outputs = [key for key in arrays("quantizers") if key.count(".") > 1 and ".w_" in key]
    functions = {key[: key.index(".w_")] for key in outputs}
    assert functions == set(WEIGHTS)
    assert settings("svhn_baseline") == ["w1a1", "w1a2"]
    assert settings("svhn_expanded_concat") == ["w1a1_f0", "w1a1_f0345", "w1a1_f1", "w1a2_f0345"]


@pytest.mark.parametrize(
    ("experiment", "preset"), [("svhn_released", "SVHN"), ("imagenet_alexnet_released", "AlexNet")]
)
def test_the_experiments_name_every_deviation_that_remains(experiment, preset):
    """The rows of deviations.md that touch a preset are the lines that ``bench show --diff`` prints."""
    text = (fidelity.HERE / "deviations.md").read_text(encoding="utf-8").partition("## AlexNet-DoReFa")[0]
    items = [
        line.removeprefix("| ").partition(" | ")[0] for line in text.splitlines() if line.startswith("| ")
    ]
    named = [item.rpartition(" (") for item in items[2:]]
    expected = [name for name, _, presets in named if preset in presets or "both" in presets]
    loaded = load_experiment(EXPERIMENTS / f"{experiment}.toml", data_dir=fidelity.HERE)
    assert [line.partition(": ")[0] for line in loaded.deviations] == expected and expected
