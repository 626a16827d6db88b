"""Experiment files: what they expand to, what pairs with what, and what is refused with which words."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.errors import InputError
from bench.experiments.config import Recipe, check_field
from bench.experiments.expand import load_experiment
from bench.experiments.toml_files import load_recipe, parse_override, recipe_names
from bench.schedules import learning_rate_value
from bench.tuning.points import find_points
from tests.experiments.experiment_fakes import ARMS, BASE, use_toy_networks, write
from tests.waiting import HANG

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    use_toy_networks(monkeypatch)


@pytest.fixture
def load(tmp_path):
    def load(text=BASE + ARMS, name="some.toml", **options):
        return load_experiment(write(tmp_path, text, name), data_dir=tmp_path, **options)

    return load


@pytest.fixture
def refused(load):
    """Return the lines of the message with which a file is refused."""

    def refused(text=BASE + ARMS, **options):
        with pytest.raises(InputError) as error:
            load(text, **options)
        return str(error.value).splitlines()

    return refused


def values(experiment, field, arm=None):
    return [getattr(line.trial.config, field) for line in experiment.index if arm in (None, line.arm)]


class TestExpansion:
    def test_two_arms_one_seed(self, load):
        found = load()
        assert [arm.name for arm in found.arms] == ["plain", "branch"]
        assert (found.name, found.title, len(found.trials), len(found.index)) == ("some", "A title", 2, 2)
        line = found.index[1].as_dict()
        assert line == {
            "arm": "branch",
            "baseline": "plain",
            "grid": {"seed": 0},
            "id": found.trials[1].id,
            "baseline_id": found.trials[0].id,
            "role": None,
            "profile": None,
        }
        assert len(line["id"]) == 16

    def test_the_grid_is_a_cross_product(self, load):
        found = load(
            BASE + '[grid]\nseed = [0, 1, 2]\nwidth = [0.25, 1]\n"network.shortcut" = ["A", "B"]\n' + ARMS
        )
        assert len(found.trials) == 24
        points = {tuple(line.grid.values()) for line in found.lines("plain")}
        assert points == {(s, w, c) for s in (0, 1, 2) for w in (0.25, 1.0) for c in "AB"}
        assert all(
            line.baseline_trial.config.seed == line.trial.config.seed for line in found.lines("branch")
        )

    def test_an_arm_can_list_bits_and_have_axes_of_its_own(self, load):
        text = (
            ARMS.replace('bits = "1/1"', 'bits = ["1/1", "1/2"]')
            + 'grid = { "strategy.factor.until" = [0.25, 0.75] }\n'
        )
        found = load(BASE + text)
        assert len(found.lines("plain")) == 2 and len(found.lines("branch")) == 4
        for line in found.lines("branch"):
            assert line.baseline_trial.config.bits == line.trial.config.bits
            assert line.trial.config.strategy["factor"]["until"] == line.grid["strategy.factor.until"]
        assert found.arms[1].axes == {"seed": 1, "bits": 2, "strategy.factor.until": 2}

    @pytest.mark.parametrize("first", ["kind", "until"])
    def test_an_axis_of_kinds_keeps_the_options_that_both_have(self, load, first):
        axes = {
            "kind": '"strategy.factor.kind" = ["cosine", "linear"]',
            "until": '"strategy.factor.until" = [0.2, 0.4]',
        }
        order = [axes[first], *(text for name, text in axes.items() if name != first)]
        found = load(BASE + ARMS + f"grid = {{ {', '.join(order)} }}\n")
        factors = {
            (f["kind"], f["until"]) for f in (s["factor"] for s in values(found, "strategy", "branch"))
        }
        assert factors == {(k, u) for k in ("cosine", "linear") for u in (0.2, 0.4)}

    def test_a_bits_axis_leaves_full_precision_alone(self, load):
        arms = '[[arms]]\nname = "fp"\n[[arms]]\nname = "low"\nquantizer = "dorefa"\n'
        found = load(BASE + '[grid]\nbits = ["1/1", "2/2"]\n' + arms)
        assert values(found, "bits") == ["32/32/32", "1/1/32", "2/2/32"]
        assert found.lines("fp")[0].grid == {"seed": 0}

    def test_an_option_axis_applies_to_the_arms_that_know_the_option(self, load):
        found = load(
            BASE + '[grid]\n"strategy.merge" = ["sum", "concat"]\n' + ARMS.replace('merge = "sum", ', "")
        )
        assert len(found.lines("plain")) == 1 and len(found.lines("branch")) == 2
        assert {line.baseline_id for line in found.lines("branch")} == {found.lines("plain")[0].id}

    def test_an_arm_that_sets_a_field_is_not_touched_by_its_axis(self, load):
        arms = ARMS.replace('name = "plain"', 'name = "plain"\nwidth = 0.5').replace(
            'baseline = "plain"', 'baseline = "plain"\nallow_differences = ["width"]'
        )
        found = load(BASE + "[grid]\nwidth = [0.25, 1.0]\n" + arms)
        assert values(found, "width", "plain") == [0.5] and values(found, "width", "branch") == [0.25, 1.0]
        assert len({line.baseline_id for line in found.lines("branch")}) == 1

    def test_a_table_without_kind_changes_the_one_beneath(self, load):
        text = BASE.replace('network = "toy"', 'network = { kind = "toy", depth = 7 }\nlearning_rate = 0.1')
        found = load(
            text + '[[arms]]\nname = "a"\nnetwork = { shortcut = "B" }\nlearning_rate = { initial = 0.2 }\n'
        )
        config = found.trials[0].config
        assert config.network == {"kind": "toy", "shortcut": "B", "depth": 7}
        assert config.learning_rate == {"kind": "constant", "initial": 0.2, "warmup_epochs": 0.0}

    def test_equal_resolved_trials_run_once(self, load):
        arms = '[[arms]]\nname = "a"\n[[arms]]\nname = "b"\nwidth = 1\n[[arms]]\nname = "c"\nwidth = 0.5\n'
        found = load(BASE + arms)
        assert len(found.trials) == 2 and len(found.index) == 3
        assert found.index[0].id == found.index[1].id != found.index[2].id

    def test_absent_data_leaves_identities_open(self, load):
        found = load((BASE + ARMS).replace('"digits"', '"cifar10"'))
        assert [trial.id for trial in found.trials] == [None, None]
        assert found.index[1].baseline_trial is found.trials[0]

    def test_it_is_the_same_from_another_name_title_and_order(self, load):
        first = load()
        lines = [line for line in BASE.splitlines() if "=" in line and "title" not in line]
        second = load(
            "\n".join(["[defaults]", *reversed(lines)]) + ARMS.replace('"plain"', '"p"'), name="x-1.toml"
        )
        assert [t.id for t in first.trials] == [t.id for t in second.trials]


PRECEDENCE = """
[defaults]
dataset = "digits"
network = "toy"
recipe = "mine"
{defaults}
{grid}
[[arms]]
name = "a"
{arm}
[profiles.quick]
width = 0.5
{profile}
"""


class TestPrecedence:
    @pytest.mark.parametrize(
        ("levels", "epochs"),
        [
            ([], 2),
            (["defaults"], 3),
            (["defaults", "grid"], 4),
            (["grid"], 4),
            (["defaults", "arm"], 5),
            (["defaults", "arm", "profile"], 6),
            (["grid", "profile"], 6),
            (["arm", "profile", "set"], 7),
            (["grid", "set"], 7),
            (["set"], 7),
        ],
    )
    def test_recipe_defaults_grid_arm_profile_set(self, load, tmp_path, levels, epochs):
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "mine.toml").write_text("epochs = 2\nbatch_size = 50\n", encoding="utf-8")
        texts = {
            "defaults": "epochs = 3",
            "grid": "[grid]\nepochs = [4]",
            "arm": "epochs = 5",
            "profile": "epochs = 6",
        }
        filled = {key: text if key in levels else "" for key, text in texts.items()}
        overrides = ["epochs=7"] if "set" in levels else []
        found = load(PRECEDENCE.format(**filled), profile="quick", overrides=overrides)
        assert values(found, "epochs") == [epochs] and values(found, "batch_size") == [50]
        assert values(found, "width") == [0.5]

    def test_a_grid_axis_of_the_arm_beats_the_arms_own_value(self, load):
        assert values(
            load(BASE + '[[arms]]\nname = "a"\nepochs = 3\ngrid = { epochs = [1, 2] }\n'), "epochs"
        ) == [1, 2]

    def test_a_data_set_has_a_default_recipe(self, load):
        found = load(BASE.replace("epochs = 12\nbatch_size = 100\n", "") + ARMS)
        assert found.trials[0].config.learning_rate["kind"] == "cosine"

    def test_a_recipe_beside_the_file_cannot_take_a_shipped_name(self, tmp_path, refused):
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "digits.toml").write_text("epochs = 2\n", encoding="utf-8")
        assert (
            "is shipped with the suite" in refused(BASE.replace("epochs = 12", 'recipe = "digits"') + ARMS)[0]
        )

    def test_a_faulty_recipe_is_named(self, tmp_path, refused):
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "mine.toml").write_text(
            'epoch = 2\nwidth = 1\nbatch_size = "x"\n', encoding="utf-8"
        )
        lines = refused(BASE.replace("epochs = 12", 'recipe = "mine"') + ARMS)
        assert len(lines) == 3 and all("recipes/mine.toml: " in line for line in lines)
        assert "epoch: there is no such key. Did you mean 'epochs'?" in lines[0]

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "digit", "", "a\\u0000b"])
    def test_a_recipe_that_does_not_exist(self, refused, name):
        lines = refused(BASE.replace("epochs = 12", f'recipe = "{name}"') + ARMS)
        assert len(lines) == 1 and "defaults.recipe: no recipe is called" in lines[0]


class TestProfiles:
    text = (
        BASE
        + "[grid]\nseed = [0, 1, 2]\nwidth = [0.25, 1.0]\n"
        + ARMS.replace('bits = "1/1"', 'bits = ["1/1", "1/2"]')
        + '[[arms]]\nname = "other"\nepochs = 40\n'
        + """
[profiles.quick]
epochs = 3
strategy.factor.until = 0.25
grid = { seed = [5], bits = ["1/2"] }
only = ["branch"]
defaults = { batch_size = 50 }
[profiles.slow]
arms.other.epochs = 99
"""
    )

    def test_a_profile_replaces_axes_fields_arms_and_defaults(self, load):
        found = load(self.text, profile="quick")
        assert [arm.name for arm in found.arms] == ["plain", "branch"]  # the baseline stays
        assert {(c.seed, c.bits, c.epochs, c.batch_size) for c in (t.config for t in found.trials)} == {
            (5, "1/2/32", 3, 50)
        }
        assert len(found.trials) == 4 and {line.profile for line in found.index} == {"quick"}
        assert {s["factor"]["until"] for s in values(found, "strategy", "branch")} == {0.25}

    def test_a_profile_can_change_a_single_arm(self, load):
        found = load(self.text, profile="slow")
        assert set(values(found, "epochs", "other")) == {99} and set(values(found, "epochs", "plain")) == {12}

    def test_without_it_nothing_changes(self, load):
        assert len(load(self.text).trials) == 3 * 2 * (2 + 2 + 1)

    def test_another_profile_gives_other_identities(self, load):
        ids = [{t.id for t in load(self.text, profile=p).trials} for p in (None, "quick", "slow")]
        assert not ids[0] & ids[1] and ids[0] & ids[2]

    def test_unknown_profiles_and_their_faults_are_named(self, refused):
        assert "Did you mean 'quick'" in refused(self.text, profile="quik")[0]
        lines = refused(
            self.text + '[profiles.bad]\nepoch = 1\nonly = ["plian"]\nbits = "1/1"\ngrid = { sed = [1] }\n'
        )
        assert len(lines) == 4 and all("profiles.bad." in line for line in lines)


class TestCommandLine:
    def test_only_keeps_the_baseline_and_its_baseline(self, load):
        text = (
            BASE
            + ARMS
            + '[[arms]]\nname = "third"\nbaseline = "branch"\nquantizer = "dorefa"\nbits = "1/1"\n'
        )
        assert [arm.name for arm in load(text, only=["third"]).arms] == ["plain", "branch", "third"]
        assert [arm.name for arm in load(text, only=["branch"]).arms] == ["plain", "branch"]

    def test_seeds_replace_the_axis(self, load):
        assert values(load(BASE + "[grid]\nseed = [7]\n" + ARMS, seeds=2), "seed", "plain") == [0, 1]

    def test_set_reaches_options_axes_and_bits(self, load):
        text = BASE + "[grid]\nwidth = [0.25, 1.0]\n" + ARMS
        found = load(
            text, overrides=["width=0.5", "strategy.factor.until=0.75", "network.shortcut=B", "bits=1/2"]
        )
        assert set(values(found, "width")) == {0.5} and len(found.trials) == 2
        assert set(values(found, "bits")) == {"1/2/32"}
        assert found.index[1].trial.config.strategy["factor"]["until"] == 0.75
        assert {c["shortcut"] for c in values(found, "network")} == {"B"}
        assert values(load(text, overrides=["grid.width=[2.0]"]), "width") == [2.0, 2.0]
        assert values(load(text, overrides=['bits=["1/1", "2/2"]', "width=1"]), "bits", "plain") == [
            "1/1/32",
            "2/2/32",
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("epochs=3", (("epochs",), 3)),
            ("network=vgg_small", (("network",), "vgg_small")),
            ("bits=1/2", (("bits",), "1/2")),
            ('dataset={kind="svhn", extra=true}', (("dataset",), {"kind": "svhn", "extra": True})),
            ("a.b = [1, 2]", (("a", "b"), [1, 2])),
            ("a=b=c", (("a",), "b=c")),
            ("dataset=npz:x\ny = 1", (("dataset",), "npz:x\ny = 1")),
        ],
    )
    def test_values_are_toml_and_bare_words_text(self, text, expected):
        assert parse_override(text) == expected

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            (".001", 0.001),
            ("+.5", 0.5),
            ("-.5", -0.5),
            ("1.", 1.0),
            ("1.e-3", 0.001),
            (".5e1", 5.0),
            ("1e-3", 0.001),
            ("1_000", 1000),
            ("[.25, 1., 2]", [0.25, 1.0, 2]),
            ("{ initial = .1 }", {"initial": 0.1}),
            ("1.x", "1.x"),
            (".", "."),
            ("1/2", "1/2"),
        ],
    )
    def test_numbers_without_a_digit_beside_the_point(self, text, value):
        assert parse_override(f"learning_rate={text}") == (("learning_rate",), value)

    def test_a_byte_order_mark_is_read_over(self, load, tmp_path):
        plain = load()
        (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + (BASE + ARMS).encode())
        marked = load_experiment(tmp_path / "marked.toml", data_dir=tmp_path)
        assert [trial.id for trial in marked.trials] == [trial.id for trial in plain.trials]

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("grid.width=[0.5, wide]", "the value is not TOML"),
            ("strategy={kind=plain}", "names in them in quotes"),
            ("learning_rate=.x", "no learning rate is called '.x'"),
            ("epochs", "expected dotted.key=value"),
            ("=3", "expected dotted.key=value"),
            ("a..b=3", "expected dotted.key=value"),
            ("epoch=3", "Did you mean 'epochs'"),
            ("epochs=0", "--set epochs: 0 must be at least 1"),
            ("epochs=", "--set epochs: expected a whole number"),
            ("strategy.factor.untill=0.2", "Did you mean 'strategy.factor.until'"),
            ("strategy.factor.until=2", "--set strategy.factor.until: 2.0 must be below 1"),
            ("epochs.x=3", "has no options"),
            ("network.shortcut=C", "--set network.shortcut: 'C' is not one of"),
            ("grid.seed=3", "an axis is a list"),
        ],
    )
    def test_faults_of_set(self, refused, override, words):
        lines = refused(overrides=[override])
        assert len(lines) == 1 and words in lines[0]

    def test_unknown_arm_and_seeds(self, refused):
        assert "Did you mean 'plain'" in refused(only=["plan"])[0]
        assert "--seeds: 0 must be" in refused(seeds=0)[0]
        assert "--seeds" in refused(seeds=10**9)[0]


APPRENTICE = """
[[arms]]
name = "student"
baseline = "plain"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "apprentice", scheme = "SCHEME", teacher = { width = 2, network.shortcut = "B" } }
"""


class TestTeachers:
    def load(self, load, scheme, more=""):
        return load(BASE + "[grid]\nseed = [0, 1]\n" + ARMS + APPRENTICE.replace("SCHEME", scheme) + more)

    def test_scheme_a_trains_its_teacher_itself(self, load):
        found = self.load(load, "A")
        assert len(found.trials) == 6 and not any(trial.needs for trial in found.trials)
        assert found.lines("student")[0].trial.config.strategy["teacher"]["width"] == 2.0

    def test_scheme_b_needs_a_teacher_a_seed(self, load):
        found = self.load(load, "B")
        teachers = found.lines(None)
        assert [line.role for line in teachers] == ["teacher", "teacher"] and len(found.trials) == 8
        for line in found.lines("student"):
            (teacher,) = [t for t in found.trials if t.id == line.trial.needs["teacher"]]
            config = teacher.config
            assert (config.width, config.seed, config.epochs) == (2.0, line.trial.config.seed, 12)
            assert (config.quantizer["kind"], config.bits, config.strategy) == (
                "full_precision",
                "32/32/32",
                {"kind": "plain"},
            )
            assert config.network == {"kind": "toy", "shortcut": "B", "depth": 3}
            assert line.trial.config.strategy["teacher"] == config.dump()

    def test_scheme_c_starts_from_its_own_network_in_full_precision(self, load):
        found = self.load(load, "C", '[[arms]]\nname = "fp"\n')
        line = found.lines("student")[0]
        assert set(line.trial.needs) == {"teacher", "start"}
        assert line.trial.needs["start"] == found.lines("fp")[0].id  # an arm of its own, trained once
        assert len(found.trials) == 2 * (4 + 1)

    def test_needed_trials_come_first(self, load):
        found = self.load(load, "C")
        place = {trial.id: i for i, trial in enumerate(found.trials)}
        assert all(place[needed] < place[t.id] for t in found.trials for needed in t.needs.values())

    def test_the_teacher_is_part_of_the_identity(self, load):
        ids = [
            load(BASE + ARMS + APPRENTICE.replace("SCHEME", "B").replace("width = 2", f"width = {w}"))
            .lines("student")[0]
            .id
            for w in (2, 2.0, 3)
        ]
        assert ids[0] == ids[1] != ids[2]

    @pytest.mark.parametrize(
        ("teacher", "words"),
        [
            ("epoch = 3", "strategy.teacher.epoch: there is no such key. Did you mean 'epochs'"),
            ("epochs = 0", "strategy.teacher.epochs: 0 must be at least 1"),
            ('dataset = "cifar10"', "strategy.teacher.dataset: is that of the arm"),
            ('recipe = "digit"', "Did you mean 'digits'"),
            ('strategy = { kind = "apprentice", scheme = "A" }', "no teacher of its own"),
            ('quantizer = "dorefa"\n', None),
        ],
    )
    def test_faults_of_a_teacher(self, load, refused, teacher, words):
        text = APPRENTICE.replace("SCHEME", "B").replace(
            '{ width = 2, network.shortcut = "B" }', f"{{ {teacher.strip()} }}"
        )
        if words is None:
            assert load(BASE + ARMS + text).lines(None)[0].trial.config.quantizer["kind"] == "dorefa"
        else:
            lines = refused(BASE + ARMS + text)
            assert len(lines) == 1 and words in lines[0] and "arm 'student'" in lines[0]

    def test_a_start_without_scheme_c_means_nothing(self, refused):
        text = APPRENTICE.replace("SCHEME", "B").replace("teacher =", "start = { epochs = 3 }, teacher =")
        assert "strategy.start: " in refused(BASE + ARMS + text)[0]

    def test_a_recipe_for_the_teacher(self, load):
        text = APPRENTICE.replace("SCHEME", "B").replace(
            "width = 2", 'width = 2, recipe = "digits", epochs = 7'
        )
        config = load(BASE + ARMS + text).lines(None)[0].trial.config
        assert (config.batch_size, config.epochs, config.learning_rate["kind"]) == (32, 7, "cosine")


class TestParity:
    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ("epochs = 30", "epochs"),
            ("width = 0.5", "width"),
            ('network = "plainnet"', "network.kind"),
            ('network = { shortcut = "B" }', "network.shortcut"),
            ("learning_rate = 0.1", "learning_rate.initial"),
            ('bits = "1/2"', "bits"),
            ('precision = "bf16"', "precision"),
        ],
    )
    def test_anything_but_quantizer_and_strategy_must_be_declared(self, load, refused, change, key):
        field = key.split(".")[0]
        arms = ARMS.replace('bits = "1/1"\nstrategy', "strategy") if field == "bits" else ARMS
        lines = refused(BASE + arms + change + "\n")
        assert any(
            f"arm 'branch'.{key}: " in line and f"'{field}' in allow_differences" in line for line in lines
        )
        found = load(BASE + arms + change + f'\nallow_differences = ["{field}"]\n')
        assert (found.index[1].baseline_id is None) == (field == "precision")  # gains pair at equal precision

    def test_a_single_option_can_be_allowed(self, load, refused):
        change = 'network = { shortcut = "B", depth = 4 }\nallow_differences = ["network.shortcut"]\n'
        lines = refused(BASE + ARMS + change)
        assert len(lines) == 1 and "network.depth" in lines[0]

    def test_bits_may_differ_where_the_quantizers_force_it(self, load):
        arms = '[[arms]]\nname = "fp"\n[[arms]]\nname = "bnn"\nbaseline = "fp"\n'
        arms += 'quantizer = "bnn"\nbits = "1/1"\n'
        found = load(BASE + arms)
        assert found.index[1].baseline_id == found.index[0].id

    def test_but_not_where_both_could_have_the_same(self, refused):
        arms = ARMS.replace('bits = "1/1"\nstrategy', 'bits = "2/2"\nstrategy')
        assert "arm 'branch'.bits: '2/2/32', but '1/1/32' in the baseline 'plain'" in refused(BASE + arms)[0]

    def test_budgets_that_differ_pair_by_what_is_left(self, load):
        arms = ARMS + 'epochs = 18\nallow_differences = ["epochs"]\n'
        found = load(BASE + "[grid]\nseed = [0, 1]\nwidth = [0.5, 1.0]\n" + arms)
        for line in found.lines("branch"):
            mine, theirs = line.trial.config, line.baseline_trial.config
            assert (mine.epochs, theirs.epochs) == (18, 12)
            assert (mine.seed, mine.width) == (theirs.seed, theirs.width)

    def test_an_axis_of_budgets_needs_one_partner(self, load, refused):
        grid = "[grid]\nepochs = [10, 20]\n"
        lines = refused(
            BASE.replace("epochs = 12", "") + grid + ARMS + 'epochs = 18\nallow_differences = ["epochs"]\n'
        )
        assert "several runs of 'plain' to pair with" in lines[0]
        found = load(BASE.replace("epochs = 12", "") + grid + ARMS + 'allow_differences = ["epochs"]\n')
        assert all(
            line.baseline_trial.config.epochs == line.trial.config.epochs for line in found.lines("branch")
        )

    def test_a_point_without_a_partner_is_named(self, refused):
        arms = ARMS.replace('bits = "1/1"\nstrategy', 'bits = ["1/1", "1/2"]\nstrategy').replace(
            'bits = "1/1"\n[[', 'bits = ["1/1"]\n[['
        )
        lines = refused(BASE + arms)
        assert len(lines) == 1 and "no run of 'plain' to pair with at seed = 0, bits = 1/2" in lines[0]

    def test_the_grid_of_an_arm_names_the_axes_of_its_baseline(self, load):
        arms = ARMS.replace('bits = "1/1"\n[[', 'bits = ["1/1", "1/2"]\n[[')
        found = load(BASE + arms)
        assert found.lines("branch")[0].grid == {"seed": 0, "bits": "1/1"}


class TestRemoval:
    def test_a_factor_that_outlives_training_is_refused(self, refused):
        lines = refused(BASE + ARMS.replace("until = 0.5", "until_epochs = 50"))
        assert len(lines) == 1 and "arm 'branch'.strategy.factor: the factor is still" in lines[0]
        assert "12 epochs of 11 steps" in lines[0]  # 1,195 digits, batches of 100

    def test_unless_it_says_so(self, load):
        assert len(load(BASE + ARMS.replace("until = 0.5", "until_epochs = 50, keep = true")).trials) == 2

    def test_the_steps_of_the_data_set_count(self, load, refused):
        text = BASE + ARMS.replace("until = 0.5", "until = 0.995")
        assert "strategy.factor" in refused(text)[0]  # 132 steps: the last is at 0.992
        assert len(load(text.replace("epochs = 12", "epochs = 20")).trials) == 2

    @pytest.mark.parametrize("method", ["fitnets", "incremental", "staged"])
    def test_a_last_stage_without_a_step_is_refused(self, method, load, refused):
        stages = ', stages = ["32/32"]' if method == "staged" else ""
        kind = f'strategy = {{ kind = "{method}", until = 0.995{stages} }}'
        text = BASE + "\n".join(kind if line.startswith("strategy") else line for line in ARMS.splitlines())
        (line,) = refused(text)  # 132 steps, and 0.995 of them are 131.3
        assert "arm 'branch'.strategy.until: 0.995 of 132 steps leaves no step behind it" in line
        load(text.replace("0.995", "0.992"))  # 130.9: the last step has the number 131
        load(BASE + ARMS.replace(ARMS.splitlines()[-1], 'strategy = { kind = "staged", guided = true }'))

    def test_data_too_small_for_the_recipe(self, refused):
        assert "defaults.batch_size: 1200" in refused((BASE + ARMS).replace("= 100", "= 1200"))[0]
        assert "holdout" in refused(BASE + "holdout = 1195\n" + ARMS)[0]


BAD = [
    ("", "is empty"),
    ("   \n\n", "is empty"),
    ("title = ", "is not TOML"),
    ("[[arms]]\nname = 'a'\nname = 'b'", "is not TOML"),
    ("x = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
    ("x = " + "1" * 5000, "is not TOML"),
    ("title = 'a'", "arms: missing"),
    ("arms = []", "arms: is empty"),
    ("arms = 3", "arms: expected a list"),
    ("arms = [1]", "arms[0]: expected a table"),
    (BASE + ARMS + "[grids]\nseed = [0]", "grids: there is no such key. Did you mean 'grid'?"),
    ((BASE + ARMS).replace("title", "titel"), "titel: there is no such key. Did you mean 'title'?"),
    (BASE.replace('"A title"', "3") + ARMS, "title: expected text"),
    (BASE + "epoch = 3\n" + ARMS, "defaults.epoch: there is no such key. Did you mean 'epochs'?"),
    (BASE.replace("epochs = 12", "epochs = 0") + ARMS, "defaults.epochs: 0 must be at least 1"),
    (
        BASE.replace("epochs = 12", "epochs = '12'") + ARMS,
        "defaults.epochs: expected a whole number, not '12'",
    ),
    (BASE.replace("epochs = 12", "epochs = 1979-05-27") + ARMS, "defaults.epochs: expected a whole number"),
    (BASE + "width = -1\n" + ARMS, "defaults.width: -1 must be above 0"),
    (BASE + "width = nan\n" + ARMS, "defaults.width: expected a finite number"),
    (
        BASE.replace('"toy"', '"tony"') + ARMS,
        "defaults.network: no network is called 'tony'. Did you mean 'toy'?",
    ),
    (BASE.replace('"toy"', '"python:os.system"') + ARMS, "would run code of its own"),
    (BASE.replace('"digits"', '"digit"') + ARMS, "Did you mean 'digits'"),
    (BASE.replace('network = "toy"', "") + ARMS, "defaults.network: missing (an architecture)"),
    (BASE.replace('dataset = "digits"', "") + ARMS, "defaults.dataset: missing (a source of images)"),
    (BASE + ARMS.replace('"1/1"', '"0/1"'), "arm 'plain'.bits: 0 weight bits"),
    (BASE + ARMS.replace('"1/1"', "[]"), "arm 'plain'.bits: expected"),
    (BASE + ARMS.replace('"1/1"', '["1/1", "1/1/32"]'), "arm 'plain'.bits: lists '1/1/32' twice"),
    (BASE + ARMS.replace('bits = "1/1"\n[[', "[["), "arm 'plain'.bits: missing"),
    (
        BASE + ARMS.replace("quantizer", "quantiser"),
        "arm 'plain'.quantiser: there is no such key. Did you mean 'quantizer'?",
    ),
    (BASE + ARMS.replace("dorefa", "dorfea"), "no quantizer is called 'dorfea'. Did you mean 'dorefa'?"),
    (
        BASE + ARMS.replace("merge", "merg"),
        "strategy.merg: 'progressive' has no such option. Did you mean 'merge'?",
    ),
    (BASE + ARMS.replace('merge = "sum", ', ""), "strategy.merge: missing"),
    (BASE + ARMS.replace('"sum"', '"add"'), "strategy.merge: 'add' is not one of"),
    (BASE + ARMS.replace("until = 0.5", "until = 1.5"), "strategy.factor.until: 1.5 must be below 1"),
    (BASE + ARMS.replace(', factor = { kind = "cosine", until = 0.5 }', ""), "strategy.factor: missing"),
    (
        BASE + ARMS.replace('baseline = "plain"', 'baseline = "plane"'),
        "there is no arm 'plane'. Did you mean 'plain'?",
    ),
    (BASE + ARMS.replace('baseline = "plain"', 'baseline = "branch"'), "baseline: 'branch' is itself"),
    (
        BASE + ARMS.replace('name = "plain"', 'name = "plain"\nbaseline = "branch"'),
        "arm 'plain'.baseline: 'branch' is measured against this arm in turn",
    ),
    (BASE + ARMS.replace('"branch"', '"plain"'), "arms: 2 arms are called 'plain'"),
    (BASE + ARMS.replace('name = "plain"\n', ""), "arms[1].name: missing"),
    (BASE + ARMS.replace('"plain"', '""'), "name: is empty"),
    (BASE + ARMS.replace('name = "plain"', 'name = "pl\\u001b[31main"'), "has control, invisible"),
    (BASE + ARMS.replace('name = "plain"', f'name = "{"x" * 500}"'), "name: is too long"),
    (BASE + ARMS + "allow_differences = ['epoch']\n", "allow_differences: no field is called 'epoch'"),
    (
        BASE + ARMS.replace('baseline = "plain"', "allow_differences = ['epochs']"),
        "no baseline to differ from",
    ),
    (
        BASE + ARMS + "published = { tabel = 'x' }\n",
        "published.tabel: no column has this name. Did you mean 'table'?",
    ),
    (BASE + ARMS + "published = 3\n", "arm 'branch'.published: expected a table"),
    ("targets = ['../x']\n" + BASE + ARMS, "targets: '../x' cannot be the name"),
    (BASE + "[grid]\nseed = 3\n" + ARMS, "grid.seed: an axis is a list of values, not 3"),
    (BASE + "[grid]\nseed = []\n" + ARMS, "grid.seed: an axis needs a value"),
    (BASE + "[grid]\nseed = [0, 0]\n" + ARMS, "grid.seed: lists 0 twice"),
    (BASE + "[grid]\nwidth = [1, 1.0]\n" + ARMS, "grid.width: lists 1.0 twice"),
    (BASE + "[grid]\nseed = [-1]\n" + ARMS, "grid.seed: -1 must be at least 0"),
    (BASE + "[grid]\nsed = [0]\n" + ARMS, "grid.sed: no field is called 'sed'. Did you mean 'seed'?"),
    (
        BASE + "[grid]\n'network.shortcat' = ['A']\n" + ARMS,
        "touches nothing: no arm has such an option. Did you mean 'network.sh",
    ),
    (
        BASE + "[grid]\nbits = ['1/1']\n" + ARMS,
        "grid.bits: this axis touches nothing: every arm sets it itself",
    ),
    (BASE + "[grid]\n'epochs.x' = [1]\n" + ARMS, "grid.epochs.x: this axis touches nothing"),
    (BASE + "[grid]\n'network.depth' = [0]\n" + ARMS, "grid.network.depth: 0 must be at least 1"),
    (BASE + "[grid]\nepochs = {}\n" + ARMS, "grid.epochs: an axis is a list of values"),
    (BASE + "[grid]\nrecipe = [['a']]\n" + ARMS, "grid.recipe: expected the name of a recipe, not ['a']"),
    (BASE + "eval_bn = 1000000000\n" + ARMS, "defaults.eval_bn: 1000000000 must be at most 100000"),
    (
        BASE + ARMS.replace('"cosine", until = 0.5', '"staircase", every_epochs = 1e-320'),
        "strategy.factor.every_epochs: 1e-320 must be at least 1e-06",
    ),
    (
        BASE + "learning_rate = {kind='step', initial=1.0, at=[0.2, 0.5], gamma=1e200}\n" + ARMS,
        "learning_rate.gamma: 2 times 1e+200 is no finite rate",
    ),
    (
        BASE + ARMS.replace('"sum",', '"sum", layers = ["conv1", "conv1"],'),
        "strategy.layers: lists 'conv1' twice",
    ),
    (
        BASE + ARMS.replace('"dorefa"', '{ kind = "syq", scale_from_weights = true, scale = 0.1 }'),
        "quantizer.scale: 0.1 has a meaning only with scale_from_weights = False",
    ),
    (
        BASE
        + ARMS.replace(
            ARMS.splitlines()[-1],
            'strategy = { kind = "apprentice", scheme = "B", soft_loss = "mse", temperature = 2.0 }',
        ),
        "strategy.temperature: 2.0 has a meaning only with soft_loss = 'cross_entropy'",
    ),
    (BASE + "momentum = 0.5\n" + ARMS, "defaults.momentum: has a meaning only with optimizer = 'sgd'"),
    (
        BASE + ARMS.replace('name = "plain"', 'name = "plain"\noptimizer = "sgd"\nepsilon = 1e-5'),
        "arm 'plain'.epsilon: has a meaning only with optimizer = 'adam'",
    ),
    (
        BASE + "[grid]\nmomentum = [0.5, 0.9]\n" + ARMS,
        "grid.momentum: this axis touches nothing: no arm has such an option",
    ),
    (
        BASE
        + ARMS.replace(
            ARMS.splitlines()[-1],
            'strategy = { kind = "distillation", teacher = { optimizer = "sgd", beta1 = 0.5 } }',
        ),
        "strategy.teacher.beta1: has a meaning only with optimizer = 'adam'",
    ),
]


class TestFieldsOfOneOptimizer:
    def test_an_axis_leaves_the_arms_of_the_other_optimizer_alone(self, load):
        text = (
            BASE + "[grid]\nmomentum = [0.5, 0.7]\n" + ARMS.replace('baseline = "plain"', 'optimizer = "sgd"')
        )
        assert values(load(text), "momentum") == [0.9, 0.5, 0.7]

    @pytest.mark.parametrize("order", [("optimizer=sgd", "momentum=0.5"), ("momentum=0.5", "optimizer=sgd")])
    def test_the_order_of_overrides_does_not_matter(self, load, order):
        assert values(load(overrides=order), "momentum") == [0.5, 0.5]

    def test_under_both_optimizers_each_trial_is_there_once(self, load):
        found = load(BASE + "[grid]\nmomentum = [0.5, 0.7]\noptimizer = ['adam', 'sgd']\n" + ARMS)
        assert len(found.trials) == 6

    def test_a_tuned_optimizer_has_the_fields_of_both(self, load):
        space = "[tuning]\nholdout = 100\nseeds = [9]\neffort = 4\n[tuning.space]\n"
        found = load(BASE + space + "optimizer = ['adam', 'sgd']\nmomentum = [0.5, 0.9]\n" + ARMS)
        assert find_points(found)[0].reached == ("optimizer", "momentum")


class TestBadInput:
    @pytest.mark.parametrize(("text", "words"), BAD, ids=[words[:40] for _, words in BAD])
    def test_one_clear_line_with_file_and_key(self, refused, text, words):
        lines = refused(text)
        assert any(words in line for line in lines), lines
        assert all("some.toml" in line and len(line) < 700 for line in lines)

    def test_every_problem_is_reported_at_once(self, refused):
        text = (BASE + ARMS).replace("epochs = 12", "epochs = 0\nbatchsize = 3").replace('"sum"', '"add"')
        lines = refused(
            text.replace('baseline = "plain"', 'baseline = "plane"') + '[profiles.q]\nonly = ["x"]\n'
        )
        for words in (
            "defaults.epochs",
            "defaults.batchsize",
            "strategy.merge",
            "arm 'branch'.baseline",
            "profiles.q.only",
        ):
            assert any(words in line for line in lines), (words, lines)
        assert len(lines) == 5

    def test_a_problem_shared_by_all_points_is_said_once(self, refused):
        grid = "[grid]\nseed = [0, 1, 2, 3]\nwidth = [0.25, 0.5, 1.0]\n"
        assert len(refused(BASE + grid + ARMS.replace('"sum"', '"add"'))) == 1

    def test_very_many_problems_are_cut(self, refused):
        lines = refused(BASE + "".join(f"k{i} = {i}\n" for i in range(500)) + ARMS)
        assert len(lines) == 41 and "and 460 more problems" in lines[-1]

    def test_hostile_keys_come_out_inert_on_one_line(self, refused):
        lines = refused(BASE + '"\\u001b[2J\\nepochs\\u202e" = 3\n' + ARMS)
        assert len(lines) == 1 and "\x1b" not in lines[0] and "\u202e" not in lines[0]

    def test_a_hostile_title_is_kept_as_it_is(self, load):
        assert load(BASE.replace("A title", "=1+1 \\u001b[31m<b>") + ARMS).title == "=1+1 \x1b[31m<b>"

    @pytest.mark.parametrize("axis", ["seed = [{0}]", "width = [{0}]"])
    def test_huge_grids_are_refused_before_they_are_expanded(self, refused, axis):
        numbers = ", ".join(str(i + 1) for i in range(3000))
        lines = refused(BASE + f"[grid]\nseed = [{numbers}]\nbatch_size = [{numbers}]\n" + ARMS)
        assert "18,000,000 trials; an experiment has 20,000 at most" in lines[0]

    def test_files_that_are_none(self, tmp_path):
        cases = {
            tmp_path: "is a directory",
            tmp_path / "absent.toml": "there is no such file",
            tmp_path / "x\0y.toml": "cannot be read|no such file",
            Path("/dev/zero"): "is not a regular file",
        }
        binary, large = tmp_path / "binary.toml", tmp_path / "large.toml"
        binary.write_bytes(bytes(range(256)))
        large.write_bytes(b"#" * 2_000_000)
        cases |= {binary: "is not text", large: "larger than"}
        write(tmp_path, name="present.toml")
        cases[tmp_path / "presnt.toml"] = "Did you mean 'present.toml'"
        for path, words in cases.items():
            with pytest.raises(InputError, match=words):
                load_experiment(path)

    @pytest.mark.parametrize(
        "name",
        [
            "trials",
            "report",
            "Trials",
            "con",
            "NUL.x",
            "-x",
            ".hidden",
            "a b",
            "x" * 101,
            "ä",
            "a\nb",
            "a.",
            "$x",
        ],
    )
    def test_names_that_cannot_name_a_folder(self, load, name):
        with pytest.raises(InputError, match="names the experiment"):
            load(name=f"{name}.toml")

    @pytest.mark.parametrize("name", ["svhn_figure", "a", "x-1.2", "1", "trials2"])
    def test_names_that_can(self, load, name):
        assert load(name=f"{name}.toml").name == name

    def test_data_that_leads_out_of_its_folder(self, refused):
        assert "dataset" in refused((BASE + ARMS).replace('"digits"', '"npz:../../etc/x"'))[0]

    def test_random_damage_ends_in_an_experiment_or_a_message(self, load):
        """Tokens of a valid file replaced, dropped, doubled: never another exception, never slow."""
        text = (TestProfiles.text + APPRENTICE.replace("SCHEME", "C")).replace("\n", " \n ")
        odd = [
            "[",
            "]",
            "{",
            "}",
            "=",
            ".",
            "#",
            "0",
            "-1",
            "1e400",
            "nan",
            "true",
            "''",
            "\x00",
            "[[arms]]",
            "kind",
            "grid",
            "seed",
            "[[1]]",
            "{a=1}",
            "1979-05-27",
            "'dorefa'",
            "é",
        ]
        draw = random.Random(5)
        outcomes = []
        for case in range(300):
            words = text.split(" ")
            place = draw.randrange(len(words))
            words[place : place + draw.randint(0, 2)] = [draw.choice([*odd, *words])]
            if case % 3 == 0:  # one letter or digit instead, which more often leaves a file that can be read
                words = text.split(" ")
                place = draw.randrange(len(words))
                words[place] = re.sub("[a-z0-9]", lambda _: draw.choice("abc0123"), words[place], count=1)
            outcomes.append(
                _outcome(lambda words=words: load(" ".join(words), profile=draw.choice([None, "quick"])))
            )
        assert outcomes.count("expanded") > 20 and outcomes.count("refused") > 100


def _outcome(action):
    try:
        action()
    except InputError as error:
        return "refused" if "some.toml" in str(error) else str(error)
    return "expanded"


class TestRecipes:
    def test_each_is_complete_and_says_where_it_comes_from(self):
        for name, path in recipe_names().items():
            text = path.read_text(encoding="utf-8")
            assert text.startswith("#") and "source = " in text and "title = " in text
            Recipe.model_validate(load_recipe(name))

    def test_presets_of_the_paper(self):
        figure, matched = load_recipe("svhn_figure"), load_recipe("svhn_matched")
        baseline, method = load_recipe("svhn_released_baseline"), load_recipe("svhn_released_progressive")
        assert figure == {key: value for key, value in matched.items() if key != "holdout"}
        assert {key for key in baseline if baseline[key] != method[key]} == {"learning_rate"}
        assert {key for key in baseline if baseline[key] != figure.get(key)} == {
            "epsilon_mode",
            "resize",
            "batch_norm_statistics",
        }
        assert (baseline["weight_decay"], baseline["weight_decay_on"], baseline["epsilon"]) == (
            1e-7,
            "classifier",
            1e-5,
        )
        assert (baseline["epochs"], baseline["batch_size"], baseline["normalization"]) == (
            200,
            128,
            "divide_256",
        )

    @pytest.mark.parametrize(
        ("name", "epochs", "table"),
        [
            ("svhn_released_baseline", 200, {0: 1e-3, 99: 1e-3, 100: 1e-4, 199: 1e-4}),
            ("svhn_released_progressive", 200, {0: 1e-3, 99: 1e-3, 100: 5e-4, 199: 5e-4}),
            ("svhn_figure", 200, {99: 1e-3, 100: 1e-4}),
            ("cifar_sgd", 200, {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001}),
            ("cifar_adam", 200, {0: 1e-3, 100: 5e-4}),
            ("svhn_subset", 40, {0: 1e-3, 20: 5e-4}),
        ],
    )
    def test_learning_rates_as_written(self, name, epochs, table):
        recipe = load_recipe(name)
        assert recipe["epochs"] == epochs
        spec = check_field("learning_rate", recipe["learning_rate"])
        for epoch, value in table.items():
            np.testing.assert_allclose(learning_rate_value(spec, epoch * 7, epochs * 7, 7), value, rtol=1e-9)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_expand_under_every_profile(path, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real networks
    full = load_experiment(path, data_dir=tmp_path)
    quick = load_experiment(path, profile="quick", data_dir=tmp_path)
    assert 0 < len(quick.trials) <= len(full.trials) and full.title
    pairs = zip(quick.trials, full.trials, strict=False)
    assert all(trial.config.epochs <= other.config.epochs for trial, other in pairs)
    assert all(line.baseline_trial for line in full.index if line.baseline)


def test_the_figure_has_its_cells(tmp_path, monkeypatch):
    monkeypatch.undo()  # the real networks
    (path,) = (path for path in EXPERIMENTS if path.stem == "svhn_figure")
    wanted = load_experiment(path, data_dir=tmp_path, seeds=1).index
    # the figure's 48 cells, and SYQ in the form of the release's commented-out call beside them
    assert len([line for line in wanted if "four levels" not in str(line.arm)]) == 48
    assert len(wanted) == 64


def test_no_torch_is_loaded(tmp_path):
    path = write(tmp_path, (BASE + ARMS).replace('"toy"', '"svhn_convnet"'))
    code = (
        "import sys; from bench.errors import InputError; from bench.cli import show\n"
        "from bench.experiments.expand import load_experiment\n"
        f"try: show.show_text(load_experiment({str(path)!r}, data_dir={str(tmp_path)!r}))\n"
        "except InputError: pass\n"
        "show.list_text()\n"
        "bad = {'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
