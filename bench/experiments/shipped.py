"""The experiments that come with the suite: found by name from anywhere, beside the files of a user."""

from __future__ import annotations

from pathlib import Path

from bench.errors import InputError, nearest
from bench.text import clean

_INSTALLED = Path(__file__).parent / "files"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "experiments"  # in a working copy


def shipped_experiments() -> dict[str, Path]:
    """Return the files of the shipped experiments by name, in the order of their names."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def locate(file: Path | str) -> Path:
    """Return the path of an experiment file that is given as a path or as the name of a shipped experiment.

    A file that exists comes first. A bare name (no folder, no suffix) is then looked up among the shipped
    experiments; ``InputError`` names the nearest of them. Any other path is returned as it is: whoever reads
    the file says what is wrong with the path.
    """
    path = Path(file)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long, or a NUL in it
        return path
    if there or path.name != str(file) or "." in path.name or not path.name:
        return path
    known = shipped_experiments()
    if path.name in known:
        return known[path.name]
    if path.is_dir():
        return path
    raise InputError(
        f"{clean(path, 200)}: there is no such file, and no experiment of this name comes with the suite."
        f"{nearest(path.name, known)} `bench list experiments` names them."
    )
