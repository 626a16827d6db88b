"""A few hundred structured fuzz cases (``make soak``: 10,000), and corners that few cases may miss.

``BENCH_FUZZ_CASES`` sets how many, over all targets. The cases are always the same; see ``fuzzing`` for what
each demands.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.robustness.fuzzing import (
    ENDS,
    NAMES,
    TARGETS,
    ExperimentFiles,
    PublishedTables,
    RecordFiles,
    fuzz,
    shares,
    workplace,
)

CASES = int(os.environ.get("BENCH_FUZZ_CASES", "600"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_bad_input_ends_in_success_or_in_one_message(name):
    ENDS.clear()
    cases = shares(CASES)[name]
    assert fuzz(name, cases) >= 0.9 * cases
    # neither everything nor nothing gets through: the cases reach what lies behind the parsers
    good = sum(ENDS[end] for end in ("exit 0", "accepted"))
    bad = sum(ENDS[end] for end in ("exit 2", "refused"))
    # (a damaged record is a row of a report, a damaged lock nobody's)
    assert good >= 3 and (bad >= 3 or name in ("locks", "records")), dict(ENDS)


# --- corners: found by fuzzing once, or too rare for a short run ---


@pytest.fixture
def place(tmp_path):
    with workplace(tmp_path):
        yield tmp_path / "work"


@pytest.mark.parametrize(
    "content", ["a = " + "[" * 5000, "a = " + "9" * 5000, "a." * 5000 + "b = 1", "{" * 5000, "\ufeff\x00"]
)
@pytest.mark.parametrize("file", ["fuzzed.toml", "recipes/own.toml", "published/names.toml"])
def test_texts_that_break_parsers(place, file, content):
    target = ExperimentFiles(place)
    (place / file).write_text(content)
    status, _, error = target.bench("report", str(target.file), *target.where(data=False), reads=False)
    assert status == 2 and Path(file).name in error
    assert "nested" in error or not content.startswith("a = [")


def test_names_of_published_tables(place):
    target = PublishedTables(place)
    for good, bad in (
        ('kind = "original"', 'kind = "orginal"'),
        ('"reproduction"', "3"),
        ('"reproduction"', '["original"]'),
        ("[tables.mine]", "[tables.mine]\nkins = {}"),
        ("[tables.mine]", '[tables]\nx = "mine"\n[tables.mine]'),
        ("[[methods]]", "[[method]]"),
        ('strategy = ["plain"]', "strategy = [1]"),
    ):
        assert good in NAMES
        (place / "published" / "names.toml").write_text(NAMES.replace(good, bad))
        argv = ("report", str(target.file), *target.where(data=False), "--profile", "quick", "--format", "md")
        status, _, error = target.bench(*argv, reads=False)
        assert status == 2 and "names.toml" in error


RECORDS = {
    "trial.json": [
        "[" * 100_000,
        '{"schema": 1, "a": ' + "9" * 5000 + "}",
        '{"schema": NaN}',
        "\xff",
        "{",
        "",
    ],
    "summary.json": [
        '{"schema": 1, "status": "done", "final_test_acc": 1e999}',
        '{"schema": 1, "status": ["done"]}',
        "[]",
    ],
    "epochs.jsonl": ["[" * 100_000 + "\n", '{"epoch": 1e999}\n', '{"epoch": true}\n', "\x00\n"],
    "index.jsonl": [
        *("[" * 100_000 + "\n", "null\n"),
        *(
            json.dumps({"arm": "a", "grid": {}, "id": "0" * 16, key: value}) + "\n"
            for key, values in {
                "id": ["../../outside", 1234567890123456, None, ["0" * 16]],
                "grid": [[], "x", 3],
                "arm": [[], {}, 3],
                "role": [{}],
                "baseline": [{"a": 1}],
            }.items()
            for value in values
        ),
    ],
}


def test_records_that_break_readers(place):
    target = RecordFiles(place)
    for name, contents in RECORDS.items():
        path = next(path for path in target.paths if path.name == name)
        for content in contents:
            good = (target.good / path).read_bytes()
            (target.results / path).write_bytes(content.encode("latin-1"))
            for argv in (["status"], ["report", "--format", "csv"]):
                reads = argv[0] == "status"
                status, said, error = target.bench(*argv, *target.where(data=False), reads=reads)
                runs = target.results / "report" / "fuzzed" / "runs.csv"
                told = runs.read_text() if runs.exists() and not reads else said + error
                shutil.rmtree(target.results / "report", ignore_errors=True)
                assert name in told or (name, content[:12]) in (("trial.json", ""), ("summary.json", "")), (
                    content[:60],
                    told,
                )
                assert status == (2 if name == "index.jsonl" and not reads else 0), (
                    content[:60],
                    said,
                    error,
                )
            (target.results / path).write_bytes(good)


@pytest.mark.parametrize("word", ["é" * 200, "a\0b", "/dev/null/x", "x" * 5000])
def test_folders_that_are_none(place, word):
    target = ExperimentFiles(place)
    for argv in (
        ["status", "--results", word],
        ["status", str(target.file), "--results", word],
        ["run", str(target.file), "--no-ray", "--results", word],
        ["report", "--results", word],
        ["report", "--results", str(target.results), "--out", word],
        ["show", str(target.file), "--data", word],
    ):
        status, _, error = target.bench(*argv)
        assert status == 2 or argv[1:2] == [str(target.file)], argv
        assert status == 0 or "bench: " in error


def test_a_run_that_only_refuses_says_why_among_the_errors(place):
    """All is done but a trial of a newer version: exit status 2 needs its message among the errors."""
    target = RecordFiles(place)
    lines = map(json.loads, (target.results / "fuzzed" / "index.jsonl").read_text().splitlines())
    path = (
        target.results
        / "trials"
        / next(line["id"] for line in lines if line["arm"] == "branch")
        / "summary.json"
    )
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    status, said, _ = target.bench("status", *target.where(data=False))
    assert status == 0 and "newer version" in said
    status, _, error = target.run(*target.wanted)
    assert status == 2 and "summary.json" in error and "newer version" in error
