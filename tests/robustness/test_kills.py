"""Killed with SIGKILL during a step, a checkpoint, a line, weights or summary, and resumed: the same.

The short form of ``python -m tests.robustness.soak --part kills``: each trial runs in a process of its own
and is killed there.
"""

from __future__ import annotations

import json
import random

import pytest

from bench.experiments.config import TrialConfig
from bench.records.store import Store
from tests.robustness.disturbance import (
    CASES,
    FAULTS,
    ID,
    IN_A_TEACHER,
    NEEDED,
    kill_at_random,
    kill_chain,
    make_config,
    progressive,
    resumed_steps,
    run,
    run_needed,
    unlike,
)

SHORT = {
    "sum, dropout": FAULTS,
    "batch norm re-estimated at removal": FAULTS[6:10],
    "stochastic bnn, sum, dropout": FAULTS[1:10:3],
    "gradient quantizer, concat": FAULTS[2:10:3],
    "apprentice A": FAULTS[0:9:4],
}


@pytest.mark.parametrize(
    "case",
    [
        "sum, dropout",  # meets every fault
        *(pytest.param(case, marks=pytest.mark.slow) for case in SHORT if case != "sum, dropout"),
    ],
)
def test_killed_and_resumed_a_trial_ends_as_if_undisturbed(case, tmp_path):
    config = make_config(**CASES[case])
    assert run(config, tmp_path / "calm").status == "done"
    struck = kill_chain(config, tmp_path / "killed", SHORT[case])
    assert struck == list(SHORT[case])  # every fault was met
    assert unlike(tmp_path / "calm", tmp_path / "killed") == []
    steps = resumed_steps(tmp_path / "killed")
    assert (
        steps == sorted(steps) and steps[0] > 0
    )  # what was trained before a checkpoint is never trained again
    assert sum(step % 5 != 0 for step in steps) >= 2 or len(SHORT[case]) < 4  # really resumed inside epochs


@pytest.mark.slow
def test_a_teacher_killed_half_way(tmp_path):
    config = make_config(**CASES["apprentice B"])
    teacher = TrialConfig.model_validate(config.strategy["teacher"])
    calm = run_needed(config, tmp_path / "calm")
    assert run(config, tmp_path / "calm", needs=calm).status == "done"
    struck = kill_chain(teacher, tmp_path / "killed", IN_A_TEACHER, id=NEEDED["teacher"])
    assert len(struck) == len(IN_A_TEACHER)
    assert len(kill_chain(config, tmp_path / "killed", FAULTS[4:5], needs=calm)) == 1
    for id in (ID, NEEDED["teacher"]):
        assert unlike(tmp_path / "calm", tmp_path / "killed", id) == []


def test_killed_at_random_instants(tmp_path):
    dice = random.Random(5)
    config = make_config(**CASES["plain, dropout"], strategy=progressive("difference"))
    assert run(config, tmp_path / "calm").status == "done"
    kill_at_random(config, tmp_path / "killed", [dice.uniform(0.3, 1.0) for _ in range(4)])
    assert run(config, tmp_path / "killed").status == "done"
    assert unlike(tmp_path / "calm", tmp_path / "killed") == []


def test_asked_to_stop_it_stops_at_a_checkpoint(tmp_path):
    config = make_config(**CASES["sum, dropout"])
    assert run(config, tmp_path / "calm").status == "done"
    for _ in range(3):
        assert run(config, tmp_path / "stopped", stop_after=6, every_steps=1000).status == "stopped"
    assert run(config, tmp_path / "stopped").status == "done"
    assert resumed_steps(tmp_path / "stopped") == [6, 12, 18]
    assert unlike(tmp_path / "calm", tmp_path / "stopped") == []


def test_a_checkpoint_ahead_of_the_lines_is_not_used(tmp_path):
    """Lines that were lost (a folder copied half, a disk repaired) are measured again, not left out."""
    config = make_config()
    assert run(config, tmp_path / "calm").status == "done"
    assert run(config, tmp_path / "cut", stop_after=12).status == "stopped"
    store = Store(tmp_path / "cut")
    store.write_epochs(ID, store.epochs(ID)[:1])
    assert run(config, tmp_path / "cut").status == "done"
    assert [json.loads(line)["step"] for line in (store.folder(ID) / "resumes.jsonl").open()] == [0]
    assert unlike(tmp_path / "calm", tmp_path / "cut") == []
