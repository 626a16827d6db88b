"""Many trials: planned, placed, killed, stopped, continued; with a training function that trains nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from bench.cli.main import main
from bench.cli.run import _say_how_trials_ended
from bench.cli.status import status_text
from bench.experiments.expand import load_experiment
from bench.launch.execute import Outcome, Task, execute, failure_text
from bench.launch.plan import plan, priorities
from bench.launch.progress import Progress, pace
from bench.launch.session import Session, Stop, exit_status
from bench.launch.verify import differences
from bench.records.store import State, Store
from bench.text import inert
from tests.launch.running_fakes import PLAIN
from tests.waiting import HANG, wait_until

HERE = Path(__file__).parent
TRAIN = "tests.launch.running_fakes:train"
TEXT = f"""{PLAIN}
[[arms]]
name = "apprentice"
baseline = "plain"
strategy = {{ kind = "apprentice", scheme = "B", teacher = {{ width = 0.25 }} }}
"""


class Bench:
    """An experiment file, a results folder, and what the fake training function shall do."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "fakes.toml"
        self.file.write_text(TEXT)
        self.data = folder / "data"
        self.data.mkdir()
        self.results = folder / "results"
        self.store = Store(self.results)

    def arguments(self, *more: str, command: str = "run") -> list[str]:
        return [command, str(self.file), "--results", str(self.results), "--data", str(self.data), *more]

    def behave(self, **behaviours: str) -> None:
        """Set the behaviour of seeds (``s1="raise"``), or of all (``all="hang"``)."""
        named = {"*" if key == "all" else key[1:]: value for key, value in behaviours.items()}
        (self.data / "behaviour.json").write_text(json.dumps(named))

    def run(self, *more: str) -> int:
        return main(self.arguments("--no-ray", "--jobs", "2", *more), train=TRAIN)

    def start(self, *more: str) -> subprocess.Popen:
        """Start a launcher of its own, in its own process group."""
        return subprocess.Popen(
            [sys.executable, str(HERE.parent / "robustness" / "bench_with_fakes.py"), *self.arguments(*more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
            start_new_session=True,
        )

    def calls(self) -> list[tuple[str, int, int]]:
        """Return (id, process, seed) of every call of the training function."""
        path = self.data / "calls.txt"
        words = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(id, int(pid), int(seed)) for id, pid, seed in words]

    def wait_for_calls(self, count: int) -> list[tuple[str, int, int]]:
        wait_until(lambda: len(self.calls()) >= count, f"{count} trials have begun")
        return self.calls()

    def plain(self) -> dict[int, str]:
        """Return the ids of the arm "plain" by seed."""
        return {line.trial.config.seed: line.id for line in load_experiment(self.file).lines("plain")}

    def statuses(self) -> dict[str, str]:
        return {trial.id: self.store.status(trial.id) for trial in load_experiment(self.file).trials}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class TestOneTrial:
    def task(self, bench: Bench, **more) -> Task:
        line = load_experiment(bench.file).lines("plain")[0]
        return Task(
            line.id, line.trial.config.dump(), {}, str(bench.results), str(bench.data), function=TRAIN, **more
        )

    def test_done_is_not_trained_again(self, bench):
        task = self.task(bench)
        seen = []
        first = execute(task, on_epoch=seen.append)
        again = execute(task)
        assert (first.status, first.trained, len(seen)) == ("done", True, 3)
        assert (again.status, again.trained, again.accuracy) == ("done", False, first.accuracy)
        assert len(bench.calls()) == 1

    def test_output_and_traceback_go_to_the_log_and_one_line_to_the_summary(self, bench, capfd):
        bench.behave(s0="raise")
        outcome = execute(self.task(bench))
        assert str(outcome) == "failed: ValueError: planted failure"
        assert bench.store.summary(outcome.id)["reason"] == "ValueError: planted failure"
        log = bench.store.log(outcome.id).read_text()
        assert "output of the trial, 1 threads" in log and "Traceback" in log and "second line" in log
        assert capfd.readouterr().out == ""

    def test_a_failure_is_tried_again_only_when_planned(self, bench):
        bench.behave(s0="raise-once")
        task = self.task(bench)
        assert execute(task).status == "failed"
        assert execute(task).status == "failed" and len(bench.calls()) == 1
        assert execute(self.task(bench, retry=True)).status == "done"
        assert len(bench.store.epochs(task.id)) == 3

    def test_system_exit_fails_the_trial_alone(self, bench):
        bench.behave(s0="exit")
        assert execute(self.task(bench)).reason == "SystemExit: 3"

    def test_a_trial_held_by_another_is_left_to_it(self, bench):
        task = self.task(bench)
        with bench.store.lock(task.id):
            assert execute(task).status == "busy"
        assert bench.calls() == []

    def test_a_damaged_summary_costs_nothing_a_damaged_epoch_is_set_aside(self, bench):
        task = self.task(bench)
        first = execute(task)
        (bench.store.folder(task.id) / "summary.json").write_text('{"schema": 1, "sta')
        assert execute(task).accuracy == first.accuracy
        assert len(bench.calls()) == 2 and len(bench.store.epochs(task.id)) == 3
        path = bench.store.folder(task.id) / "epochs.jsonl"
        path.write_text("rubbish\n" + path.read_text())
        assert execute(task).accuracy == first.accuracy
        assert (bench.store.folder(task.id).with_name(f"{task.id}.old-1") / "epochs.jsonl").exists()

    def test_a_newer_record_is_refused_and_untouched(self, bench):
        task = self.task(bench)
        execute(task)
        path = bench.store.folder(task.id) / "summary.json"
        path.write_text('{"schema": 99}')
        outcome = execute(task)
        assert outcome.status == "refused" and "newer version" in outcome.reason
        assert path.read_text() == '{"schema": 99}'

    def test_reasons_are_one_harmless_line(self):
        class OutOfMemoryError(RuntimeError):
            pass

        assert failure_text(OutOfMemoryError("CUDA out of memory.\nmore"), "cuda:1") == (
            "out of memory (cuda:1): CUDA out of memory."
        )
        assert failure_text(MemoryError()) == "out of memory (host)"
        assert failure_text(RuntimeError("DefaultCPUAllocator: can't allocate memory")).startswith(
            "out of memory (host)"
        )
        assert failure_text(ValueError("\x1b[2Jx")) == "ValueError: \\x1b[2Jx"
        assert failure_text(KeyError()) == "KeyError"


class TestPlanning:
    def test_needed_trials_rank_above_those_that_need_them_and_longer_ones_above_shorter(self, bench):
        experiment = load_experiment(bench.file)
        planned = plan(experiment.trials, bench.store)
        ranks = priorities(planned)
        assert {p.action for p in planned} == {"train"}
        assert all(ranks[needed] > ranks[p.id] for p in planned for needed in p.needs.values())
        longer = load_experiment(bench.file, overrides=["epochs=30"], only=["plain"])
        assert min(priorities(plan(longer.trials, bench.store)).values()) > max(
            ranks[i] for i in bench.plain().values()
        )

    def test_exit_status(self):
        def status(*names: str) -> int:
            return exit_status(Outcome("0" * 16, name) for name in names)

        assert status("done", "diverged") == 0
        assert status("done", "failed") == 1
        assert status("failed", "stopped") == 3
        assert status("busy") == 3
        assert status("refused", "failed", "stopped") == 2
        assert exit_status([Outcome("0" * 16, "refused", no_space=True)]) == 1


class TestPool:
    def test_failures_are_named_and_harm_nobody(self, bench, capsys):
        bench.behave(s0="kill", s1="raise", s2="memory", s3="slow")
        assert bench.run() == 1
        plain = bench.plain()
        reasons = {seed: bench.store.inspect(id).reason for seed, id in plain.items()}
        assert reasons[0] == "its process died (signal 9)" and reasons[1] == "ValueError: planted failure"
        assert reasons[2] == "out of memory (host)"
        assert bench.store.status(plain[3]) == "done"
        assert (
            sum(id == plain[3] for id, _, _ in bench.calls()) == 1
        )  # beside a killed one, and not begun again
        apprentice = {
            line.trial.config.seed: line.trial for line in load_experiment(bench.file).lines("apprentice")
        }
        assert bench.store.status(apprentice[3].id) == "done"
        teacher = apprentice[0].needs["teacher"]
        assert bench.store.inspect(apprentice[0].id).reason == f"not trained: its teacher {teacher} failed"
        assert "signal 9" in bench.store.log(plain[0]).read_text()
        assert "its process died (signal 9)" in capsys.readouterr().out

        bench.behave(s1="diverge")  # what failed is tried again and goes on; diverged is a result
        known = len(bench.calls())
        assert bench.run() == 1  # the apprentice of the diverged teacher
        assert bench.store.status(plain[1]) == "diverged"
        assert all(bench.store.status(plain[seed]) == "done" for seed in (0, 2, 3))
        assert {seed for _, _, seed in bench.calls()[known:]} == {0, 1, 2}
        assert bench.run("--only", "plain") == 0
        assert "nothing to train" in capsys.readouterr().out

    def test_second_run_trains_nothing_and_fresh_deletes_nothing(self, bench, capsys):
        assert bench.run("--only", "plain") == 0
        assert len(bench.calls()) == 4
        before = {id: bench.store.summary(id) for id in bench.plain().values()}
        assert bench.run("--only", "plain") == 0
        assert len(bench.calls()) == 4 and "nothing to train" in capsys.readouterr().out
        assert bench.run("--only", "plain", "--seeds", "1", "--fresh") == 0
        assert len(bench.calls()) == 5
        id = bench.plain()[0]
        old = json.loads((bench.results / "trials" / f"{id}.old-1" / "summary.json").read_text())
        assert old == before[id]
        assert len(bench.store.ids()) == 4

    def test_with_fresh_the_same_command_would_begin_anew(self, bench, capsys):
        session = Session({}, {}, {}, bench.store, Progress({}, {}, {}), Stop())
        session.outcomes = {"0" * 16: Outcome("0" * 16, "stopped")}
        _say_how_trials_ended(session, fresh=True)
        assert "1 trial unfinished: the same command without --fresh goes on" in capsys.readouterr().out

    def test_max_minutes_stops_and_the_same_command_goes_on(self, bench, capsys, monkeypatch):
        timers = []

        class Timer(threading.Thread):
            """Goes off when two trials have begun, however long that takes."""

            def __init__(self, seconds, function, arguments):
                super().__init__(daemon=True)
                self.seconds, self.function, self.arguments = seconds, function, arguments
                timers.append(self)

            def run(self):
                bench.wait_for_calls(2)
                self.function(*self.arguments)

            def cancel(self):
                self.join(HANG)

        bench.behave(all="hang-once")
        monkeypatch.setattr("bench.launch.session.threading.Timer", Timer)
        assert bench.run("--only", "plain", "--max-minutes", "0.5") == 3
        monkeypatch.undo()
        assert [timer.seconds for timer in timers] == [30.0]
        assert "unfinished" in capsys.readouterr().out
        unfinished = [id for id in bench.plain().values() if bench.store.status(id) == "unfinished"]
        assert len(unfinished) == 2
        bench.behave()
        assert bench.run("--only", "plain") == 0
        assert all(len(bench.store.epochs(id)) == 3 for id in bench.plain().values())

    @pytest.mark.parametrize(
        ("number", "whole_group"),
        [
            (signal.SIGINT, True),  # Ctrl-C in a terminal
            (signal.SIGTERM, False),  # a scheduler's
            pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
            pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        ],
    )
    def test_signals_stop_at_a_checkpoint(self, bench, number, whole_group):
        bench.behave(all="hang")
        launcher = bench.start("--no-ray", "--jobs", "2")
        pids = [pid for _, pid, _ in bench.wait_for_calls(2)]
        (os.killpg if whole_group else os.kill)(launcher.pid, number)
        out, _ = launcher.communicate(timeout=HANG)
        assert launcher.returncode == 3, out
        assert "Traceback" not in out and "stopped" in out
        assert all(gone(pid) for pid in pids)
        assert sorted(bench.statuses().values()) == ["missing"] * 10 + ["unfinished"] * 2
        assert not [name for name in os.listdir(bench.results / ".locks") if not name.startswith("index")]

    def test_workers_die_with_a_killed_launcher_and_nothing_is_lost(self, bench):
        bench.behave(all="hang-once")
        launcher = bench.start("--no-ray", "--jobs", "2")
        pids = [pid for _, pid, _ in bench.wait_for_calls(2)]
        launcher.kill()
        launcher.wait()
        wait_until(lambda: all(map(gone, pids)), "the trials' processes end with their launcher")
        bench.behave()
        assert bench.run() == 0
        assert set(bench.statuses().values()) == {"done"}

    def test_a_second_ctrl_c_stops_at_once(self, bench):
        bench.behave(all="deaf")
        launcher = bench.start("--no-ray", "--jobs", "2")
        bench.wait_for_calls(2)
        wait_until((bench.data / "deaf").exists, "a trial that does not listen")
        os.kill(launcher.pid, signal.SIGINT)
        said = iter(launcher.stdout.readline, "")
        assert any("Ctrl-C once more stops at once" in line for line in said)
        os.kill(launcher.pid, signal.SIGINT)
        out, _ = launcher.communicate(timeout=HANG)
        assert launcher.returncode == 3 and "Traceback" not in out

    def test_two_runners_share_the_work(self, bench):
        runners = [bench.start("--no-ray", "--jobs", "2") for _ in range(2)]
        outs = [runner.communicate(timeout=HANG)[0] for runner in runners]
        assert all(runner.returncode in (0, 3) for runner in runners), outs
        ids = [id for id, _, _ in bench.calls()]
        assert len(ids) == len(set(ids)) == 12
        assert set(bench.statuses().values()) == {"done"}
        assert len({pid for _, pid, _ in bench.calls()}) <= 4  # workers are kept


class TestFullDisk:
    def test_what_was_measured_is_kept(self, tmp_path, capsys):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small file system")
        try:
            bench = Bench(tmp_path)
            bench.results = disk / "results"
            bench.store = Store(bench.results)
            assert bench.run("--only", "plain", "--seeds", "1") == 0
            bench.behave(s1="fill", s2="slow", s3="slow")
            assert bench.run("--only", "plain") == 1
            output = capsys.readouterr()
            assert "the disk is full" in output.err and "Traceback" not in output.err
            assert "stopping at a checkpoint (no space left" in output.out
            plain = bench.plain()
            assert bench.store.status(plain[0]) == "done"
            assert bench.store.inspect(plain[1]).status == "unfinished"
            assert bench.store.epochs(plain[1])  # what fitted is there
            assert bench.run("--only", "plain") in (1, 2)  # still full: said, and nothing harmed
            assert "full" in capsys.readouterr().err
            (bench.results / "ballast").unlink()
            bench.behave()
            assert bench.run("--only", "plain") == 0
            assert {bench.store.status(id) for id in plain.values()} == {"done"}
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


class TestRay:
    @pytest.mark.slow
    def test_same_records_as_without_failures_named_stopped_by_a_signal(self, bench, tmp_path):
        pytest.importorskip("ray")
        bench.behave(s0="hang-once", s1="kill-once", s2="raise-once")
        only = ("--only", "plain", "--jobs", "2")
        launcher = bench.start(*only)
        plain = bench.plain()
        wanted = {0: "running", 1: "failed", 2: "failed", 3: "done"}
        wait_until(
            lambda: {seed: bench.store.status(id) for seed, id in plain.items()} == wanted, "the trials end"
        )
        os.kill(launcher.pid, signal.SIGTERM)
        out, _ = launcher.communicate(timeout=HANG)
        assert launcher.returncode == 3, out
        assert "Traceback" not in out and "raylet" not in out
        assert bench.store.inspect(plain[1]).reason == "its process died (the process is gone)"
        assert bench.store.inspect(plain[2]).reason == "ValueError: planted failure"
        assert [bench.store.status(plain[seed]) for seed in (0, 3)] == ["unfinished", "done"]
        assert not [name for name in os.listdir(bench.results / ".locks") if not name.startswith("index")]
        assert bench.run("--only", "plain") == 0

        (tmp_path / "other").mkdir()
        undisturbed = Bench(tmp_path / "other")
        assert undisturbed.run("--only", "plain") == 0
        assert [differences(undisturbed.store, bench.store, id) for id in plain.values()] == [[]] * 4


class TestProgress:
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    now = 100.0

    def progress(self, stream) -> Progress:
        return Progress(
            {"a": "arm \x1b[2J", "b": "b"},
            {"a": 4, "b": 4},
            {"a": 1.0, "b": 3.0},
            stream=stream,
            interval=0,
            clock=lambda: self.now,
        )

    def test_plain_lines_elsewhere(self):
        stream = io.StringIO()
        progress = self.progress(stream)
        progress.started("a")
        progress.epoch("a", {"epoch": 2, "test_acc": 61.25})
        progress.finished("a", "62.00 %")
        progress.close()
        lines = stream.getvalue().splitlines()
        assert "a" in lines[0] and "2/4 61.2 %" in lines[1] and lines[2] == "[1/2] arm \\x1b[2J: 62.00 %"
        assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()

    def test_every_running_trial_has_a_line_on_a_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("LINES", "20")
        stream = self.Terminal()
        progress = self.progress(stream)
        progress.interval = 0
        progress.started("a")
        progress.started("b")
        stream.truncate(0)
        progress.epoch("a", {"epoch": 2, "test_acc": 61.25})
        shown = [
            re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line).strip() for line in stream.getvalue().split("\n")
        ]
        assert [line.split() for line in shown if "epoch" in line] == [
            ["arm", "\\x1b[2J", "epoch", "2/4", "61.2", "%"],
            ["b", "epoch", "0/4"],
        ]
        progress.finished("a", "62.00 %")
        assert "[1/2] arm \\x1b[2J: 62.00 %" in stream.getvalue()
        progress.close()
        assert stream.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))  # nothing of the table is left

    def test_more_trials_than_lines_are_counted(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("LINES", "8")
        stream = self.Terminal()
        names = {str(i): f"trial {i}" for i in range(30)}
        progress = Progress(names, dict.fromkeys(names, 4), {}, stream=stream, interval=0)
        progress.interval = 0
        for name in names:
            progress.started(name)
        progress.close()
        assert "and 24 more" in stream.getvalue()

    def test_a_running_trial_shows_accuracy_speed_and_what_is_left(self):
        last = {"epoch": 3, "test_acc": 61.25, "images_per_second": 12345.6, "seconds": 20.0}
        assert pace(last, 10) == ("61.2 %", "12,346 images/s", "ETA 2 min")  # 7 epochs of 20 s
        assert pace({"epoch": 3}, 10) == ("", "", "")
        assert pace(last, None)[2] == ""
        lines = [{"arm": "Plain", "grid": {"seed": 0}, "id": "a" * 16}]
        states = {"a" * 16: State("running", "this machine", 3, last=last)}
        told = status_text("one", lines, states, {"a" * 16: 10})
        assert "epoch 3 of 10, 61.2 %, 12,346 images/s, ETA 2 min, by this machine" in told

    def test_the_rest_is_guessed_from_the_work_done_here(self):
        progress = self.progress(io.StringIO())
        assert progress.remaining() is None
        progress.resumed("a", 2)
        assert progress.remaining() is None
        progress.epoch("a", {"epoch": 4})
        self.now += 10  # half of "a" (0.5) took 10 s; "b" is 3.0
        assert progress.remaining() == pytest.approx(60)

    def test_a_terminal_that_was_closed_is_no_error(self, monkeypatch):
        stream = self.Terminal()
        progress = self.progress(stream)
        stream.write = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
        progress.finished("a", "x")
        progress.close()

    def test_a_reader_that_went_away_is_no_error(self):
        stream = io.StringIO()
        progress = self.progress(stream)
        stream.close()
        progress.finished("a", "x")

    def test_inert(self):
        assert inert("a\x07é\u202e") == "a\\x07é\\u202e"
