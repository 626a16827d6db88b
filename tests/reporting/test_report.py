"""The report: golden tables of hand-written records, hostile text, published tables, figures."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import text
from bench.errors import InputError
from bench.experiments.selection import Selection
from bench.reporting import published_tables, targets
from bench.reporting.assembly import make_cells
from bench.reporting.formats import FORMATS, to_csv, to_latex, to_markdown
from bench.reporting.page import charts, page
from bench.reporting.page.answer import answer
from bench.reporting.pairing import OVER_CHANCE
from bench.reporting.records import read_experiment
from bench.reporting.report import make_report
from bench.reporting.write import write_report
from docs.tools.compare import compare_tables
from tests.reporting.fake_records import SUM, Results

ALL = Selection()
GOLDEN = Path(__file__).parent / "golden"
TITLE = "Two arms"
EXPERIMENT = f"""
title = "{TITLE}"
[[arms]]
name = "DoReFa-Net"
[[arms]]
name = "EXP-Net"
baseline = "DoReFa-Net"
"""


def _golden(root: Path, change: tuple[int, float] | None = None) -> Path:
    """Two arms, three seeds, four epochs; ``change`` sets one EXP-Net seed's final accuracy.

    DoReFa-Net 80, 82, 84: mean 82, s 2, half 4.302653 * 2 / sqrt 3 = 4.97. EXP-Net    83, 87, 88: mean 86, s
    sqrt 7 = 2.645751, half 6.57. Gains       3,  5,  4: mean  4, s 1, half 2.48, t = 6.928, p = 0.0202.
    Threshold 80 (of the baseline's 82). DoReFa-Net reaches 80 in epoch 4, 4, 4. EXP-Net deployed in epoch 3,
    3, 3, as trained (expanded 70 then 81) in epoch 2; ten seconds an epoch. Removal in epoch 3: 81 before,
    the lowest deployed accuracy after it 80.5: dip 0.5 (seed 0), 82: -1 (seeds 1 and 2); recovery in epoch 2
    (seed 0: 83), 1, 1.
    """
    results = Results(root)
    results.experiment("two", EXPERIMENT)
    for seed, last in enumerate((80.0, 82.0, 84.0)):
        results.trial("two", "DoReFa-Net", [30.0, 50.0, 70.0, last], seed=seed)
    finals = [83.0, 87.0, 88.0]
    if change:
        finals[change[0]] = change[1]
    for seed, (third, last) in enumerate(zip((80.5, 82.0, 82.0), finals, strict=True)):
        results.trial(
            "two",
            "EXP-Net",
            [10.0, 20.0, third, last],
            baseline="DoReFa-Net",
            seed=seed,
            strategy=SUM,
            expanded=[70.0, 81.0, None, None],
            factor=[0.8, 0.2, 0.0, 0.0],
        )
    return results.write()


def _tables(results: Path, name: str = "two") -> dict:
    return {table.name: table for table in make_report(read_experiment(results, name)).tables}


def _rows(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table.data))))


# -- golden --------------------------------------------------------------------------------------------------


def test_accuracy_table_by_hand(tmp_path):
    table = to_markdown(_tables(_golden(tmp_path))["accuracy"])
    assert "| DoReFa-Net | 3 | 82.00 ± 4.97 | – | not available |" in table
    assert "| EXP-Net | 3 | 86.00 ± 6.57 | +4.00 \\[+1.52, +6.48\\] | not available |" in table
    assert "Data set digits" in table and "Budget 4 × 50,000 images" in table and "Device Test CPU" in table


def test_gains_and_convergence_by_hand(tmp_path):
    tables = _tables(_golden(tmp_path))
    gain = _rows(tables["gains"])[0]
    assert (gain["claim"], gain["pairs"], gain["seeds"]) == ("exploratory", "3", "0 1 2")
    assert float(gain["p_t_test"]) == pytest.approx(0.020204, abs=1e-6)
    # three gains of one sign: 2 of 8 sign patterns; deviations sqrt 7 and 2
    assert (gain["p_sign_flip"], gain["p_smallest"]) == ("0.25", "0.25")
    assert float(gain["spread_ratio"]) == pytest.approx(math.sqrt(7) / 2)
    assert "claims" not in tables
    plain, progressive = _rows(tables["convergence"])
    assert (plain["threshold"], plain["epochs_deployed"], plain["epochs_trained"]) == ("80", "4", "4")
    assert (plain["seconds_deployed"], plain["dip"]) == ("40", "")
    assert (progressive["threshold"], progressive["epochs_deployed"], progressive["epochs_trained"]) == (
        "80",
        "3",
        "2",
    )
    assert (progressive["seconds_deployed"], progressive["seconds_trained"]) == ("30", "20")
    assert float(progressive["dip"]) == pytest.approx((0.5 - 1 - 1) / 3)
    assert (progressive["recovery_epochs"], progressive["recovery_epochs_reached"]) == ("1", "3")


@pytest.mark.parametrize("kind", ["md", "csv", "tex"])
def test_tables_are_the_golden_ones(tmp_path, kind):
    """Regenerate ``tests/golden`` by hand only after checking each number: see ``_golden``."""
    tables = _tables(_golden(tmp_path))
    for name in ("accuracy", "gains", "convergence"):
        expected = GOLDEN / f"{name}.{kind}"
        assert FORMATS[kind](tables[name]) == expected.read_text(encoding="utf-8"), expected


def test_one_changed_number_changes_its_cells_alone(tmp_path):
    before, after = (
        _rows(_tables(_golden(tmp_path / n, change))["accuracy"])
        for n, change in (("a", None), ("b", (1, 86.0)))
    )
    changed = {
        (i, key) for i, (a, b) in enumerate(zip(before, after, strict=True)) for key in a if a[key] != b[key]
    }
    own = {"accuracy", "accuracy_low", "accuracy_high", "accuracy_by_seed", "gain", "gain_low", "gain_high"}
    assert changed == {(1, key) for key in own}
    # 83, 86, 88 and gains 3, 4, 4: by hand
    assert float(after[1]["accuracy"]) == pytest.approx(257 / 3) and float(after[1]["gain"]) == pytest.approx(
        11 / 3
    )


# -- what does not finish ------------------------------------------------------------------------------------


def test_gains_over_a_baseline_at_chance_say_so_and_bars_end_where_accuracies_do(tmp_path):
    """Baseline 10, 10 at chance, arm 60, 98: gain 69; half of the arm's interval 241, drawn from 0 to 100."""
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    chance = {"flags": ["at_chance"]}
    for seed, last in enumerate((60.0, 98.0)):
        results.trial("two", "DoReFa-Net", [10.0, 10.0], seed=seed, epochs=2, summary=chance)
        arm = {"baseline": "DoReFa-Net", "strategy": SUM, "summary": {"train_flops": 1e9}}
        results.trial("two", "EXP-Net", [20.0, last], seed=seed, epochs=2, **arm)
    report = make_report(read_experiment(results.write(), "two"))
    rows = {cell.arm: cell for cell in report.cells}
    assert OVER_CHANCE in rows["EXP-Net"].flags and OVER_CHANCE not in rows["DoReFa-Net"].flags
    told = answer(report)[0]
    assert "+69.00" in told and told.endswith("In 1 of them the baseline is at chance.")
    for seed in (
        0,
        1,
    ):  # at 2/2 bits a difference of -9 between two arms at chance: no gain, it leads no range
        results.trial("two", "DoReFa-Net", [10.0], seed=seed, epochs=1, bits="2/2/32", summary=chance)
        arm = {"baseline": "DoReFa-Net", "strategy": SUM, "summary": chance}
        results.trial("two", "EXP-Net", [1.0], seed=seed, epochs=1, bits="2/2/32", **arm)
    with_chance = answer(make_report(read_experiment(results.write(), "two")))[0]
    assert with_chance == f"{told} Left out: 1 pair of arms of which both are at chance."
    plot = charts.operations(report.cells, {})
    bars = {trace["name"]: trace["error_y"] for trace in plot["traces"]}
    arm = next(bar for name, bar in bars.items() if "EXP-Net" in name)
    assert (arm["arrayminus"], arm["array"], arm["symmetric"]) == ([79.0], [21.0], False)


def test_a_page_of_runs_at_chance_tells_no_gain(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    for seed in (0, 1):
        chance = {"flags": ["at_chance"]}
        results.trial("two", "DoReFa-Net", [10.0], seed=seed, epochs=1, summary=chance)
        arm = {"baseline": "DoReFa-Net", "strategy": SUM, "summary": chance}
        results.trial("two", "EXP-Net", [11.0 + seed], seed=seed, epochs=1, **arm)
    told = answer(make_report(read_experiment(results.write(), "two")))[0]
    assert told == "No gain can be told: in 1 pair of arms both are at chance."


def test_nothing_is_dropped(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    results.trial("two", "DoReFa-Net", [50.0, 80.0], seed=0, epochs=4)
    results.trial("two", "DoReFa-Net", [50.0, math.nan], seed=1, epochs=4, status="diverged")
    results.trial(
        "two", "DoReFa-Net", [50.0], seed=2, epochs=4, status="failed", summary={"reason": "out of memory"}
    )
    results.trial("two", "DoReFa-Net", [50.0], seed=3, epochs=4, status="unfinished")
    results.trial("two", "DoReFa-Net", None, seed=4)
    damaged = results.trial("two", "DoReFa-Net", [50.0, 80.0], seed=5, epochs=4)
    lying = results.trial(
        "two", "DoReFa-Net", [50.0, 80.0], seed=6, epochs=4, summary={"final_test_acc": 99.0}
    )
    results.trial("two", "DoReFa-Net", [20.0, 21.0], seed=7, epochs=4, summary={"flags": ["at_chance"]})
    for seed in (0, 1, 7):
        results.trial(
            "two", "EXP-Net", [50.0, 85.0 + seed], seed=seed, epochs=4, strategy=SUM, baseline="DoReFa-Net"
        )
    root = results.write()
    (root / "trials" / damaged / "summary.json").write_text('{"schema": 1, "status": "do')
    tables = _tables(root)
    status = {row["seed"]: row["status"] for row in _rows(tables["runs"]) if row["arm"] == "DoReFa-Net"}
    assert list(status.values()) == [
        "done",
        "diverged",
        "failed",
        "unfinished",
        "missing",
        "damaged",
        "damaged",
        "done",
    ]
    row = _rows(tables["accuracy"])[0]
    assert (row["n"], row["wanted"]) == ("2", "8")
    assert (
        "1 diverged (seed 1" in row["flags"]
        and "out of memory" in row["flags"]
        and "1 missing (seed 4" in row["flags"]
    )
    assert "2 damaged (seeds 5, 6" in row["flags"] and "at chance (seed 7)" in row["flags"]
    assert {damaged, lying} <= set(row["runs"].split())
    assert "2 of 8" in to_markdown(tables["accuracy"])
    assert _rows(tables["gains"])[0]["pairs"] == "2"
    html = page(make_report(read_experiment(root, "two")))
    assert "out of memory" in html and "99.0" in html


def test_a_record_of_nothing_but_missing_runs_is_reported(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    results.trial("two", "DoReFa-Net", None)
    results.trial("two", "EXP-Net", None, baseline="DoReFa-Net", strategy=SUM)
    assert write_report(None, ALL, results.write(), tmp_path / "out") == 0
    assert "| 0 of 1 |" in (tmp_path / "out" / "two" / "accuracy.md").read_text()


def test_a_branch_that_stays_is_an_upper_bound(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    for seed in (0, 1):
        results.trial(
            "two",
            "EXP-Net",
            [30.0, 40.0 + seed],
            seed=seed,
            strategy={**SUM, "factor": {"kind": "constant", "until": 0.5, "keep": True}},
            summary={"final_test_acc": None, "final_test_acc_expanded": 90.0 + seed},
        )
    row = _rows(_tables(results.write())["accuracy"])[0]
    assert (row["accuracy"], row["gain"]) == ("", "") and float(row["never_removed"]) == 90.5
    assert "upper bound" in row["flags"]


# -- what is not averaged ------------------------------------------------------------------------------------


def test_budgets_and_data_are_rows_of_their_own(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    results.trial("two", "DoReFa-Net", [10.0, 60.0])
    results.trial("two", "DoReFa-Net", [10.0, 20.0, 30.0, 80.0])
    results.trial("two", "DoReFa-Net", [10.0, 20.0, 30.0, 70.0], train_size=500)
    results.trial("two", "DoReFa-Net", [10.0, 20.0, 30.0, 90.0], seed=1, provenance={"data": "other"})
    results.trial(
        "two", "DoReFa-Net", [10.0, 20.0, 30.0, 40.0], salt="revised"
    )  # the same configuration, another id
    cells = make_cells(read_experiment(results.write(), "two"))
    assert sorted(next(iter(cell.numbers.values.values())) for cell in cells) == [
        40.0,
        60.0,
        70.0,
        80.0,
        90.0,
    ]
    assert all(cell.numbers.accuracy.n == 1 for cell in cells)
    told = " ".join(flag for cell in cells for flag in cell.flags)
    assert "another row has other data" in told and "another identity" in told
    assert any("train_size 500" in cell.settings for cell in cells)


def test_mixed_code_and_versions_are_named(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    results.trial("two", "DoReFa-Net", [80.0], seed=0)
    results.trial(
        "two", "DoReFa-Net", [81.0], seed=1, provenance={"commit": "abc", "versions": {"torch": "2.14.0"}}
    )
    (cell,) = make_cells(read_experiment(results.write(), "two"))
    assert cell.numbers.accuracy.n == 2
    told = "; ".join(cell.flags)
    assert "2 code revisions: abc, c0ffee1234" in told and "several versions of torch: 2.11.0, 2.14.0" in told


def test_flags_say_how_many_reasons_and_warnings_they_leave_out(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", 'title = "T"\n[[arms]]\nname = "A"\n')
    for seed in range(3):
        told = {"reason": f"cause {seed}", "warnings": [f"warning {seed}"]}
        results.trial("one", "A", [10.0], seed=seed, status="failed", summary=told)
    (cell,) = make_cells(read_experiment(results.write(), "one"))
    assert cell.flags == (
        "3 failed (seeds 0, 1, 2: cause 0; cause 1; 1 more, see the runs)",
        *("warning: warning 0", "warning: warning 1", "warning: 1 more, see the runs"),
    )


def test_gains_pair_on_the_baselines_axes(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    for seed in (0, 1):
        for width, accuracy in ((0.25, 60.0), (0.5, 70.0)):
            results.trial("two", "DoReFa-Net", [accuracy + seed], seed=seed, width=width)
            for until in (0.25, 0.75):
                results.trial(
                    "two",
                    "EXP-Net",
                    [accuracy + seed + 4 * until * (seed + 1)],
                    seed=seed,
                    width=width,
                    baseline="DoReFa-Net",
                    strategy={**SUM, "factor": {"kind": "cosine", "until": until}},
                    grid={"strategy.factor.until": until},
                )
    results.trial("two", "DoReFa-Net", [10.0], seed=0, width=0.5, precision="bf16")
    rows = [row for row in _rows(_tables(results.write())["accuracy"]) if row["arm"] == "EXP-Net"]
    # gains of the two seeds: 4 * until and 8 * until, mean 6 * until
    assert {(r["width"], r["settings"]): round(float(r["gain"]), 6) for r in rows} == {
        ("0.25", "until 0.25"): 1.5,
        ("0.25", "until 0.75"): 4.5,
        ("0.5", "until 0.25"): 1.5,
        ("0.5", "until 0.75"): 4.5,
    }


def test_a_recorded_partner_is_used_and_longer_training_is_told(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    short = [results.trial("two", "DoReFa-Net", [10.0, 60.0 + s], seed=s) for s in (0, 1)]
    for seed in (0, 1):
        results.trial("two", "DoReFa-Net", [10.0, 20.0, 30.0, 40.0, 80.0 + seed], seed=seed)
        results.trial("two", "EXP-Net", [10.0, 20.0, 63.0 + 3 * seed], seed=seed, baseline="DoReFa-Net")
        results.lines["two"][-1]["baseline_id"] = short[seed]
    row = next(r for r in _rows(_tables(results.write())["accuracy"]) if r["arm"] == "EXP-Net")
    assert float(row["gain"]) == 4.0 and "differs from its baseline in epochs (3, baseline 2)" in row["flags"]
    for line in results.lines["two"]:
        line.pop("baseline_id", None)
    (tmp_path / "two" / "index.jsonl").unlink()
    row = next(r for r in _rows(_tables(results.write())["accuracy"]) if r["arm"] == "EXP-Net")
    assert row["gain"] == "" and "2 rows of its baseline fit" in row["flags"]


# -- published values ----------------------------------------------------------------------------------------


def test_shipped_tables_are_read_whole_and_every_name_is_used():
    names = published_tables.load_names()
    figure = published_tables.load_table(published_tables.find_table("svhn_figure", []), names)
    literature = published_tables.load_table(published_tables.find_table("literature", []), names)
    assert figure and literature
    assert {row.kind for row in figure if row.method.startswith("EXP-Net")} == {"original"}
    assert {row.kind for row in figure if not row.method.startswith("EXP-Net")} == {"rerun_by_other_paper"}
    rows = figure + literature
    for group, attribute in (("datasets", "dataset"), ("networks", "network"), ("methods", "method")):
        known = {getattr(row, attribute) for row in rows}
        listed = [name for entry in getattr(names, group) for name in entry.published]
        assert set(listed) <= known, set(listed) - known


def test_every_point_of_the_figure_finds_its_cell():
    names = published_tables.load_names()
    figure = published_tables.load_table(published_tables.find_table("svhn_figure", []), names)
    quantizers = {"DoReFa": "dorefa", "XNOR": "dorefa_channelwise", "SYQ": "syq"}
    hits = []
    for family, kind in quantizers.items():
        for strategy in ({"kind": "plain"}, SUM):
            for bits in ((1, 1, 32), (1, 2, 4), (2, 1, 32), (2, 2, 32)):
                for width in (0.125, 0.25, 0.5, 1.0):
                    config = {
                        "dataset": {"kind": "svhn", "extra": True},
                        "network": {"kind": "svhn_convnet"},
                        "width": width,
                        "quantizer": {"kind": kind},
                        "strategy": strategy,
                        "train_size": None,
                    }
                    found = targets.matches(config, bits, figure, names, None, 604_288, 604_288 * 200)
                    assert all(family in m.row.method and m.not_comparable == () for m in found)
                    hits.extend(m.row.line for m in found)
    assert sorted(hits) == list(range(2, 50))


def _cifar(quantizer="dorefa", **changes):
    return {
        "dataset": {"kind": "cifar10"},
        "network": {"kind": "resnet20"},
        "width": 1.0,
        "quantizer": {"kind": quantizer},
        "strategy": {"kind": "plain"},
        "train_size": None,
        **changes,
    }


def test_literature_rows_keep_their_kinds_and_budgets_count():
    names = published_tables.load_names()
    rows = published_tables.load_table(published_tables.find_table("literature", []), names)
    full = targets.matches(_cifar(), (1, 1, 32), rows, names, None, 49_920, 200 * 49_920)
    assert [(m.row.accuracy, m.row.kind, m.not_comparable) for m in full] == [(84.44, "quoted", ())]
    precise = targets.matches(_cifar("full_precision"), (32, 32, 32), rows, names, None, 49_920, 200 * 49_920)
    assert len(precise) > 5 and len({m.row.kind for m in precise}) > 1
    short = targets.matches(_cifar(), (1, 1, 32), rows, names, None, 49_920, 8 * 49_920)
    assert "short budget" in short[0].not_comparable[0]
    subset = targets.matches(_cifar(train_size=500), (1, 1, 32), rows, names, None, 500, 10**9)
    assert "subset of 500" in subset[0].not_comparable[0]
    assert not targets.matches(_cifar(width=0.25), (1, 1, 32), rows, names, None, 49_920, 10**9)
    assert not targets.matches(_cifar(strategy=SUM), (1, 1, 32), rows, names, None, 49_920, 10**9)


def test_an_arm_that_names_its_rows_sees_them_on_a_subset_but_never_reproduces(tmp_path):
    results = Results(tmp_path)
    published = 'published = { table = "svhn_figure", method = "DoReFa-Net" }'
    results.experiment(
        "two", f'title = "T"\ntargets = ["svhn_figure"]\n[[arms]]\nname = "DoReFa-Net"\n{published}\n'
    )
    for seed, accuracy in enumerate((90.0, 90.1, 90.2)):
        data = {"kind": "npz", "name": "svhn_subset"}
        results.trial("two", "DoReFa-Net", [50.0, accuracy], seed=seed, dataset=data)
    (row,) = _rows(_tables(results.write())["published"])
    assert (row["published"], row["kind"], row["verdict"]) == (
        "90.09",
        "rerun_by_other_paper",
        "not comparable",
    )
    assert "another data set (SVHN)" in row["reason"]


GOOD = (
    "dataset,network,method,w_bits,a_bits,metric,accuracy_pct,source\n"
    "CIFAR-10,ResNet-20,Mine,1,1,top1,84.4,me\n"
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty"),
        (GOOD.replace("accuracy_pct", "acuracy_pct"), "line 1: column 'accuracy_pct' is missing"),
        (GOOD.replace("source", "source,acuracy"), "unknown column 'acuracy'"),
        (GOOD.replace("source\n", "metric\n"), "column 'metric' stands there 2 times"),
        (GOOD.replace("84.4", "844"), "line 2, column accuracy_pct: '844'"),
        (GOOD.replace("84.4", "nan"), "line 2, column accuracy_pct"),
        (GOOD.replace("84.4", ""), "line 2, column accuracy_pct"),
        (GOOD.replace("top1", "top2"), "line 2, column metric"),
        (GOOD.replace(",1,1,", ",one,1,"), "line 2, column w_bits: 'one'"),
        (GOOD.replace("Mine", ""), "line 2, column method: empty"),
        (GOOD.replace(",me\n", "\n"), "line 2: 7 columns, but the header has 8"),
        (GOOD.replace("me\n", '"me\n'), "not CSV"),
        (GOOD + "\n" + GOOD.splitlines()[1].replace("84.4", "x") + "\n", "line 4, column accuracy_pct"),
        (GOOD.replace("Mine", "Mi\0ne"), "line 2"),
    ],
)
def test_a_bad_table_is_refused_with_file_line_and_column(tmp_path, content, told):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        published_tables.load_table(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


def test_a_users_table_beside_the_experiment_is_found(tmp_path):
    (tmp_path / "mine.csv").write_text("\ufeff" + GOOD, encoding="utf-8")
    (tmp_path / "names.toml").write_text(
        '[[methods]]\npublished = ["Mine"]\nquantizer = ["bnn"]\nstrategy = ["plain"]\n'
    )
    names = published_tables.load_names([tmp_path])
    rows = published_tables.load_table(published_tables.find_table("mine", [tmp_path]), names)
    (match,) = targets.matches(_cifar("bnn"), (1, 1, 32), rows, names, None, 50_000, 10**9)
    assert match.row.accuracy == 84.4 and match.row.kind == "original"
    for bad in ("minne", "../mine", "/etc/passwd"):
        with pytest.raises(InputError, match="no published table"):
            published_tables.find_table(bad, [tmp_path])
    for content, told in (
        ("x = [", "names.toml"),
        ("[[method]]\n", "unknown key"),
        ("[[methods]]\nkind = 1\n", "kind"),
    ):
        (tmp_path / "names.toml").write_text(content)
        with pytest.raises(InputError, match=told):
            published_tables.load_names([tmp_path])
    (tmp_path / "latin.csv").write_bytes(GOOD.replace("me", "m\xe9").encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        published_tables.load_table(tmp_path / "latin.csv")


# -- hostile text --------------------------------------------------------------------------------------------

HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "\t=1+1",
    "' =1+1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\\input{/etc/passwd}$x^2_3&%#~",
    "a|b`c`[x](javascript:alert(1))*d*",
    "\x1b[31mred\x1b[0m\x07",
    "right\u202eleft\u200b",
    "https://example.org www.example.org",
    "$\\frac{1$",
    "中文 ± é",
    "--- \n## head\r\n| x |",
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, set[str]] = {}
        self.own = ""  # the page without styles and the scripts that every page has

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data):
        if self.tags[-1:] not in (["style"], ["script"]) or data.startswith('{"cells"'):
            self.own += data


def _page_tags(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    return parser


@pytest.mark.slow
def test_hostile_text_is_inert_in_every_format(tmp_path, capsys):
    results = Results(tmp_path)
    arms = "\n".join(f"[[arms]]\nname = {json.dumps(name)}" for name in HOSTILE)
    results.experiment("two", f"title = {json.dumps(' '.join(HOSTILE))}\n{arms}\n".replace("\x7f", ""))
    for i, name in enumerate(HOSTILE):
        for seed in (0, 1):
            results.trial(
                "two",
                name,
                [40.0, 50.0 + i + seed],
                seed=seed,
                baseline=HOSTILE[0] if i else None,
                summary={"warnings": [name], "flags": [name]},
                provenance={"commit": name},
                dataset={"kind": "npz", "name": name if i == 5 else "x"},
                salt=name,
            )
        results.trial(
            "two", name, [1.0], seed=2, epochs=2, status="failed", summary={"reason": name}, salt=name
        )
    root = results.write()
    assert write_report(None, ALL, root) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told and f"{2 * len(HOSTILE)} of {3 * len(HOSTILE)} runs done" in told
    out = root / "report" / "two"
    html = (out / "index.html").read_text()
    parser = _page_tags(html)
    # the data, the two bundles and page.js: a text from a file adds no element and no address
    assert parser.tags.count("script") == 4 and parser.tags.count("style") == 2
    assert not any(name.startswith("on") for name in parser.attributes)
    assert not {"srcset", "action"} & parser.attributes.keys() and "&lt;script&gt;" in html
    assert parser.attributes["href"] == {"../index.html"}
    assert all(source.startswith("data:image/png;base64,") for source in parser.attributes["src"])
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert held is not None and not set("<>&") & set(held[1]) and json.loads(held[1])["cells"]
    for path in out.iterdir():
        if path.suffix in (".md", ".csv", ".tex", ".html"):
            content = path.read_text(encoding="utf-8")
            content = parser.own if path.suffix == ".html" else content
            controls = [c for c in content if (ord(c) < 32 and c != "\n") or c in "\x7f\u202e\u200b"]
            assert not controls, (path, controls)
    for path in out.glob("*.csv"):
        for row in csv.reader(path.open(newline="")):
            for cell in row:
                assert (
                    not cell.lstrip("\"' ").startswith(("=", "+", "@", "-"))
                    or cell.startswith("'")
                    or _number(cell)
                ), cell
    markdown = (out / "accuracy.md").read_text()
    assert (
        "<script" not in markdown
        and "://" not in markdown
        and "](" not in markdown.replace("\\](", "").replace("\\]\\(", "")
    )
    body = [line for line in markdown.splitlines() if line.startswith("|")]
    assert (
        len({len(re.findall(r"(?<!\\)\|", line)) for line in body}) == 1
    )  # every row has the header's columns
    latex = (out / "accuracy.tex").read_text()
    assert "\\input" not in latex and "\\frac" not in latex and "[U+4E2D]" in latex and "é" in latex
    lines = [line for line in latex.splitlines() if line.endswith("\\\\") and " & " in line]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    assert latex.count("{") - latex.count("\\{") == latex.count("}") - latex.count("\\}")


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_escapes_by_hand():
    assert text.clean("a\x1b[0m\tb\r\nc  d") == "a\\x1b[0m b c d"
    assert text.clean("abcdef", 4) == "abc…"
    assert (
        text.spreadsheet("=1") == "'=1"
        and text.spreadsheet(-1.5) == -1.5
        and text.spreadsheet("a=1") == "a=1"
    )
    assert text.latex("50 % of A&B_c^2") == "50 \\% of A\\&B\\_c\\textasciicircum{}2"
    assert text.markdown("a|b <i> $x$") == "a\\|b &lt;i&gt; \\$x\\$"


def test_a_damaged_index_is_named(tmp_path):
    results = Results(tmp_path)
    results.experiment("two", EXPERIMENT)
    results.trial("two", "DoReFa-Net", [1.0, 2.0])
    index = results.write() / "two" / "index.jsonl"
    line = json.loads(index.read_text())
    for broken in ({**line, "arm": ["x"]}, {**line, "grid": "x"}, {**line, "id": "../../etc"}):
        index.write_text(json.dumps(broken) + "\n")
        with pytest.raises(InputError, match=r"index\.jsonl"):
            read_experiment(tmp_path, "two")


# -- the command, the figures --------------------------------------------------------------------------------


def test_figures_and_files(tmp_path, capsys):
    root = _golden(tmp_path)
    assert write_report(None, ALL, root) == 0
    out = root / "report" / "two"
    written = {path.name for path in out.iterdir()}
    assert {
        "accuracy.md",
        "accuracy.csv",
        "accuracy.tex",
        "gains.md",
        "published.csv",
        "runs.csv",
        "index.html",
    } <= written
    assert {"curves.png", "curves.pdf", "curves.csv", "forest.png", "forest.pdf", "convergence.md"} <= written
    assert str(out / "accuracy.md") in capsys.readouterr().out
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert write_report(None, ALL, root) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first  # no dates anywhere
    width = int.from_bytes(first["curves.png"][16:20], "big")
    assert width == 700  # 3.5 inches at 200 dots
    curves = list(csv.DictReader(io.StringIO(first["curves.csv"].decode())))
    row = next(r for r in curves if r["arm"] == "EXP-Net" and r["epoch"] == "3")
    # deployed 80.5, 82, 82
    assert (row["n"], row["test_acc_min"], row["test_acc_max"]) == ("3", "80.5", "82")
    assert float(row["test_acc"]) == pytest.approx(81.5)


def test_formats_are_chosen_and_checked(tmp_path):
    root = _golden(tmp_path)
    assert write_report(None, ALL, root, tmp_path / "out", ["md"]) == 0
    assert {path.suffix for path in (tmp_path / "out" / "two").iterdir()} == {".md", ".txt"}
    with pytest.raises(InputError, match="docx"):
        write_report(None, ALL, root, None, ["docx"])
    with pytest.raises(InputError, match="no experiment is recorded"):
        write_report(None, ALL, tmp_path / "nothing")
    with pytest.raises(InputError, match="--profile"):
        write_report(None, Selection("quick"), root)


def test_a_record_made_before_a_field_or_option_was_added_has_its_default(tmp_path):
    """Its identity is that of a trial with the default, so its seeds belong to the same cell."""
    results = Results(tmp_path)
    results.experiment("two", 'title = "T"\n[[arms]]\nname = "DoReFa-Net"\n')
    results.trial("two", "DoReFa-Net", [10.0, 70.0], seed=0)
    results.trial("two", "DoReFa-Net", [10.0, 72.0], seed=1, micro_batches=1, activation_checkpointing=False)
    results.trial("two", "DoReFa-Net", [10.0, 74.0], seed=2, micro_batches=2)
    syq = {"kind": "syq"}
    for seed, quantizer in ((3, syq), (4, {**syq, "granularity": "pixel", "eta": None, "scale": 1.0})):
        results.trial("two", "DoReFa-Net", [10.0, 76.0], seed=seed, quantizer=quantizer, bits="2/2/32")
    cells = make_cells(read_experiment(results.write(), "two"))
    assert sorted(len(cell.trials) for cell in cells) == [1, 2, 2]


def test_the_forest_shows_the_declared_claims_alone_each_on_its_row(tmp_path):
    from bench.reporting.figures import plans

    results = Results(tmp_path)
    claim = '[[claims]]\narm = "S"\nover = "P"\nat = "equal epochs"\nwhere = { width = 0.5 }\n'
    arms = '[[arms]]\nname = "P"\n[[arms]]\nname = "S"\nbaseline = "P"\n'
    for name, content in (("one", f'title = "T"\n{arms}{claim}'), ("two", f'title = "T"\n{arms}')):
        results.experiment(name, content)
        for width in (0.5, 1.0):
            for seed in (0, 1):
                results.trial(name, "P", [10.0, 50.0 + seed], seed=seed, width=width)
                results.trial(name, "S", [10.0, 60.0], baseline="P", seed=seed, width=width, strategy=SUM)
    root = results.write()
    named = {}
    for name in ("one", "two"):
        make = next(
            plan[2] for plan in plans(make_report(read_experiment(root, name))) if plan[0] == "forest"
        )
        figure = make()
        assert figure is not None
        named[name] = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert [*figure.axes[0].get_yticks()] == [*range(len(named[name]))]
    assert named == {"one": ["S over P"], "two": ["S, width 0.5", "S, width 1"]}


def test_widths_stand_beside_the_published_ones(tmp_path):
    from bench.reporting import figures

    results = Results(tmp_path)
    results.experiment("two", 'title = "T"\ntargets = ["svhn_figure"]\n[[arms]]\nname = "DoReFa-Net"\n')
    for width, accuracy in ((0.125, 70.0), (0.25, 80.0), (1.0, None)):
        curve = None if accuracy is None else [10.0, accuracy]
        results.trial("two", "DoReFa-Net", curve, width=width, dataset={"kind": "svhn", "extra": True})
    records = read_experiment(results.write(), "two")
    names = published_tables.load_names()
    rows = published_tables.load_table(published_tables.find_table("svhn_figure", []), names)
    cells = make_cells(records, {"svhn_figure": rows}, names)
    figure = figures.width_figure(cells, figures.looks(cells))
    assert figure is not None
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_xdata())]
    at = [line.get_xdata().tolist() for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [0.125, 0.25] in at and [0.125, 0.25, 1.0] in at  # every point at its width
    assert [81.6, 90.09, 97.22] in drawn  # published, the missing width's too
    assert [70.0, 80.0] in drawn and [0.03] in drawn  # ours, and the cross


# -- make reproduce ------------------------------------------------------------------------------------------


def test_comparison_with_a_committed_table(tmp_path, capsys):
    def report(name: str, change=None) -> Path:
        write_report(None, ALL, _golden(tmp_path / name, change), tmp_path / name / "out", ["csv"])
        return tmp_path / name / "out" / "two"

    same, other = report("a"), report("b", (1, 84.0))
    assert compare_tables(same, same) == 0
    assert "2 cells: 2 identical" in capsys.readouterr().out
    assert compare_tables(other, same) == 0  # accuracies differ across hardware
    told = capsys.readouterr().out
    assert "1 identical, 1 within noise" in told and "-1.00 [" in told
    content = (same / "accuracy.csv").read_text()
    short = tmp_path / "short.csv"
    short.write_text("\n".join(content.splitlines()[:2]) + "\n")
    assert compare_tables(short, same) == 1 and "missing row: EXP-Net" in capsys.readouterr().out
    assert compare_tables(same, short) == 1 and "not in the committed table" in capsys.readouterr().out
    assert compare_tables(same, tmp_path / "none") == 1
    short.write_text(content.replace("accuracy_by_seed", "x"))
    assert (
        compare_tables(same, short) == 1 and "columns accuracy_by_seed are missing" in capsys.readouterr().out
    )


def test_latex_of_the_golden_table_is_well_formed(tmp_path):
    latex = to_latex(_tables(_golden(tmp_path))["accuracy"])
    for command in ("\\toprule", "\\midrule", "\\bottomrule", "\\begin{tabular}{lrrrr}", "$\\pm$"):
        assert command in latex


@pytest.mark.parametrize("profile", [None, "quick"])
def test_an_experiment_of_which_nothing_ran_is_all_missing(tmp_path, profile):
    file = Path(__file__).parents[2] / "experiments" / "digits.toml"
    assert (
        write_report([file], Selection(profile), tmp_path / "runs", tmp_path / "out", ["csv", "md", "html"])
        == 0
    )
    rows = list(csv.DictReader((tmp_path / "out" / "digits" / "runs.csv").open()))
    assert {row["status"] for row in rows} == {"missing"}
    assert {row["arm"] for row in rows} >= {"DoReFa-Net", "EXP-Net (DoReFa, sum)", "Full precision"}
    assert len({row["seed"] for row in rows}) == (1 if profile else 3)


@pytest.mark.slow
def test_corrupted_records_never_end_in_a_traceback(tmp_path):
    """Bytes and values changed at random: a report, or one message naming the file."""
    rng = random.Random(0)
    root = _golden(tmp_path)
    files = sorted([*root.glob("trials/*/*.json*"), root / "two" / "index.jsonl", root / "two" / "two.toml"])
    junk = [
        "null",
        "-1",
        "1e999",
        '"x"',
        "[]",
        "{}",
        "true",
        '{"kind": 3}',
        "",
        "\x00",
        "1" * 400,
        '"\\u202e"',
    ]
    refused = 0
    for _ in range(150):
        path = rng.choice(files)
        good = path.read_bytes()
        values = list(re.finditer(rb"(?<=: )[^,\n}]+", good))
        if values and rng.random() < 0.7:
            spot = rng.choice(values)
            path.write_bytes(good[: spot.start()] + rng.choice(junk).encode() + good[spot.end() :])
        else:
            cut = rng.randrange(len(good))
            path.write_bytes(
                good[:cut] + bytes(rng.randrange(256) for _ in range(rng.randrange(4))) + good[cut + 2 :]
            )
        try:
            report = make_report(read_experiment(root, "two"))
            for table in report.tables:
                for convert in FORMATS.values():
                    convert(table)
            page(report)
        except InputError as error:
            refused += "index.jsonl" in str(error)  # every other damage is a row with its reason
        path.write_bytes(good)
    assert 0 < refused < 40
