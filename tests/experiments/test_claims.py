"""``[[claims]]``: read whole, refused with every wrong key named."""

from __future__ import annotations

import pytest

from bench.errors import InputError
from bench.experiments.claims import Claim, read_claims
from bench.experiments.expand import load_experiment
from tests.experiments.experiment_fakes import write

GOOD = {"arm": "Sum", "over": "Plain", "at": "equal epochs"}
CLAIM = """
[[claims]]
arm = "Sum"
over = "Plain"
at = "equal epochs"
"""
FILE = """
[defaults]
dataset = "digits"
network = "svhn_convnet"
quantizer = "dorefa"
bits = "1/1"
epochs = 2
[grid]
width = [0.25, 0.5]
[[arms]]
name = "Plain"
[[arms]]
name = "Sum"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
CLAIM
"""


def test_a_claim_has_a_margin_and_covers_every_grid_point_unless_told():
    (claim, other) = read_claims(
        {"claims": [GOOD, {**GOOD, "margin": 2, "where": {"width": 0.25}}]}, ["Plain", "Sum"], "f.toml"
    )
    assert claim == Claim(arm="Sum", over="Plain", at="equal epochs", margin=1.0, where={})
    assert (other.margin, other.where) == (2.0, {"width": 0.25})
    assert read_claims({}, [], "f.toml") == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arm": "Sun"}, "there is no arm 'Sun'. Did you mean 'Sum'"),
        ({"over": 3}, "over: expected text, not 3"),
        ({"over": "Sum"}, "itself"),
        ({"at": "equal time"}, "'equal operations'"),
        ({"margin": -1}, "margin: -1 must be at least 0"),
        ({"margin": True}, "margin: expected a number, not True"),
        ({"margn": 1}, "margn: there is no such key. Did you mean 'margin'?"),
        ({"where": []}, "where: expected a table, not []"),
    ],
)
def test_a_wrong_claim_is_refused_by_entry_and_key(change, told):
    with pytest.raises(InputError) as caught:
        read_claims({"claims": [GOOD, {**GOOD, **change}]}, ["Plain", "Sum"], "f.toml")
    assert str(caught.value).startswith("f.toml: claims, entry 2: ") and told in str(caught.value)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("{ widht = 0.5 }", "claims, entry 1: where.widht: no axis of arm 'Sum' has this name"),
        ("{ width = 9.0 }", "claims, entry 1: where: arm 'Sum' has no grid point with width = 9.0"),
        ('{ bits = "2/2" }', "where: arm 'Sum' has no grid point with bits = 2/2"),
        ("{ seed = 0 }", "where.seed: a claim is about all seeds"),
        ('{ bits = "1/1/32", width = 0.5, quantizer = "dorefa" }', ""),
    ],
)
def test_a_place_where_no_run_is_is_refused(tmp_path, where, told):
    text = FILE.replace("CLAIM", f"{CLAIM}where = {where}")
    if not told:
        assert len(load_experiment(write(tmp_path, text)).claims) == 1
        return
    with pytest.raises(InputError) as caught:
        load_experiment(write(tmp_path, text))
    assert told in str(caught.value)


def test_a_profile_may_leave_out_the_place_of_a_claim(tmp_path):
    text = FILE.replace(
        "CLAIM", CLAIM + "where = { width = 0.5 }\n[profiles.small]\ngrid = { width = [0.25] }"
    )
    assert len(load_experiment(write(tmp_path, text), profile="small").claims) == 1


def test_the_same_claim_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="claims, entry 2: is the same claim as one before it"):
        load_experiment(write(tmp_path, FILE.replace("CLAIM", CLAIM + CLAIM)))


def test_missing_keys_are_all_named():
    with pytest.raises(InputError, match=r"arm: missing .*\n.*over: missing .*\n.*at: missing "):
        read_claims({"claims": [{}]}, [], "f.toml")
    with pytest.raises(InputError, match=r"expected \[\[claims\]\]"):
        read_claims({"claims": {}}, [], "f.toml")
