"""The texts of ``bench list`` and ``bench show``."""

from __future__ import annotations

import pytest

from bench import registry
from bench.cli.screen import Screen
from bench.cli.show import list_text, show_text
from bench.errors import InputError
from bench.experiments.expand import load_experiment
from bench.experiments.labels import value_text
from bench.text import columns_of
from tests.experiments.experiment_fakes import ARMS, BASE, NETWORKS, use_toy_networks, write


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    use_toy_networks(monkeypatch)


@pytest.fixture
def show(tmp_path):
    def show(text=BASE + ARMS, *, profile=None, **options):
        return show_text(
            load_experiment(write(tmp_path, text), profile=profile, data_dir=tmp_path), **options
        )

    return show


class TestList:
    def test_every_group_with_paper_and_arxiv_id(self):
        text = list_text()
        for title in (
            "Quantizers",
            "Strategies",
            "Networks",
            "Datasets",
            "Factors",
            "Learning rates",
            "Recipes",
        ):
            assert f"\n{title}\n" in f"\n{text}"
        assert "1606.06160" in text and "DoReFa-Net: Training Low Bitwidth" in text and "toy" in text

    @pytest.mark.parametrize("width", [60, 80, 120, 200])
    def test_a_terminal_shows_every_word_within_its_width(self, width):
        full, fitted = list_text("quantizers"), list_text("quantizers", Screen(width))
        assert max(map(columns_of, full.splitlines())) > 100
        assert max(map(columns_of, fitted.splitlines())) <= width
        for entry in registry.entries("quantizers").values():  # the help column is there, no word is lost
            words = [word for word in entry.help.split() if len(word) < 8]
            assert all(word in fitted for word in words), (entry.name, words)
        assert "…" not in fitted

    def test_one_group_has_its_options(self):
        text = list_text("strategies")
        assert (
            "progressive.merge" in text
            and "sum | difference | concat | preactivation" in text
            and "needed" in text
        )
        assert "progressive.merge" not in list_text()

    def test_recipes_name_their_source(self):
        line = next(line for line in list_text("recipes").splitlines() if line.startswith("cifar_sgd"))
        assert "1512.03385" in line and "Deep Residual Learning" in line

    def test_an_unknown_group(self):
        with pytest.raises(InputError, match="Did you mean 'recipes'"):
            list_text("recipe")

    def test_hostile_entries_come_out_inert(self, monkeypatch):
        entry = registry.Entry("networks", "x\x1b[2J", "m", "f", "help\x07\nsecond line", title="\u202etitle")
        monkeypatch.setattr(registry, "entries", lambda group: {"x": entry} if group == "networks" else {})
        text = list_text("networks")
        assert not set("\x1b\x07\u202e") & set(text) and len(text.splitlines()) == 4


class TestShow:
    def test_trials_identities_and_parity(self, show):
        text = show()
        lines = text.splitlines()
        assert lines[0] == "A title" and "2 arms, 2 trials" in lines[1]
        assert (
            "In all of them: dataset digits, network toy, width 1, quantizer dorefa, bits 1/1, epochs 12"
            in text
        )
        rows = [line for line in lines if line.endswith("0") and "plain" in line]
        assert len(rows[0].split()[0]) == 16
        assert "progressive (sum, cosine (until 0.5))" in text
        assert "branch  1       plain     1 of 1  strategy" in text

    def test_absent_data_is_a_question_mark(self, show):
        text = show((BASE + ARMS).replace('"digits"', '"npz:mine"'))
        assert "\n?   plain" in text and "Absent data, so no identity yet (?): npz:mine" in text

    def test_needs_and_shared_trials(self, show):
        student = (
            '[[arms]]\nname = "student"\nbaseline = "plain"\nquantizer = "dorefa"\nbits = "1/1"\n'
            'strategy = { kind = "apprentice", scheme = "B" }\n[[arms]]\nname = "fp"\n'
        )
        text = show(BASE + ARMS + student)
        assert "(1 wanted as teachers or starts)" in text
        shared = next(line for line in text.splitlines() if "(teacher)" in line)
        assert "fp" in shared
        assert any(f"teacher {shared.split()[0]}" in line for line in text.splitlines() if "student" in line)

    def test_allowed_differences_are_marked(self, show):
        text = show(BASE + ARMS + 'epochs = 18\nallow_differences = ["epochs"]\n')
        assert "strategy, epochs (allowed)" in text

    def test_a_profile_is_named(self, show):
        assert "profile quick: " in show(BASE + ARMS + "[profiles.quick]\nepochs = 3\n", profile="quick")

    def test_diff_field_by_field(self, show):
        text = show(
            BASE
            + ARMS
            + 'epochs = 18\nallow_differences = ["epochs"]\ngrid = { "strategy.factor.until" = [0.25, '
            "0.5] }\n",
            diff="branch",
        )
        rows = {line.split()[0]: line for line in text.splitlines() if line}
        assert rows["epochs"].split()[1:] == ["18", "12", "allowed", "by", "the", "arm"]
        assert "0.25, 0.5" in rows["strategy.factor.until"] and rows["strategy.kind"].split()[1:] == [
            "progressive",
            "plain",
        ]
        assert "quantizer.kind" not in rows and "Everything else is the same in 2 pairs." in text

    def test_diff_of_a_teacher_shows_what_is_its_own(self, show):
        student = (
            '[[arms]]\nname = "student"\nbaseline = "plain"\nquantizer = "dorefa"\nbits = "1/1"\n'
            'strategy = { kind = "apprentice", scheme = "B", teacher = { width = 2 } }\n'
        )
        text = show(BASE + ARMS + student, diff="student")
        assert "strategy.teacher.width" in text and "strategy.teacher.epochs" not in text

    def test_diff_of_arms_that_do_not_differ(self, show):
        same = ARMS.replace(
            'strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }',
            "",
        )
        assert "branch and its baseline plain are the same in 1 pair." in show(BASE + same, diff="branch")

    @pytest.mark.parametrize(
        ("arm", "words"), [("brunch", "Did you mean 'branch'"), ("plain", "has no baseline")]
    )
    def test_diff_of_what_has_none(self, show, arm, words):
        with pytest.raises(InputError, match=words):
            show(diff=arm)

    def test_hostile_titles_come_out_inert(self, show):
        text = show(BASE.replace("A title", "\\u001b[31mred\\u0007\\nsecond") + ARMS)
        assert "\x1b" not in text and "\x07" not in text and text.splitlines()[0].endswith("second")

    def test_wide_letters_keep_the_columns(self, show):
        text = show(BASE + ARMS.replace('"plain"', '"网络"').replace('"branch"', '"ab"'))
        rows = [line for line in text.splitlines() if "progressive (" in line or "网络" in line]
        assert columns_of(rows[0].split("plain")[0]) == columns_of(rows[1].split("progressive (")[0])

    @pytest.mark.parametrize("width", [60, 80, 120, 200])
    def test_the_seeds_of_an_arm_can_be_told_apart_at_any_width(self, show, width):
        arms = ARMS.replace('"plain"', '"a plain arm whose name is long enough to fill most of a line"')
        text = show(
            BASE.replace("[defaults]", "[grid]\nseed = [7, 8, 9]\n[defaults]") + arms, screen=Screen(width)
        )
        table = text[text.index("In all of them") : text.index("Arms")]
        assert max(map(columns_of, table.splitlines()[1:])) <= width
        assert all(table.count(seed) >= 2 for seed in ("7", "8", "9"))


def test_a_value_is_shown_without_loss():
    assert [value_text(v) for v in (0.25, 1.0, 1e-8, 0.123456789, True, None, [1, 2], "x")] == [
        "0.25", "1", "1e-08", "0.123456789", "true", "null", "[1, 2]", "x",
    ]  # fmt: skip
    assert value_text({"kind": "toy", "shortcut": "B", "depth": 3}) == "toy (shortcut B)" and NETWORKS
