"""A recorded trial as a checked row and its epochs; an impossible record becomes ``damaged``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.errors import InputError
from bench.experiments.config import FIELDS, check_field, parse_bits
from bench.records.files import StoreError
from bench.records.store import Store

TRIAL_COLUMNS = tuple(
    """
    arm baseline baseline_id role profile seed grid id status reason flags warnings config accuracy expanded
    kept top5 selected best correct seen epochs_done step wall_seconds peak_memory_bytes model_bits
    bit_operations train_flops data commit dirty versions device other_hardware results
    """.split()
)
EPOCH_COLUMNS = tuple(
    """
    epoch step train_loss train_acc val_acc test_acc test_acc_expanded test_acc_top5 factor lr seconds
    images_per_second sign_flip_rate branch_ratio
    """.split()
)
_ACCURACIES = ("accuracy", "expanded", "top5", "selected", "best")
_NUMBERS = ("wall_seconds", "peak_memory_bytes", "model_bits", "bit_operations", "train_flops")


def read_trial(
    store: Store, id: str | None, config: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a trial's row, without its place in the index, and the lines of its epochs."""
    row: dict[str, Any] = dict.fromkeys(TRIAL_COLUMNS)
    row |= {"id": id, "config": config, "results": str(store.root), "status": "missing", "reason": ""}
    row |= {"flags": (), "warnings": (), "kept": False, "versions": {}}
    if id is None:
        row["reason"] = "its data is absent"
        return row, []
    try:
        trial = store.read_trial(id)
        summary = store.summary(id)
        lines = store.epochs(id)
        if trial is not None:
            _add_trial(row, trial, id)
        if lines:
            _add_epochs(row, lines)
        if summary is not None:
            _add_summary(row, summary, lines)
        if trial is not None and any(line.get("other_hardware") for line in store.resumes(id)):
            row["other_hardware"] = True
    except (StoreError, InputError, _Impossible) as error:
        row.update(status="damaged", reason=str(error), **dict.fromkeys(_ACCURACIES))
        return row, []
    if summary is None:
        if store.holder(id) is not None:
            row.update(status="running", reason=f"{len(lines)} epochs done")
        elif trial is not None or lines:
            row.update(status="unfinished", reason=f"stopped after {len(lines)} epochs")
        else:
            row["reason"] = "never run"
    elif trial is None and row["status"] != "failed":  # a trial may fail before it can write its trial.json
        row.update(status="damaged", reason="summary.json without trial.json", accuracy=None)
    return row, lines


class _Impossible(Exception):
    """A record is well-formed but says something impossible."""


def _add_trial(row: dict[str, Any], trial: Mapping[str, Any], id: str) -> None:
    if trial.get("id") != id:
        raise _Impossible(f"trial.json is the record of {trial.get('id')!r}")
    if not isinstance(trial.get("config"), dict):
        raise _Impossible("trial.json: config: expected a table")
    provenance, execution = _table(trial, "provenance"), _table(trial, "execution")
    row["config"] = _checked(trial["config"])
    data, versions = provenance.get("data"), provenance.get("versions")
    row["data"] = None if data is None else json.dumps(data, sort_keys=True)
    row["commit"], row["dirty"] = provenance.get("commit"), provenance.get("dirty")
    row["versions"] = dict(versions) if isinstance(versions, dict) else {}
    row["device"] = execution.get("device")


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration, completed, after a check of the fields that tables are made of."""
    for key in ("dataset", "network", "quantizer", "strategy"):
        if not isinstance(config.get(key), dict) or not isinstance(config[key].get("kind"), str):
            raise _Impossible(f"trial.json: config.{key}: expected a table with a kind")
    kinds = {"epochs": int, "batch_size": int, "width": int | float, "precision": str | None}
    for key, types in kinds.items():
        value = config.get(key)
        possible = isinstance(value, types) and not isinstance(value, bool)
        if not possible or (isinstance(value, int | float) and not 0 < value < 1e9):
            raise _Impossible(f"trial.json: config.{key}: {str(value)[:40]!r} is not possible")
    try:
        parse_bits(config.get("bits"))
    except InputError as error:
        raise _Impossible(f"trial.json: config.{error}") from None
    return _completed(config)


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with later fields and options at their defaults, as its identity has them.

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
        raise _Impossible(f"trial.json: {key}: expected a table, not {value!r}")
    return value


def _add_epochs(row: dict[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
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
        raise _Impossible(f"epochs.jsonl: {correct!r} correct of {seen!r} seen")
    row["correct"], row["seen"] = correct, seen
    accuracy = last.get("test_acc")
    if accuracy is not None and abs(accuracy - 100.0 * correct / seen) > 0.005:
        raise _Impossible(
            f"epochs.jsonl: the last test_acc, {accuracy}, is not {correct} correct of {seen} seen"
        )


def _add_summary(row: dict[str, Any], summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    row["status"] = summary["status"]
    row["reason"] = str(summary.get("reason") or "")
    row["flags"] = _texts(summary.get("flags"))
    row["warnings"] = _texts(summary.get("warnings"))
    for key in _NUMBERS:
        row[key] = _number(summary, key, "summary.json")
    for column, key in (("selected", "selected_test_acc"), ("best", "best_test_acc")):
        row[column] = _number(summary, key, "summary.json", 0.0, 100.0)
    final = _number(summary, "final_test_acc", "summary.json", 0.0, 100.0)
    top5 = _number(summary, "final_test_acc_top5", "summary.json", 0.0, 100.0)
    if row["status"] != "done":
        return
    if final is not None:
        if lines and lines[-1].get("test_acc") is not None and abs(lines[-1]["test_acc"] - final) > 1e-6:
            told = f"final_test_acc is {final}, but the last epoch's test_acc is {lines[-1]['test_acc']}"
            raise _Impossible(f"summary.json: {told}")
        row["accuracy"], row["top5"] = final, top5
        return
    # A branch that is never removed leaves no deployed network: its own accuracy is an upper bound.
    row["expanded"] = _number(summary, "final_test_acc_expanded", "summary.json", 0.0, 100.0)
    row["kept"] = row["expanded"] is not None
    if not row["kept"]:
        if (row["config"] or {}).get("evaluate_test") is not False:
            raise _Impossible("summary.json: done, but without a final accuracy")
        row.update(status="missing", reason="the test images were not evaluated (evaluate_test = false)")


def _number(
    document: Mapping[str, Any], key: str, where: str, low: float | None = 0.0, high: float | None = None
) -> float | None:
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _Impossible(f"{where}: {key}: expected a number or null, not {str(value)[:40]!r}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise _Impossible(f"{where}: {key}: {value!r} is out of range")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()
