"""The compiled library: found again, repaired, built by processes at once, or refused with a message."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.integer import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return an empty cache folder of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build, "_COMMON", ("-O0", *build._COMMON[1:]))  # quick to compile
    build._library.cache_clear()
    yield tmp_path / "cache" / "progressive-bench" / "integer"
    build._library.cache_clear()


def compiler(tmp_path: Path, monkeypatch, text: str) -> Path:
    """Make a shell script the C compiler, with ``text`` for its body."""
    script = tmp_path / "mycc"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(script))
    return script


def test_a_second_process_compiles_nothing(cache, tmp_path, monkeypatch):
    log = tmp_path / "log"
    compiler(tmp_path, monkeypatch, f'case "$*" in *--version) ;; *) echo run >> {log};; esac\nexec cc "$@"')
    build.library("portable")
    assert log.read_text() == "run\n" and len(list(cache.glob("*.so"))) == 1
    build._library.cache_clear()
    assert build.library("portable").functions.abi() == build.ABI
    assert log.read_text() == "run\n"


def test_other_flags_or_another_compiler_are_another_library(cache, tmp_path, monkeypatch):
    build.library("portable")
    compiler(tmp_path, monkeypatch, 'exec cc "$@"')
    build.library("portable")
    monkeypatch.setenv("CC", "cc -g0")
    build.library("portable")
    assert len(list(cache.glob("*.so"))) == 3


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", None])
def test_a_damaged_library_is_compiled_again(cache, damage):
    build.library("portable")
    (file,) = cache.glob("*.so")
    whole = file.read_bytes()
    file.unlink()  # the loaded one stays as it is
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    build._library.cache_clear()
    assert build.library("portable").functions.abi() == build.ABI
    assert file.read_bytes() == whole


@pytest.mark.slow
def test_processes_at_once(cache, tmp_path):
    code = "from bench.integer.build import library; print(library('portable').functions.abi())"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate()[0] for process in started] == [f"{build.ABI}\n"] * 4
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_a_cache_that_cannot_be_written(cache, tmp_path):
    cache.parent.parent.write_text("a file in the way")
    assert build.library("portable").functions.abi() == build.ABI


def test_without_a_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match=r"needs a C compiler, and there is none .cc, gcc, clang; .CC may name"
    ):
        build.library()
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(InputError, match=r"^\$CC: there is no program 'no-such-compiler'$"):
        build.library()


def test_a_compiler_that_fails(cache, tmp_path, monkeypatch):
    script = compiler(tmp_path, monkeypatch, "echo 'x.c: error: out of ideas' >&2; exit 1")
    with pytest.raises(build.NoCompiler) as caught:
        build.library()
    assert str(caught.value) == f"{script} cannot compile popcount.c (portable): x.c: error: out of ideas"
    assert not list(cache.parent.rglob("*.so"))


def test_a_compiler_older_than_the_instructions(cache, tmp_path, monkeypatch):
    refuse = 'case "$*" in *mavx*) echo "error: unrecognized option" >&2; exit 1;; esac\nexec cc "$@"'
    compiler(tmp_path, monkeypatch, refuse)
    assert build.library().instructions == "portable"


def test_unknown_instructions(cache, monkeypatch):
    with pytest.raises(InputError, match=r"no instruction set is called 'avx3'\. Did you mean 'avx2'\?"):
        build.library("avx3")
    monkeypatch.setenv(build.VARIABLE, "portable")
    assert build.library().instructions == "portable"


def test_a_processor_without_them(cache, tmp_path, monkeypatch):
    source = tmp_path / "popcount.c"
    source.write_text(
        build.SOURCE.read_text().replace("int has(int set)\n{", "int has(int set)\n{\n    return 0;")
    )
    monkeypatch.setattr(build, "SOURCE", source)
    with pytest.raises(InputError, match="this processor has no avx512; it has portable"):
        build.library("avx512")
    assert build.library().instructions == "portable"


def test_the_numbers_of_python_are_those_of_the_source():
    from bench.integer import kernel, levels

    text = build.SOURCE.read_text()
    for name, value in (("BLOCK", kernel.BLOCK), ("MOST_TAPS", levels.MOST_TAPS), ("ABI", build.ABI)):
        assert f"#define {name} {value}" in text, name
