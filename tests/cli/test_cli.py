"""The command line: one message for what is wrong, exit status 2, and nothing heavy imported too early."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from bench.cli.main import main
from bench.text import command
from tests.launch.running_fakes import PLAIN
from tests.launch.test_running import TRAIN, Bench
from tests.tuning.test_run import TEXT as TUNED
from tests.tuning.test_run import TRAIN as TUNED_TRAIN
from tests.waiting import HANG

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


class TestWrongInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["rnu"], ["'rnu'", "'run'"]),
            (["run", "FILE", "--job", "2"], ["--job", "'--jobs'"]),
            (["run", "FILE", "--no-rya"], ["'--no-ray'"]),
            (["run"], ["FILE"]),
            (["run", "FILE", "extra"], ["extra"]),
            (["run", "FILE", "--jobs", "0"], ["--jobs", "'0'"]),
            (["run", "FILE", "--jobs", "two"], ["--jobs", "whole number"]),
            (["run", "FILE", "--max-minutes", "nan"], ["--max-minutes"]),
            (["run", "FILE", "--seeds", "0"], ["--seeds"]),
            (["run", "FILE", "--gpus-per-trial", "-1"], ["--gpus-per-trial"]),
            (["run", "FILE", "--gpus-per-trial", "2"], ["one GPU"]),
            (["run", "FILE", "--workers-per-trial", "4"], ["--workers-per-trial"]),
            (["run", "FILE", "--no-ray", "--address", "x"], ["--address", "--no-ray"]),
            (["run", "FILE", "--device", "gpu"], ["'gpu'", "cuda:N"]),
            (["run", "FILE", "--device", "cuda:97"], ["cuda:97", "found: cpu"]),
            (["run", "FILE", "--only", "pain"], ["plain"]),
            (["run", "FILE", "--set", "epochs"], ["epochs"]),
            (["run", "FILE", "--set", "epcohs=3"], ["epochs"]),
            (["run", "FILE", "--profile", "quick"], ["quick"]),
            (["run", "FILE", "--set", "dataset=svhn"], ["svhn", "bench data fetch"]),
            (["run", "FILE", "--results", "FILE"], ["FILE"]),
            (["run", "nowhere.toml"], ["nowhere.toml"]),
            (["run", "."], ["."]),
            (["status", "--profile", "quick"], ["--profile"]),
            (["status", "--results", "nowhere"], ["nowhere"]),
            (["verify", "0123"], ["no such trial"]),
            (["list", "quantizer"], ["'quantizers'"]),
            (["data", "fetc"], ["'fetch'"]),
            (["data", "fetch"], ["which"]),
            (["report", "--format", "docx"], ["docx", "html"]),
        ],
    )
    def test_one_message_no_traceback_nothing_trained(self, bench, capsys, monkeypatch, arguments, words):
        monkeypatch.setenv("BENCH_DATA", str(bench.data))
        monkeypatch.chdir(bench.data)
        arguments = [str(bench.file) if word == "FILE" else word for word in arguments]
        assert main(arguments, train="tests.launch.running_fakes:train") == 2
        error = capsys.readouterr().err
        assert error.startswith("bench: ") and "Traceback" not in error
        for word in words:
            assert (
                word.replace("FILE", str(bench.file) if "results" in " ".join(arguments) else "FILE") in error
            )
        assert bench.calls() == []
        assert not bench.results.exists()

    def test_a_working_folder_that_was_removed(self, bench, capsys, monkeypatch, tmp_path):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert main(["run", str(bench.file), "--data", str(bench.data)]) == 2
        assert capsys.readouterr().err == "bench: the working folder is no longer there\n"

    def test_a_user_without_a_home_folder(self, bench, capsys, monkeypatch):
        for name in ("BENCH_DATA", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError("no home")))
        assert main(["status", str(bench.file)]) == 2
        assert "no home folder" in capsys.readouterr().err

    def test_a_report_of_records_needs_no_data_folder(self, bench, monkeypatch):
        assert bench.run() == 0
        monkeypatch.setenv("BENCH_DATA", str(bench.file))  # a file
        assert main(["report", str(bench.file), "--results", str(bench.results), "--format", "csv"]) == 0

    def test_unprintable_names_come_out_harmless(self, capsys):
        assert main(["run\x1b[2J"]) == 2
        assert "\x1b" not in capsys.readouterr().err

    def test_no_command_shows_help(self, capsys):
        assert main([]) == 2
        assert "status" in capsys.readouterr().out


class TestStatus:
    def test_says_where_trials_stand_and_what_run_will_do(self, bench, capsys):
        bench.behave(s1="raise", s2="diverge")
        only = ("--only", "plain")
        status = [*bench.arguments(*only, command="status")]
        assert main(status) == 0
        assert "train 4 from the beginning" in capsys.readouterr().out
        bench.run(*only)
        plain = bench.plain()
        (bench.store.folder(plain[0]) / "epochs.jsonl").write_text("{}\n")
        folder = bench.store.folder(plain[3])
        (folder / "summary.json").unlink()
        capsys.readouterr()
        assert main(status) == 0
        out = capsys.readouterr().out
        assert "4 trials: 1 failed, 1 diverged, 1 unfinished, 1 damaged" in out
        assert f"failed {plain[1]} plain seed=1: ValueError: planted failure" in out
        assert f"unfinished {plain[3]} plain seed=3: epoch 3 of 3" in out
        assert "epochs.jsonl, line 1" in out
        row = next(line for line in out.splitlines() if line.startswith("plain")).split()
        assert row == ["plain", "4", ".", "1", "1", ".", "1", ".", "1"]
        assert "continue 1, retry 1 that failed, set 1 damaged aside and train again, leave 1 diverged" in out

        assert main(["status", "--results", str(bench.results)]) == 0
        assert "4 trials: 1 failed, 1 diverged, 1 unfinished, 1 damaged" in capsys.readouterr().out
        bench.behave()
        assert bench.run(*only) == 0
        assert [bench.store.status(plain[seed]) for seed in range(4)] == ["done", "done", "diverged", "done"]

    def test_a_damaged_line_of_choices_is_no_traceback(self, bench):
        bench.store.write_index("fakes", '[[arms]]\nname = "plain"\n', [])
        (bench.results / "fakes" / "tuning.jsonl").write_text('{"trials": [1], "dropped_at": 1}\n')
        assert main(["status", "--results", str(bench.results)]) == 0

    def test_thousands_of_trials_in_a_moment(self, tmp_path, capsys):
        from bench.records.store import Store

        store = Store(tmp_path)
        lines = []
        for n in range(300):
            id = f"{n:016x}"
            folder = store.folder(id)
            folder.mkdir(parents=True)
            (folder / "trial.json").write_text(json.dumps({"schema": 1, "id": id, "config": {"epochs": 2}}))
            (folder / "epochs.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
            (folder / "summary.json").write_text('{"schema": 1, "status": "done", "final_test_acc": 50.0}')
            lines.append({"arm": "a", "baseline": None, "grid": {"seed": n}, "id": id})
        store.write_index("many", '[[arms]]\nname = "a"\n', lines)
        assert main(["status", "--results", str(tmp_path)]) == 0
        assert "300 trials: 300 done" in capsys.readouterr().out


class TestRehearsal:
    """What only the built network tells is told before a trial begins."""

    ARMS = (
        ("strategy.layers", "PROGRESSIVE, layers = ['nope'] }"),
        ("strategy.kernel", "PROGRESSIVE, kernel = 99 }"),
        ("strategy.portions", "{ kind = 'incremental', portions = [0.5, 0.4, 1.0] }"),
        ("strategy.stages", "{ kind = 'staged', stages = ['9/9'] }"),
        ("strategy", "{ kind = 'two_step' }"),
        ("strategy.hint", "{ kind = 'fitnets', hint = 'nope' }"),
        ("strategy.guided", "{ kind = 'fitnets', guided = 'nope' }"),
        ("strategy.shared", "{ kind = 'rocket', shared = ['nope'] }"),
        ("strategy.layers", "{ kind = 'auxiliary', layers = ['nope'] }"),
    )

    def test_every_wrong_arm_is_named_before_anything_is_trained(self, bench, capsys):
        progressive = "{ kind = 'progressive', merge = 'sum', factor = { kind = 'cosine', until = 0.5 }"
        text = PLAIN
        for number, (_, strategy) in enumerate(self.ARMS):
            text += f"[[arms]]\nname = 'arm {number}'\nstrategy = "
            text += strategy.replace("PROGRESSIVE", progressive) + "\n"
        bench.file.write_text(text)
        for words in (bench.arguments("--no-ray"), bench.arguments("--no-ray", "--fresh")):
            assert main(words, train=TRAIN) == 2
            said = capsys.readouterr().err
            for number, (key, _) in enumerate(self.ARMS):
                assert said.count(f"{bench.file}: arm 'arm {number}'.{key}: ") == 1
            assert len(said.splitlines()) == len(self.ARMS)
        assert not bench.calls() and not bench.store.ids()
        assert main(["show", str(bench.file), "--layers"]) == 2
        assert f"{bench.file}: arm 'arm 0'.strategy.layers: " in capsys.readouterr().err


class TestPrintedCommands:
    """What a command prints as a command works when it is pasted, whatever the folders are called."""

    @pytest.fixture
    def bench(self, tmp_path):
        odd = tmp_path / "a folder; it's $HOME"
        odd.mkdir()
        return Bench(odd)

    def pasted(self, line: str) -> int:
        """Run the printed line as a shell would split it."""
        words = subprocess.run(
            ["sh", "-c", f'printf "%s\\0" {line}'], capture_output=True, text=True, check=True
        ).stdout.split("\0")[:-1]
        assert words[0] == "bench"
        return main(words[1:], train=TRAIN)

    def test_report_after_a_selection(self, bench, capsys):
        more = ("--only", "plain", "--seeds", "2", "--set", "epochs=1")
        assert bench.run(*more) == 0
        line = capsys.readouterr().out.strip().splitlines()[-1]
        assert self.pasted(f"{line} --format csv") == 0
        said = capsys.readouterr().out
        assert "2 of 2 runs done" in said
        runs = (next((bench.results / "report").glob("*/runs.csv"))).read_text().splitlines()[1:]
        trained = {id for id, _, _ in bench.calls()}
        assert len(runs) == 2 and all(any(id in run for run in runs) for id in trained)

    @pytest.mark.parametrize(
        ("tuned", "text"),
        [
            (False, "strategy.factor.until=0.25"),  # the baseline has no such option
            (False, "grid.seed=[1]"),
            (True, "tuning.effort=1"),
        ],
    )
    def test_report_after_overrides_shows_the_trials_of_the_run(self, bench, capsys, tuned, text):
        bench.file.write_text(TUNED if tuned else TUNED[: TUNED.index("[tuning]")])
        train = TUNED_TRAIN if tuned else TRAIN
        assert main(bench.arguments("--no-ray", "--jobs", "2"), train=train) == 0
        capsys.readouterr()
        assert main(bench.arguments("--no-ray", "--jobs", "2", "--set", text), train=train) == 0
        *table, _, line = capsys.readouterr().out.strip().splitlines()
        ran = {row.split()[-1] for row in table[-2 if text == "grid.seed=[1]" else -4 :]}
        assert self.pasted(f"{line} --format csv") == 0
        folder = bench.results / "report" / "fakes"
        with (folder / "runs.csv").open() as file:
            assert {row["run"] for row in csv.DictReader(file)} == ran
        if tuned:  # the one configuration of each arm
            assert len((folder / "tuning.csv").read_text().splitlines()) == 1 + 2

    def test_status_says_the_command_that_goes_on(self, bench, capsys):
        more = ("--only", "plain", "--seeds", "1", "--set", "epochs=1")
        assert main(bench.arguments(*more, command="status")) == 0
        line = capsys.readouterr().out.strip().splitlines()[-1]
        assert line.endswith("will train 1 from the beginning.")
        assert self.pasted(line[1 : line.rindex("`")] + " --no-ray") == 0
        assert len(bench.calls()) == 1 and bench.store.status(bench.calls()[0][0]) == "done"

    def test_data_that_is_missing(self, bench, capsys):
        assert bench.run("--set", "dataset=svhn") == 2
        said = capsys.readouterr().err
        line = said[said.index("`") + 1 : said.rindex("`")]
        assert shlex.split(line) == ["bench", "data", "fetch", "svhn", "--data", str(bench.data)]

    def test_a_trial_that_is_not_found(self, bench, capsys):
        assert bench.run("--only", "plain", "--seeds", "1") == 0
        assert main(["verify", "0123", "--results", str(bench.results)]) == 2
        said = capsys.readouterr().err
        assert self.pasted(said[said.index("`") + 1 : said.rindex("`")]) == 0

    def test_a_path_that_looks_like_an_option(self):
        assert command("run", Path("-x.toml"), "--seeds", 2) == "bench run ./-x.toml --seeds 2"


class TestVerify:
    def test_identical_then_different_in_deviations_between_seeds(self, bench, capsys):
        bench.run()
        apprentice = next(
            line
            for line in (bench.results / "fakes" / "index.jsonl").read_text().splitlines()
            if "appr" in line
        )
        for id in (bench.plain()[0], json.loads(apprentice)["id"]):
            command = ["verify", id[:8], "--results", str(bench.results), "--data", str(bench.data)]
            capsys.readouterr()
            assert main(command, train="tests.launch.running_fakes:train") == 0
            assert f"identical: trial {id}, 3 epochs" in capsys.readouterr().out
        id = bench.plain()[0]
        command[1] = id
        summary = bench.store.summary(id)
        then = summary["final_test_acc"]
        bench.store.write_summary(id, {**summary, "final_test_acc": then - 2.0})
        assert main(command, train="tests.launch.running_fakes:train") == 1
        out = capsys.readouterr().out
        assert "different" in out and "final_test_acc" in out and "+2.00 points" in out
        assert "standard deviations between the 4 seeds" in out

    def test_unfinished_trials_cannot_be_verified(self, bench, capsys):
        bench.behave(s0="raise")
        bench.run("--only", "plain", "--seeds", "1")
        command = ["verify", bench.plain()[0], "--results", str(bench.results), "--data", str(bench.data)]
        assert main(command) == 2
        assert "failed (ValueError: planted failure)" in capsys.readouterr().err


class TestImports:
    @pytest.mark.parametrize("command", ["list", "show", "status", "run"])
    def test_no_torch_and_no_ray_before_something_trains(self, bench, command):
        arguments = {"list": ["list"]}.get(command) or bench.arguments(command=command)
        if command == "run":
            bench.run()
            arguments = [*arguments, "--no-ray"]
        code = (
            "import sys; from bench.cli.main import main; status = main(sys.argv[1:]); "
            "sys.exit(status or bool({'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    def test_a_reader_that_has_seen_enough_is_no_error(self):
        read, write = os.pipe()
        os.close(read)
        result = subprocess.run(
            [sys.executable, "-m", "bench", "list"],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(write)
        assert result.returncode == 0 and result.stderr == ""

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
    def test_a_closed_standard_stream_is_no_error(self, closed, tmp_path):
        new = f"{sys.executable} -m bench new {shlex.quote(str(tmp_path))}/my.toml {closed}"
        result = subprocess.run(["sh", "-c", new], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        assert result.returncode == 0 and result.stderr == ""
        assert (tmp_path / "my.toml").read_text().startswith("# An experiment file")

    def test_without_ray_it_says_so_and_goes_on(self, bench, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.setitem(sys.modules, "ray.tune", None)
        arguments = bench.arguments("--only", "plain", "--seeds", "1")
        assert main(arguments, train="tests.launch.running_fakes:train") == 0
        assert "Ray cannot be imported" in capsys.readouterr().out
        assert (
            main([*arguments, "--fresh", "--address", "auto"], train="tests.launch.running_fakes:train") == 2
        )
