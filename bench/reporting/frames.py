"""Records as tidy DataFrames, for notebooks and for Parquet files.

A row is a trial or an epoch, a column a plain type: numbers that are absent are NaN, tables of the record are
columns with dotted names (``config.quantizer.kind``), lists are JSON text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.experiments.overrides import flatten
from bench.reporting.records import Records
from bench.reporting.trial_rows import EPOCH_COLUMNS, TRIAL_COLUMNS

_NESTED = ("config", "grid", "versions", "flags", "warnings")
_FLAGS = ("kept", "dirty", "other_hardware")
_TEXTS = tuple("arm baseline baseline_id role profile id status reason data commit device results".split())
_PLAIN = [name for name in TRIAL_COLUMNS if name not in _NESTED]


def trial_frame(experiments: Iterable[Records]) -> pd.DataFrame:
    """Return a row for each trial that each experiment wants, whatever became of it.

    Columns: ``experiment``; those of ``bench.reporting.trial_rows.TRIAL_COLUMNS`` (``accuracy`` is the
    final test accuracy of the deployed network, in percent; ``status`` and ``reason`` say why it may be
    absent);
    ``grid.AXIS`` for the point of the grid; ``config.FIELD`` for the complete configuration.
    """
    rows = []
    for records in experiments:
        for trial in records.trials.to_dict("records"):
            row = {"experiment": records.name, **{name: trial[name] for name in _PLAIN}}
            row |= {f"grid.{axis}": _cell(value) for axis, value in dict(trial["grid"] or {}).items()}
            config = flatten(trial["config"] or {})
            row |= {f"config.{name}": _cell(value) for name, value in config.items() if value != {}}
            row |= {name: json.dumps(list(trial[name] or ())) for name in ("flags", "warnings")}
            rows.append({**row, "versions": json.dumps(trial["versions"] or {}, sort_keys=True)})
    frame = pd.DataFrame(rows, columns=None if rows else ["experiment", *_PLAIN])
    for name in _PLAIN:
        if name in _TEXTS:
            frame[name] = frame[name].astype("string")
        elif name in _FLAGS:
            frame[name] = frame[name].astype("boolean")
        else:
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    for name in frame.columns.difference(_PLAIN):  # a field may be text here and a number there
        frame[name] = frame[name].convert_dtypes()
        if frame[name].dtype == object:
            texts = frame[name].map(lambda v: v if isinstance(v, str) else json.dumps(v), na_action="ignore")
            frame[name] = texts.astype("string")
    return frame


def epoch_frame(experiments: Iterable[Records]) -> pd.DataFrame:
    """Return a row for each epoch of each trial, once: ``id`` and the fields of ``epochs.jsonl``, as numbers.

    Accuracies are in percent; what does not apply is NaN. ``trials.merge(epochs, on="id")`` adds arm and
    seed.
    """
    frames = [records.epochs for records in experiments if len(records.epochs)]
    frame = pd.concat(frames) if frames else pd.DataFrame(columns=["id", *EPOCH_COLUMNS])
    frame = frame.drop_duplicates(["id", "epoch"]).reset_index(drop=True)
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in EPOCH_COLUMNS}
    return frame.assign(id=frame["id"].astype("string"), **numbers)


def to_parquet(frame: pd.DataFrame) -> bytes:
    """Return a frame as a Parquet file."""
    out = io.BytesIO()
    frame.to_parquet(out, index=False, engine="pyarrow")
    return out.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
