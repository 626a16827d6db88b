"""Take each protection away, in a copy of the repository, and see that a check fails.

``python -m tests.robustness.planted [NAME]``.

A check that cannot fail proves nothing. Each line of ``PLANTED`` names a protection, the edit that removes
it, and the tests that must then fail; first the same tests must pass on an untouched copy. The order of fsync
and rename cannot be seen this way: a killed process loses nothing that the kernel already has; only the calls
themselves are tested. Nor can the end of a worker whose launcher was killed: the kernel's signal, the
question for the parent and the closed pipe each end the worker alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLS = "tests/robustness/test_kills.py"
FAILURES = "tests/robustness/test_failures.py"
RUNNING = "tests/launch/test_running.py"
RECORDS = "tests/records/test_store.py"
DROPOUT = f"{KILLS}::test_killed_and_resumed_a_trial_ends_as_if_undisturbed[sum, dropout]"
PARTS = ("bench", "tests", "pyproject.toml")

# protection: (file, what is there, what is put there, tests that must fail)
PLANTED: dict[str, tuple[str, str, str, str]] = {
    "a whole file is written aside and renamed": (
        "bench/records/files.py",
        "temporary = path.with_name(",
        "temporary = path; path.with_name(",
        f"{RECORDS}::TestWriting::test_keeps_the_old_content_when_it_fails",
    ),
    "fsync before the rename (the call, not the order)": (
        "bench/records/files.py",
        "                    file.flush()\n                    os.fsync(file.fileno())\n",
        "                    file.flush()\n",
        f"{RECORDS}::TestWriting::test_keeps_the_old_content_when_it_fails",
    ),
    "the lock of a trial": (
        "bench/records/store.py",
        "lock = acquire(path, id,",
        "lock = acquire(path.with_name(uuid.uuid4().hex), id,",
        f"{RECORDS}::TestLocks::test_one_holder_at_a_time_who_is_named",
    ),
    "a half-written last line is cut off": (
        "bench/records/files.py",
        "os.ftruncate(fd, start)\n                    end = start",
        "pass",
        DROPOUT,
    ),
    "half-written files of killed processes are removed": (
        "bench/launch/execute.py",
        'store.tidy(task.id, finished=state.status in ("done", "diverged"))',
        "pass",
        DROPOUT.replace("sum, dropout", "stochastic bnn, sum, dropout"),
    ),
    "the previous checkpoint is kept": (
        "bench/training/checkpoint.py",
        "path.replace(_previous(path))",
        "path.unlink()",
        DROPOUT,
    ),
    "the sums of the epoch are in the checkpoint": (
        "bench/training/loop.py",
        'self.correct.copy_(self.team.own_part(state["correct"]))',
        "pass",
        DROPOUT,
    ),
    "the signs at the epoch's start are in the checkpoint": (
        "bench/training/loop.py",
        'self.signs = {name: signs.to(self.device) for name, signs in state["signs"].items()}',
        "pass",
        DROPOUT,
    ),
    "the optimizer's moments are in the checkpoint": (
        "bench/training/loop.py",
        'self.optimizer.load_state_dict(state["optimizer"])',
        "pass",
        DROPOUT,
    ),
    "a jointly trained teacher is in the checkpoint": (
        "bench/training/loop.py",
        'module.load_state_dict(state["trained"][name])',
        "pass",
        f"{KILLS}::test_killed_and_resumed_a_trial_ends_as_if_undisturbed[apprentice A]",
    ),
    "random draws are functions of the step": (
        "bench/randomness.py",
        "key = combine(self._key, self.clock.step)",
        "self.calls = getattr(self, 'calls', -1) + 1; key = combine(self._key, torch.tensor(self.calls))",
        DROPOUT,
    ),
    "removal is a function of the step": (
        "bench/strategies/base.py",
        "return step > 0 and self.factor(step) == 0.0 and self.factor(step - 1) > 0.0",
        "return self.factor(step) == 0.0 and not self.__dict__.get('d') and not self.__dict__.update(d=1)",
        f"{KILLS}::test_killed_and_resumed_a_trial_ends_as_if_undisturbed[batch norm re-estimated at "
        "removal]",
    ),
    "a line that is there already is not written twice": (
        "bench/training/trial.py",
        "if position < len(self.lines):",
        "if False:",
        DROPOUT,
    ),
    "the summary is written last": (
        "bench/training/trial.py",
        "    run.clock.set_factor(0.0)\n    run.diagnostics",
        "    run.clock.set_factor(0.0)\n    store.write_summary(\n"
        "        trial_id, summarize(recorder.lines, job.config, run, outcome)\n    )\n    run.diagnostics",
        DROPOUT,
    ),
    "a checkpoint ahead of the lines is not used": (
        "bench/training/trial.py",
        'if isinstance(state.get("step"), int) and',
        "if False and",
        f"{KILLS}::test_a_checkpoint_ahead_of_the_lines_is_not_used",
    ),
    "a data set that changed is noticed": (
        "bench/launch/verify.py",
        "if then is not None and then != checksum:",
        "if False:",
        f"{FAILURES}::TestVerify::test_changed_data_is_named",
    ),
    "always the same answer is at chance": (
        "bench/training/evaluate.py",
        " or max(self.predicted) > 0.9 * self.seen",
        "",
        f"{FAILURES}::TestChanceAndDivergence::test_always_the_same_answer_is_chance_whatever_it_scores",
    ),
}


def copies(folder: Path) -> Iterator[Path]:
    """Yield fresh copies of the repository."""
    for number in range(10**6):
        copy = folder / str(number)
        copy.mkdir()
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        yield copy
        shutil.rmtree(copy)


def passes(copy: Path, *tests: str) -> bool:
    """Return whether the tests pass there; raises where they cannot be run at all."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-1000:])
    return done.returncode == 0


def main() -> int:
    """Plant every fault (or those whose names hold the argument), print what was noticed."""
    chosen = {name: fault for name, fault in PLANTED.items() if not sys.argv[1:] or sys.argv[1] in name}
    missed = []
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        fresh = copies(Path(folder))
        if not passes(next(fresh), *dict.fromkeys(tests for *_, tests in chosen.values())):
            print("the tests fail without any fault")
            return 1
        for name, (file, there, instead, tests) in chosen.items():
            copy = next(fresh)
            text = (copy / file).read_text()
            if text.count(there) < 1:
                raise ValueError(f"{file} no longer holds {there!r}")
            (copy / file).write_text(text.replace(there, instead, 1))
            began = time.monotonic()
            noticed = not passes(copy, tests)
            print(
                f"{'noticed' if noticed else 'MISSED ':8s} {time.monotonic() - began:4.0f} s  without: "
                f"{name}",
                flush=True,
            )
            missed += [] if noticed else [name]
        fresh.close()  # type: ignore[attr-defined]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} planted faults noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
