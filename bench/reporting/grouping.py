"""Trials -> groups of runs that differ in the seed alone. This is the first stage of a table's row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.errors import InputError
from bench.experiments.config import parse_bits
from bench.reporting.records import Records

Trial = Mapping[str, Any]  # one row of ``Records.trials``
_Key = tuple[Any, ...]  # arm, role, grid point, configuration, data, and how often that was there before


@dataclass(frozen=True)
class Runs:
    """The runs of one arm at one grid point, budget and data, which differ in the seed alone.

    ``config`` is the configuration without seeds; it is empty where nothing is known of it. ``order`` is the
    position of the arm in the experiment file. ``notes`` say why these runs stand apart from others of the
    same configuration, ``again`` counts these others.
    """

    arm: str | None
    baseline: str | None
    role: str | None
    order: int
    grid: Mapping[str, Any]
    config: Mapping[str, Any]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    again: int = 0

    @property
    def done(self) -> list[Trial]:
        """The finished trials."""
        return [trial for trial in self.trials if trial["status"] == "done"]

    @property
    def data(self) -> tuple[str, ...]:
        """The checksums of the data of all trials, sorted."""
        return tuple(sorted({str(trial["data"]) for trial in self.trials if trial["data"] is not None}))


def canonical(value: Any) -> str:
    """Return a value as text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def without_seeds(value: Any) -> Any:
    """Return a configuration without its seed, and without the seeds of the configurations in it."""
    if isinstance(value, Mapping):
        return {key: without_seeds(item) for key, item in value.items() if key != "seed"}
    return [without_seeds(item) for item in value] if isinstance(value, list) else value


def group(records: Records) -> list[Runs]:
    """Return the runs of an experiment in groups.

    Two trials share a group if they are of one arm, one grid point, one configuration but for the seed, and
    one data checksum. A seed that would stand in a group twice (the same configuration under another
    identity, because a registry entry was revised) opens another group.
    """
    rows: list[dict[str, Any]] = records.trials.to_dict("records")  # type: ignore[assignment]
    for row in rows:
        for column, value in row.items():  # pandas turns an absent number into NaN
            if isinstance(value, float) and math.isnan(value):
                row[column] = None
    members: dict[_Key, list[Trial]] = {}
    configs: dict[_Key, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["data"] is None):
        if row["config"] is not None:
            config = without_seeds(row["config"])
            key = _key(row, config, members)
            members.setdefault(key, []).append(row)
            configs[key] = config
    for row in rows:
        if row["config"] is None:
            key = _key_of_unknown(row, members, configs)
            members.setdefault(key, []).append(row)
    order: dict[str | None, int] = {arm: i for i, arm in enumerate(records.arms)}
    groups = [_runs(key, members[key], configs[key], order) for key in members]
    return _with_data_notes(groups)


def _place(row: Trial) -> _Key:
    return row["arm"], row["role"], canonical(row["grid"])


def _key(row: Trial, config: Mapping[str, Any], members: Mapping[_Key, Sequence[Trial]]) -> _Key:
    """Return the key of the group of a trial with a known configuration."""
    start = (*_place(row), canonical(config), row["data"])
    if row["data"] is None:  # never begun: it belongs to the runs that differ in the seed alone
        start = next((key[:5] for key in members if key[:4] == start[:4]), start)
    again = 0
    while any(trial["seed"] == row["seed"] for trial in members.get((*start, again), ())):
        again += 1
    return (*start, again)


def _key_of_unknown(
    row: Trial, members: Mapping[_Key, Sequence[Trial]], configs: dict[_Key, Mapping[str, Any]]
) -> _Key:
    """Return the key of a trial without any record.

    It is that of the only group at its arm and grid point; with several budgets it is a key of its own.
    """
    fitting = [
        key
        for key, trials in members.items()
        if key[:3] == _place(row) and all(trial["seed"] != row["seed"] for trial in trials)
    ]
    if len(fitting) == 1:
        return fitting[0]
    config = _presumed(row, {key: configs[key] for key in members})
    key = (*_place(row), canonical(config), None, 0)
    configs[key] = config
    return key


def _presumed(row: Trial, configs: Mapping[_Key, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the configuration of a trial without records: its arm's, where width and bits alone vary."""
    if row["arm"] is None or not set(row["grid"]) <= {"width", "bits"}:
        return {}
    free = dict(row["grid"])
    try:
        if "bits" in free:
            free["bits"] = "/".join(map(str, parse_bits(free["bits"])))
    except InputError:
        return {}
    found = {}
    for key, config in configs.items():
        if key[0] == row["arm"] and config:
            presumed = {**config, **free}
            found[canonical(presumed)] = presumed
    return next(iter(found.values())) if len(found) == 1 else {}


def _runs(
    key: _Key, trials: Sequence[Trial], config: Mapping[str, Any], order: Mapping[str | None, int]
) -> Runs:
    first = trials[0]
    again = ("the same configuration under another identity: data or code was revised",) if key[5] else ()
    return Runs(
        arm=first["arm"],
        baseline=first["baseline"],
        role=first["role"],
        order=order.get(first["arm"], len(order)),
        grid=first["grid"],
        config=config,
        trials=tuple(
            sorted(trials, key=lambda t: (t["seed"] if isinstance(t["seed"], int) else 0, str(t["id"])))
        ),
        notes=again,
        again=key[5],
    )


def _with_data_notes(groups: Iterable[Runs]) -> list[Runs]:
    """Return the groups; a group that differs from another one in the data alone gets a note on its data."""
    groups = list(groups)
    alike: dict[_Key, set[str]] = {}
    for runs in groups:
        if runs.config:
            alike.setdefault(_likeness(runs), set()).update(runs.data)
    return [
        replace(
            runs,
            notes=(
                *runs.notes,
                f"data {', '.join(sum.strip(chr(34))[:12] for sum in runs.data)}: another row has other data",
            ),
        )
        if len(alike.get(_likeness(runs), ())) > 1
        else runs
        for runs in groups
    ]


def _likeness(runs: Runs) -> _Key:
    return runs.arm, runs.role, canonical(runs.grid), canonical(runs.config)
