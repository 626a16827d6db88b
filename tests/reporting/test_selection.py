"""Which runs a report shows, by the run's own index; which files of an earlier report go."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from bench import text
from bench.cli.main import main
from bench.errors import InputError
from bench.experiments.selection import Selection
from bench.reporting.write import MANIFEST, write_report
from tests.reporting.fake_records import SUM, Results

FILE = """
title = "T"
[defaults]
dataset = "digits"
network = "python:a_module_that_is_nowhere.factory"
[[arms]]
name = "Plain"
[[arms]]
name = "Sum"
baseline = "Plain"
[[arms]]
name = "Other"
"""


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """Results of a network of the user's own, whose module cannot be imported, and the experiment file."""
    results = Results(tmp_path / "the results")
    results.experiment("own", FILE)
    network = {"kind": "python:a_module_that_is_nowhere.factory"}
    for epochs in (2, 3):
        for seed in range(3):
            curve = [10.0 * (i + 1) for i in range(epochs)]
            common = {"seed": seed, "network": network}
            results.trial("own", "Plain", curve, **common)
            results.trial("own", "Sum", curve, baseline="Plain", strategy=SUM, **common)
            results.trial("own", "Other", curve, salt="other", **common)
            for line in results.lines["own"][-3:]:
                line["profile"] = "quick" if epochs == 2 else None
    failed = {"status": "failed", "summary": {"reason": "ValueError: the factory fails for seed 3"}}
    results.trial("own", "Plain", [1.0], seed=3, network=network, epochs=3, **failed)
    file = tmp_path / "own.toml"
    file.write_text("\ufeff" + FILE, encoding="utf-8")
    return results.write(), file


def _runs(place: tuple[Path, Path], **selection) -> list[tuple[str, str, str]]:
    results, file = place
    assert write_report([file], Selection(**selection), results, None, ["csv"]) == 0
    rows = csv.DictReader((results / "report" / "own" / "runs.csv").open())
    return sorted((row["arm"], row["epochs"], row["seed"]) for row in rows)


def test_a_file_shows_what_was_run_and_imports_nothing(place, capsys):
    assert len(_runs(place)) == 19
    assert "18 of 19 runs done" in capsys.readouterr().out


def test_the_selection_of_the_run_shows_its_runs(place):
    runs = _runs(place, only=("Sum",), seeds=2)
    assert runs == [(arm, n, seed) for arm in ("Plain", "Sum") for n in "23" for seed in "01"]
    assert {epochs for _, epochs, _ in _runs(place, profile="quick")} == {"2"}
    assert {arm for arm, _, _ in _runs(place, only=("Plain",))} == {"Plain"}


def test_a_run_that_failed_stands_with_its_reason(place):
    results, file = place
    assert write_report([file], Selection(), results, None, ["md"]) == 0
    assert "the factory fails for seed 3" in (results / "report" / "own" / "runs.md").read_text()


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ({"only": ("Som",)}, "no run of an arm 'Som' is recorded. Did you mean 'Sum'"),
        ({"overrides": ("epochs",)}, "expected dotted.key=value"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(place, selection, told):
    with pytest.raises(InputError, match=told):
        _runs(place, **selection)


def test_a_selection_needs_its_file(place):
    with pytest.raises(InputError, match="need the experiment file"):
        write_report(None, Selection(seeds=1), place[0])


def test_files_of_an_earlier_report_go_and_no_others(place, capsys):
    results, file = place
    folder = results / "report" / "own"
    assert write_report([file], Selection(), results, None, ["md", "csv"]) == 0
    assert (folder / "gains.md").is_file() and (folder / "gains.csv").is_file()
    (folder / "notes.md").write_text("mine")
    capsys.readouterr()
    assert write_report([file], Selection(only=("Plain",)), results, None, ["md"]) == 0
    assert f"removed {folder / 'gains.md'}" in capsys.readouterr().out
    assert not (folder / "gains.md").exists()
    assert (folder / "notes.md").read_text() == "mine"  # no report wrote it
    assert (folder / "gains.csv").is_file()  # another format than those written now
    assert "gains.csv" in (folder / MANIFEST).read_text().split()
    (folder / MANIFEST).write_bytes(b"../../keep\n/etc/passwd\n\xff\xfe\n")
    (results / "keep").write_text("x")
    assert write_report([file], Selection(), results, None, ["md"]) == 0
    assert (results / "keep").exists()


def test_an_output_folder_that_cannot_be_written_is_one_message(place, capsys):
    results, file = place
    (taken := results / "taken").write_text("a file")
    words = ["report", str(file), "--results", str(results), "--format", "md"]
    assert main([*words, "--out", str(taken)]) == 2
    assert f"{taken / 'own'}: Not a directory" in capsys.readouterr().err
    with mock.patch("os.replace", side_effect=PermissionError(errno.EACCES, "Permission denied")):
        assert main([*words, "--out", str(results / "out")]) == 2
    told = capsys.readouterr().err
    assert "Permission denied. Give --out a folder" in told and "Traceback" not in told


@pytest.mark.parametrize("written", [0, 1, 5])
def test_a_full_disk_leaves_the_earlier_report_as_it_was(place, capsys, written):
    """The disk is full after so many files of the new report: not one table of it is there."""
    results, file = place
    folder = results / "report" / "own"
    words = ["report", str(file), "--results", str(results), "--format", "md"]
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    left, sync = [written], os.fsync

    def fsync(number: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        sync(number)

    capsys.readouterr()
    with mock.patch("os.fsync", fsync):
        assert main([*words, "--format", "csv", "--only", "Plain"]) == 2
    told = capsys.readouterr().err
    assert "the disk is full" in told and f"{folder}/" in told and "Traceback" not in told
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main([*words, "--format", "csv", "--only", "Plain"]) == 0
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    assert (folder / MANIFEST).read_text().split() == names and "gains.md" not in names


def test_an_index_that_is_cut_off_is_told_and_a_seed_that_is_none_refused(place, capsys):
    results, file = place
    index = results / "own" / "index.jsonl"
    whole = index.read_text()
    index.write_text(whole[:-20])
    assert write_report([file], Selection(), results, None, ["md"]) == 0
    told = (results / "report" / "own" / "accuracy.md").read_text()
    assert "is cut off in its last line, so that trials may be missing here" in told
    index.write_text(whole.replace('"seed": 1', '"seed": "one"'))
    with pytest.raises(InputError, match=r"index\.jsonl: entry \d+: grid\.seed: expected a whole number"):
        write_report([file], Selection(), results, None, ["md"])


def test_a_reader_that_has_seen_enough_leaves_no_file_out(place):
    results, file = place
    with mock.patch("builtins.print", side_effect=BrokenPipeError(errno.EPIPE, "Broken pipe")):
        assert main(["report", str(file), "--results", str(results), "--format", "md"]) == 0
    folder = results / "report" / "own"
    assert all((folder / name).is_file() for name in (folder / MANIFEST).read_text().split())


def test_no_stream_has_room_for_the_message():
    with mock.patch("builtins.print", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        assert main(["rnu"]) == 2


def test_a_full_standard_output_is_one_message(capsys):
    with (
        mock.patch("builtins.print", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        mock.patch("bench.cli.main._complain") as told,
        mock.patch("bench.cli.main._drop_output"),
    ):
        assert main(["list", "schedules"]) == 2
    assert told.call_args.args == ("the output cannot be written: No space left on device",)


def test_numbers_that_round_to_zero_have_no_sign():
    assert [text.signed(v) for v in (-0.001, 0.004, -0.0, 1.0, -1.0)] == [
        "0.00",
        "0.00",
        "0.00",
        "+1.00",
        "-1.00",
    ]
    assert [text.fixed(v, 1) for v in (-0.01, 2.0)] == ["0.0", "2.0"]


def test_latex_needs_no_other_font_encoding():
    assert text.latex('a "quoted" <title>') == "a ''quoted'' \\textless{}title\\textgreater{}"
    assert text.latex("éÅßłñ") == "éÅßłñ"  # pdfLaTeX builds them in OT1
    assert text.latex("ąđþŋ") == "[U+0105][U+0111][U+00FE][U+014B]"  # these need T1


def test_a_plain_table_is_aligned_and_inert():
    shown = text.table(("name", "n"), [("a\x1b[31m", "10"), ("中", "2")], right=(1,))
    assert shown.splitlines() == ["name        n", "---------  --", "a\\x1b[31m  10", "中          2"]
