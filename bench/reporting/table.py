"""A table before it has a format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.reporting.cells import Cell

NONE = "–"  # a cell that has no value


@dataclass(frozen=True)
class Column:
    """A column of a table for reading.

    A ``common`` column whose rows all say the same becomes a line above the table.
    """

    title: str
    values: Sequence[str]
    align: str = "l"
    common: bool = False
    optional: bool = False  # left out where it is empty
    note: bool = False  # long remarks: footnotes in LaTeX


@dataclass(frozen=True)
class Table:
    """A table for reading (``columns``) and for machines (``rows``).

    ``cells`` are the cells that the rows are about, so that the page can show the runs behind a row.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    cells: Sequence[Cell] = field(default=(), repr=False)

    @property
    def data(self) -> pd.DataFrame:
        """The rows for machines as a data frame; a column that a row lacks is None there."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return pd.DataFrame([{name: row.get(name) for name in names} for row in self.rows], dtype=object)

    def shown(self) -> tuple[list[Column], list[tuple[str, str]]]:
        """Return the columns to print, and (title, value) of the columns with one value in every row."""
        columns, same = [], []
        for column in self.columns:
            values = set(column.values) - {"", NONE}
            if column.common and len(values) == 1:
                same.append((column.title, values.pop()))
            elif values or not (column.common or column.optional or column.note):
                columns.append(column)
        return columns, same
