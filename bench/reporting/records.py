"""Records -> DataFrames: one row a trial that an experiment wants, one row an epoch of it.

Every trial of the index is a row, whatever became of it: ``done``, ``diverged``, ``failed``, ``running``,
``unfinished``, ``missing`` or ``damaged``, with the reason. Nothing is averaged here.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import InputError
from bench.experiments.config import FIELDS, check_field, parse_bits
from bench.records.store import Store, StoreError

TRIAL_COLUMNS = (
    "arm",
    "baseline",
    "baseline_id",
    "role",
    "seed",
    "grid",
    "id",
    "status",
    "reason",
    "flags",
    "warnings",
    "config",
    "accuracy",
    "kept",
    "top5",
    "selected",
    "best",
    "correct",
    "seen",
    "epochs_done",
    "step",
    "wall_seconds",
    "peak_memory_bytes",
    "model_bits",
    "bit_operations",
    "train_flops",
    "data",
    "commit",
    "dirty",
    "versions",
    "device",
    "other_hardware",
)
EPOCH_COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_acc",
    "val_acc",
    "test_acc",
    "test_acc_expanded",
    "test_acc_top5",
    "factor",
    "lr",
    "seconds",
    "images_per_second",
    "sign_flip_rate",
    "branch_ratio",
)
_NUMBERS = ("wall_seconds", "peak_memory_bytes", "model_bits", "bit_operations", "train_flops")


@dataclass(frozen=True)
class Records:
    """What is recorded of one experiment. ``published`` maps arms to the rows they name; ``folder`` is the file's own."""

    name: str
    title: str
    targets: tuple[str, ...]
    arms: tuple[str, ...]
    published: Mapping[str, Mapping[str, Any]]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    folder: Path | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def experiments_in(results: Path) -> list[str]:
    """Return the names of the experiments recorded in a results folder, sorted."""
    return Store(results).experiments()


def read_experiment(results: Path, name: str, experiment: Any = None) -> Records:
    """Return the records of experiment ``name`` in ``results``.

    With ``experiment`` (a ``bench.experiments.expand.Experiment``) only the trials that it names, whether or not they were ever
    run; else every line of the index, all profiles and overrides. Raises ``InputError`` where the index itself is
    damaged.
    """
    store = Store(results)
    configs: dict[str | None, Mapping[str, Any]] = {}
    recorded: Sequence[Mapping[str, Any]] = store.index(name)
    lines: Sequence[Mapping[str, Any]] = recorded
    folder = None
    if experiment is None:
        text = _stored_text(store, name)
    else:
        text = experiment.text
        folder = Path(experiment.path).parent
        configs = {trial.id: trial.config.dump() for trial in experiment.trials if trial.id}
        lines = _wanted(experiment, recorded)
    title, targets, arms, published, notes = _description(text, name)
    rows: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    read: dict[
        str | None, tuple[dict[str, Any], list[dict[str, Any]]]
    ] = {}  # an id may stand under several arms
    named = {str(line.get("id")) for line in lines if line.get("arm") is not None}
    for number, line in enumerate(_unique(lines), 1):
        if line.get("arm") is None and str(line.get("id")) in named:
            continue  # a teacher that is an arm's run as well has its row there
        _check_line(line, f"{store.experiment_folder(name) / 'index.jsonl'}: entry {number}")
        id = line.get("id")
        if id not in read:
            read[id] = _read_trial(store, id, configs.get(id))
        row, seen = read[id]
        grid = dict(line.get("grid") or {})
        config = row["config"] or {}
        seed = grid.get("seed", config.get("seed", 0))
        rows.append(
            {
                **row,
                "arm": line.get("arm"),
                "baseline": line.get("baseline"),
                "baseline_id": line.get("baseline_id"),
                "role": None if line.get("arm") is not None else _role(line),
                "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
                "grid": {key: value for key, value in grid.items() if key != "seed"},
            }
        )
    for id, (_, seen) in read.items():
        epochs.extend({"id": id, **{key: line.get(key) for key in EPOCH_COLUMNS}} for line in seen)
    order = list(dict.fromkeys([*arms, *(row["arm"] for row in rows if row["arm"] is not None)]))
    return Records(
        name=name,
        title=title,
        targets=targets,
        arms=tuple(order),
        published=published,
        trials=pd.DataFrame(rows, columns=list(TRIAL_COLUMNS), dtype=object),
        epochs=pd.DataFrame(epochs, columns=["id", *EPOCH_COLUMNS]),
        folder=folder,
        notes=notes,
    )


def _role(line: Mapping[str, Any]) -> str:
    return str(line.get("role") or "needed")


def _check_line(line: Mapping[str, Any], where: str) -> None:
    for key in ("arm", "baseline", "baseline_id", "role", "id"):
        if not isinstance(line.get(key), str | None):
            raise InputError(f"{where}: {key}: expected a text or null, not {line[key]!r}")
    if not isinstance(line.get("grid", {}), dict | None):
        raise InputError(f"{where}: grid: expected a table, not {line['grid']!r}")


def _unique(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the lines without repeats: one trial of an arm may be wanted by several profiles, with and without an axis."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for line in lines:
        key = (_place(line),) if line.get("id") is None else (line.get("arm"), line.get("role"), line["id"])
        if key not in found or len(line.get("grid") or {}) >= len(found[key].get("grid") or {}):
            found[key] = line
    return list(found.values())


def _stored_text(store: Store, name: str) -> str:
    """Return the text of the experiment file as run, ``""`` where it cannot be read."""
    folder = store.experiment_folder(name)
    for path in [folder / f"{name}.toml", *sorted(folder.glob("*.toml"))]:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _description(
    text: str, name: str
) -> tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """Return title, targets, arms in order, what they call published, and remarks, from an experiment file's text."""
    try:
        content: Mapping[str, Any] = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # not TOML, an integer of thousands of digits, nested too deeply
        return name, (), (), {}, (f"the experiment file stored with the records cannot be read ({error})",)
    title = content.get("title")
    targets = content.get("targets", ())
    arms = [
        arm
        for arm in _list(content.get("arms"))
        if isinstance(arm, dict) and isinstance(arm.get("name"), str)
    ]
    return (
        title if isinstance(title, str) and title.strip() else name,
        tuple(target for target in _list(targets) if isinstance(target, str)),
        tuple(arm["name"] for arm in arms),
        {arm["name"]: arm["published"] for arm in arms if isinstance(arm.get("published"), dict)},
        () if text else ("the experiment file is not stored with the records",),
    )


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _wanted(experiment: Any, recorded: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the index lines of an experiment file.

    A trial whose data is absent has no id; it is then sought among the recorded lines by arm, grid point and profile.
    """
    known: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for line in recorded:
        known.setdefault((_place(line), line.get("profile")), []).append(line)
    lines: list[Mapping[str, Any]] = []
    for wanted in experiment.index:
        line = wanted.as_dict()
        found = known.get((_place(line), line.get("profile")), []) if line["id"] is None else []
        lines.extend(found or [line])
    return lines


def _place(line: Mapping[str, Any]) -> str:
    """Return arm, role and grid point of an index line as one string."""
    return json.dumps(
        [line.get("arm"), line.get("role"), line.get("grid") or {}], sort_keys=True, default=str
    )


def _read_trial(
    store: Store, id: str | None, config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a trial's row (without its place in the index) and its epochs' lines."""
    row: dict[str, Any] = dict.fromkeys(TRIAL_COLUMNS)
    row.update(
        id=id, status="missing", reason="", flags=(), warnings=(), config=config, kept=False, versions={}
    )
    if id is None:
        row["reason"] = "its data is absent"
        return row, []
    try:
        trial = store.read_trial(id)
        summary = store.summary(id)
        lines = store.epochs(id)
        if trial is not None:
            _take_trial(row, trial, id)
        if lines:
            _take_epochs(row, lines)
        if summary is not None:
            _take_summary(row, summary, lines)
        if trial is not None and any(line.get("other_hardware") for line in store.resumes(id)):
            row["other_hardware"] = True
    except (StoreError, InputError, _Wrong) as error:
        row.update(status="damaged", reason=str(error), accuracy=None, top5=None, selected=None, best=None)
        return row, []
    if summary is None:
        if store.holder(id) is not None:
            row.update(status="running", reason=f"{len(lines)} epochs done")
        elif trial is not None or lines:
            row.update(status="unfinished", reason=f"stopped after {len(lines)} epochs")
        else:
            row["reason"] = "never run"
    elif trial is None:
        row.update(status="damaged", reason="summary.json without trial.json", accuracy=None)
    return row, lines


class _Wrong(Exception):
    """A record is well-formed but says something impossible."""


def _take_trial(row: dict[str, Any], trial: Mapping[str, Any], id: str) -> None:
    if trial.get("id") != id:
        raise _Wrong(f"trial.json is the record of {trial.get('id')!r}")
    if not isinstance(trial.get("config"), dict):
        raise _Wrong("trial.json: config: expected a table")
    provenance, execution = _table(trial, "provenance"), _table(trial, "execution")
    row["config"] = _checked(trial["config"])
    row["data"] = (
        json.dumps(provenance.get("data"), sort_keys=True) if provenance.get("data") is not None else None
    )
    row["commit"] = provenance.get("commit")
    row["dirty"] = provenance.get("dirty")
    versions = provenance.get("versions")
    row["versions"] = dict(versions) if isinstance(versions, dict) else {}
    row["device"] = execution.get("device")


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration, completed, whose fields that tables are made of have the right types."""
    for key in ("dataset", "network", "quantizer", "strategy"):
        if not isinstance(config.get(key), dict) or not isinstance(config[key].get("kind"), str):
            raise _Wrong(f"trial.json: config.{key}: expected a table with a kind")
    for key, types in (
        ("epochs", int),
        ("batch_size", int),
        ("width", int | float),
        ("precision", str | None),
    ):
        value = config.get(key)
        possible = isinstance(value, types) and not isinstance(value, bool)
        if not possible or (isinstance(value, int | float) and not 0 < value < 1e9):
            raise _Wrong(f"trial.json: config.{key}: {str(value)[:40]!r} is not possible")
    try:
        parse_bits(config.get("bits"))
    except InputError as error:
        raise _Wrong(f"trial.json: config.{error}") from None
    return _completed(config)


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the fields and options that came after it at their defaults, as its identity has them.

    What this version does not know (an entry of a user's own, say) stays as it is.
    """
    completed = {name: info.get_default() for name, info in FIELDS.items() if not info.is_required()} | config
    for name in FIELDS.keys() & config.keys():
        with contextlib.suppress(InputError):
            completed[name] = check_field(name, config[name])
    return completed


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise _Wrong(f"trial.json: {key}: expected a table, not {value!r}")
    return value


def _take_epochs(row: dict[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    for line in lines:
        for key in EPOCH_COLUMNS:
            _number(line, key, "epochs.jsonl", low=None, high=100.0 if key.startswith("test_acc") else None)
    last = lines[-1]
    row["epochs_done"] = last.get("epoch")
    row["step"] = last.get("step")
    correct, seen = last.get("test_correct"), last.get("test_seen")
    if correct is None or seen is None:
        return
    counts = all(isinstance(count, int) and not isinstance(count, bool) for count in (correct, seen))
    if not counts or not 0 <= correct <= seen or not 0 < seen < 10**12:
        raise _Wrong(f"epochs.jsonl: {correct!r} correct of {seen!r} seen")
    row["correct"], row["seen"] = correct, seen
    accuracy = last.get("test_acc")
    if accuracy is not None and abs(accuracy - 100.0 * correct / seen) > 0.005:
        raise _Wrong(f"epochs.jsonl: the last test_acc, {accuracy}, is not {correct} correct of {seen} seen")


def _take_summary(
    row: dict[str, Any], summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> None:
    row["status"] = summary["status"]
    row["reason"] = str(summary.get("reason") or "")
    row["flags"] = tuple(str(flag) for flag in _list(summary.get("flags")))
    row["warnings"] = tuple(str(warning) for warning in _list(summary.get("warnings")))
    for key in _NUMBERS:
        row[key] = _number(summary, key, "summary.json")
    for column, key in (("selected", "selected_test_acc"), ("best", "best_test_acc")):
        row[column] = _number(summary, key, "summary.json", 0.0, 100.0)
    final = _number(summary, "final_test_acc", "summary.json", 0.0, 100.0)
    top5 = _number(summary, "final_test_acc_top5", "summary.json", 0.0, 100.0)
    if row["status"] != "done":
        return
    if (
        final is None
    ):  # a branch that is never removed has no deployed network: its own accuracy is an upper bound
        final = _number(summary, "final_test_acc_expanded", "summary.json", 0.0, 100.0)
        row["kept"] = final is not None
    elif lines and lines[-1].get("test_acc") is not None and abs(lines[-1]["test_acc"] - final) > 1e-6:
        raise _Wrong(
            f"summary.json: final_test_acc is {final}, but the last epoch's test_acc is {lines[-1]['test_acc']}"
        )
    if final is None and (row["config"] or {}).get("evaluate_test") is False:
        row.update(status="missing", reason="the test images were not evaluated (evaluate_test = false)")
        return
    if final is None:
        raise _Wrong("summary.json: done, but without a final accuracy")
    row["accuracy"], row["top5"] = final, top5


def _number(
    document: Mapping[str, Any], key: str, where: str, low: float | None = 0.0, high: float | None = None
) -> float | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _Wrong(f"{where}: {key}: expected a number or null, not {str(value)[:40]!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise _Wrong(f"{where}: {key}: {value!r} is out of range")
    return value
