"""Which trials of an experiment are meant: the options that show, run, status and report share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest
from bench.experiments.expand import load_experiment
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

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """Return the selected ones of the lines of ``index.jsonl``.

        The lines say profile, arm and seed. Overrides stand in no line: ``load`` says which trials have them.
        Raises ``InputError`` where an arm of ``only`` has no line.
        """
        arms = self._arms(lines)
        kept = []
        for line in lines:
            arm = line.get("arm") or line.get("tunes")
            seed = (line.get("grid") or {}).get("seed", 0)
            of_search = line.get("tunes") is not None  # its seeds are those of the table [tuning]
            if (
                (self.profile is None or line.get("profile") == self.profile)
                and (arms is None or arm is None or arm in arms)
                and (self.seeds is None or of_search or (type(seed) is int and seed < self.seeds))
            ):
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
