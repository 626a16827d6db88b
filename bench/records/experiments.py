"""What a results folder keeps of experiments: the file, the index of trials, the search's choices."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.records.files import (
    append,
    cut_off,
    exclusive,
    explained,
    json_line,
    read_lines,
    strict_json,
    write_atomic,
)

ID = re.compile(r"[0-9a-f]{16}")  # of a trial
_RESERVED = {"trials", "report"}  # folders of the results that are no experiment's


def _odd_index_line(line: dict[str, Any]) -> str | None:
    """Return what is wrong with a line of an index, None where nothing is."""
    if not isinstance(line.get("id"), str) or not ID.fullmatch(line["id"]):
        return f"'id' must have 16 hexadecimal digits, not {str(line.get('id'))[:80]!r}"
    for key in ("arm", "baseline", "baseline_id", "role", "profile"):
        if not isinstance(line.get(key), str | None):
            return f"'{key}' must be text or null, not {str(line[key])[:80]!r}"
    if not isinstance(line.get("grid", {}), dict):
        return f"'grid' must be an object, not {str(line['grid'])[:80]!r}"
    return None


def _odd_sharpness_line(line: dict[str, Any]) -> str | None:
    """Return what is wrong with a line of ``sharpness.jsonl``, None where nothing is."""
    measured_with, ids, path = line.get("with"), line.get("ids"), line.get("path")
    if not isinstance(measured_with, dict):
        return "'with' must be an object: what was measured with"
    if ids is not None:
        good = isinstance(ids, list) and len(ids) == 2 and _numbers(path) and len(path or ()) >= 2
        return (
            None if good and _numbers([line.get("barrier")]) else "a pair needs 'ids', 'path' and 'barrier'"
        )
    sizes = measured_with.get("sizes")
    if not isinstance(line.get("id"), str) or not _numbers(sizes):
        return "a trial needs its 'id' and the 'sizes' of the noise"
    for name in ("trained", "untrained"):
        found = line.get(name)
        if found is None and name == "untrained":
            continue
        rises = found.get("rises") if isinstance(found, dict) else None
        means = (
            [rise.get("mean") for rise in rises if isinstance(rise, dict)] if isinstance(rises, list) else []
        )
        if (
            not isinstance(found, dict)
            or len(means) != len(sizes or ())
            or not _numbers([*means, found.get("loss")])
        ):
            return f"'{name}' needs a 'loss' and a rise with its 'mean' for each size"
    return None


def _numbers(values: Any) -> bool:
    """Return whether ``values`` is a list of numbers."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def _tuning_place(line: dict[str, Any]) -> str:
    """Return the profile, arm and grid point of a line of ``tuning.jsonl`` as one text."""
    return json.dumps([line.get("profile"), line.get("arm"), line.get("grid")], sort_keys=True, default=str)


class Experiments:
    """The folders of experiments in the results folder ``root``."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def experiment_folder(self, name: str) -> Path:
        """Return ``<root>/<name>``; raises ``InputError`` for names that are none or reserved."""
        bad = (
            not name
            or name.startswith(".")
            or "/" in name
            or not name.isprintable()
            or len(name.encode()) > 200
        )
        if bad or name in _RESERVED:
            why = (
                f"the results folder keeps {', '.join(sorted(_RESERVED))} for itself"
                if name in _RESERVED
                else "rename it"
            )
            raise InputError(f"an experiment file cannot be called {name[:80]!r}: {why}")
        return self.root / name

    def write_index(
        self,
        name: str,
        text: str,
        lines: list[dict[str, Any]],
        *,
        file: str | None = None,
        stale: Callable[[dict[str, Any]], bool] = lambda line: False,
    ) -> None:
        """Write the experiment file and merge ``lines`` into the index.

        Lines of other profiles and overrides stay (other ids); those of an arm that the file no longer has
        go.

        Args:
            name: The name of the experiment.
            text: The text of the experiment file.
            lines: The lines of the index.
            file: The name of the file in the experiment's folder; None: ``<name>.toml``.
            stale: Says which of the lines that are there go, too.
        """
        folder = self.experiment_folder(name)
        try:
            arms = {arm.get("name") for arm in tomllib.loads(text).get("arms", [])}
        except (ValueError, RecursionError, AttributeError, TypeError):
            arms = None
        with exclusive(self.root / ".locks" / f"index-{name}"):
            merged = {}
            kept = [line for line in self.index(name) if not stale(line)]
            for line in [*kept, *(strict_json(line) for line in lines)]:
                if arms is None or line.get("arm") is None or line["arm"] in arms:
                    key = {k: v for k, v in line.items() if k != "baseline"}
                    merged[json.dumps(key, sort_keys=True)] = line
            write_atomic(folder / (file or f"{name}.toml"), text.encode())
            write_atomic(folder / "index.jsonl", b"".join(map(json_line, merged.values())))

    def write_tuning(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Merge ``lines`` into ``tuning.jsonl``; lines about other points and profiles stay."""
        path = self.experiment_folder(name) / "tuning.jsonl"
        with exclusive(self.root / ".locks" / f"index-{name}"):
            new = {_tuning_place(line) for line in lines}
            kept = [line for line in read_lines(path) if _tuning_place(line) not in new]
            write_atomic(path, b"".join(map(json_line, [*kept, *lines])))

    def tuning(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of an experiment's ``tuning.jsonl``, ``[]`` where there is none.

        Each has ``trials``, the ids by seed; what is none in a damaged line is left out.
        """
        lines = read_lines(self.experiment_folder(name) / "tuning.jsonl")
        for line in lines:
            trials = line.get("trials")
            items = trials.items() if isinstance(trials, dict) else ()
            line["trials"] = {seed: id for seed, id in items if isinstance(id, str)}
        return lines

    def index(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of an experiment's ``index.jsonl``, ``[]`` where there is none."""
        return read_lines(
            self.experiment_folder(name) / "index.jsonl", check=lambda _, line: _odd_index_line(line)
        )

    def cut_off(self, name: str) -> list[str]:
        """Return the paths of an experiment's index and choices that end within a line."""
        folder = self.experiment_folder(name)
        return [str(path) for path in (folder / "index.jsonl", folder / "tuning.jsonl") if cut_off(path)]

    def append_sharpness(self, name: str, line: dict[str, Any]) -> None:
        """Append one line to the experiment's ``sharpness.jsonl``: a measured trial, or a pair of trials."""
        append(self.experiment_folder(name) / "sharpness.jsonl", line)

    def sharpness(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of an experiment's ``sharpness.jsonl``, ``[]`` where there is none."""
        return read_lines(
            self.experiment_folder(name) / "sharpness.jsonl", check=lambda _, line: _odd_sharpness_line(line)
        )

    def experiments(self) -> list[str]:
        """Return the names of the experiments that have an index here, sorted."""
        with explained(self.root):
            try:
                found = [entry.name for entry in os.scandir(self.root) if not entry.name.startswith(".")]
            except FileNotFoundError:
                return []
        return sorted(name for name in found if (self.root / name / "index.jsonl").is_file())
