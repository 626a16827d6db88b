"""Merges the records of one experiment from several results folders, perhaps of several machines.

Records with one identity belong to one trial. A finished record counts more than an unfinished one. Where two
finished records differ in accuracy, or one of them diverged, the record of the first folder counts, and a
note gives the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.experiments.declared import Declared
from bench.reporting.grouping import canonical
from bench.reporting.records import Records
from bench.text import plural

_FINISHED = "done", "diverged"  # to the end of its training, or of what could be trained
_OTHERS = "failed", "running", "unfinished", "damaged", "missing"  # those that know most come first
_Row = dict[str, Any]


def merge(parts: Sequence[Records]) -> Records:
    """Return the records of one experiment from several folders; the first part gives name and title."""
    first = parts[0]
    if len(parts) == 1:
        return first
    rows: dict[str, list[_Row]] = {}
    for part in parts:
        for row in part.trials.to_dict("records"):
            rows.setdefault(_key(row), []).append({str(name): value for name, value in row.items()})
    kept, chosen, apart, equal = [], {}, {}, set()
    for found in rows.values():
        best = min(found, key=_rank)
        twins = [row for row in found if row is not best and row["status"] in _FINISHED and _rank(best) == 0]
        told = [text for twin in twins if (text := _difference(best, twin))]
        if told:
            apart[best["id"]] = f"{best['id']}: {'; '.join(told)}"
            best = {**best, "warnings": (*best["warnings"], *told)}
        elif twins:
            equal.add(best["id"])
        chosen[best["id"]] = best["results"]
        kept.append(best)
    epochs = [_of_folder(part, chosen) for part in parts]
    texts = {part.text for part in parts if part.text}
    notes = [note for part in parts for note in part.notes]
    if len(texts) > 1:
        notes.append(
            "The results folders hold different versions of the experiment file; the first is shown."
        )
    if equal:
        notes.append(f"{plural(len(equal), 'trial')} recorded in several folders with the same accuracy.")
    if apart:
        notes.append(
            f"{plural(len(apart), 'trial')} recorded in several folders with different results; the first "
            "counts: " + "; ".join(apart.values())
        )
    return replace(
        first,
        arms=tuple(dict.fromkeys(arm for part in parts for arm in part.arms)),
        trials=pd.DataFrame(kept, columns=list(first.trials.columns), dtype=object),
        epochs=pd.concat([frame for frame in epochs if len(frame)] or [first.epochs], ignore_index=True),
        text=next((part.text for part in parts if part.text), ""),
        notes=tuple(dict.fromkeys(notes)),
        claims=next((part.claims for part in parts if part.claims), ()),
        declared=next((part.declared for part in parts if part.claims), Declared()),
        tuning=max(part.tuning for part in parts),
        searches=tuple(_searches(parts)),
        exports=tuple({canonical(line): line for part in parts for line in part.exports}.values()),
        minima=tuple({canonical(line): line for part in parts for line in part.minima}.values()),
    )


def _key(row: Mapping[str, Any]) -> str:
    """Return what makes two rows the same wanted trial: its place in the experiment, and its identity."""
    return canonical([row["arm"], row["role"], row["seed"], row["id"] or row["grid"]])


def _rank(row: Mapping[str, Any]) -> int:
    """Return the place of a row's status among those that count more: 0 for a finished one."""
    return 0 if row["status"] in _FINISHED else 1 + _OTHERS.index(row["status"])


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return in what two finished records of a trial differ, ``""`` where they are equal."""
    if one["status"] != other["status"]:
        return f"{one['status']} in {one['results']}, {other['status']} in {other['results']}"
    for column in ("accuracy", "expanded"):
        a, b = one[column], other[column]
        if a is not None and b is not None and not pd.isna(a) and not pd.isna(b) and abs(a - b) > 1e-9:
            points = f"{abs(a - b):.2f} points apart"
            return f"{a:.2f} in {one['results']}, {b:.2f} in {other['results']}: {points}"
    return ""


def _of_folder(part: Records, chosen: Mapping[Any, str]) -> pd.DataFrame:
    """Return the epochs of the trials whose record in this part counts."""
    own = {row["id"] for row in part.trials.to_dict("records") if chosen.get(row["id"]) == row["results"]}
    return part.epochs[part.epochs["id"].isin(own)]


def _searches(parts: Sequence[Records]) -> list[Mapping[str, Any]]:
    """Return the lines of ``tuning.jsonl``, each configuration once: the line that knows most of it."""

    def known(line: Mapping[str, Any]) -> tuple[bool, int, int]:
        return line.get("chosen") is True, len(line.get("accuracies") or ()), line.get("ended") or 0

    found: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        for line in part.searches:
            key = canonical([line.get(name) for name in ("profile", "arm", "grid", "configuration")])
            if key not in found or known(line) > known(found[key]):
                found[key] = line
    return list(found.values())
