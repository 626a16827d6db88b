"""The long attack on docs/reliability.md: prints numbers; exit status 1 where a promise broke.

``python -m tests.robustness.soak [--minutes M] [--seed S] [--part
kills|wide|nodes|fuzz|store|runners|disk]``. Everything happens in a temporary folder. The short forms of each
part are in ``make test``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
os.environ["OMP_NUM_THREADS"] = "1"

from bench.experiments.config import TrialConfig  # noqa: E402
from bench.experiments.expand import load_experiment  # noqa: E402
from bench.launch.execute import Task, execute  # noqa: E402
from bench.records.store import Store  # noqa: E402
from tests import synthetic  # noqa: E402
from tests.launch import team_helpers  # noqa: E402
from tests.robustness import disturbance as d  # noqa: E402
from tests.waiting import HANG  # noqa: E402

PARTS = ("kills", "wide", "nodes", "runners", "store", "disk", "fuzz")
FUZZ_CASES = 10_000


class Tally:
    """What was done and what went wrong, by part."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
        self.notes: dict[str, list[str]] = {part: [] for part in PARTS}
        self.failures: list[str] = []
        self.began = time.monotonic()
        self._lock = threading.Lock()

    def add(self, part: str, what: str, count: int = 1) -> None:
        """Count."""
        with self._lock:
            self.counts[part][what] += count

    def note(self, part: str, text: str) -> None:
        """Remember a measurement for the closing table."""
        with self._lock:
            self.notes[part].append(text)

    def check(self, good: Any, text: str) -> None:
        """Count a check; print and remember one that fails."""
        with self._lock:
            if not good:
                self.failures.append(text)
                print(f"FAILED: {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def table(self) -> str:
        """Return the closing table."""
        lines = []
        for part in PARTS:
            rows = [(what, f"{count:,}") for what, count in self.counts[part].items()]
            rows += [(text, "") for text in self.notes[part]]
            lines += [f"{part:8s}{what:62s}{count:>8s}".rstrip() for what, count in rows]
        minutes = (time.monotonic() - self.began) / 60
        lines.append(f"{'all':8s}{'failed checks':62s}{len(self.failures):>8d}")
        lines.append(f"{'all':8s}{'minutes':62s}{minutes:>8.1f}")
        return "\n".join(lines)


# --- the command in a process of its own --------------------------------------------------------------------


def inline(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return (
            "{ "
            + ", ".join(f"{key} = {inline(item)}" for key, item in value.items() if item is not None)
            + " }"
        )
    return json.dumps(value)


def write_file(path: Path, arms: Mapping[str, Mapping[str, Any]], **defaults: Any) -> Path:
    """Write an experiment file of these arms."""
    lines = ['title = "soak"', "[defaults]", *(f"{key} = {inline(value)}" for key, value in defaults.items())]
    for name, fields in arms.items():
        lines += [
            "[[arms]]",
            f"name = {inline(name)}",
            *(f"{key} = {inline(value)}" for key, value in fields.items()),
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


class Command:
    """A ``bench`` command under way, in its own session, its output in a file."""

    temporary = Path(tempfile.gettempdir())  # where killed ones leave Ray's and other temporary files

    def __init__(
        self, folder: Path, *arguments: str | Path, program: str = "bench_with_faults.py", **settings: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"output-{time.monotonic_ns()}.txt"
        self.mark = folder / f"mark-{time.monotonic_ns()}"
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "robustness" / program), *map(str, arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
                env={
                    **os.environ,
                    "TMPDIR": str(self.temporary),
                    "PYTHONPATH": str(ROOT),
                    d.SETTINGS: json.dumps({"mark": str(self.mark), **settings}),
                },
            )

    def wait_until_training(self, seconds: float = HANG) -> bool:
        """Wait until a step is done; return whether one was."""
        end = time.monotonic() + seconds
        while not self.mark.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def worker(self) -> int:
        """Return the process that trains."""
        return int(self.mark.read_text() or 0)

    def wait(self, seconds: float = HANG) -> int:
        """Return the exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def text(self) -> str:
        """Return the output."""
        return self.output.read_text(errors="replace")


# --- kills --------------------------------------------------------------------------------------------------

LAUNCHED: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    # name: (the arm's fields, options, what is done to it, one after the other)
    "plain, dropout": ({"network": d.DROPOUT}, ("--no-ray",), ("SIGTERM", "launcher", "group", "worker")),
    "sum, dropout, re-estimated": (
        {"network": d.DROPOUT, "strategy": d.progressive("sum", bn_reestimate=2)},
        ("--no-ray",),
        ("SIGINT", "group", "launcher", "worker"),
    ),
    "difference": (
        {"strategy": d.progressive("difference")},
        ("--no-ray",),
        ("max-minutes", "launcher", "group"),
    ),
    "concat, gradient quantizer": (
        {"bits": "1/2/4", "strategy": d.progressive("concat")},
        ("--no-ray",),
        ("group", "worker", "launcher", "group while a checkpoint is written"),
    ),
    "preactivation": (
        {"strategy": d.progressive("preactivation")},
        ("--no-ray",),
        ("SIGTERM to the group", "launcher", "group while a line is written"),
    ),
    "anneal": (
        {"strategy": {"kind": "anneal", "factor": d.FACTOR}},
        ("--no-ray",),
        ("launcher", "group", "worker"),
    ),
    "apprentice A": (
        {"strategy": {"kind": "apprentice", "scheme": "A"}},
        ("--no-ray",),
        ("group", "launcher"),
    ),
    "apprentice B": (
        {"strategy": {"kind": "apprentice", "scheme": "B"}},
        ("--no-ray",),
        ("launcher", "group while a summary is written", "group", "worker"),
    ),
    "apprentice C": (
        {"strategy": {"kind": "apprentice", "scheme": "C"}},
        ("--no-ray",),
        ("group", "launcher", "group"),
    ),
    "Ray: sum, dropout": (
        {"network": d.DROPOUT, "strategy": d.progressive("sum")},
        (),
        ("SIGTERM", "launcher", "worker", "group"),
    ),
    "Ray: apprentice B": (
        {"strategy": {"kind": "apprentice", "scheme": "B"}},
        (),
        ("max-minutes", "worker", "launcher"),
    ),
    "compiled: sum, dropout": (
        {"network": d.DROPOUT, "strategy": d.progressive("sum"), "mode": "compiled"},
        ("--no-ray",),
        ("group before the first step", "group", "launcher", "worker"),
    ),
    "compiled: stochastic bnn": (
        {"quantizer": {"kind": "bnn", "stochastic": True}, "mode": "compiled"},
        ("--no-ray",),
        ("launcher", "group"),
    ),
}
WRITING = {
    "group while a checkpoint is written": {"at": "half", "file": "checkpoint.pt", "from": 20},
    "group while a line is written": {"at": "half", "file": "epochs.jsonl", "from": 20},
    "group while a summary is written": {"at": "half", "file": "summary.json", "from": 20},
}


def kills(tally: Tally, folder: Path, dice: random.Random) -> None:
    """Kill trials, alone and under the whole command; compare them with undisturbed ones."""
    _killed_trials(tally, folder, dice)
    seeds = {name: dice.random() for name in LAUNCHED}
    with ThreadPoolExecutor(2) as lanes:
        for done in [
            lanes.submit(_launched, tally, folder, name, random.Random(seeds[name])) for name in LAUNCHED
        ]:
            done.result()


def _killed_trials(tally: Tally, folder: Path, dice: random.Random) -> None:
    for number, (case, changes) in enumerate(d.CASES.items()):
        config = d.make_config(**changes)
        calm, killed = folder / f"trial-{number}-calm", folder / f"trial-{number}-killed"
        needs = d.run_needed(config, calm)
        outcome = d.run(config, calm, needs=needs)
        tally.check(outcome is not None and outcome.status == "done", f"{case}: undisturbed: {outcome}")
        count = 0
        for role, id in needs.items():
            teacher = TrialConfig.model_validate(config.strategy[role])
            count += len(d.kill_chain(teacher, killed, d.IN_A_TEACHER, id=id))
        chance = [dice.uniform(0.2, 0.9) for _ in range(3)]
        struck = d.kill_chain(config, killed, d.FAULTS, needs=needs)
        resumed = [step for id in (d.ID, *needs.values()) for step in d.resumed_steps(killed, id)]
        unlike = [text for id in (d.ID, *needs.values()) for text in d.unlike(calm, killed, id)]
        shutil.rmtree(killed / "trials" / d.ID)  # once more, at random instants
        at_random = d.kill_at_random(config, killed, chance, needs=needs)
        d.kill_chain(config, killed, (), needs=needs)
        resumed += d.resumed_steps(killed)
        unlike += d.unlike(calm, killed)
        _count_kills(tally, count + len(struck), at_random, resumed)
        for fault in struck:
            tally.add("kills", f"  {d.words(fault)}")
        tally.check(not unlike, f"{case}: {unlike[:3]}")
        tally.add("kills", "trials compared with undisturbed ones, bit for bit", 2 + len(needs))
        tally.say(f"{case}: {count + len(struck)} kills at chosen instants, {at_random} at random ones")
        shutil.rmtree(calm)
        shutil.rmtree(killed)


def _count_kills(tally: Tally, chosen: int, at_random: int, resumed: Sequence[int]) -> None:
    tally.add("kills", "kill -9 at chosen instants", chosen)
    tally.add("kills", "kill -9 at random instants", at_random)
    tally.add("kills", "resumes in the middle of a trial", sum(step > 0 for step in resumed))
    tally.add("kills", "resumes in the middle of an epoch", sum(step % d.STEPS > 0 for step in resumed))


def _launched(tally: Tally, folder: Path, name: str, dice: random.Random) -> None:
    try:
        _launch(tally, folder / name.replace(": ", "-").replace(", ", "-").replace(" ", "_"), name, dice)
    except Exception:
        tally.check(False, f"{name}: {traceback.format_exc()}")


def _launch(tally: Tally, folder: Path, name: str, dice: random.Random) -> None:
    fields, options, disturbances = LAUNCHED[name]
    fields = dict(fields)
    mode = fields.pop("mode", "eager")
    folder.mkdir()
    base = d.make_config().dump()
    common = {key: base[key] for key in ("batch_size", "train_size", "width", "learning_rate")}
    arms = {"arm": {"quantizer": "dorefa", "bits": "1/1", **fields}}
    file = write_file(
        folder / "soak.toml", arms, dataset="digits", network="svhn_convnet", epochs=20, **common
    )
    trials = load_experiment(file).trials
    calm, killed = folder / "calm", folder / "killed"
    for trial in trials:
        needs: Any = trial.needs
        outcome = d.run(trial.config, calm, id=str(trial.id), needs=needs, mode=mode)
        assert outcome is not None and outcome.status == "done", outcome
    seconds = outcome.seconds
    command = ("run", file, "--results", killed, "--device", "cpu", "--jobs", "1", *options)
    done = []
    for disturbance in disturbances:
        if _disturb(
            tally, folder, command, disturbance, dice, 2.0 if mode == "compiled" else min(seconds, 8.0), mode
        ):
            done.append(disturbance)
    last = Command(folder, *command, mode=mode, every_steps=4)
    status = last.wait()
    tally.check(status == 0, f"{name}: the last run ended with {status}: {last.text()[-1500:]}")
    unlike = [text for trial in trials for text in d.unlike(calm, killed, str(trial.id))]
    tally.check(not unlike, f"{name}: {unlike[:3]}")
    resumed = [step for trial in trials for step in d.resumed_steps(killed, str(trial.id))]
    real = [words for words in done if words.split(maxsplit=1)[0] in ("launcher", "group", "worker")]
    _count_kills(
        tally, sum(words in WRITING for words in real), sum(words not in WRITING for words in real), resumed
    )
    for words in done:
        tally.add("kills", f"  {'Ray' if not options else 'no Ray'}: {words}")
    tally.add("kills", "trials compared with undisturbed ones, bit for bit", len(trials))
    tally.say(f"{name}: {', '.join(done)}; resumed at steps {resumed}")


def _disturb(
    tally: Tally,
    folder: Path,
    arguments: Sequence[Any],
    what: str,
    dice: random.Random,
    seconds: float,
    mode: str,
) -> bool:
    """Run the command and disturb it; return whether it was disturbed before it was done."""
    fault = WRITING.get(what)
    more: tuple[str, ...] = ("--max-minutes", "0.08") if what == "max-minutes" else ()
    settings = {
        "mode": mode,
        "every_steps": 4,
        "fault": fault and {**fault, "whole_group": True, "role": None},
    }
    command = Command(folder, *arguments, *more, **settings)
    if fault:
        return command.wait() == -signal.SIGKILL
    if what == "max-minutes":
        status = command.wait()
        tally.check(status in (0, 3), f"--max-minutes: exit status {status}: {command.text()[-1000:]}")
        return status == 3
    if what.endswith("before the first step"):
        time.sleep(dice.uniform(2.0, 10.0))
    elif command.wait_until_training():
        time.sleep(dice.uniform(0.0, 0.4 * seconds))
    if command.process.poll() is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        if what.startswith("SIG"):
            number = signal.Signals[what.split(maxsplit=1)[0]]
            (os.killpg if what.endswith("group") or number == signal.SIGINT else os.kill)(
                command.process.pid, number
            )
        elif what.startswith("group"):
            os.killpg(command.process.pid, signal.SIGKILL)
        elif what == "launcher":
            command.process.kill()
        else:
            os.kill(command.worker(), signal.SIGKILL)
    status = command.wait()
    if what.startswith("SIG"):
        tally.check(status in (0, 3), f"{what}: exit status {status}: {command.text()[-1000:]}")
        return status == 3
    if what == "worker":
        tally.check(status in (0, 1), f"worker killed: exit status {status}: {command.text()[-1000:]}")
        return status == 1
    return status == -signal.SIGKILL


# --- four runners on one folder -----------------------------------------------------------------------------


def runners(tally: Tally, folder: Path, dice: random.Random) -> None:
    """Four commands on one results folder, one killed now and then: no trial runs twice at once."""
    folder.mkdir(exist_ok=True)
    file = synthetic.experiment_file(folder / "shared.toml", seeds=20, arms=4)
    ids = [str(trial.id) for trial in load_experiment(file).trials]
    data = folder / "data"
    data.mkdir()
    arguments = (
        "run",
        file,
        "--results",
        folder / "results",
        "--data",
        data,
        "--no-ray",
        "--jobs",
        "2",
        "--device",
        "cpu",
    )

    def start() -> Command:
        return Command(folder, *arguments, program="bench_with_witness.py")

    running = [start() for _ in range(4)]
    killed = 0
    end = time.monotonic() + HANG
    while any(r.process.poll() is None for r in running) and time.monotonic() < end:
        time.sleep(dice.uniform(1.5, 4.0))
        alive = [i for i, r in enumerate(running) if r.process.poll() is None]
        if alive and killed < 6:
            victim = dice.choice(alive)
            os.killpg(running[victim].process.pid, signal.SIGKILL)
            running[victim].wait()
            killed += 1
            running[victim] = start()
    statuses = [r.wait() for r in running]
    tally.check(
        all(s in (0, 3) for s in statuses), f"runners: exit statuses {statuses}: {running[0].text()[-800:]}"
    )
    events = [line.split() for line in (data / "events.txt").read_text().splitlines()]
    overlaps = sum(event[0] == "OVERLAP" for event in events)
    finished = Counter(event[1] for event in events if event[0] == "end")
    store = Store(folder / "results")
    tally.check(overlaps == 0, f"runners: {overlaps} trials were executed twice at once")
    tally.check(all(finished[id] == 1 for id in ids), f"runners: finished {Counter(finished.values())} times")
    tally.check(all(store.status(id) == "done" for id in ids), "runners: not every trial is done")
    tally.check(_overlapping(events) == 0, "runners: logged executions of one trial overlap")
    tally.add("runners", "runners on one folder (workers each: 2)", 4)
    tally.add("runners", "trials", len(ids))
    tally.add("runners", "executions begun", sum(event[0] == "start" for event in events))
    tally.add("runners", "runners killed and replaced meanwhile", killed)
    tally.add("runners", "trials executed twice at once", overlaps)
    tally.say(f"runners: {len(ids)} trials, {killed} runners killed, {overlaps} overlaps")


def _overlapping(events: Sequence[Sequence[str]]) -> int:
    """Return how many executions that ended began during another one of the same trial."""
    began: dict[tuple[str, str], float] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for kind, id, pid, moment in events:
        if kind == "start":
            began[id, pid] = float(moment)
        elif kind == "end":
            spans.setdefault(id, []).append((began[id, pid], float(moment)))
    ordered = [sorted(of_id) for of_id in spans.values()]
    return sum(b[0] < a[1] for of_id in ordered for a, b in itertools.pairwise(of_id))


# --- many trials, damaged trials ----------------------------------------------------------------------------


def store(tally: Tally, folder: Path, dice: random.Random) -> None:
    """2,000 trials in one folder: status and report end well; damage is named and nothing else touched."""
    folder.mkdir(exist_ok=True)
    results = folder / "results"
    file, ids = synthetic.many_trials(folder, results, trials=2000, epochs=30)
    tally.add("store", "synthetic trials in one folder", len(ids))
    for name, arguments in {
        "bench status": ("status", "--results", results),
        "bench status FILE": ("status", file, "--results", results),
        "bench report": ("report", "--results", results, "--out", folder / "report"),
        "bench run, nothing to do": ("run", file, "--results", results, "--no-ray", "--device", "cpu"),
    }.items():
        began = _processor_seconds()
        command = Command(folder, *arguments)
        status = command.wait()
        took = _processor_seconds() - began
        tally.check(status == 0, f"{name} of 2,000 trials: exit status {status}")
        tally.note("store", f"{name}: {took:.1f} s")
        tally.say(f"{name}: {took:.1f} s")
    _damages(tally, folder, results, file, ids, dice)


def _processor_seconds() -> float:
    """Return the processor time of all commands so far: a busy machine costs them none."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


DAMAGES: dict[str, Callable[[Path], None]] = {
    "half-written last line": lambda f: _cut(f / "epochs.jsonl", 40),
    "truncated summary": lambda f: _cut(f / "summary.json", 60),
    "empty summary": lambda f: (f / "summary.json").write_bytes(b""),
    "damaged line": lambda f: _cut_within(f / "epochs.jsonl"),
    "newer schema": lambda f: (f / "summary.json").write_text('{"schema": 99, "status": "done"}'),
    "another trial's record": lambda f: (f / "trial.json").write_text(
        '{"schema": 1, "id": "ffffffffffffffff"}'
    ),
}


def _cut(path: Path, count: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-count])


def _cut_within(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:30]
    path.write_bytes(b"\n".join(lines))


def _damages(
    tally: Tally, folder: Path, results: Path, file: Path, ids: Sequence[str], dice: random.Random
) -> None:
    copied = folder / "copied"
    shutil.copytree(results, copied)  # "a folder copied from elsewhere", locks included
    chosen = dict(
        zip(
            DAMAGES,
            dice.sample([i for i in ids if Store(copied).status(i) == "done"], len(DAMAGES)),
            strict=True,
        )
    )
    for name, id in chosen.items():
        DAMAGES[name](Store(copied).folder(id))
    before = _digest(copied, set(chosen.values()))
    status = Command(folder, "status", "--results", copied)
    tally.check(status.wait() == 0, "status of damaged records")
    text = status.text()
    for name, id in chosen.items():
        if name != "half-written last line":
            tally.check(id in text, f"{name}: not named by status")
    report = Command(folder, "report", "--results", copied, "--out", folder / "report2", "--format", "md")
    tally.check(report.wait() == 0, f"report of damaged records: {report.text()[-500:]}")
    (folder / "data").mkdir()
    arguments = ("run", file, "--results", copied, "--data", folder / "data", "--no-ray", "--device", "cpu")
    run = Command(folder, *arguments, program="bench_with_witness.py")
    code = run.wait()
    tally.check(
        code == 2 and "newer version" in run.text(), f"run over damaged records: {code} {run.text()[-500:]}"
    )
    tally.check("Traceback" not in text + run.text() + report.text(), "a traceback over damaged records")
    after = _digest(copied, set(chosen.values()))
    tally.check(before == after, "damage harmed other trials")
    kept = Store(copied)
    for name, id in chosen.items():
        expected = "damaged" if name == "newer schema" else "done"
        tally.check(kept.status(id) == expected, f"{name}: {kept.inspect(id)} after the run")
        if name in ("damaged line", "another trial's record"):
            tally.check(
                any(p.name.startswith(f"{id}.old") for p in (copied / "trials").iterdir()),
                f"{name}: not kept",
            )
    tally.add("store", "kinds of damage planted, named, repaired; others untouched", len(DAMAGES))
    tally.say(f"damage: {', '.join(DAMAGES)}")


def _digest(results: Path, without: set[str]) -> dict[str, str]:
    """Return the checksums of the records of all trials but some."""
    return {
        str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((results / "trials").rglob("*"))
        if path.is_file() and not set(path.relative_to(results).parts) & without and ".old-" not in str(path)
    }


# --- a disk that fills up -----------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a memory file system of ``size`` at ``folder``; yield whether that was possible."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def disk(tally: Tally, folder: Path, dice: random.Random) -> None:
    """A file system of a few MB fills up; becomes read-only; has room again."""
    folder.mkdir(exist_ok=True)
    base = d.make_config().dump()
    common = {key: base[key] for key in ("batch_size", "train_size", "width", "learning_rate")}
    arms = {
        f"arm {n}": {"strategy": d.progressive("sum", factor={"kind": "cosine", "until": n / 100})}
        for n in range(50, 70)
    }
    file = write_file(
        folder / "disk.toml",
        arms,
        dataset="digits",
        network="svhn_convnet",
        epochs=4,
        quantizer="dorefa",
        bits="1/1",
        **common,
    )
    with small_disk(folder / "mount", "6m") as mounted:
        if not mounted:
            tally.note("disk", "SKIPPED: needs the right to mount a small file system")
            return tally.say("disk: skipped, no right to mount")
        results = folder / "mount" / "results"
        arguments = ("run", file, "--results", results, "--no-ray", "--jobs", "2", "--device", "cpu")
        before: dict[str, list[Any]] = {}
        for attempt in range(2):
            full = Command(folder, *arguments, every_steps=2)
            status, text = full.wait(), full.text()
            tally.check(status in (1, 2) and "disk is full" in text, f"full disk: {status}: {text[-800:]}")
            tally.check("Traceback" not in text, f"full disk: a traceback: {text[-800:]}")
            now = _measured(results)
            lost = [id for id, lines in before.items() if now.get(id, [])[: len(lines)] != lines]
            tally.check(not lost, f"full disk: lines of {lost} are gone")
            before = now
            tally.say(f"disk: full at attempt {attempt + 1}: {Counter(map(Store(results).status, now))}")
        done = sum(Store(results).status(id) == "done" for id in before)
        tally.add("disk", "trials done when the disk of 6 MB was full", done)
        tally.add("disk", "trials cut short by it", len(before) - done)
        remount = ["mount", "-o", "remount,ro", str(folder / "mount")]
        if subprocess.run(remount, capture_output=True, check=False).returncode == 0:
            read_only = Command(folder, *arguments)
            status, text = read_only.wait(), read_only.text()
            tally.check(
                status == 2 and "Give --results" in text and "Traceback" not in text,
                f"read-only: {status}: {text}",
            )
            tally.check(_measured(results) == before, "read-only: records changed")
            look = Command(folder, "status", "--results", results)
            tally.check(look.wait() == 0, f"status of a read-only folder: {look.text()}")
            tally.add("disk", "read-only folder refused, its status shown")
        subprocess.run(["mount", "-o", "remount,rw,size=64m", str(folder / "mount")], check=True)
        again = Command(folder, *arguments)
        tally.check(again.wait() == 0, f"with room again: {again.text()[-800:]}")
        trials = load_experiment(file).trials
        for trial in dice.sample(trials, 4) + [t for t in trials if t.id in before][-4:]:
            if not (folder / "calm" / "trials" / str(trial.id)).exists():
                d.run(trial.config, folder / "calm", id=str(trial.id))
                unlike = d.unlike(folder / "calm", results, str(trial.id))
                tally.check(not unlike, f"after a full disk: {unlike[:3]}")
                tally.add("disk", "trials compared with undisturbed ones, bit for bit")
        tally.say("disk: room again, all done")


def _measured(results: Path) -> dict[str, list[Any]]:
    kept = Store(results)
    return {id: kept.epochs(id) for id in kept.ids()}


# --- fuzzing ------------------------------------------------------------------------------------------------


def fuzz(tally: Tally, folder: Path, dice: random.Random) -> None:
    """Run the structured fuzzing in a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.robustness.fuzzing",
            "--cases",
            str(FUZZ_CASES),
            "--seed",
            str(dice.randrange(2**31)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    tally.check(
        done.returncode == 0, f"fuzzing: exit status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
    )
    for line in lines[-20:]:
        tally.note("fuzz", line.strip()[:100])
    tally.say(f"fuzzing: {lines[-1] if lines else 'no output'}")


# --- several workers, several nodes -------------------------------------------------------------------------

WIDE = {
    "sum, dropout": {"strategy": d.progressive("sum"), "network": d.DROPOUT},
    "concat, gradient quantizer": {"bits": "1/2/4", "strategy": d.progressive("concat")},
    "groups, re-estimated": {
        "batch_norm_group": 4,
        "strategy": d.progressive("difference", bn_reestimate=2),
        "eval_bn": 2,
    },
    "micro-batches, recomputed": {
        "micro_batches": 2,
        "activation_checkpointing": True,
        "augmentation": "crop_flip",
    },
    "apprentice A": {"strategy": d.apprentice("A")},
}


def wide(tally: Tally, folder: Path, dice: random.Random) -> None:
    """Kill one of two workers at every chosen instant, resume, and compare with an undisturbed trial."""

    def train(
        config: TrialConfig, results: Path, worker: int = 0, fault: Mapping[str, Any] | None = None
    ) -> str:
        results.mkdir(parents=True, exist_ok=True)
        (results / team_helpers.FAULT).write_text(json.dumps({"worker": worker, "fault": fault}))
        function = "tests.launch.team_helpers:train_together"
        task = Task(
            d.ID, config.dump(), {}, str(results), "/nonexistent", "cpu,cpu", retry=True, function=function
        )
        outcome = execute(task)
        died = outcome.reason == f"WorkerDied: worker {worker} of 2 died (signal 9)"
        tally.check(outcome.status == "done" or (fault and died), f"{fault}: {outcome}")
        return outcome.status

    for number, (case, changes) in enumerate(WIDE.items()):
        config = d.make_config(**changes)
        calm, killed = folder / f"{number}-calm", folder / f"{number}-killed"
        train(config, calm)
        for fault in d.FAULTS:  # the second worker writes nothing
            worker = 0 if "file" in fault else dice.randrange(2)
            if train(config, killed, worker, fault) == "failed":
                tally.add("wide", f"worker {worker} of 2 killed")
        train(config, killed)
        unlike = d.unlike(calm, killed)
        tally.check(not unlike, f"two workers, {case}: {unlike[:3]}")
        tally.add("wide", "trials compared with undisturbed ones, bit for bit")
        tally.say(f"two workers, {case}: resumed at steps {d.resumed_steps(killed)}")


NODES = {  # what happens on which nodes, as options of nodes.py
    "two": [],
    "four": ["--nodes", "4", "--trials", "4"],
    "joined": ["--nodes", "1", "--trials", "2", "--join"],
}


def nodes(tally: Tally, folder: Path, dice: random.Random) -> None:
    """Kill a node that trains, of two, of four, after another joined; with a shared folder or without."""
    for case, apart in itertools.product(NODES, (False, True)):
        place = folder / f"{case}-{'apart' if apart else 'shared'}"
        options = ["--epochs", str(dice.randrange(60, 120)), *NODES[case], *(["--apart"] if apart else [])]
        command = [sys.executable, str(ROOT / "tests" / "robustness" / "nodes.py"), str(place), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tally.check(done.returncode == 0, f"nodes: {done.stderr[-2000:]}")
        if done.returncode:
            continue
        said = json.loads(done.stdout.splitlines()[-1])
        tally.check(said["status"] == 0 and said["killed"], f"nodes: {case}: {said['output'][-2000:]}")
        tally.check(said["joined"] or case != "joined", f"nodes: {case}: the added node did not train")
        for trial in load_experiment(place / "nodes.toml").trials:
            d.run(trial.config, place / "calm", id=str(trial.id))
            unlike = d.unlike(place / "calm", place / "results", str(trial.id))
            tally.check(not unlike, f"nodes: {case}: {unlike[:3]}")
            tally.say(f"nodes: {place.name}: resumed at {d.resumed_steps(place / 'results', str(trial.id))}")
        shared = f"results folder {'not ' if apart else ''}shared"
        tally.add("nodes", f"{case}: node killed, {shared}, resumed bit for bit")


# --- the program --------------------------------------------------------------------------------------------


def main() -> int:
    """Run the parts in order and print the closing table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.soak", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="parts that would begin later are left out, and named"
    )
    parser.add_argument("--seed", type=int, help="of the random instants (a new one each time, printed)")
    parser.add_argument("--part", choices=PARTS, action="append", help="this part alone; may be repeated")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    tally = Tally()
    print(f"soak with --seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    Command.temporary = folder
    try:
        for part in args.part or PARTS:
            if time.monotonic() - tally.began > args.minutes * 60:
                tally.check(False, f"{part}: left out, --minutes {args.minutes:g} were over")
                continue
            began = time.monotonic()
            try:
                globals()[part](tally, folder / part, random.Random(f"{seed} {part}"))
            except Exception:
                tally.check(False, f"{part}: {traceback.format_exc()}")
            tally.note(part, f"minutes: {(time.monotonic() - began) / 60:.1f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{tally.table()}", flush=True)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
