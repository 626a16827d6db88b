"""The JSON Schema of experiment files: shipped files pass, mistakes do not, and entries describe it."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import jsonschema
import pytest

from bench import registry
from bench.experiments.schema import field_schemas, json_schema

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))
SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FILE = tomllib.loads("""
title = "a title"
[defaults]
dataset = "digits"
network = { kind = "resnet20", shortcut = "A" }
learning_rate = 0.1
strategy.factor.until = 0.5
[grid]
seed = [0, 1]
"strategy.merge" = ["sum"]
[[arms]]
name = "an arm"
quantizer = "dorefa"
bits = ["1/1", "1/2"]
strategy = { kind = "progressive", factor = { kind = "cosine" } }
[profiles.quick]
epochs = 2
grid = { seed = [0] }
""")


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path):
    VALIDATOR.validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_short_and_long_forms_are_valid():
    VALIDATOR.validate(FILE)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("defaults", "epoch", 3),
        ("defaults", "epochs", 0),
        ("defaults", "epochs", "3"),
        ("defaults", "network", "resnet2"),
        ("defaults", "network", {"kind": "resnet20", "shortcut": "C"}),
        ("defaults", "strategy", {"kind": "anneal", "factor": {"kind": "cosine", "untill": 0.5}}),
        ("defaults", "bits", "one"),
        ("grid", "seeds", [1]),
        ("grid", "seed", 3),
        ("arm", "bits", 1),
        ("arm", "basline", "x"),
        ("profile", "seed", 3),
        ("file", "gird", {}),
    ],
)
def test_mistakes_are_found(table, key, value):
    wrong = copy.deepcopy(FILE)
    places = {"file": wrong, "arm": wrong["arms"][0], "profile": wrong["profiles"]["quick"]}
    (places | wrong)[table][key] = value
    assert not VALIDATOR.is_valid(wrong)


def test_every_part_and_option_is_described():
    for group in registry.GROUPS:
        kinds = {
            entry["properties"]["kind"].get("const"): entry
            for entry in SCHEMA["$defs"][group]["anyOf"]
            if entry.get("required") == ["kind"]
        }
        for name, entry in registry.entries(group).items():
            if name not in ("npz", "imagefolder", "python"):
                assert kinds[name]["description"] == entry.help
                for option, spec in entry.options.items():
                    assert kinds[name]["properties"][option]["description"] == spec["help"]
    assert all("description" in schema for schema in field_schemas().values())
