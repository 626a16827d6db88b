"""The options of ``show``, ``run`` and ``status`` that say which trials of a file are meant."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.experiments.expand import Experiment, load_experiment


@dataclass(frozen=True)
class Selection:
    """An experiment file with ``--profile``, ``--set``, ``--only`` and ``--seeds``."""

    file: Path
    profile: str | None = None
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Selection:
        """Return the selection that parsed arguments hold."""
        return cls(args.file, args.profile, tuple(args.overrides), tuple(args.only), args.seeds)

    def words(self) -> list[object]:
        """Return the arguments of a command that select the same trials."""
        words: list[object] = [self.file]
        words += ["--profile", self.profile] if self.profile else []
        for option, values in (("--set", self.overrides), ("--only", self.only)):
            for value in values:
                words += [option, value]
        return words + (["--seeds", self.seeds] if self.seeds else [])

    def load(self, data_dir: Path) -> Experiment:
        """Return the expanded experiment; data checksums are those of the data sets in ``data_dir``."""
        return load_experiment(
            self.file,
            profile=self.profile,
            overrides=self.overrides,
            only=self.only,
            seeds=self.seeds,
            data_dir=data_dir,
        )
