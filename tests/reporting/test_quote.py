"""Numbers quoted in prose: they are the tables', and the committed pages quote the committed tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.errors import InputError
from docs.tools import quote

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/findings.md")
ACCURACY = """arm,role,bits,settings,width,epochs,n,accuracy,accuracy_low,accuracy_high,accuracy_by_seed,\
gain,gain_low,gain_high,gain_note,claim,never_removed,never_removed_low,never_removed_high
Plain,,1/1/32,,0.25,40,3,61.9,54.1,69.7,0:9.5 1:62.04 2:100,,,,,,,,
Plain,,1/2/32,,0.25,40,3,70.0,69.0,71.0,,,,,,,,,
"With, comma|bar",,1/1/32,,0.25,40,3,76.99,70.4,83.6,,15.09,1.3,28.88,,better,,,
Alone,,1/1/32,x=1,0.25,40,1,50,,,,-2.5,,,1 pair: no interval,exploratory,,,
Same,,1/1/32,x=2,0.25,40,3,50,49,51,,-0.04,-0.2,0.04,,exploratory,,,
Plain,teacher,1/1/32,,0.25,40,3,99,98,100,,,,,,,,,
"""
CONVERGENCE = """arm,bits,settings,width,epochs,n,threshold,epochs_held,epochs_held_reached,epochs_trained,\
epochs_trained_reached,seconds_deployed,seconds_deployed_reached,recovery_epochs,recovery_epochs_reached,dip,dip_low,dip_high
Plain,1/1/32,,0.25,40,3,60,39,2,29,3,100.2,3,,0,,,
EXP,1/1/32,,0.25,40,3,60,,1,7,3,115.2,3,1,3,-1.25,-3.25,0.75
"""
RUNS = """run,status,dataset,network,width,device,wall_seconds
a,done,digits,convnet,0.25,CPU,3600
a,done,digits,convnet,0.25,CPU,3600
b,done,digits,convnet,0.25,CPU,1800
c,failed,digits,convnet,0.25,CPU,9999
"""
CLAIMS = """experiment,arm,over,at,pairs,gain,gain_low,gain_high,gain_note,p_holm,p_equivalence_holm,\
spread_ratio,spread_ratio_low,spread_ratio_high,verdict
one,EXP,Plain,equal epochs,10,2.34,1,3.66,,0.0078125,1,0.5123,0.3,1.02,better
"""
TUNING = """experiment,arm,configuration,held_out,held_out_by_seed,chosen,seconds
one,Plain,learning_rate.initial=0.001,58.7,58.7 diverged,no,3600
one,Plain,learning_rate.initial=0.008,84.35,84.3 84.4,yes,1800
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for experiment in ("one", "two"):
        folder = tmp_path / experiment
        folder.mkdir()
        for name, text in (("accuracy", ACCURACY), ("convergence", CONVERGENCE), ("runs", RUNS)):
            (folder / f"{name}.csv").write_text(text)
    (tmp_path / "one" / "claims.csv").write_text(CLAIMS)
    (tmp_path / "one" / "tuning.csv").write_text(TUNING)
    quote._rows.cache_clear()
    return tmp_path


class TestValues:
    @pytest.mark.parametrize(
        ("what", "shown"),
        [
            ("one accuracy; arm=Plain; bits=1/1", "61.9 ± 7.8"),
            ("one mean; arm=Plain; bits=1/2", "70.0"),
            ("one gain; arm=With, comma|bar", "+15.1 [+1.3, +28.9]"),
            ("one interval; arm=With, comma|bar", "+1.3 to +28.9"),
            ("one least; arm=Plain; bits=1/1", "9.5"),
            ("one gain; arm=Alone", "-2.5 (1 pair: no interval)"),
            ("one gain; arm=Same", "0.0 [-0.2, 0.0]"),
            ("one accuracy; arm=Alone", "50.0 (n = 1)"),
            ("one dip; arm=EXP", "-1.2 ± 2.0"),
            ("one claimed; arm=EXP; over=Plain", "+2.3 [+1.0, +3.7]"),
            ("one recovery; arm=EXP", "1"),
            ("one epochs_to; arm=Plain", "39 (2/3)"),
            ("one epochs_to; arm=EXP", "median not reached (1/3)"),
            ("one recovery; arm=Plain", "not reached (0/3)"),
        ],
    )
    def test_a_value_is_the_rows(self, tables: Path, what: str, shown: str) -> None:
        assert (
            quote.fill(f"so <!--= {what} -->old<!--/--> it is", tables)
            == f"so <!--= {what} -->{shown}<!--/--> it is"
        )

    def test_filling_twice_changes_nothing(self, tables: Path) -> None:
        once = quote.fill(
            "<!--table gains one; epochs=40 --><!--/-->\n<!--= one n; arm=Alone -->?<!--/-->", tables
        )
        assert quote.fill(once, tables) == once

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("= one accuracy; arm=Plain", "2 rows"),
            ("= one accuracy; arm=Nobody", "0 rows"),
            ("= one acuracy; arm=Plain", "accuracy"),
            ("= one accuracy; amr=Plain", "arm"),
            ("= one accuracy; arm", "column=value"),
            ("= one", "expected the experiment"),
            ("= three accuracy; arm=Plain", "three"),
            ("table gain one", "gains"),
            ("table gains one; arm=Nobody", "no row"),
        ],
    )
    def test_a_bad_place_is_named_with_its_line(self, tables: Path, what: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            quote.fill(f"first\n<!--{what} -->x<!--/-->", tables, "p.md")
        assert str(error.value).startswith("p.md:2:") or "three" in str(error.value)


class TestTables:
    def test_gains_leave_out_axes_on_which_no_row_differs_and_other_roles(self, tables: Path) -> None:
        text = quote.fill("<!--table gains one --><!--/-->", tables).splitlines()
        assert text[1] == "| Arm | W/A | Settings | n | Test accuracy, % | Gain, points | Claim |"
        assert text[5] == "| With, comma\\|bar | 1/1 | – | 3 | 77.0 ± 6.6 | +15.1 [+1.3, +28.9] | better |"
        assert len(text) == 1 + 2 + 5 + 1

    def test_compute_counts_each_finished_run_once(self, tables: Path) -> None:
        text = quote.fill("<!--table compute all --><!--/-->", tables).splitlines()
        assert text[3] == "| digits | convnet | 0.25 | CPU | 2 | 1.5 |"
        assert text[4] == "| choosing for one | | | | 4 | 1.5 |"
        assert text[5] == "| all | | | | 6 | 3.0 |"

    def test_claims_stand_with_both_tests(self, tables: Path) -> None:
        text = quote.fill("<!--table claims one --><!--/-->", tables).splitlines()
        assert text[3] == (
            "| EXP | Plain | equal epochs | 10 | +2.3 [+1.0, +3.7] | 0.008 | 1.000 "
            "| 0.51 [0.30, 1.02] | better |"
        )

    def test_what_was_chosen(self, tables: Path) -> None:
        text = quote.fill("<!--table tuning one; chosen=yes --><!--/-->", tables).splitlines()
        assert text[3:-1] == ["| Plain | learning_rate.initial=0.008 | 84.3 |"]


class TestCommand:
    def test_check_says_what_differs_and_changes_nothing(
        self, tables: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page = tables / "page.md"
        page.write_text("<!--= one mean; arm=Alone -->49.0<!--/-->")
        assert quote.main([str(page), "--tables", str(tables), "--check"]) == 1
        assert "49.0" in page.read_text()
        assert quote.main([str(page), "--tables", str(tables)]) == 0
        assert "-->50.0<!--" in page.read_text()
        assert quote.main([str(page), "--tables", str(tables), "--check"]) == 0
        page.write_text("<!--= one nothing; arm=Alone -->49.0<!--/-->")
        assert quote.main([str(page), "--tables", str(tables)]) == 2
        assert "page.md:1" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_the_committed_pages_quote_the_committed_tables(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert quote.fill(text, ROOT / "paper_tables", page) == text


@pytest.mark.parametrize("page", PAGES)
def test_no_accuracy_or_gain_is_typed_by_hand(page: str) -> None:
    text = re.sub(r"<!--.*?<!--/-->", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?<!\w)[+-]\d+\.\d|\d+\.\d+ ?%|\d+\.\d ±", text)
