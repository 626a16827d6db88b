"""Reference pages from the code itself: the fields of experiment files, the registry's parts, the commands.

The directives ``{fields} MODEL``, ``{parts} GROUP`` and ``{commands}`` stand for Markdown that is made when
the site is built, so the pages cannot lag behind the code.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Callable, Mapping
from typing import Any

from docutils import nodes
from pydantic import BaseModel
from sphinx.util.docutils import SphinxDirective

from bench import registry
from bench.cli.parser import make_parser
from bench.experiments.arms import ArmTable
from bench.experiments.claims import EQUAL_EPOCHS, EQUAL_OPERATIONS, Claim
from bench.experiments.config import Recipe, TrialConfig
from bench.experiments.file import FileTable, ProfileTable
from bench.experiments.options import CHOICES
from bench.experiments.tuning_table import TuningTable

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_OPTION_BOUNDS = {"min": "≥", "above": ">", "max": "≤", "below": "<"}
_PUBLISHED = "https://arxiv.org/abs/"
_HELP_COLUMNS = "88"


def fields(model: type[BaseModel], *, leave_out: type[BaseModel] | None = None) -> str:
    """Return a Markdown table of a model's fields: key, values, default, meaning."""
    schema = model.model_json_schema()
    inherited = leave_out.model_fields if leave_out else {}
    rows = []
    for name, declared in schema["properties"].items():
        if name in inherited:
            continue
        default = "" if name in schema.get("required", ()) else _code(declared.get("default"))
        values = "name or table" if name in CHOICES else _values(declared)
        rows.append((f"`{name}`", values, default, declared.get("description", "")))
    return _table(("key", "values", "default", "meaning"), rows)


def parts(group: str) -> str:
    """Return a Markdown section for each part of a group of the registry, with a table of its options."""
    sections = []
    for entry in registry.entries(group).values():
        if entry.package:
            continue  # a package installed beside the suite is not part of this site
        paper = f" {_text(entry.title)}" if entry.title else ""
        paper += f" [{entry.arxiv}]({_PUBLISHED}{entry.arxiv})" if entry.arxiv else ""
        facts = [
            f"{name} {', '.join(map(str, entry.facts.get(key, [32])))}"
            for key, name in (("w_bits", "weights"), ("a_bits", "activations"), ("g_bits", "gradients"))
            if "w_bits" in entry.facts
        ]
        lines = [f"### `{entry.name}`", "", f"{_text(entry.help)}.{paper}", ""]
        lines += [f"Bits: {'; '.join(facts)}.", ""] if facts else []
        rows = [
            (
                f"`{name}`",
                _option_values(spec),
                _code(spec["default"]) if "default" in spec else "",
                _text(spec["help"]),
            )
            for name, spec in entry.options.items()
        ]
        lines += [_table(("option", "values", "default", "meaning"), rows)] if rows else []
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def claims() -> str:
    """Return the Markdown table of the keys of ``[[claims]]``."""
    rows = [
        ("`arm`", "the name of an arm", "", "the arm that is expected to differ"),
        ("`over`", "the name of an arm", "", "the arm that it is compared with"),
        (
            "`at`",
            ", ".join(map(_code, (EQUAL_EPOCHS, EQUAL_OPERATIONS))),
            "",
            "what the two arms have in common",
        ),
        (
            "`margin`",
            "number",
            _code(Claim.model_fields["margin"].default),
            "points within which two means count as equivalent",
        ),
        ("`where`", "table", "`{}`", "the grid points that the claim covers; without it all of the pair"),
    ]
    return _table(("key", "values", "default", "meaning"), rows)


def commands() -> str:
    """Return the help of every command, as the terminal shows it, a Markdown section each."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ.update(COLUMNS=_HELP_COLUMNS, NO_COLOR="1")
    try:
        parsers = make_parser()[1]
        return "\n\n".join(
            f"## bench {name}\n\n```text\n{parser.format_help().rstrip()}\n```"
            for name, parser in parsers.items()
        )
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _values(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON Schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_values(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(map(_code, schema["enum"]))
    if "const" in schema:
        return _code(schema["const"])
    kind = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "array": "list",
        "object": "table",
        "null": "none",
    }.get(schema.get("type", ""), "any")
    bounds = [f"{sign} {_number(schema[name])}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and value != int(value) else str(int(value))


def _option_values(spec: Mapping[str, Any]) -> str:
    if "choices" in spec:
        return ", ".join(map(_code, spec["choices"]))
    kinds = {"float": "number", "int": "whole number", "bool": "true, false", "str": "text"}
    kinds |= {"names": "list of names", "floats": "list of numbers", "factor": "a factor"}
    kinds |= {"factors": "a factor for each layer", "teacher": "fields of a trial"}
    bounds = [
        f"{sign} {_number(spec[name])}" for name, sign in _OPTION_BOUNDS.items() if spec.get(name) is not None
    ]
    return " ".join([kinds[spec["type"]], ", ".join(bounds)]).strip()


def _code(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _text(text: str) -> str:
    """Return text in which nothing acts as Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|$" else c for c in text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace(chr(10), ' ') for cell in row)} |" for row in lines)


# Every name that ``{from-code}`` takes, and what makes its Markdown.
MAKERS: dict[str, Callable[[], str]] = {
    "file": lambda: fields(FileTable),
    "arm": lambda: fields(ArmTable),
    "profile": lambda: fields(ProfileTable),
    "trial": lambda: fields(TrialConfig, leave_out=Recipe),
    "recipe": lambda: fields(Recipe),
    "tuning": lambda: fields(TuningTable),
    "claims": claims,
    "commands": commands,
    **{group: (lambda group=group: parts(group)) for group in registry.GROUPS},  # type: ignore[misc]
}


class FromCode(SphinxDirective):
    """``{from-code} NAME``: the Markdown that ``MAKERS[NAME]`` makes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed Markdown."""
        name = self.arguments[0]
        if name not in MAKERS:
            raise self.error(f"from-code: {name!r} is none of {', '.join(MAKERS)}")
        return typing.cast(
            list[nodes.Node], self.parse_text_to_nodes(MAKERS[name](), allow_section_headings=True)
        )


def escape_bars(*event: Any) -> None:
    """Escape the bars of ``|w|`` in docstrings outside literals, where they would name a substitution."""
    lines = event[-1]
    lines[:] = [
        "``".join(part.replace("|", r"\|") if i % 2 == 0 else part for i, part in enumerate(line.split("``")))
        for line in lines
    ]


def setup(app: Any) -> dict[str, Any]:
    """Register the directive with Sphinx, and what docstrings need."""
    app.add_directive("from-code", FromCode)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"parallel_read_safe": True}
