"""What an experiment file refers to by name: recipes and data sets, each looked up once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments import catalog, start
from bench.experiments.config import TrialConfig
from bench.experiments.toml_files import Problems, load_recipe
from bench.machine.folders import resolve_data_dir


class Library:
    """The recipes and data sets of one file. What is wrong with one of them is reported once."""

    def __init__(self, folder: Path, data_dir: Path | None, problems: Problems) -> None:
        """``folder`` is that of the experiment file, ``data_dir`` that of the data (None: by default)."""
        self.folder, self._data_dir, self._problems = folder, data_dir, problems
        self._recipes: dict[str, dict[str, Any] | None] = {}
        self._data: dict[str, tuple[str | None, int | None]] = {}

    @property
    def recipes_readable(self) -> bool:
        """Whether every recipe asked for so far could be read."""
        return None not in self._recipes.values()

    def recipe(self, name: str, where: str) -> dict[str, Any] | None:
        """Return a recipe's fields; None after reporting under the key ``where`` what is wrong with it."""
        if name not in self._recipes:
            try:
                self._recipes[name] = load_recipe(name, self.folder, f"{self._problems.file}: {where}")
            except InputError as error:
                self._recipes[name] = None
                self._problems.report(error)
        return self._recipes[name]

    def checksum(self, config: TrialConfig) -> str | None:
        """Return the checksum of the trial's data, None where the data is absent."""
        return self._facts(config)[0]

    def with_start(self, config: TrialConfig) -> TrialConfig:
        """Return ``config`` with the checksum of its start file; ``InputError`` where the file is absent."""
        if config.start is None:
            return config
        sealed = start.sealed(config.start, resolve_data_dir(self._data_dir))
        return config.model_copy(update={"start": sealed})

    def steps_per_epoch(self, config: TrialConfig) -> int | None:
        """Return the training steps of an epoch, None if not known; ``InputError`` for too few images."""
        total = self._facts(config)[1]
        if total is None:
            return None
        count = catalog.training_count(
            total, batch_size=config.batch_size, train_size=config.train_size, holdout=config.holdout
        )
        return count // config.batch_size

    def num_classes(self, config: TrialConfig) -> int | None:
        """Return the number of classes of the trial's data, None where only absent files could tell."""
        return catalog.facts(config.dataset, resolve_data_dir(self._data_dir)).num_classes

    def _facts(self, config: TrialConfig) -> tuple[str | None, int | None]:
        """Return the checksum of the trial's data and the number of training images, None where not known."""
        key = json.dumps(config.dataset, sort_keys=True)
        if key not in self._data:
            self._data[key] = None, None
            try:
                folder = resolve_data_dir(self._data_dir)
                facts = catalog.facts(config.dataset, folder)
                self._data[key] = catalog.checksum(config.dataset, folder), facts.train_count
            except InputError as error:
                self._problems.extend("dataset: ", error)
        return self._data[key]
