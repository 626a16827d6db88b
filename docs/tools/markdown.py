"""Tables of markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---") -> str:
    """Return a markdown table; ``align`` is the rule below all columns but the first."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [header, ["---", *[align] * (len(header) - 1)], *escaped]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)
