"""All stages of a table's rows, from records to cells in the order of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.reporting import statistics as st
from bench.reporting.cells import Cell, Comparison, described_cells, whole_number
from bench.reporting.pairing import pair
from bench.reporting.published_tables import Names, Row
from bench.reporting.records import Records
from bench.reporting.targets import matches


def make_cells(
    records: Records, tables: Mapping[str, Sequence[Row]] | None = None, names: Names | None = None
) -> list[Cell]:
    """Return the cells of an experiment in table order, with numbers, published values, gains and flags.

    ``tables`` are the published tables by name and ``names`` their translations; without them nothing is
    compared.
    """
    cells = described_cells(records)
    if tables is not None:
        cells = [
            replace(cell, comparisons=tuple(_comparisons(cell, records, tables, names or Names())))
            for cell in cells
        ]
    return sorted(pair(cells), key=_position)


def _position(cell: Cell) -> tuple[Any, ...]:
    facts = cell.facts
    return (
        cell.arm is None,
        facts.dataset,
        facts.network,
        facts.epochs or 0,
        facts.batch_size or 0,
        whole_number(cell.runs.config.get("train_size")) or 0,
        facts.width or 0.0,
        facts.bits or (99, 99, 99),
        cell.runs.order,
        cell.settings,
        cell.runs.role or "",
    )


def _comparisons(
    cell: Cell, records: Records, tables: Mapping[str, Sequence[Row]], names: Names
) -> Iterator[Comparison]:
    """Yield the published rows of a cell, each with the verdict on it."""
    facts, numbers = cell.facts, cell.numbers
    if cell.arm is None or facts.bits is None or not cell.runs.config:
        return
    published = records.published.get(cell.arm)
    wanted = [published["table"]] if published and published.get("table") in tables else records.targets
    rows = [row for name in wanted for row in tables.get(name, ())]
    for match in matches(
        cell.runs.config, facts.bits, rows, names, published, facts.train_images, facts.images
    ):
        ours = numbers.accuracy if match.row.metric == "top1" else numbers.top5
        reasons = list(match.not_comparable)
        if facts.images is None and not numbers.values:
            reasons = [reason for reason in reasons if reason != "unknown budget"]
        if ours.mean is None and not reasons:
            verdict = st.Verdict("inconclusive", "no finished run")
        else:
            verdict = st.verdict(ours, match.row.accuracy, match.row.kind, reasons)
        yield Comparison(match, verdict)
