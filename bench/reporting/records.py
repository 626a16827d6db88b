"""An experiment's index and records as DataFrames: a row a trial, and a row an epoch of each trial.

Every trial of the index is a row, whatever became of it: ``done``, ``diverged``, ``failed``, ``running``,
``unfinished``, ``missing`` or ``damaged``, with the reason. Nothing is averaged here. The index that the run
wrote says which trials there are, so no network of a user's own is imported for a report without
overrides.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import InputError, shown
from bench.experiments.claims import Claim, read_claims
from bench.experiments.declared import Declared, declared
from bench.experiments.selection import Line
from bench.records.files import StoreError
from bench.records.store import Store
from bench.reporting.trial_rows import EPOCH_COLUMNS, TRIAL_COLUMNS, read_trial
from bench.reporting.tuned import as_recorded
from bench.tuning.results import Results

TUNING = "tuning"  # the role of the index lines of trials that choose a configuration


@dataclass(frozen=True)
class Records:
    """What is recorded of one experiment.

    ``text`` is the experiment file and ``folder`` the folder that it lies in, None where the stored copy was
    read. ``published`` maps arms to the published rows that they name. ``claims`` are the declared
    comparisons, ``declared`` the seeds and grid points that the file has for them. ``tuning`` counts the
    trials that were run to choose configurations: they never saw the test images and stand in no table.
    """

    name: str
    title: str
    text: str = ""
    targets: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    declared: Declared = field(default_factory=Declared)
    tuning: int = 0
    searches: tuple[Line, ...] = ()  # the lines of tuning.jsonl, as ``tuned.as_recorded`` has them
    exports: tuple[Line, ...] = ()  # the lines of exports.jsonl of all trials, each with the trial's ``id``
    minima: tuple[Line, ...] = ()  # the lines of sharpness.jsonl


def experiments_in(results: Path) -> list[str]:
    """Return the names of the experiments recorded in a results folder, sorted."""
    return Store(results).experiments()


def read_experiment(
    results: Path,
    name: str,
    *,
    text: str | None = None,
    folder: Path | None = None,
    lines: Sequence[Line] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    tried: Sequence[Line] | None = None,
) -> Records:
    """Return the records of an experiment.

    Args:
        results: The results folder.
        name: The experiment's name: the stem of its file.
        text: The text of the experiment file; None: the copy that the run stored.
        folder: The folder of the file, where published tables of the user's own lie.
        lines: The lines of the index to report; None: all that are recorded.
        configs: The configurations of trials of which nothing may be recorded, by identity.
        tried: The lines of ``tuning.jsonl`` to report; None: those recorded whose trials ``lines`` has.

    Raises:
        InputError: The index is damaged.
    """
    store = Store(results)
    described = _described(_stored_text(store, name) if text is None else text, name)
    index = store.experiment_folder(name) / "index.jsonl"
    rows: list[dict[str, Any]] = []
    read: dict[Any, tuple[dict[str, Any], list[dict[str, Any]]]] = {}  # an id may stand under several arms
    tuning = set[Any]()
    lines = store.index(name) if lines is None else lines
    for number, line in enumerate(lines, 1):
        _check_line(line, f"{index}: entry {number}")
    for line in _shown(lines):
        if line.get("role") == TUNING:
            tuning.add(line.get("id"))
            continue
        id = line.get("id")
        if id not in read:
            read[id] = read_trial(store, id, (configs or {}).get(str(id)))
        rows.append({**read[id][0], **_place_in_experiment(line, read[id][0]["config"] or {})})
    epochs = [_epoch_row(id, line) for id, (_, of_trial) in read.items() for line in of_trial]
    unreadable = _cut_off(store, name)
    ids = [id for id in read if id is not None]
    exports = [{**line, "id": id} for id in ids for line in _lines(partial(store.exports, id), unreadable)]
    minima = _lines(partial(store.sharpness, name), unreadable)
    order = dict.fromkeys([*described.arms, *(row["arm"] for row in rows if row["arm"] is not None)])
    return replace(
        described,
        arms=tuple(order),
        notes=(*described.notes, *unreadable),
        trials=pd.DataFrame(rows, columns=list(TRIAL_COLUMNS), dtype=object),
        epochs=pd.DataFrame(epochs, columns=["id", *EPOCH_COLUMNS]),
        folder=folder,
        tuning=len(tuning),
        searches=_searches(store, name, tuning, tried) if tuning else (),
        exports=tuple(exports),
        minima=tuple(minima),
    )


def _cut_off(store: Store, name: str) -> list[str]:
    told = "is cut off in its last line, so that trials may be missing here; `bench run` writes it anew"
    return [f"{path} {told}" for path in store.cut_off(name)]


def _epoch_row(id: Any, line: Line) -> dict[str, Any]:
    return {"id": id, **{key: line.get(key) for key in EPOCH_COLUMNS}}


def recorded_config(store: Store, id: str) -> dict[str, Any] | None:
    """Return the recorded configuration of a trial; None where none can be read."""
    try:
        config = (store.read_trial(id) or {}).get("config")
    except StoreError:
        return None
    return config if isinstance(config, dict) else None


def _searches(store: Store, name: str, ids: set[Any], tried: Sequence[Line] | None) -> tuple[Line, ...]:
    """Return lines of ``tuning.jsonl`` with what the records of the tuning trials add to them.

    The lines are ``tried``; None: those recorded with a trial of ``ids``.
    """
    results = Results(store)

    def holdout(id: str) -> int | None:
        held = (recorded_config(store, id) or {}).get("holdout")
        return held if isinstance(held, int) else None

    if tried is None:
        tried = [line for line in store.tuning(name) if not ids.isdisjoint(line["trials"].values())]
    return tuple(as_recorded(line, results, holdout) for line in tried)


def _lines(read: Callable[[], Iterable[Line]], unreadable: list[str]) -> list[Line]:
    """Return the lines of a file; the fault of a damaged file is added to ``unreadable``."""
    try:
        return list(read())
    except InputError as error:
        unreadable.append(str(error))
        return []


def _place_in_experiment(line: Line, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that come from the index: arm, baseline, role, profile, seed, grid point."""
    grid = dict(line.get("grid") or {})
    seed = grid.get("seed", config.get("seed", 0))
    arm = line.get("arm")
    return {
        "arm": arm,
        "baseline": line.get("baseline"),
        "baseline_id": line.get("baseline_id"),
        "profile": line.get("profile"),
        "role": None if arm is not None else str(line.get("role") or "needed"),
        "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
        "grid": {key: value for key, value in grid.items() if key != "seed"},
    }


def _check_line(line: Line, where: str) -> None:
    for key in ("arm", "baseline", "baseline_id", "role", "id", "profile"):
        if not isinstance(line.get(key), str | None):
            raise InputError(f"{where}: {key}: expected a text or null, not {line[key]!r}")
    grid = line.get("grid", {})
    if not isinstance(grid, dict | None):
        raise InputError(f"{where}: grid: expected a table, not {grid!r}")
    if (seed := (grid or {}).get("seed")) is not None and type(seed) is not int:
        raise InputError(f"{where}: grid.seed: expected a whole number, not {shown(seed)}")


def _shown(lines: Iterable[Line]) -> list[Line]:
    """Return the lines without repeats, and without a teacher's where the same trial is an arm's run as well.

    One trial of an arm may be wanted by several profiles, with and without an axis: the line with more axes
    stays.
    """
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        place = json.dumps(
            [line.get("arm"), line.get("role"), line.get("grid") or {}], sort_keys=True, default=str
        )
        key = (place,) if line.get("id") is None else (line.get("arm"), line.get("role"), str(line["id"]))
        if key not in found or len(line.get("grid") or {}) >= len(found[key].get("grid") or {}):
            found[key] = line
    of_arms = {str(line.get("id")) for line in found.values() if line.get("arm") is not None}
    return [
        line
        for line in found.values()
        if line.get("arm") is not None or str(line.get("id")) not in of_arms or line.get("id") is None
    ]


def _stored_text(store: Store, name: str) -> str:
    """Return the text of the experiment file as run, ``""`` where it cannot be read."""
    folder = store.experiment_folder(name)
    for path in [folder / f"{name}.toml", *sorted(folder.glob("*.toml"))]:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _described(text: str, name: str) -> Records:
    """Return what the text of an experiment file says, without trials; what is damaged becomes a note."""
    if not text:
        return Records(name, name, notes=("the experiment file is not stored with the records",))
    try:
        content: Mapping[str, Any] = tomllib.loads(text.removeprefix("\ufeff"))
    # not TOML, a number of thousands of digits, nested too deeply
    except (ValueError, RecursionError) as error:
        told = f"the experiment file stored with the records cannot be read ({error})"
        return Records(name, name, text, notes=(told,))
    title = content.get("title")
    arms = [
        arm
        for arm in _list(content.get("arms"))
        if isinstance(arm, dict) and isinstance(arm.get("name"), str)
    ]
    names = tuple(arm["name"] for arm in arms)
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    try:
        claims = read_claims(content, names, f"{name}.toml")
    except InputError as error:
        notes = (f"the claims of the experiment file cannot be read, so all gains are exploratory ({error})",)
    return Records(
        name=name,
        title=title if isinstance(title, str) and title.strip() else name,
        text=text,
        targets=tuple(target for target in _list(content.get("targets", ())) if isinstance(target, str)),
        arms=names,
        published={arm["name"]: arm["published"] for arm in arms if isinstance(arm.get("published"), dict)},
        claims=claims,
        declared=declared(content) if claims else Declared(),
        notes=notes,
    )


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
