"""``bench.run`` in a script as people write it: no guard, or read from a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import bench
print("the script runs")
found = bench.run("digits", profile="quick", only=["DoReFa-Net"], overrides={"epochs": 1}, no_ray=True)
print(*found.trials["status"])
"""


@pytest.mark.parametrize("way", ["file", "pipe"])
def test_a_script_without_a_guard_runs_once_and_its_trials_are_done(way, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "script.py"] if way == "file" else [sys.executable]
    text = SCRIPT if way == "pipe" else None
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1
    assert done.stdout.splitlines()[-1] == "done"
