"""``[[claims]]``: read whole, refused with every wrong key named."""

from __future__ import annotations

import pytest

from bench.errors import InputError
from bench.experiments.claims import Claim, read_claims

GOOD = {"arm": "Sum", "over": "Plain", "at": "equal epochs"}


def test_a_claim_has_a_margin_and_covers_every_grid_point_unless_told():
    (claim, other) = read_claims(
        {"claims": [GOOD, {**GOOD, "margin": 2, "where": {"width": 0.25}}]}, ["Plain", "Sum"], "f.toml"
    )
    assert claim == Claim("Sum", "Plain", "equal epochs", 1.0, ())
    assert (other.margin, other.where) == (2.0, (("width", 0.25),))
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


def test_missing_keys_are_all_named():
    with pytest.raises(InputError, match=r"arm: missing .*\n.*over: missing .*\n.*at: missing "):
        read_claims({"claims": [{}]}, [], "f.toml")
    with pytest.raises(InputError, match=r"expected \[\[claims\]\]"):
        read_claims({"claims": {}}, [], "f.toml")
