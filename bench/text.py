"""Making text inert: names and titles come from files of others and end in terminals, LaTeX, HTML, markdown, spreadsheets."""

from __future__ import annotations

import html
import re
import unicodedata

# Marks that reorder or hide the text round them; the control characters proper are found by their category.
_INVISIBLE = set(map(chr, [*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF]))
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
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}
_FORMULA = "=+-@＝＋－＠"


def clean(text: object, limit: int | None = None) -> str:
    """Return ``text`` on one line with control, reordering and invisible characters spelt out (``\\x1b``).

    What a terminal, a browser or an editor would act on becomes visible characters. Line breaks and tabs become a
    space. ``limit`` cuts to that many characters, with an ellipsis.
    """
    result = []
    for character in str(text):
        if character in "\t\n\r\v\f\x85\u2028\u2029":
            result.append(" ")
        elif character in _INVISIBLE or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
            code = ord(character)
            result.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        else:
            result.append(character)
    line = re.sub(" {2,}", " ", "".join(result)).strip()
    if limit is not None and len(line) > limit:
        line = line[: limit - 1] + "…"
    return line


def markdown(text: object) -> str:
    """Return ``text`` for a cell or a line of (GitHub) markdown: no table bar, markup, link, formula or HTML survives."""
    line = _MARKDOWN.sub(r"\\\1", clean(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"://", ":&#47;&#47;", line)  # no automatic links
    return re.sub(r"(?i)\bwww\.", "www&#46;", line)


def latex(text: object) -> str:
    """Return ``text`` for LaTeX: every active character escaped, letters that pdfLaTeX lacks spelt as ``[U+4E2D]``."""
    result = []
    for character in clean(text):
        if character in _LATEX:
            result.append(_LATEX[character])
        elif " " <= character <= "~" or "\u00c0" <= character <= "\u017f":
            result.append(character)
        else:
            result.append(f"[U+{ord(character):04X}]")
    return "".join(result)


def webpage(text: object) -> str:
    """Return ``text`` for HTML content and quoted attributes."""
    return html.escape(clean(text), quote=True)


def spreadsheet(value: object) -> object:
    """Return a CSV cell: numbers as they are, text that a spreadsheet would take for a formula with an apostrophe before it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    line = clean(value)
    # Leading quotes and blanks are dropped by some programs before they look for a formula.
    return "'" + line if line.lstrip("'\" ")[:1] in tuple(_FORMULA) else line
