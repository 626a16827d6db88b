"""The configuration of a trial: what it takes, and what its identity depends on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import registry
from bench.errors import InputError, shown
from bench.experiments.config import FIELDS, Recipe, TrialConfig, check_field, make_config, parse_bits
from bench.experiments.identity import identity, identity_document
from bench.experiments.labels import label
from bench.experiments.options import complete
from tests.experiments.experiment_fakes import NETWORKS, use_toy_networks

DATA = "sha256:0123456789abcdef"
PINNED = Path(__file__).parent / "shipped_defaults.json"


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    use_toy_networks(monkeypatch)


def config(**fields):
    return make_config({"dataset": "digits", "network": "toy", "epochs": 5} | fields)


def id_of(**fields):
    return identity(config(**fields), DATA)


PROGRESSIVE = {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}}


class TestIdentity:
    def test_shipped_configurations_keep_their_identity(self):
        """Literal ids: whoever changes one breaks every record made before."""
        low = {"quantizer": "dorefa", "bits": "1/1"}
        found = {
            "plain": id_of(),
            "dorefa": id_of(**low),
            "progressive": id_of(**low, strategy=PROGRESSIVE, width=0.25, seed=2),
            "sgd": id_of(
                optimizer="sgd", learning_rate={"kind": "step", "initial": 0.1, "at": [0.5], "gamma": 0.1}
            ),
            "apprentice": id_of(
                **low, strategy={"kind": "apprentice", "scheme": "B", "teacher": config(width=2).dump()}
            ),
        }
        assert found == {
            "plain": "f992313e4f7608eb",
            "dorefa": "873a8b1ff62f3806",
            "progressive": "a1ae03f5072bae20",
            "sgd": "d375227f58f14320",
            "apprentice": "b0d071bc5e790c0f",
        }

    def test_absent_data_has_none(self):
        assert identity(config(), None) is None

    def test_order_of_keys_does_not_matter(self):
        fields = {"strategy": PROGRESSIVE, "quantizer": "dorefa", "bits": "1/1", "width": 0.5}
        turned = dict(reversed(fields.items()))
        turned["strategy"] = {k: PROGRESSIVE[k] for k in reversed(PROGRESSIVE)}
        assert id_of(**fields) == id_of(**turned)

    @pytest.mark.parametrize(
        "same",
        [
            {"learning_rate": 0.001},
            {"learning_rate": {"kind": "constant", "initial": 1e-3, "warmup_epochs": 0}},
            {"width": 1, "weight_decay": 0, "holdout": 0, "seed": 0},
            {"network": {"kind": "toy", "shortcut": "A", "depth": 3}},
            {"strategy": {"kind": "plain"}, "quantizer": {"kind": "full_precision"}, "bits": "32/32"},
            {"bits": "32/32/32", "train_size": None},
            {"weight_decay": -0.0},
            {"momentum": 0.5, "nesterov": True},  # of the other optimizer
        ],
    )
    def test_explicit_defaults_and_other_spellings_do_not_matter(self, same):
        assert id_of(**same) == id_of()

    @pytest.mark.parametrize(
        "change",
        [
            {"epochs": 6},
            {"seed": 1},
            {"width": 0.999},
            {"batch_size": 127},
            {"learning_rate": 0.0010000000001},
            {"learning_rate": {"kind": "cosine", "initial": 1e-3}},
            {"network": {"kind": "toy", "shortcut": "B"}},
            {"network": "plainnet"},
            {"dataset": "cifar10"},
            {"precision": "bf16"},
            {"holdout": 1},
            {"train_size": 10},
            {"eval_bn": 1},
            {"epsilon_mode": "tensorflow"},
            {"quantizer": "dorefa"},
            {"quantizer": "dorefa", "bits": "1/1"},
            {"quantizer": "dorefa", "bits": "1/1/4"},
            {"strategy": PROGRESSIVE},
            {"strategy": PROGRESSIVE | {"factor": {"kind": "cosine", "until": 0.51}}},
            {"strategy": PROGRESSIVE | {"factor": {"kind": "cosine", "until": 0.5, "keep": True}}},
            {"strategy": PROGRESSIVE | {"bn_reestimate": 1}},
        ],
    )
    def test_each_number_does(self, change):
        assert id_of(**change) != id_of()

    def test_all_changes_differ_from_each_other(self):
        ids = [id_of(epochs=e, seed=s, width=w) for e in (1, 2) for s in range(3) for w in (0.25, 0.5)]
        assert len(set(ids)) == len(ids)

    def test_data_is_part_of_it(self):
        assert identity(config(), "other") != identity(config(), DATA)

    def test_a_revision_is_part_of_it_once_raised(self, monkeypatch):
        before = id_of(network="toy")
        raised = NETWORKS | {"toy": registry.Entry(**{**vars(NETWORKS["toy"]), "revision": 2})}
        real = registry.entries
        monkeypatch.setattr(registry, "entries", lambda group: raised if group == "networks" else real(group))
        assert id_of(network="toy") != before and id_of(network="plainnet") == id_of(network="plainnet")

    def test_a_revised_factor_changes_the_trials_that_use_it_alone(self, monkeypatch):
        plain, progressive = id_of(), id_of(strategy=PROGRESSIVE)
        real = registry.entries
        factors = dict(real("factors"))
        factors["cosine"] = registry.Entry(**{**vars(factors["cosine"]), "revision": 2})
        monkeypatch.setattr(registry, "entries", lambda group: factors if group == "factors" else real(group))
        assert id_of(strategy=PROGRESSIVE) != progressive and id_of() == plain

    def test_a_teacher_counts_by_its_own_document(self):
        def apprentice(teacher):
            return id_of(strategy={"kind": "apprentice", "scheme": "B", "teacher": teacher.dump()})

        assert apprentice(config()) == apprentice(config(width=1.0, momentum=0.9))
        assert apprentice(config()) != apprentice(config(width=2.0))

    def test_an_option_that_is_not_hashed_leaves_no_trace(self, monkeypatch):
        options = NETWORKS["toy"].options | {"note": {"type": "str", "default": "", "hashed": False}}
        entry = registry.Entry(**{**vars(NETWORKS["toy"]), "options": options})
        real = registry.entries
        monkeypatch.setattr(registry, "entries", lambda g: {"toy": entry} if g == "networks" else real(g))
        assert id_of(network={"kind": "toy", "note": "x"}) == id_of()

    def test_a_dump_reads_back_as_the_same_trial(self):
        first = config(strategy=PROGRESSIVE, quantizer="dorefa", bits="1/2", learning_rate=0.01, width=0.5)
        again = TrialConfig.model_validate(json.loads(json.dumps(first.dump())))
        assert again == first and identity_document(again) == identity_document(first)

    def test_the_document_leaves_out_defaults(self):
        assert identity_document(config()) == {
            "epochs": 5,
            "dataset": {"kind": "digits"},
            "network": {"kind": "toy"},
        }


def shipped_defaults():
    found = {"fields": {name: info.default for name, info in FIELDS.items() if not info.is_required()}}
    for group in registry.GROUPS:
        for name, entry in registry.entries(group).items():
            for option, spec in entry.options.items():
                if "default" in spec:
                    found.setdefault(group, {})[f"{name}.{option}"] = spec["default"]
    return json.loads(json.dumps(found))


def test_shipped_defaults_never_change(monkeypatch):
    """A default is left out of the hash, so changing one would give new numbers the identity of old ones.

    New options are added to the pinned file with ``PIN_DEFAULTS=1 pytest tests/experiments/test_config.py``,
    which refuses changes.
    """
    monkeypatch.undo()
    current = shipped_defaults()
    pinned = json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.exists() else {}
    for group, options in pinned.items():
        for option, default in options.items():
            assert current[group].get(option, "gone") == default, (
                f"{group}: the default of {option} was {default!r}"
            )
    if os.environ.get("PIN_DEFAULTS"):
        PINNED.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        pinned = current
    assert current == pinned, (
        "a default is not pinned: PIN_DEFAULTS=1 pytest tests/experiments/test_config.py"
    )


def test_every_shipped_default_passes_its_own_check(monkeypatch):
    monkeypatch.undo()
    for group in registry.GROUPS:
        for name, entry in registry.entries(group).items():
            assert entry.help and "\n" not in entry.help, f"{group}.{name}: a line of help"
            needed = {option for option, spec in entry.options.items() if "default" not in spec}
            try:
                complete(group, "python:module.factory" if name == "python" else name)
            except InputError as error:
                wrong = [line for line in str(error).splitlines() if "missing" not in line]
                assert not wrong and (needed or group in ("factors", "learning_rates"))


class TestValues:
    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("epochs", 0, "at least 1"),
            ("epochs", 1.5, "whole number"),
            ("epochs", "3", "whole number"),
            ("epochs", True, "whole number"),
            ("epochs", 10**400, "at most"),
            ("width", -1, "above 0"),
            ("width", 0.0, "above 0"),
            ("width", float("nan"), "finite"),
            ("width", float("inf"), "finite"),
            ("width", "wide", "a number"),
            ("bits", "0/1", "0 weight bits"),
            ("bits", "1/0", "0 activation bits"),
            ("bits", "1/1/0", "0 gradient bits"),
            ("bits", "9/1", "1 to 8, or 32"),
            ("bits", "1", "expected"),
            ("bits", 11, "expected"),
            ("bits", "-1/1", "expected"),
            ("bits", "\uff11/1", "expected"),
            ("seed", -1, "at least 0"),
            ("seed", 2**32, "below"),
            ("precision", "fp23", "Did you mean 'fp32'"),
            ("momentum", 1, "below 1"),
            ("weight_decay", -1e-9, "at least 0"),
            ("network", "tony", "Did you mean 'toy'"),
            ("network", {"kind": "toy", "shortcuts": "A"}, "Did you mean 'shortcut'"),
            ("network", {"kind": "toy", "shortcut": "C"}, "not one of 'A', 'B'"),
            ("network", {"shortcut": "A"}, "expected a name or a table"),
            ("network", 3, "expected a name or a table"),
            ("network", "python:os", 'expected "python:module.factory"'),
            ("quantizer", {"kind": ["dorefa"]}, "expected a name or a table"),
            ("strategy", "progressive", "merge: missing"),
        ],
    )
    def test_impossible_values_are_refused_in_a_line_that_names_the_key(self, field, value, words):
        with pytest.raises(InputError, match=words) as error:
            check_field(field, value)
        assert str(error.value).startswith(field) and len(str(error.value)) < 400

    def test_every_problem_of_a_choice_is_named(self):
        with pytest.raises(InputError) as error:
            check_field("strategy", {"kind": "progressive", "merge": "add", "kernel": 0, "layer": []})
        text = str(error.value)
        assert all(f"strategy.{key}:" in text for key in ("merge", "kernel", "layer", "factor"))

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"merge": "sum", "width_ratio": 0.5}, "width_ratio"),
            ({"merge": "preactivation", "batch_norm": False}, "batch_norm"),
            ({"merge": "sum", "statistics": "joint"}, "statistics"),
        ],
    )
    def test_options_that_do_not_go_together(self, options, key):
        with pytest.raises(InputError, match=rf"strategy\.{key}: .* only with merge = "):
            check_field("strategy", PROGRESSIVE | options)

    def test_concat_takes_what_is_its_own(self):
        found = check_field(
            "strategy", PROGRESSIVE | {"merge": "concat", "width_ratio": 0.5, "statistics": "joint"}
        )
        assert found["width_ratio"] == 0.5

    def test_fields_that_do_not_go_together(self):
        with pytest.raises(InputError) as error:
            config(
                quantizer="dorefa_channelwise",
                bits="3/1",
                optimizer="sgd",
                momentum=0,
                nesterov=True,
                loss="squared_hinge",
                label_smoothing=0.1,
            )
        assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
            "bits",
            "nesterov",
            "label_smoothing",
        ]

    def test_a_low_precision_quantizer_wants_its_bits(self):
        with pytest.raises(InputError, match="bits: W = 32 in '32/32', but quantizer 'bnn' takes 1 there"):
            config(quantizer="bnn")

    def test_missing_and_unknown_fields_are_named_together(self):
        with pytest.raises(InputError) as error:
            make_config({"dataset": "digits", "epoch": 3})
        text = str(error.value)
        assert "network: missing" in text and "epochs: missing" in text and "Did you mean 'epochs'" in text

    def test_short_forms(self):
        assert complete("datasets", "npz:mine") == {"kind": "npz", "name": "mine"}
        assert complete("learning_rates", 1) == {"kind": "constant", "initial": 1.0, "warmup_epochs": 0.0}
        assert parse_bits("1/2") == (1, 2, 32) and config(quantizer="dorefa", bits="1/2").bits == "1/2/32"

    def test_defaults_are_completed_and_never_shared(self):
        assert config().learning_rate["warmup_epochs"] == 0.0
        first = complete("strategies", {"kind": "apprentice", "scheme": "B"})
        first["teacher"]["epochs"] = 1
        assert complete("strategies", {"kind": "apprentice", "scheme": "B"})["teacher"] == {}

    def test_recipe_and_trial_fields_are_documented(self):
        assert all(info.description for info in Recipe.model_fields.values())

    def test_shown_copes_with_anything(self):
        assert (
            len(shown("x" * 10**6)) == 80
            and shown(10**5000) == "that value"
            and "\x1b" not in shown("\x1b[31m")
        )

    def test_labels(self):
        assert label("networks", complete("networks", "toy")) == "toy"
        assert label("strategies", complete("strategies", PROGRESSIVE)) == (
            "progressive (sum, cosine (until 0.5))"
        )
