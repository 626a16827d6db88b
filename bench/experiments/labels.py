"""Choices in one line, as tables and figures show them. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench import registry


def label(group: str, choice: Mapping[str, Any]) -> str:
    """Return a completed choice in one line: its name and the options that are not at their defaults."""
    entry = registry.find(group, choice["kind"])
    parts = []
    for option, value in choice.items():
        spec = entry.options.get(option, {}) if entry else {}
        if (
            option in ("kind", "package")
            or ("default" in spec and spec["default"] == value)
            or spec.get("shown") is False
        ):
            continue
        if spec.get("type") == "factor":
            text = label("factors", value)
        elif spec.get("type") == "teacher" and "network" in value:
            text = f"{value['network']['kind']} {value['width']:g}x"
        elif isinstance(value, float):
            text = f"{value:g}"
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        parts.append(f"{option}={text}")
    return f"{choice['kind']}({', '.join(parts)})" if parts else choice["kind"]
