"""Text for readers: made inert, numbers for reading, plain tables.

Names and titles come from files of other people and end in terminals, LaTeX, HTML, markdown and spreadsheets.
Nothing in them may act there.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

_MARKDOWN = re.compile(r"([\\`*_\[\]|#~$])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \textquotedbl exists in the T1 font encoding alone
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "✓": r"$\surd$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}
_FORMULA = "=+-@＝＋－＠"


def command(*words: object) -> str:
    """Return a ``bench`` command that a shell takes as it is, with quotes where they are needed."""
    plain = (
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words
    )
    return shlex.join(["bench", *plain])


# Letters of Latin scripts that pdfLaTeX has in its default font encoding, OT1; accents it builds on ASCII
# letters.
_LATEX_LETTERS = set("ßæÆœŒøØåÅłŁı")
_LATEX_ACCENTS = set(
    map(chr, (0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30A, 0x30B, 0x30C, 0x327))
)


def inert(text: object) -> str:
    """Return ``text`` with control, reordering and invisible characters spelt out (``\\x1b``); blanks stay.

    What a terminal, a browser or an editor would act on becomes visible characters.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def clean(text: object, limit: int | None = None) -> str:
    """Return ``text`` inert and on one line: line breaks, tabs and runs of blanks become one blank.

    ``limit`` cuts to that many characters, with an ellipsis.
    """
    line = re.sub(" {2,}", " ", inert(re.sub("[\t\n\r\v\f\x85\u2028\u2029]", " ", str(text)))).strip()
    if limit is not None and len(line) > limit:
        line = line[: limit - 1] + "…"
    return line


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Let a reader that has gone away (``| head``, a closed terminal) end nothing."""
    try:
        yield
    except ValueError:  # a closed file
        pass
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print; a reader that has gone away does not end the work."""
    with unread():
        print(text, file=stream or sys.stdout, flush=True)


# -- for reading ---------------------------------------------------------------------------------------------


def fixed(value: float, digits: int = 2) -> str:
    """Return a number with so many digits after the point; what rounds to zero has no sign."""
    return f"{value:z.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign and so many digits after the point; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def plural(count: int, noun: str) -> str:
    """Return ``1 trial``, ``2,000 trials``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def kind_and_reason(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says, which may be nothing."""
    said = str(error).strip().splitlines()[:1]
    return ": ".join([type(error).__name__, *said])[:250]


def first_few(names: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """Return the first of ``names`` in one line, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return separator.join(names[:count]) + more


def duration(seconds: float) -> str:
    """Return a duration in words short enough for a line of a table."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def data_size(count: int) -> str:
    """Return a number of bytes in the unit that suits it: ``0.5 MB``, ``1.3 GB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9)):
        if count >= 0.1 * scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB" if count else "0 MB"


def percent(value: float | None) -> str:
    """Return an accuracy in percent, "-" where there is none."""
    return "-" if value is None else f"{value:.2f} %"


def columns_of(text: str) -> int:
    """Return the columns of ``text`` on a terminal: two for wide letters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return an aligned plain table, every cell made inert; the columns in ``right`` are right-aligned."""
    cells = [[clean(cell) for cell in row] for row in (header, *rows)]
    widths = [max(columns_of(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])

    def padded(i: int, cell: str) -> str:
        blanks = " " * (widths[i] - columns_of(cell))
        return blanks + cell if i in right else cell + blanks

    return "\n".join("  ".join(padded(i, cell) for i, cell in enumerate(row)).rstrip() for row in cells)


# -- formats -------------------------------------------------------------------------------------------------


def markdown(text: object) -> str:
    """Return ``text`` for a line or cell of GitHub's markdown, with no markup, link, formula or HTML left."""
    line = _MARKDOWN.sub(r"\\\1", clean(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"://", ":&#47;&#47;", line)  # no automatic links
    return re.sub(r"(?i)\bwww\.", "www&#46;", line)


def latex(text: object) -> str:
    """Return ``text`` for LaTeX in any font encoding: escaped, letters that OT1 lacks as ``[U+4E2D]``."""
    return "".join(map(_latex_letter, clean(text)))


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    parts = unicodedata.normalize("NFD", letter)
    accented = len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _LATEX_ACCENTS
    if " " <= letter <= "~" or letter in _LATEX_LETTERS or accented:
        return letter
    return f"[U+{ord(letter):04X}]"


def spreadsheet(value: object) -> object:
    """Return a CSV cell: numbers as they are, an apostrophe before text that reads like a formula."""
    if value is None or isinstance(value, bool | int | float):
        return value
    line = clean(value)
    # Leading quotes and blanks are dropped by some programs before they look for a formula.
    return "'" + line if line.lstrip("'\" ")[:1] in tuple(_FORMULA) else line
