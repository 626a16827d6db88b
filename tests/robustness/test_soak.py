"""The commands of ``make soak`` start. No other test calls them: a wrong import in one is seen here alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = re.search(r"^soak:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


@pytest.mark.slow
@pytest.mark.parametrize("module", re.findall(r"-m (tests\.\S+)", RECIPE))
def test_a_command_of_make_soak_starts(module):
    command = [sys.executable, "-m", module, "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0 and f"python -m {module}" in told.stdout, told.stderr


def test_the_test_files_of_make_soak_exist():
    named = re.findall(r"tests/\S+", RECIPE)
    assert len(named) == 4 and all((ROOT / name).is_file() for name in named)
