"""The command line itself: help with groups and examples, version, completion, colour, what is imported."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import __version__
from bench.cli.main import main, place_of
from bench.cli.parser import make_parser
from bench.cli.screen import Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _help(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("command", ["", *make_parser()[1]])
def test_every_help_has_an_example_and_fits(capsys, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = _help(capsys, *([command] if command else []))
    assert "Example" in text and f"bench {command}".strip() in text
    assert "\x1b" not in text  # not a terminal
    described = text.partition("Example")[0]
    assert max(map(len, described.splitlines())) <= width


@pytest.mark.parametrize("command", ["verify", "sharpness", "export"])
def test_the_trials_of_the_examples_are_those_of_the_shipped_experiment(capsys, command):
    index = Path(__file__).parents[2] / "results" / "digits" / "index.jsonl"
    ids = [json.loads(line)["id"] for line in index.read_text(encoding="utf-8").splitlines()]
    examples = _help(capsys, command).partition("Example")[2]
    named = re.findall(r"\b[0-9a-f]{8,16}\b", examples)
    assert named and all(any(id.startswith(name) for id in ids) for name in named), named


def test_the_options_of_run_are_grouped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = _help(capsys, "run")
    titles = ["Which trials", "Where", "How many at once", "Limits and second attempts", "Code of your own"]
    places = [text.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    assert places[1] < text.index("--results DIR   ") < places[2] < text.index("--jobs N    ") < places[3]


def test_an_option_given_twice_leaves_nothing_out(capsys):
    parser, _ = make_parser()
    assert parser.parse_args(["report", "--format", "csv", "--format", "html,md"]).formats == [
        "csv",
        "html",
        "md",
    ]
    for words in (["status", "--results", "a", "--results", "b"], ["export", "x", *["--format", "onnx"] * 2]):
        assert main(words) == 2
        assert "is given twice; this command takes one" in capsys.readouterr().err


def test_every_option_has_help():
    _, commands = make_parser()
    bare = [
        (name, action.dest)
        for name, command in commands.items()
        for action in command._actions
        if not action.help
    ]
    assert bare == []


def test_every_command_has_a_function():
    for command in make_parser()[1]:
        module, function = place_of(command)
        source = Path(bench.__file__).parents[1] / f"{module.replace('.', '/')}.py"
        assert f"\ndef {function}(" in source.read_text()  # read, since importing torch takes long


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == f"bench {__version__}"


def test_schema_is_json_that_knows_claims_and_arms(capsys):
    assert main(["schema"]) == 0
    assert "arms" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "max-minutes" in script and "report" in script


def test_completion_in_bash_works(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    lines = (
        f"source {tmp_path / 'script'}; COMP_WORDS=(bench run --max); COMP_CWORD=2; _shtab_bench bench "
        "--max run;"
        ' echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False)
    assert "--max-minutes" in done.stdout, done


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    assert "fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "forbidden"),
    [
        (["--help"], {"torch", "numpy", "pandas", "matplotlib", "pydantic", "ray", "scipy", "shtab"}),
        (["list"], {"torch", "numpy", "pandas", "matplotlib", "ray", "scipy"}),
        (["report", "--help"], {"torch", "numpy", "pandas", "matplotlib", "pydantic", "ray", "scipy"}),
    ],
)
def test_what_is_not_imported_makes_the_start_quick(words, forbidden):
    code = (
        "import sys\nfrom bench.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert forbidden & set(done.stdout.splitlines()[-1].split()) == set()


def test_colour_on_a_terminal_alone_and_not_with_no_color(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    rows = [("a", "done"), ("b", "failed: no memory")]
    shown = Screen.of(Terminal()).table(("name", "state"), rows)
    assert "\x1b[32mdone" in shown and "\x1b[31mfailed" in shown
    assert "\x1b" not in Screen.of(io.StringIO()).table(("name", "state"), rows)
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen.of(Terminal()) == Screen(90)
    assert "\x1b" not in Screen.of(Terminal()).table(("name", "state"), rows)


def test_a_terminal_gets_no_commands_from_names():
    shown = Screen(60, colour=True).table(("na\x1b[2Jme",), [("[red]x[/red] \x1b]0;title\x07",)])
    assert "\x1b[2J" not in shown and "\x1b]0" not in shown and "[red]x[/red]" in shown
