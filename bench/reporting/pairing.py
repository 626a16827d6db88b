"""Each cell's gain over its baseline, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.errors import InputError
from bench.experiments.config import parse_bits
from bench.experiments.labels import plain
from bench.experiments.overrides import flatten, listed
from bench.reporting import statistics as st
from bench.reporting.cells import Cell, Pairing
from bench.reporting.grouping import Trial

OVER_CHANCE = "its baseline is at chance"  # such a gain tells that the arm learns, not that it is better
_MAY_DIFFER = {"quantizer", "strategy", "bits", "seed"}  # in what an arm and its baseline may always differ


def accuracies(trials: Mapping[int, Trial]) -> dict[int, float]:
    """Return the accuracies in percent of the finished trials, by the key of each trial."""
    return {
        seed: float(trial["accuracy"])
        for seed, trial in trials.items()
        if trial["status"] == "done" and trial["accuracy"] is not None
    }


def compare(against: Cell, trials: Mapping[int, Trial], partners: Mapping[int, Trial]) -> Pairing:
    """Return the pairing of trials with their partners.

    Args:
        against: The cell of the arm that is compared with.
        trials: The trials of the other arm by seed, whatever became of them.
        partners: Those of ``against``.
    """
    own, theirs = accuracies(trials), accuracies(partners)
    differences = list(st.differences(own, theirs).values())
    both = trials.keys() & partners.keys()
    return Pairing(
        against,
        st.paired_gain(own, theirs),
        st.sign_flip(differences),
        st.deviation_ratio(own, theirs),
        sum("diverged" in (trials[seed]["status"], partners[seed]["status"]) for seed in both),
    )


def pair(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with their pairings, and with flags for further differences from the baseline."""
    by_run = {(cell.arm, trial["id"]): (i, trial) for i, cell in enumerate(cells) for trial in cell.trials}
    made: dict[int, Cell] = {}

    def paired(i: int, waiting: frozenset[int]) -> Cell:
        """Return cell ``i`` with its pairing. Damaged records may hold a circle of baselines: it is cut."""
        if i in made:
            return made[i]
        cell = cells[i]
        if cell.arm is None or cell.runs.baseline is None or cell.kept or i in waiting:
            return cell
        found, partners, note = _partner(i, cells, by_run)
        flags = (*cell.flags, note) if note else cell.flags
        if found is None:
            made[i] = replace(cell, flags=flags)
            return made[i]
        against = paired(found, waiting | {i})
        pairing = compare(against, {trial["seed"]: trial for trial in cell.trials}, partners)
        made[i] = replace(cell, flags=(*flags, *_difference_flags(cell, against)), pairing=pairing)
        return made[i]

    return [paired(i, frozenset()) for i in range(len(cells))]


def _partner(
    i: int, cells: Sequence[Cell], by_run: Mapping[tuple[str | None, Any], tuple[int, Trial]]
) -> tuple[int | None, Mapping[int, Trial], str]:
    """Return the position of the baseline's cell, its trials by the seed of their pair, and a flag or ""."""
    cell = cells[i]
    recorded = {
        trial["seed"]: by_run[cell.runs.baseline, trial["baseline_id"]]
        for trial in cell.trials
        if trial["baseline_id"] and (cell.runs.baseline, trial["baseline_id"]) in by_run
    }
    if recorded:
        rows = list(dict.fromkeys(position for position, _ in recorded.values()))
        note = f"paired with runs of {len(rows)} rows of its baseline" if len(rows) > 1 else ""
        return rows[0], {seed: trial for seed, (_, trial) in recorded.items()}, note
    fitting = best_partners(cell, [other for other in cells if other.arm == cell.runs.baseline])
    if not fitting:
        return None, {}, "no run of its baseline to pair with"
    if len(fitting) > 1:
        return None, {}, f"{len(fitting)} rows of its baseline fit: no gain"
    return cells.index(fitting[0]), {trial["seed"]: trial for trial in fitting[0].trials}, ""


def best_partners(cell: Cell, others: Sequence[Cell]) -> list[Cell]:
    """Return the cells of ``others`` that fit a cell best.

    First the grid point and the precision decide, then the profile, then the number of differences. Of a cell
    without a run the precision is not known: it fits where no cell of equal precision does.
    """
    there = [other for other in others if all(axis(other, key) == axis(cell, key) for key in other.runs.grid)]
    fitting = [other for other in there if other.facts.precision == cell.facts.precision] or [
        other for other in there if None in (other.facts.precision, cell.facts.precision)
    ]
    profiles = {trial["profile"] for trial in cell.trials}

    def distance(other: Cell) -> tuple[bool, int]:
        apart = profiles.isdisjoint(trial["profile"] for trial in other.trials)
        return apart, len(differing_fields(cell, other))

    least = min(map(distance, fitting), default=None)
    return [other for other in fitting if distance(other) == least]


def axis(cell: Cell, key: str) -> Any:
    """Return a cell's value on a grid axis, from its grid or else from its configuration, in one spelling."""
    value = cell.runs.grid.get(key)
    if value is None:
        value = cell.runs.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if key == "bits":
        try:
            return parse_bits(value)
        except InputError:
            return value
    if isinstance(value, Mapping) and set(value) == {"kind"}:
        return value["kind"]
    return value


def differing_fields(cell: Cell, other: Cell) -> list[str]:
    """Return the fields in which two configurations differ and an arm may not differ from its baseline."""
    ours, theirs = cell.runs.config, other.runs.config
    if not ours or not theirs:
        return []
    different = [key for key in sorted(set(ours) | set(theirs)) if ours.get(key) != theirs.get(key)]
    data = cell.runs.data, other.runs.data
    return [
        *(key for key in different if key not in _MAY_DIFFER),
        *(["data"] * (all(data) and data[0] != data[1])),
    ]


def _difference_flags(cell: Cell, against: Cell) -> list[str]:
    """Return a flag for a gain over chance, and one for each field in which a cell and its baseline differ.

    What a search chose on both sides is a result and not a difference of the experiment.
    """
    flags = [OVER_CHANCE] if against.at_chance and not cell.at_chance else []
    if (cell.search is None) != (against.search is None):
        flags.append(
            "its baseline is tuned, the arm is not" if against.search else "its baseline is not tuned"
        )
    for key in differing_fields(cell, against):
        ours, other = cell.runs.config.get(key), against.runs.config.get(key)
        if cell.search and against.search and _chosen_alone(key, cell, against):
            continue
        single = not isinstance(ours, Mapping) and key != "data"
        told = f" ({plain(ours)}, baseline {plain(other)})" if single else ""
        flags.append(f"differs from its baseline in {key}{told}")
    return flags


def _chosen_alone(key: str, cell: Cell, against: Cell) -> bool:
    """Return whether two configurations differ in a field only where their searches chose the values."""
    chosen = {
        name
        for search in (cell.search, against.search)
        if search is not None and search.chosen is not None
        for name in search.chosen.configuration
    }
    ours, other = (flatten({key: one.runs.config.get(key)}) for one in (cell, against))
    different = {name for name in ours.keys() | other.keys() if ours.get(name) != other.get(name)}
    return bool(different) and all(listed(name, chosen) for name in different)
