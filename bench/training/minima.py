"""The minima of an experiment: sharpness of its final trials, barriers between their seeds.

A line of ``sharpness.jsonl`` in the experiment's folder is one measurement: of a trial (``id``), or of a pair
of trials (``ids``). It holds what was measured with (``with``), so that measuring again with the same numbers
leaves out what is there, and a stopped command goes on. Pairs are the seeds of an arm at one grid point, two
by two in rising order: no trial is in two pairs, so the barriers are independent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest
from bench.records.store import Store
from bench.training.sharpness import barrier, measure, path_losses, subject


@dataclass(frozen=True)
class Settings:
    """What minima are measured with: see ``bench.training.sharpness``."""

    sizes: tuple[float, ...]
    draws: int
    images: int
    points: int
    stored: bool = False

    @property
    def of_trial(self) -> dict[str, Any]:
        """What the numbers of one trial depend on."""
        noise_on = "stored" if self.stored else "quantized"
        return {"noise_on": noise_on, "sizes": list(self.sizes), "draws": self.draws, "images": self.images}

    @property
    def of_pair(self) -> dict[str, Any]:
        """What the barrier of a pair depends on."""
        return {"images": self.images, "points": self.points}


def final_trials(lines: Iterable[Mapping[str, Any]], only: Sequence[str] = ()) -> dict[str, dict[int, str]]:
    """Return the final trials of an index by arm and grid point: {seed: id} in rising order.

    ``only``: names of arms, all of them by default. Raises ``InputError`` for an arm that is not there.
    """
    found: dict[str, dict[int, str]] = {}
    arms = dict.fromkeys(line["arm"] for line in lines if line.get("arm") is not None)
    if unknown := [name for name in only if name not in arms]:
        hint = nearest(unknown[0], arms)
        raise InputError(
            f"--only: no trial of an arm '{unknown[0]}' is recorded.{hint} Arms: {', '.join(arms)}."
        )
    for line in lines:
        if line.get("arm") is None or line.get("role") is not None or (only and line["arm"] not in only):
            continue
        grid = dict(line.get("grid") or {})
        seed = grid.pop("seed", 0)
        place = json.dumps([line["arm"], line.get("profile"), grid], sort_keys=True)
        found.setdefault(place, {})[seed] = line["id"]
    return {place: dict(sorted(seeds.items())) for place, seeds in found.items()}


def pairs(seeds: Mapping[int, str]) -> list[tuple[str, str]]:
    """Return the trials of ``seeds`` two by two in their order; the last of an odd number is in no pair."""
    ids = list(seeds.values())
    return list(zip(ids[::2], ids[1::2], strict=False))


def measure_experiment(
    store: Store,
    name: str,
    settings: Settings,
    data_dir: Path,
    *,
    only: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Measure the final trials of an experiment and append the lines to its ``sharpness.jsonl``.

    Args:
        store, name: The records, and the name of the experiment in them.
        settings: What is measured.
        data_dir: The data folder.
        only: The arms that are measured; none: all.
        tell: Is told of each trial and pair.

    Returns:
        A message for each trial that is not finished or whose weights are not here.

    Raises:
        InputError: Nothing is recorded of the experiment.
    """
    lines = store.index(name)
    if not lines:
        raise InputError(f"{store.experiment_folder(name)}: no trial of this experiment is recorded")
    known = {_key(line) for line in store.sharpness(name)}
    problems: list[str] = []

    def keep(wanted: dict[str, Any], numbers: Callable[[], Mapping[str, Any]]) -> bool:
        """Measure what is not known yet; return whether it is known now."""
        if _key(wanted) in known:
            return True
        try:
            store.append_sharpness(name, {"schema": 1, **wanted, **numbers()})
        except InputError as error:
            problems.append(str(error))
            return False
        return True

    def of_trial(id: str) -> dict[str, Any]:
        found = subject(store, id, data_dir, settings.images)
        return measure(found, settings.sizes, settings.draws, stored=settings.stored)

    def of_pair(ids: tuple[str, str]) -> dict[str, Any]:
        one, other = (subject(store, id, data_dir, settings.images) for id in ids)
        losses = path_losses(one, other, settings.points)
        return {"path": losses, "barrier": barrier(losses)}

    for place, seeds in final_trials(lines, only).items():
        usable = {}
        for seed, id in seeds.items():
            if keep({"id": id, "with": settings.of_trial}, partial(of_trial, id)):
                usable[seed] = id
            tell(f"{json.loads(place)[0]}: trial {id}, seed {seed}")
        for ids in pairs(usable):
            keep({"ids": list(ids), "with": settings.of_pair}, partial(of_pair, ids))
            tell(f"{json.loads(place)[0]}: barrier between {' and '.join(ids)}")
    return problems


def _key(line: Mapping[str, Any]) -> str:
    """Return what makes two lines the same measurement."""
    return json.dumps([line.get("id"), line.get("ids"), line.get("with")], sort_keys=True)
