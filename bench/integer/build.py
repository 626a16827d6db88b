"""``popcount.c`` as a library of this machine: compiled on first use, kept in the user's cache, loaded.

The file is compiled once for each instruction set that it has functions for. The best one that the processor
has is used; ``$BENCH_INTEGER`` names another: avx512, avx2 or portable.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError, nearest
from bench.machine.folders import cache_folder
from bench.machine.temporary import temporary_folder
from bench.records.files import StoreError, write_atomic
from bench.text import clean

SOURCE = Path(__file__).with_name("popcount.c")
ABI = 1  # as in popcount.c
VARIABLE = "BENCH_INTEGER"
# No fused multiplication: all instruction sets give the same numbers.
_COMMON = ("-O3", "-std=c11", "-ffp-contract=off", "-fPIC", "-shared")
# The best first; of each what the compiler needs, and what popcount.c calls the set (0: nothing needed).
INSTRUCTIONS = {
    "avx512": (("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vpopcntdq"), 2),
    "avx2": (("-mavx2", "-mpopcnt"), 1),
    "portable": ((), 0),
}
_COMPILERS = ("cc", "gcc", "clang")


class NoCompiler(InputError):
    """There is no C compiler, or it cannot compile ``popcount.c``; the message says what to do."""


@dataclass(frozen=True)
class Library:
    """A loaded library, and the instruction set that it was compiled for."""

    functions: ctypes.CDLL
    instructions: str


def library(instructions: str | None = None) -> Library:
    """Return the library for ``instructions``; None: those of ``$BENCH_INTEGER``, else the best one here.

    Raises ``InputError`` for a set that does not exist or that the processor has not, and ``NoCompiler``.
    """
    chosen = instructions or os.environ.get(VARIABLE) or None
    return _library(chosen, str(cache_folder()), os.environ.get("CC"))


@functools.cache
def loaded(instructions: str) -> Library:
    """Return the library for ``instructions``, as ``library`` does, at once when a process asks again."""
    return library(instructions)


@functools.cache
def _library(chosen: str | None, cache: str, compiler: str | None) -> Library:
    """Return what ``library`` describes; a process loads each library once."""
    if chosen is not None and chosen not in INSTRUCTIONS:
        raise InputError(
            f"{VARIABLE}: no instruction set is called {chosen!r}.{nearest(chosen, INSTRUCTIONS)} "
            f"Known: {', '.join(INSTRUCTIONS)}."
        )
    command = _find_compiler(compiler)
    portable = _made("portable", command, Path(cache))
    here = [name for name, (_, number) in INSTRUCTIONS.items() if not number or portable.has(number)]
    if chosen is not None:
        if chosen not in here:
            raise InputError(f"{VARIABLE}: this processor has no {chosen}; it has {', '.join(here)}")
        return Library(_made(chosen, command, Path(cache)), chosen)
    for name in here[:-1]:
        try:
            return Library(_made(name, command, Path(cache)), name)
        except NoCompiler:  # older than the instructions
            continue
    return Library(portable, "portable")


def _find_compiler(named: str | None) -> list[str]:
    """Return the command of the C compiler: ``$CC``, else the first of cc, gcc and clang."""
    words = shlex.split(named) if named else []
    if words:
        if shutil.which(words[0]) is None:
            raise NoCompiler(f"$CC: there is no program {clean(words[0], 80)!r}")
        return words
    for name in _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return [path]
    raise NoCompiler(
        "inference on integers needs a C compiler, and there is none (cc, gcc, clang; $CC may name another). "
        "Install one, for instance Debian's package gcc, or run the network in float32."
    )


def _made(name: str, compiler: list[str], cache: Path) -> ctypes.CDLL:
    """Return the library for an instruction set from the cache, or compile it."""
    source = SOURCE.read_bytes()
    flags = [*_COMMON, *INSTRUCTIONS[name][0]]
    said = _run([*compiler, "--version"]).stdout
    parts = (source, *(text.encode() for text in (*compiler, *flags, said, platform.machine())))
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    folder = cache / "integer"
    for path in _kept(folder, key):
        if (found := _loaded(path)) is not None:
            return found
    with temporary_folder("integer") as place:
        made = place / "popcount.so"
        ended = _run([*compiler, *flags, str(SOURCE), "-o", str(made)])
        if ended.returncode != 0 or not made.exists():
            first = next((line for line in ended.stderr.splitlines() if "error" in line), ended.stderr)
            raise NoCompiler(f"{compiler[0]} cannot compile {SOURCE.name} ({name}): {clean(first, 200)}")
        data = made.read_bytes()
        path = folder / f"{key}-{hashlib.sha256(data).hexdigest()[:24]}.so"
        try:
            write_atomic(path, data)
        except StoreError:  # no cache that can be written: the next process compiles again
            path = made
        found = _loaded(path)
    if found is None:
        raise NoCompiler(f"{compiler[0]} made a library of {SOURCE.name} that this process cannot load")
    return found


def _kept(folder: Path, key: str) -> Iterator[Path]:
    """Yield libraries in the cache that were compiled so and are undamaged: the name has their checksum."""
    try:
        paths = sorted(folder.glob(f"{key}-*.so"))
        for path in paths:
            if path.stem == f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}":
                yield path
    except OSError:
        return


def _loaded(path: Path) -> ctypes.CDLL | None:
    """Return a library with its functions declared; None where it cannot be loaded or is another one."""
    try:
        found = ctypes.CDLL(str(path))
        if found.abi() != ABI:
            return None
        found.has.argtypes = [ctypes.c_int]
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        found.pack.argtypes = [pointer, *[number] * 4, pointer, number, *[pointer] * 5]
        found.convolve.argtypes = [pointer] * 4 + [number] * 2
        found.pack.restype = found.convolve.restype = None
    except (OSError, AttributeError):
        return None
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Return what a compiler's run gave; raises ``NoCompiler`` where it cannot be started."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{command[0]}: cannot be run ({clean(error, 120)})") from None
