"""Tables that fit where they are shown: in full when piped, wrapped and in colour on a terminal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from bench import text
from bench.text import clean

NARROWEST = 40  # columns: no table is wrapped to less
_COLOURS = {"done": "green", "failed": "red", "damaged": "red", "diverged": "yellow", "running": "cyan"}


@dataclass(frozen=True)
class Screen:
    """Where the text of a command goes. ``width`` is in columns; None: not a terminal, nothing is wrapped."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """Return the screen behind a stream. ``NO_COLOR`` (no-color.org) is obeyed."""
        if not stream.isatty():
            return cls()
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        return cls(max(NARROWEST, shutil.get_terminal_size().columns), not plain)

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()
    ) -> str:
        """Return a table, every cell made inert; the columns in ``right`` are right-aligned.

        On a terminal cells that do not fit go on below, so that no row is cut.
        """
        if self.width is None:
            return text.table(header, rows, right=right)
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for i, title in enumerate(header):
            shown.add_column(
                Text(clean(title)), justify="right" if i in right else "left", overflow="fold", min_width=1
            )
        for row in rows:
            shown.add_row(
                *(Text(clean(cell), style=_COLOURS.get(str(cell).split(":")[0], "")) for cell in row)
            )
        console = Console(
            width=self.width,
            force_terminal=self.colour,
            color_system="standard" if self.colour else None,
            highlight=False,
            legacy_windows=False,
        )
        with console.capture() as captured:
            console.print(shown)
        return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


PIPED = Screen()  # in full
