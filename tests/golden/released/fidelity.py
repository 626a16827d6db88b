"""Writes docs/fidelity.md: ``python -m tests.golden.released.fidelity`` (``make fidelity``).

The page joins the rows of ``comparison`` with deviations.md: what remains, tensorpack's scripts, rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tests.golden.released import comparison
from tests.golden.released.base import HERE, Row

PAGE = HERE.parents[2] / "docs" / "fidelity.md"
COLUMNS = ("item", "released", "ours", "largest difference", "in float64", "allowed", "why")
_NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?)"
_DIFFERENCES = re.compile(rf"\| {_NUMBER} \| {_NUMBER}? ?\| (?={_NUMBER} )")  # both, before what is allowed

HEAD = """# How close the suite is to the released code

The authors of *Progressive Learning of Low-Precision Networks* (arXiv 1905.11781) released four training scripts: a baseline
and EXP-Net, for SVHN and for ImageNet. Their unedited files were run, and what they compute is stored in
`tests/golden/released/` (its README says how). This page holds the presets called `released` against those numbers:
`experiments/svhn_released.toml` and `experiments/imagenet_alexnet_released.toml`.

`make fidelity` writes the page; a test runs the same comparison, fails where a difference exceeds what is allowed, and fails
where the page is not what the comparison writes. The page's differences are those of one machine and vary in their last
digits on others.

"""

HELD = """## Held against the numbers of the release

A difference is absolute, or "of the largest": a part of the largest magnitude in the same tensor. The release computed in
float32. The suite computed in float32 and, where a second number stands, in float64 from the same inputs. "facts" counts
entries that are not equal.

"""


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:g}" if value == int(value) else f"{value:.2g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(' --- ' for _ in columns)}|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    """Return the cells of one group's rows; the same item in float32 and in float64 is one line."""
    doubles = {row.item: row.difference for row in rows if row.precision == "float64"}
    singles = {row.item for row in rows if row.precision == "float32"}
    for row in rows:
        paired = row.item in singles
        if paired and row.precision == "float64":
            continue
        unit = "" if row.precision in ("float32", "float64") else f" ({row.precision})"
        yield (
            row.item + unit + (" (of the largest)" if row.relative else ""),
            row.released,
            row.ours,
            _number(row.difference),
            _number(doubles[row.item]) if paired else "",
            _number(row.allowed),
            row.why,
        )


def page(rows: Sequence[Row]) -> str:
    """Return the text of the page from the comparison's rows."""
    parts = [HEAD, HELD]
    for group in dict.fromkeys(row.group for row in rows):
        parts.append(
            f"### {group}\n\n{_table(COLUMNS, _cells([row for row in rows if row.group == group]))}\n"
        )
    parts.append((HERE / "deviations.md").read_text(encoding="utf-8"))
    return "".join(parts)


def masked(text: str) -> str:
    """Return the page without the measured differences."""
    return _DIFFERENCES.sub("| * | * | ", text)


def committed_rows() -> list[dict[str, str]]:
    """Return the rows of the comparison as the committed page has them, by column."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
        if len(cells) == len(COLUMNS) and cells != list(COLUMNS) and "---" not in line:
            found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def main() -> None:
    """Write the page."""
    PAGE.write_text(
        page([row for group in comparison.GROUPS.values() for row in group()]), encoding="utf-8", newline="\n"
    )
    print(f"{PAGE.relative_to(HERE.parents[2])}: written")


if __name__ == "__main__":
    main()
