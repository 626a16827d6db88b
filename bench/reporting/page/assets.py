"""The parts of every page: templates, the two bundles of JavaScript, and data as inert JSON."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.reporting.table import Column
from bench.text import clean

_NUMBER = re.compile(r"^[<>×~ ]*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)")


@cache
def environment() -> jinja2.Environment:
    """Return the environment of the templates: every text from a file is cleaned, then escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    made.filters["transposed"] = lambda columns: list(zip(*columns, strict=True))
    made.filters["cut"] = clean
    made.filters["sort_key"] = sort_key
    made.globals["asset"] = _asset
    made.globals["bundle"] = _bundle
    return made


def render(template: str, data: Any, **values: Any) -> str:
    """Return a page. ``data`` is what ``page.js`` reads: ``cells`` and ``plots``."""
    shown = {**data, "plots": _literal(data["plots"])} if "plots" in data else data
    return environment().get_template(template).render(data=_json(shown), **values)


def _literal(value: Any) -> Any:
    """Return plotly's traces and layouts with every text as it reads.

    Plotly takes a few tags and links in a text. A name from a record must not become one: only a line break
    becomes a tag. The templates of the readout (``hovertemplate``) are ours and keep their tags.
    """
    if isinstance(value, str):
        escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return escaped.replace("\n", "<br>")
    if isinstance(value, dict):
        return {key: item if key == "hovertemplate" else _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list | tuple) else value


def sort_key(text: str, column: Column) -> str:
    """Return what a column is sorted by: of a number column the number at the start of the text.

    A text without a number sorts below all numbers.
    """
    if column.align != "r":
        return text
    found = _NUMBER.match(text)
    return found[1].replace(",", "") if found else "-1e99"


def _json(value: Any) -> Markup:
    """Return JSON that may stand inside a script element: cleaned texts without ``<``, ``>`` and ``&``."""
    text = json.dumps(_cleaned(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list | tuple) else value


def _asset(name: str) -> Markup:
    """Return the unchanged text of a file in the folder of templates."""
    return Markup((Path(__file__).parents[1] / "templates" / name).read_text(encoding="utf-8"))


@cache
def _bundle(package: str, file: str, encoded: bool = False) -> Markup:
    """Return a file of an installed package, in base64 where ``encoded``."""
    content = Path(str(distribution(package).locate_file(file))).read_bytes()
    return Markup(base64.b64encode(content).decode() if encoded else content.decode())
