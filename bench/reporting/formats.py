"""Tables -> markdown, CSV, LaTeX (booktabs). Text from files is escaped for each format (``bench.text``)."""

from __future__ import annotations

import csv
import io
from typing import Any

import pandas as pd

from bench.reporting.table import Table
from bench.text import latex, markdown, spreadsheet


def csv_cell(value: Any) -> Any:
    """Return a CSV cell: nothing for None, numbers with eight significant digits, text made inert."""
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.8g}"  # -0.0 + 0.0 is 0.0
    return spreadsheet(value)


def to_csv(data: pd.DataFrame) -> str:
    """Return the table for machines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(data.columns)
    for row in data.itertuples(index=False):
        writer.writerow([csv_cell(value) for value in row])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """Return the table for reading, in GitHub's markdown."""
    columns, same = table.shown()
    lines = [f"## {markdown(table.title)}", ""]
    if same:
        lines += ["All rows: " + "; ".join(f"{markdown(t)} {markdown(v)}" for t, v in same) + ".", ""]
    lines.append("| " + " | ".join(markdown(column.title) for column in columns) + " |")
    lines.append("|" + "|".join("---:" if column.align == "r" else "---" for column in columns) + "|")
    for row in zip(*(column.values for column in columns), strict=True):
        lines.append("| " + " | ".join(markdown(value) for value in row) + " |")
    for note in table.notes:
        lines += ["", markdown(note)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""Return the table for LaTeX with ``\usepackage{booktabs}``; long remarks are lettered notes below."""
    columns, same = table.shown()
    remarks = [column for column in columns if column.note]
    columns = [column for column in columns if not column.note]
    letters: dict[str, str] = {}
    marks = []
    for row in (
        zip(*(column.values for column in remarks), strict=True) if remarks else [()] * len(columns[0].values)
    ):
        own = [letters.setdefault(value, _letter(len(letters))) for value in row if value]
        marks.append(f"\\textsuperscript{{{','.join(own)}}}" if own else "")
    caption = latex(table.title) + "."
    if same:
        caption += " " + latex("; ".join(f"{t}: {v}" for t, v in same)) + "."
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}",
        "  \\centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{{''.join(column.align for column in columns)}}}",
        "    \\toprule",
        "    " + " & ".join(latex(column.title) for column in columns) + " \\\\",
        "    \\midrule",
    ]
    position = next((i for i, column in enumerate(columns) if column.title == "Arm"), 0)
    for mark, row in zip(marks, zip(*(column.values for column in columns), strict=True), strict=True):
        cells = [latex(value) for value in row]
        cells[position] += mark
        lines.append("    " + " & ".join(cells) + " \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    below = [f"\\textsuperscript{{{letter}}} {latex(value)}." for value, letter in letters.items()]
    below += [latex(note) for note in table.notes]
    if below:
        lines += ["", "  \\smallskip", "  {\\footnotesize " + "\\\\\n  ".join(below) + "\\par}"]
    lines += ["\\end{table*}"]
    return "\n".join(lines) + "\n"


def _letter(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[number] if number < 26 else _letter(number // 26 - 1) + letters[number % 26]


FORMATS = {"md": to_markdown, "tex": to_latex, "csv": lambda table: to_csv(table.data)}
