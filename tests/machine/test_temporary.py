"""Temporary folders: removed by their makers, and by the next run where a maker was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from bench.machine.temporary import remove_abandoned, temporary_folder

MAKER = """
import os
import signal, sys
from pathlib import Path
from bench.machine.temporary import temporary_folder
with temporary_folder("ray", Path(sys.argv[1])) as folder:
    (folder / "left").touch()
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_maker(place: Path) -> Path:
    """Return the folder of a process that was killed while it used the folder."""
    done = subprocess.run(
        [sys.executable, "-c", MAKER, str(place)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Path(done.stdout.strip())


def test_the_maker_removes_its_folder(tmp_path):
    with temporary_folder("tune", tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith("bench-tune-")
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    left = killed_maker(tmp_path)
    assert (left / "left").exists()
    foreign = tmp_path / "bench-notes"  # of no run: without an owner's file
    foreign.mkdir()
    link = tmp_path / "bench-link"
    link.symlink_to(left)
    with temporary_folder("tune", tmp_path) as living:
        assert not left.exists()
        assert remove_abandoned(tmp_path) == []  # a folder in use stays
        assert living.exists() and foreign.exists() and link.is_symlink()
        again = killed_maker(tmp_path)
        assert remove_abandoned(tmp_path) == [again] and not again.exists()


def test_a_place_that_cannot_be_read_is_left_alone(tmp_path):
    assert remove_abandoned(tmp_path / "absent") == []
