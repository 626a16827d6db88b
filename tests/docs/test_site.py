"""The documentation holds: commands parse, experiment files load, pages build without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.parser import make_parser, parse
from bench.experiments.expand import load_experiment
from docs.site import figures, reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page that are in one of the languages."""
    return [
        text for language, text in _FENCE.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def commands(page: Path) -> list[list[str]]:
    """Return the words of every line ``bench ...`` in blocks of the shell."""
    text = "\n".join(blocks(page, "", "sh", "bash", "console")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("bench ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_parse_and_name_files_that_exist(page):
    for words in commands(page):
        parser, known = make_parser()
        args = parse(parser, known, words[: words.index(">")] if ">" in words else words)
        for name in (getattr(args, "file", None), *getattr(args, "files", [])):
            if name is None or name.stem == "FILE":
                continue
            if not name.suffix:  # a shipped experiment
                assert (ROOT / "experiments" / f"{name}.toml").exists(), f"{page}: {name}"
            if name.parts[0] == "experiments":
                assert (ROOT / name).exists(), f"{page}: {name}"


def test_there_are_commands_to_check():
    assert sum(len(commands(page)) for page in PAGES) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_experiment_files_load(page, tmp_path):
    files = [text for text in blocks(page, "toml") if "[[arms]]" in text and "[defaults]" in text]
    for number, text in enumerate(files):
        file = tmp_path / f"page{number}.toml"
        file.write_text(text, encoding="utf-8")
        assert load_experiment(file, data_dir=tmp_path).trials


def test_every_field_of_an_experiment_file_is_explained():
    for maker in ("file", "arm", "profile", "trial", "recipe", "tuning", "claims"):
        rows = reference.MAKERS[maker]().splitlines()[2:]
        assert rows
        for row in rows:
            key, values, _, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
            assert key and values and meaning, row


def test_the_picture_of_the_rooms_shows_the_layers_of_the_project():
    picture = (ROOT / "docs/figures/rooms.svg").read_text(encoding="utf-8")
    assert "; ".join(figures.import_layers()) in picture, "run `python -m docs.site.figures`"


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "docs",
        str(tmp_path),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "method.html").read_text(encoding="utf-8")
    assert "<math" in page and '<script src="http' not in page
