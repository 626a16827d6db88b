"""Declared claims: one verdict a pair, from all its seeds; everything else is exploratory."""

from __future__ import annotations

import csv
import io
import tomllib
from pathlib import Path

import pytest

from bench.experiments.declared import declared
from bench.experiments.selection import Selection
from bench.reporting.assembly import make_cells
from bench.reporting.claims import judge, names
from bench.reporting.formats import to_csv, to_markdown
from bench.reporting.records import read_experiment
from bench.reporting.report import make_report
from bench.reporting.write import write_report
from tests.reporting.fake_records import SUM, Results

ARMS = """
title = "T"
[[arms]]
name = "Plain"
[[arms]]
name = "Longer"
[[arms]]
name = "Sum"
baseline = "Plain"
"""
CLAIM = """
[[claims]]
arm = "Sum"
over = "Plain"
at = "equal epochs"
"""
GAINS = [1.0, 1.2, 0.9, 1.1, 1.4, 0.8, 1.0]  # seven of one sign: the exact p is 2 / 2^7
PROGRESSIVE = {"strategy": SUM}


def _pair(
    results: Results, name: str, gains: list[float], seeds: list[int] | None = None, **summary: object
) -> None:
    """Record Plain (50 to 56) and Sum (that much better) of each seed, on 10,000 test images."""
    for seed, gain in zip(seeds or range(len(gains)), gains, strict=True):
        common = {"seed": seed, "seen": 10_000, "summary": {"train_flops": 1e9, **summary}}
        results.trial(name, "Plain", [10.0, 50.0 + seed], **common)
        results.trial(name, "Sum", [10.0, 50.0 + seed + gain], baseline="Plain", **PROGRESSIVE, **common)


def _rows(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table.data))))


def _tables(results: Path, name: str = "one") -> dict:
    return {table.name: table for table in make_report(read_experiment(results, name)).tables}


def test_a_declared_claim_by_hand(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM)
    _pair(results, "one", GAINS)
    tables = _tables(results.write())
    (claim,) = _rows(tables["claims"])
    assert (claim["verdict"], claim["pairs"], claim["operations_ratio"]) == ("better", "7", "1")
    assert float(claim["p_sign_flip"]) == float(claim["p_smallest"]) == float(claim["p_holm"]) == 2 / 128
    assert float(claim["gain"]) == pytest.approx(sum(GAINS) / 7)
    assert _rows(tables["gains"])[0]["claim"] == _rows(tables["accuracy"])[1]["claim"] == "better"
    assert "better" in to_markdown(tables["claims"])


def test_holm_runs_over_the_declared_claims_alone(tmp_path):
    """Two claims: 2/128 times 2 and the other one; ten further gains of the experiment change nothing."""
    results = Results(tmp_path)
    further = "".join(f'[[arms]]\nname = "A{i}"\nbaseline = "Plain"\n' for i in range(10))
    second = '[[claims]]\narm = "A0"\nover = "Plain"\nat = "equal epochs"\n'
    results.experiment("one", ARMS + further + CLAIM + second)
    _pair(results, "one", GAINS)
    for i in range(10):
        for seed in range(7):
            accuracy = 50.0 + seed + (0.3 if seed % 2 else -0.31)
            common = {"seed": seed, "seen": 10_000, "strategy": {**SUM, "merge": "concat"}, "salt": str(i)}
            results.trial("one", f"A{i}", [10.0, accuracy], baseline="Plain", **common)
    claims = _rows(_tables(results.write())["claims"])
    assert float(claims[0]["p_holm"]) == pytest.approx(4 / 128)
    assert [row["verdict"] for row in claims] == ["better", "equivalent"]


def test_three_pairs_claim_nothing(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM)
    _pair(results, "one", [9.0, 9.1, 9.2])
    (claim,) = _rows(_tables(results.write())["claims"])
    assert claim["verdict"] == "not settled: 3 pairs cannot show it (smallest possible p 0.25)"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flags": ["at_chance"]}, "no claim: both arms are at chance"),
        ({}, "better"),
    ],
)
def test_no_claim_where_both_sides_are_at_chance(tmp_path, change, told):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM)
    _pair(results, "one", GAINS, **change)
    (claim,) = _rows(_tables(results.write())["claims"])
    assert claim["verdict"] == told


def test_no_claim_where_the_budgets_are_not_as_declared(tmp_path):
    results = Results(tmp_path)
    longer = '[[claims]]\narm = "Sum"\nover = "Longer"\nat = "{}"\n'
    results.experiment("one", ARMS + longer.format("equal epochs") + longer.format("equal operations"))
    _pair(results, "one", GAINS)
    for seed in range(7):
        results.trial(
            "one", "Longer", [1.0, 2.0, 50.0], seed=seed, seen=10_000, summary={"train_flops": 1.5e9}
        )
    epochs, operations = _rows(_tables(results.write())["claims"])
    assert epochs["verdict"] == "no claim: 2 epochs against 3"
    assert operations["verdict"] == "no claim: 0.67 times the operations of Longer"


def test_no_claim_on_pairs_lost_to_diverged_runs_nor_on_a_branch_that_stays(tmp_path):
    results = Results(tmp_path)
    kept = '[[arms]]\nname = "Kept"\n[[claims]]\narm = "Kept"\nover = "Plain"\nat = "equal epochs"\n'
    results.experiment("one", ARMS + CLAIM + kept)
    _pair(results, "one", GAINS)
    results.trial("one", "Plain", [10.0, 60.0], seed=7)
    results.trial(
        "one", "Sum", [10.0, float("nan")], seed=7, status="diverged", baseline="Plain", **PROGRESSIVE
    )
    for seed in range(7):
        stays = {**SUM, "factor": {"kind": "constant", "until": 0.5, "keep": True}}
        summary = {"final_test_acc": None, "final_test_acc_expanded": 90.0}
        results.trial("one", "Kept", [1.0, 2.0], seed=seed, strategy=stays, summary=summary)
    lost, stays = _rows(_tables(results.write())["claims"])
    assert lost["verdict"] == "no claim: 1 pair lost to diverged runs"
    assert stays["verdict"] == "no claim: a branch was never removed"


def test_a_claim_without_runs_is_named_and_counts_in_the_correction(tmp_path):
    results = Results(tmp_path)
    nothing = '[[claims]]\narm = "Sum"\nover = "Longer"\nat = "equal operations"\n'
    results.experiment("one", ARMS + CLAIM + nothing)
    _pair(results, "one", GAINS)
    table = _tables(results.write())["claims"]
    tested, absent = _rows(table)
    assert float(tested["p_holm"]) == pytest.approx(4 / 128)
    assert (absent["over"], absent["gain"]) == ("Longer", "")
    assert absent["verdict"] == "not yet decided: no run of Longer that fits"
    assert "Sum over Longer: not yet decided: no run of Longer that fits." in table.notes


def test_a_claim_covers_the_grid_points_that_it_names(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM + "where = { width = 0.5 }\n")
    for width in (0.25, 0.5):
        for seed in range(2):
            results.trial("one", "Plain", [1.0, 50.0 + seed], seed=seed, width=width)
            results.trial("one", "Sum", [1.0, 60.0], seed=seed, width=width, baseline="Plain", **PROGRESSIVE)
    cells = make_cells(records := read_experiment(results.write(), "one"))
    assert [entry.cell.facts.width for entry in judge(records, cells)] == [0.5]


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_claims_on_a_pair_the_tables_show_the_one_that_could_be_tested(tmp_path, turned):
    results = Results(tmp_path)
    both = [CLAIM, CLAIM.replace("equal epochs", "equal operations")]
    results.experiment("one", ARMS + "".join(both[::-1] if turned else both))
    for seed, gain in enumerate(3 * GAINS[:4]):
        common = {"seed": seed, "seen": 10_000}
        results.trial("one", "Plain", [10.0, 50.0 + seed], summary={"train_flops": 1e9}, **common)
        dear = {"baseline": "Plain", "summary": {"train_flops": 2e9}}
        results.trial("one", "Sum", [10.0, 50.0 + seed + gain], **dear, **PROGRESSIVE, **common)
    tables = _tables(results.write())
    verdicts = {row["at"]: row["verdict"] for row in _rows(tables["claims"])}
    assert verdicts["equal epochs"] == "better" and verdicts["equal operations"].startswith("no claim: 2.00")
    assert _rows(tables["gains"])[0]["claim"] == _rows(tables["accuracy"])[1]["claim"] == "better"


@pytest.mark.parametrize("bits", ["1/1", "1/1/32"])
def test_a_claim_at_one_of_several_bit_widths(tmp_path, bits):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM + f'where = {{ bits = "{bits}" }}\n')
    for width in ("1/1", "2/2"):
        for seed in range(7):
            fields = {"seed": seed, "bits": width, "grid": {"bits": width, "seed": seed}}
            results.trial("one", "Plain", [10.0, 50.0 + seed], **fields)
            results.trial("one", "Sum", [10.0, 52.0 + 1.1 * seed], baseline="Plain", **PROGRESSIVE, **fields)
    (claim,) = _rows(_tables(results.write())["claims"])
    assert (claim["pairs"], claim["verdict"]) == ("7", "better")


def test_a_pair_of_arms_has_one_verdict_everywhere_from_all_its_seeds(tmp_path):
    """Experiment one declares the claim and has three of seven seeds; two has the others and no claim."""
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM)
    results.experiment("two", ARMS)
    _pair(results, "one", GAINS[:3])
    _pair(results, "two", GAINS[3:], seeds=[3, 4, 5, 6])
    root = results.write()
    assert write_report(None, Selection(), root, tmp_path / "out", ["csv"]) == 0
    (claim,) = csv.DictReader((tmp_path / "out" / "one" / "claims.csv").open())
    assert (claim["pairs"], claim["verdict"]) == ("7", "better")
    for name in ("one", "two"):
        (gain,) = csv.DictReader((tmp_path / "out" / name / "gains.csv").open())
        assert gain["claim"] == "better"
    assert not (tmp_path / "out" / "two" / "claims.csv").exists()


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("diverged", "no claim: 1 pair lost to diverged runs"),
        ("failed", "not yet decided: 7 of 8 seeds"),
        (None, "not yet decided: 7 of 8 seeds"),
    ],
)
def test_a_seed_of_another_experiment_that_was_lost_or_waits_counts_too(tmp_path, status, verdict):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM)
    results.experiment("two", ARMS)
    _pair(results, "one", GAINS)
    _pair(results, "two", GAINS[:1])
    results.trial("two", "Plain", [10.0, 57.0], seed=7)
    curve = None if status is None else [10.0, float("nan")]
    lost = {"epochs": 2, "baseline": "Plain", "seed": 7, **PROGRESSIVE}
    results.trial("two", "Sum", curve, status=str(status), **lost)
    write_report(None, Selection(), results.write(), tmp_path / "out", ["csv"])
    (claim,) = csv.DictReader((tmp_path / "out" / "one" / "claims.csv").open())
    assert (claim["pairs"], claim["verdict"]) == ("7", verdict)


GRID = "[grid]\nseed = [0, 1, 2, 3, 4, 5, 6]\n"


def _told(root: Path, out: Path, capsys) -> tuple[str, Path]:
    """Return what ``bench report`` prints of the experiment ``one``, and the folder of its report."""
    assert write_report(None, Selection(), root, out, ["md", "csv", "html"]) == 0
    return capsys.readouterr().out, out / "one"


@pytest.mark.parametrize("asked", [3, 7])
def test_a_claim_waits_for_all_declared_seeds_and_says_how_many_there_are(tmp_path, capsys, asked):
    """Three of seven seeds are through; the index asks for as many, as after ``--seeds 3``, or for all."""
    results = Results(tmp_path)
    results.experiment("one", GRID + ARMS + CLAIM)
    _pair(results, "one", GAINS[:3])
    for seed in range(3, asked):
        results.trial("one", "Plain", None, seed=seed, epochs=2)
        results.trial("one", "Sum", None, seed=seed, epochs=2, baseline="Plain", **PROGRESSIVE)
    told, folder = _told(results.write(), tmp_path / "out", capsys)
    verdict = "not yet decided: 3 of 7 seeds"
    assert f"Sum over Plain: {verdict}, +1.03 [+0.65, +1.41] points, 3 pairs." in told
    (claim,) = csv.DictReader((folder / "claims.csv").open())
    assert (claim["verdict"], claim["pairs"]) == (verdict, "3")
    assert claim["p_holm"] == claim["p_equivalence_holm"] == ""
    assert f"| {verdict} |" in (folder / "claims.md").read_text()
    assert [row["claim"] for row in csv.DictReader((folder / "gains.csv").open())] == [verdict]
    page = (folder / "index.html").read_text()
    assert f"Sum over Plain: {verdict}, +1.03 [+0.65, +1.41] points, 3 pairs." in page
    for word in ("better", "worse", "equivalent", "not settled"):
        assert f"| {word}" not in (folder / "claims.md").read_text()


@pytest.mark.parametrize("without", ["Plain", "Sum"])
def test_a_claim_waits_for_an_arm_without_a_run(tmp_path, capsys, without):
    results = Results(tmp_path)
    results.experiment("one", GRID + ARMS + CLAIM)
    for seed in range(7):
        for arm, more in (("Plain", {}), ("Sum", {"baseline": "Plain", **PROGRESSIVE})):
            results.trial("one", arm, None if arm == without else [10.0, 60.0], seed=seed, epochs=2, **more)
    told, _ = _told(results.write(), tmp_path / "out", capsys)
    assert "Sum over Plain: not yet decided: 0 of 7 seeds" in told


def test_a_claim_is_decided_with_the_last_declared_seed(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", GRID + ARMS + CLAIM)
    _pair(results, "one", GAINS[:6])
    (claim,) = _rows(_tables(results.write())["claims"])
    assert claim["verdict"] == "not yet decided: 6 of 7 seeds"
    _pair(results, "one", GAINS[6:], seeds=[6])
    (claim,) = _rows(_tables(results.write())["claims"])
    assert (claim["verdict"], claim["pairs"]) == ("better", "7")


def test_the_declared_seeds_are_those_of_the_profile_and_of_both_arms(tmp_path):
    """The profile declares two seeds; without it Plain has the seven of the file and Sum its own three."""
    text = GRID + ARMS.replace('name = "Sum"', 'name = "Sum"\ngrid = { seed = [0, 1, 2] }') + CLAIM
    assert declared(tomllib.loads(text + "[profiles.quick]\ngrid = { seed = [0, 1] }\n")).seeds == {
        (None, "Plain"): set(range(7)),
        (None, "Longer"): set(range(7)),
        (None, "Sum"): {0, 1, 2},
        ("quick", "Plain"): {0, 1},
        ("quick", "Longer"): {0, 1},
        ("quick", "Sum"): {0, 1},
    }
    assert declared(tomllib.loads(ARMS + CLAIM)).seeds == {}  # the seed 0 of a file without seeds
    results = Results(tmp_path)
    results.experiment("one", text)
    _pair(results, "one", GAINS[:3])
    (claim,) = _rows(_tables(results.write())["claims"])
    assert claim["verdict"].startswith("not settled: 3 pairs cannot show it")


def test_a_run_that_diverged_is_through_and_one_that_failed_is_not(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", GRID + ARMS + CLAIM)
    _pair(results, "one", GAINS[:6])
    results.trial("one", "Plain", [10.0, 60.0], seed=6)
    lost = {"baseline": "Plain", "seed": 6, **PROGRESSIVE}
    results.trial("one", "Sum", [10.0, float("nan")], status="diverged", **lost)
    (claim,) = _rows(_tables(results.write())["claims"])
    assert claim["verdict"] == "no claim: 1 pair lost to diverged runs"


@pytest.mark.parametrize(
    ("gains", "verdict", "p_holm"),
    [
        (GAINS, "better", 4 / 128),  # also where the other p-value is 1, and counts in the correction
        ([-0.5, *GAINS[1:]], "not yet decided: it depends on a claim that waits", None),  # p: 4 / 128
        ([-3.0, 3.0, -3.0, 3.0, -3.0, 3.0, 0.5], "not settled", 1.0),  # also where it is 0
    ],
)
def test_a_claim_has_a_verdict_where_the_claims_that_wait_cannot_change_it(tmp_path, gains, verdict, p_holm):
    """Of two claims one waits: the other's p-value is doubled at most, and at least what it is."""
    results = Results(tmp_path)
    second = '[[claims]]\narm = "Longer"\nover = "Plain"\nat = "equal epochs"\n'
    results.experiment("one", GRID + ARMS + CLAIM + second)
    _pair(results, "one", gains)
    for seed in range(6):
        values = {"seed": seed, "seen": 10_000, "strategy": {**SUM, "merge": "concat"}}
        results.trial("one", "Longer", [10.0, 50.0 + seed + gains[seed]], baseline="Plain", **values)
    found, waits = _rows(_tables(results.write())["claims"])
    assert found["verdict"] == verdict
    assert found["p_holm"] == "" if p_holm is None else float(found["p_holm"]) == pytest.approx(p_holm)
    assert (waits["verdict"], waits["p_holm"]) == ("not yet decided: 6 of 7 seeds", "")


@pytest.mark.parametrize(
    ("axes", "where", "missing", "tests"),
    [
        ("width = [0.25, 0.5]", "", [", width = 0.5"], 2),
        ("width = [0.25, 0.5, 1]", "", [", width = 0.5", ", width = 1"], 3),
        ("width = [0.25, 0.5]", "where = { width = 0.25 }\n", [], 1),
        ("width = [0.25]\nbits = ['1/1', '1/2']", "", [", width = 0.25, bits = 1/2"], 2),
        ("'strategy.factor' = ['linear', 'cosine']", "", [", strategy.factor = linear"], 2),
    ],
)
def test_a_declared_grid_point_without_a_line_in_the_index_counts(tmp_path, axes, where, missing, tests):
    """One pair has run, p = 2 / 128; Holm multiplies it by the number of declared points."""
    results = Results(tmp_path)
    fields = '[defaults]\nquantizer = "dorefa"\nstrategy = { kind = "progressive", merge = "sum" }\n'
    results.experiment("one", f"{ARMS}{CLAIM}{where}{fields}[grid]\n{axes}\n")
    for seed, gain in enumerate(GAINS):
        common = {"seed": seed, "width": 0.25, "grid": {"seed": seed, "width": 0.25}, "seen": 10_000}
        results.trial("one", "Plain", [10.0, 50.0 + seed], **common)
        common["grid"]["strategy.factor"] = "cosine"
        results.trial("one", "Sum", [10.0, 50.0 + seed + gain], baseline="Plain", **PROGRESSIVE, **common)
    tables = _tables(results.write())
    row, *absent = _rows(tables["claims"])
    assert float(row["p_holm"]) == pytest.approx(tests * 2 / 128) and row["verdict"] == "better"
    assert [r["verdict"] for r in absent] == [f"not yet decided: no run of Sum{p}" for p in missing]
    for point in missing:
        assert f"Sum over Plain: not yet decided: no run of Sum{point}." in tables["claims"].notes


def test_a_claim_of_an_arm_without_a_line_counts_each_of_its_points(tmp_path):
    results = Results(tmp_path)
    results.experiment(
        "one",
        f"{ARMS}{CLAIM}{CLAIM.replace('Sum', 'Longer')}[grid]\nwidth = [0.25, 0.5]\n"
        '[profiles.quick]\nonly = ["Longer"]\ngrid = { width = [1, 2, 3] }\n',
    )
    for width in (0.25, 0.5):
        for seed, gain in enumerate([*GAINS, 1.3]):
            common = {"seed": seed, "width": width, "grid": {"seed": seed, "width": width}, "seen": 10_000}
            results.trial("one", "Plain", [10.0, 50.0 + seed], **common)
            results.trial("one", "Sum", [10.0, 50.0 + seed + gain], baseline="Plain", **PROGRESSIVE, **common)
    table = _tables(results.write())["claims"]
    rows = _rows(table)
    for width in (0.25, 0.5):
        told = f"Longer over Plain: not yet decided: no run of Longer, width = {width}."
        assert told in table.notes
    assert float(rows[0]["p_holm"]) == pytest.approx(4 * 2 / 256)  # four tests, two of them waiting


def test_unreadable_claims_make_everything_exploratory_and_are_told(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", ARMS + CLAIM.replace("Plain", "Plane"))
    _pair(results, "one", GAINS)
    tables = _tables(results.write())
    assert "claims" not in tables and _rows(tables["gains"])[0]["claim"] == "exploratory"
    assert any("there is no arm 'Plane'" in note for note in tables["accuracy"].notes)


def test_claims_of_one_pair_are_named_by_what_they_differ_in(tmp_path):
    results = Results(tmp_path)
    claim = '[[claims]]\narm = "S"\nover = "P"\nat = "equal epochs"\n'
    results.experiment("two", f'title = "T"\n[[arms]]\nname = "P"\n[[arms]]\nname = "S"\n{claim}')
    for width in (0.5, 1.0):
        for seed in (0, 1):
            results.trial("two", "P", [10.0, 50.0 + seed], seed=seed, width=width)
            results.trial("two", "S", [10.0, 60.0], baseline="P", seed=seed, width=width)
    report = make_report(read_experiment(results.write(), "two"))
    assert names(report.judged) == ["S over P, width 0.5", "S over P, width 1"]


def test_experiments_with_declared_claims_come_first_on_the_page_of_all(tmp_path):
    arms = '[[arms]]\nname = "Plain"\n[[arms]]\nname = "EXP-Net"\nbaseline = "Plain"\n'
    claim = '[[claims]]\narm = "EXP-Net"\nover = "Plain"\nat = "equal epochs"\nmargin = 1.0\n'
    results = Results(tmp_path)
    for name, text in (("a", arms), ("b", arms + claim)):
        results.experiment(name, f'title = "Experiment {name}"\n{text}')
        for seed in range(3):
            results.trial(name, "Plain", [50.0 + seed], seed=seed)
            results.trial(name, "EXP-Net", [60.0 + seed], seed=seed, baseline="Plain", strategy=SUM)
    assert write_report(None, Selection(), results.write(), tmp_path / "out", ["html"]) == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert 0 < page.index("Experiment b") < page.index("Experiment a")
