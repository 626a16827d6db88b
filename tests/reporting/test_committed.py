"""What is committed: tables are what the records say, and the records are of finished real runs."""

from __future__ import annotations

import json
from pathlib import Path

from bench.experiments.config import TrialConfig
from bench.experiments.identity import identity
from bench.experiments.selection import Selection
from bench.reporting.write import write_report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
TABLES = ROOT / "paper_tables"
LARGEST = 24_000  # bytes a trial on the mean


def test_the_committed_tables_are_rebuilt_exactly(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)  # published numbers are found in the working copy
    assert write_report(None, Selection(), RESULTS, tmp_path, ["md", "csv"]) == 0
    fresh = {
        path.relative_to(tmp_path): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.suffix in (".md", ".csv")
    }
    committed = {
        path.relative_to(TABLES): path.read_bytes()
        for path in TABLES.rglob("*")
        if path.suffix in (".md", ".csv") and "published" not in path.relative_to(TABLES).parts
    }
    assert fresh.keys() == committed.keys()
    assert [str(path) for path in fresh if fresh[path] != committed[path]] == []


def test_every_record_is_of_committed_code_and_lies_under_its_own_identity() -> None:
    for path in sorted((RESULTS / "trials").glob("*/trial.json")):
        trial = json.loads(path.read_text())
        config = TrialConfig.model_validate(trial["config"])
        assert identity(config, trial["provenance"]["data"]) == path.parent.name == trial["id"]
        assert trial["provenance"]["commit"] and not trial["provenance"]["dirty"], path


def test_the_records_are_small_and_hold_no_weights() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in files if path.suffix not in (".pt", ".txt")]  # what .gitignore keeps out
    trials = sum(path.name == "trial.json" for path in kept)
    assert sum(path.stat().st_size for path in kept) < LARGEST * trials
    assert {path.suffix for path in kept} <= {".json", ".jsonl", ".toml", ".npz"}
