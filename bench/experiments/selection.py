"""Which trials of an experiment are meant: the options that show, run, status and report share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest
from bench.experiments.config import FIELDS, check_field
from bench.experiments.expand import load_experiment
from bench.experiments.toml_files import parse_override
from bench.experiments.trials import Experiment

Line = Mapping[str, Any]  # of index.jsonl


@dataclass(frozen=True)
class Selection:
    """``--profile``, ``--set``, ``--only`` and ``--seeds``; the default is everything."""

    profile: str | None = None
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int | None = None

    def __bool__(self) -> bool:
        """Return whether anything is left out."""
        return bool(self.profile or self.overrides or self.only or self.seeds)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Selection:
        """Return the selection that parsed arguments hold."""
        return cls(args.profile, tuple(args.overrides), tuple(args.only), args.seeds)

    def words(self) -> list[object]:
        """Return the options of a command that select the same trials."""
        words: list[object] = ["--profile", self.profile] if self.profile else []
        for option, values in (("--set", self.overrides), ("--only", self.only)):
            for value in values:
                words += [option, value]
        return words + (["--seeds", self.seeds] if self.seeds else [])

    def load(self, file: Path, data_dir: Path | None = None) -> Experiment:
        """Return the expanded experiment; data checksums are those of the data sets in ``data_dir``."""
        return load_experiment(
            file,
            profile=self.profile,
            overrides=self.overrides,
            only=self.only,
            seeds=self.seeds,
            data_dir=data_dir,
        )

    def lines(
        self, lines: Sequence[Line], config_of: Callable[[str], Mapping[str, Any] | None]
    ) -> list[Line]:
        """Return the selected ones of the lines of ``index.jsonl``.

        The index says what was run, the records say how: nothing is expanded and nothing of a user's own is
        imported.

        ``config_of`` returns the recorded configuration of a trial; a trial without one is left out only by
        what its line says. Raises ``InputError`` where an arm of ``only`` has no line, or an override is no
        ``key=value``.
        """
        if not self:
            return list(lines)
        wanted = [parse_override(text) for text in self.overrides]
        arms = self._arms(lines)
        kept = []
        for line in lines:
            config = config_of(str(line["id"])) if line.get("id") and (wanted or self.seeds) else None
            grid = {**(config or {}), **(line.get("grid") or {})}
            seed = grid.get("seed", 0)
            out = (
                (self.profile is not None and line.get("profile") != self.profile)
                or (arms is not None and line.get("arm") is not None and line["arm"] not in arms)
                or (self.seeds is not None and not (isinstance(seed, int) and seed < self.seeds))
                or not all(_agrees(config, grid, path, value) for path, value in wanted)
            )
            if not out:
                kept.append(line)
        return kept

    def _arms(self, lines: Sequence[Line]) -> set[str] | None:
        """Return the arms of ``only`` with their baselines, None for all."""
        if not self.only:
            return None
        baselines = {str(line["arm"]): line.get("baseline") for line in lines if line.get("arm") is not None}
        for name in self.only:
            if name not in baselines:
                raise InputError(f"--only: no run of an arm {name!r} is recorded.{nearest(name, baselines)}")
        arms: set[str] = set()
        waiting = list(self.only)
        while waiting:
            name = waiting.pop()
            if name not in arms:
                arms.add(name)
                waiting += [str(baselines[name])] if baselines.get(name) else []
        return arms


def _agrees(
    config: Mapping[str, Any] | None, grid: Mapping[str, Any], path: tuple[str, ...], value: Any
) -> bool:
    """Return whether a trial has ``value`` at a dotted path, as far as is known."""
    if config is None:
        return bool(grid.get(".".join(path), value) == value)
    found: Any = config
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping) and isinstance(value, str):
        return bool(found.get("kind") == value)
    if len(path) == 1 and path[0] in FIELDS:
        try:
            value = check_field(path[0], value)
        except InputError:
            return False
    if isinstance(found, Mapping) and isinstance(value, Mapping):
        return all(found.get(key) == inner for key, inner in value.items())
    return bool(found == value)
