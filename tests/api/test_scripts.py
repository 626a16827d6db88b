"""``bench.run`` in a script as people write it: no guard, or read from a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.machine import processes

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


def test_threads_that_start_processes_at_once_leave_the_main_module_alone():
    """The one that began first ends first: the other one may not have taken its stand-in for the script."""
    script = sys.modules["__main__"]
    inside, leave = ([threading.Event() for _ in range(2)] for _ in range(2))

    def start(number: int) -> None:
        with processes._no_main_module():
            inside[number].set()
            leave[number].wait()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    threads[0].start()
    inside[0].wait()
    threads[1].start()
    inside[1].wait(0.2)  # it waits outside for the first one
    for event, thread in zip(leave, threads, strict=True):
        event.set()
        thread.join()
    assert sys.modules["__main__"] is script
