"""Choices in one line, as tables and figures show them. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench import registry
from bench.experiments.options import CHOICES

# Options whose value says enough without the option's name.
_VALUE_ALONE = ("merge", "scheme", "what")


def label(group: str, choice: Any) -> str:
    """Return ``kind (option value, ...)``, without options at their defaults; ``npz:NAME`` for prepared data.

    ``choice`` is a completed choice of ``group``, or one of a record, whose kind and options the registry may
    not know.
    """
    if not isinstance(choice, Mapping):
        return "" if choice is None else str(choice)
    kind = str(choice.get("kind", ""))
    entry = registry.find(group, kind)
    options = entry.options if entry else {}
    shown = []
    for option, value in choice.items():
        spec = options.get(option, {})
        if option in ("kind", "package") or spec.get("shown") is False or (value is None and not spec):
            continue
        if "default" in spec and spec["default"] == value:
            continue
        if group == "datasets" and option == "name" and kind == "npz":
            kind = f"{kind}:{value}"
        else:
            shown += _option_texts(option, value, spec)
    return f"{kind} ({', '.join(shown)})" if shown else kind


def _option_texts(option: str, value: Any, spec: Mapping[str, Any]) -> list[str]:
    """Return an option and its value, as a label shows them: one text, or one a layer."""
    if spec.get("type") == "factors" and isinstance(value, Mapping):
        return [f"{layer} {label('factors', factor)}" for layer, factor in value.items()]
    if spec.get("type") == "factor" or (isinstance(value, Mapping) and option == "factor"):
        return [label("factors", value)]
    if isinstance(value, Mapping):  # the whole configuration of a teacher or a start
        network = label("networks", value.get("network"))
        return [f"{option} {network}" if network else option]
    if isinstance(value, list):
        return [f"{option} {' '.join(map(str, value))}"]
    if option in _VALUE_ALONE:
        return [str(value)]
    return [option if value is True else f"{option} {plain(value)}"]


def plain(value: Any) -> str:
    """Return a single value as tables show it: yes or no, a number without idle digits, text as it is.

    A choice with options is its kind with them: ``linear (until 0.5)``.
    """
    if isinstance(value, Mapping) and "kind" in value:
        options = ", ".join(f"{key} {plain(option)}" for key, option in value.items() if key != "kind")
        return f"{value['kind']} ({options})" if options else str(value["kind"])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_text(value: Any) -> str:
    """Return the value of a field, as commands print it: numbers exact, a choice by ``label``, else JSON."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        for group in ("factors", *CHOICES.values()):
            if value["kind"] in registry.entries(group):
                return label(group, value)
    return json.dumps(value, default=str)


def values_text(table: Mapping[str, Any]) -> str:
    """Return the values of fields in one line, ``name=value name=value``."""
    return " ".join(f"{name}={value_text(value)}" for name, value in table.items())
