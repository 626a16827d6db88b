"""The convergence of runs: times to an accuracy, the dip at the removal of the branch, the recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from bench.reporting import statistics as st
from bench.reporting.cells import Cell

TIMES = ("epochs_deployed", "epochs_held", "epochs_trained", "seconds_deployed", "seconds_trained")


@dataclass(frozen=True)
class Convergence:
    """The convergence of a cell. Times are missing where nothing was recorded.

    ``threshold`` is in percent; ``mean_curve`` the mean deployed accuracy over the evaluated epochs; ``dip``
    in points.
    """

    cell: Cell
    threshold: float | None
    epochs_deployed: st.TimeTo
    epochs_held: st.TimeTo
    epochs_trained: st.TimeTo
    seconds_deployed: st.TimeTo
    seconds_trained: st.TimeTo
    mean_curve: st.Interval
    dip: st.Interval
    recovery: st.TimeTo


def convergence(cell: Cell, epochs: Mapping[str, pd.DataFrame]) -> Convergence:
    """Return the convergence of a cell; ``epochs`` maps a trial's id to its epochs in order.

    The threshold is the baseline's (``statistics.common_threshold`` of its mean final accuracy), so that an
    arm and its baseline are timed to the same accuracy. Diverged runs count as runs that never reached it.
    Where the test images were evaluated every few epochs (``evaluate_every``) times are those of evaluated
    epochs.
    """
    reference = cell
    if cell.pairing is not None and cell.pairing.against.numbers.accuracy.mean is not None:
        reference = cell.pairing.against
    final = reference.numbers.accuracy.mean
    threshold = None if final is None else st.common_threshold(final)
    times: dict[str, list[float | None]] = {key: [] for key in TIMES}
    means: list[float] = []
    dips: list[float] = []
    recoveries: list[float | None] = []
    for trial in cell.trials:
        if trial["status"] in ("done", "diverged") and trial["id"] in epochs and threshold is not None:
            curve = _Curve(
                _optional(epochs[trial["id"]]["test_acc"]),
                _optional(epochs[trial["id"]]["test_acc_expanded"]),
                _optional(epochs[trial["id"]]["factor"]),
                [float(s) for s in epochs[trial["id"]]["seconds"].astype(float).fillna(0.0).cumsum()],
            )
            whole = trial["status"] == "done"
            _add_times(times, curve, threshold, whole)
            known = [d for d in curve.deployed if d is not None]
            if whole and known:
                means.append(fmean(known))  # exact on every Python: `sum` rounds otherwise since 3.12
            gone = st.removal(curve.factor, curve.deployed, curve.expanded) if whole else None
            if gone is not None:
                dips.append(gone.dip)
                recoveries.append(None if gone.recovery is None else float(gone.recovery))
    return Convergence(
        cell=cell,
        threshold=threshold,
        **{key: st.time_to(times[key]) for key in TIMES},
        mean_curve=st.mean_interval(means),
        dip=st.mean_interval(dips),
        recovery=st.time_to(recoveries),
    )


@dataclass(frozen=True)
class _Curve:
    """The epochs of one run, from epoch 1; ``seconds`` is the training time up to the end of each epoch."""

    deployed: list[float | None]
    expanded: list[float | None]
    factor: list[float | None]
    seconds: list[float]


def _add_times(times: dict[str, list[float | None]], curve: _Curve, threshold: float, whole: bool) -> None:
    trained = [e if e is not None else d for e, d in zip(curve.expanded, curve.deployed, strict=True)]
    for name, index in (
        ("deployed", st.first_reached(curve.deployed, threshold)),
        ("held", st.held_from(curve.deployed, threshold) if whole else None),
        ("trained", st.first_reached(trained, threshold)),
    ):
        times[f"epochs_{name}"].append(None if index is None else float(index + 1))
        if name != "held":
            times[f"seconds_{name}"].append(None if index is None else curve.seconds[index])


def _optional(column: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in column]
