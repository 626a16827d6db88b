"""What a report shows of one experiment, before any file is written: its cells, claims and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bench.errors import InputError
from bench.reporting import deployment, detail_tables, minima, tables, tuning_table
from bench.reporting.assembly import make_cells
from bench.reporting.cells import Cell
from bench.reporting.claims import Judged, PairKey, judge, verdicts
from bench.reporting.convergence import convergence
from bench.reporting.published_tables import Row, find_table, load_names, load_table
from bench.reporting.records import Records
from bench.reporting.table import Table
from bench.reporting.tuned import Searched, searches
from bench.text import clean


@dataclass(frozen=True)
class Report:
    """The tables of an experiment.

    ``epochs`` maps a trial's id to its epochs; ``tuned`` are the searches of the arms.
    """

    records: Records
    cells: Sequence[Cell]
    judged: Sequence[Judged]
    tables: Sequence[Table]
    epochs: Mapping[str, pd.DataFrame] = field(repr=False)
    tuned: Sequence[Searched] = ()


def cells_of(records: Records) -> list[Cell]:
    """Return an experiment's cells beside its published values; ``InputError`` for a bad table."""
    folders = [records.folder / "published"] if records.folder is not None else []
    folders.append(Path("paper_tables") / "published")  # of the working copy
    names = load_names(folders)
    named = (published.get("table") for published in records.published.values())
    wanted = [*records.targets, *(name for name in named if isinstance(name, str))]
    published: dict[str, Sequence[Row]] = {}
    for name in dict.fromkeys(wanted):
        try:
            published[name] = load_table(find_table(name, folders), names)
        except InputError as error:
            raise InputError(f"{clean(records.name)}.toml: {error}") from None
    return make_cells(records, published, names)


def make_report(
    records: Records,
    cells: Sequence[Cell] | None = None,
    judged: Sequence[Judged] | None = None,
    known: Mapping[PairKey, str] | None = None,
) -> Report:
    """Return the tables of an experiment's records.

    ``cells`` is ``cells_of(records)``, ``judged`` its declared claims, judged on the seeds of all experiments
    of the report, and ``known`` the verdicts of all declared claims of the report, of other experiments as
    well.
    """
    cells = cells_of(records) if cells is None else cells
    tuned = searches(records.searches)
    if judged is None:
        judged = judge(records, cells)
    known = verdicts(judged) if known is None else known
    epochs = {str(id): frame.reset_index(drop=True) for id, frame in records.epochs.groupby("id", sort=False)}
    timed = [convergence(cell, epochs) for cell in cells if cell.arm is not None]
    found = [
        tables.accuracy_table(records, cells, known),
        tables.claims_table(records, judged),
        tables.gains_table(records, cells, known),
        tuning_table.tuning_table(records, tuned),
        detail_tables.convergence_table(records, timed),
        detail_tables.published_table(records, cells),
        minima.sharpness_table(records, cells),
        minima.barrier_table(records, cells),
        deployment.deployment_table(records, cells),
        detail_tables.runs_table(records, cells),
    ]
    return Report(records, cells, judged, [table for table in found if table is not None], epochs, tuned)
