"""How configurations are called in tables and figures. Records may be damaged, so nothing here trusts their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import registry

_SHOWN_AS_VALUE = ("merge", "scheme", "what")  # options whose value speaks for itself


def label(group: str, choice: Any) -> str:
    """Return ``kind (option value, ...)`` without the options at their defaults; ``npz:NAME`` for prepared data."""
    if not isinstance(choice, Mapping):
        return "" if choice is None else str(choice)
    kind = str(choice.get("kind", ""))
    entry = registry.find(group, kind)
    options = entry.options if entry else {}
    shown = []
    for key, value in choice.items():
        spec = options.get(key, {})
        if key == "kind" or ("default" in spec and spec["default"] == value) or (value is None and not spec):
            continue
        if spec.get("shown") is False:
            continue
        if group == "datasets" and kind == "npz" and key == "name":
            kind = f"npz:{value}"
        elif spec.get("type") == "factor" or (isinstance(value, Mapping) and key == "factor"):
            shown.append(label("factors", value))
        elif spec.get("type") == "factors":
            shown += [f"{layer} {label('factors', factor)}" for layer, factor in value.items()]
        elif isinstance(value, Mapping):  # a whole configuration, of a teacher or a start
            inner = label("networks", value.get("network"))
            shown.append(f"{key} {inner}" if inner else key)
        elif isinstance(value, list):
            shown.append(f"{key} {' '.join(map(str, value))}")
        elif key in _SHOWN_AS_VALUE:
            shown.append(str(value))
        elif value is True:
            shown.append(str(key))
        else:
            shown.append(f"{key} {plain(value)}")
    return f"{kind} ({', '.join(shown)})" if shown else kind


def plain(value: Any) -> str:
    """Return a single value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
