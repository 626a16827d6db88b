"""The fields of a trial as nested tables: setting, finding and comparing them by dotted paths.

A field that is a choice from the registry is a table ``{kind = ..., options}``. A table without ``kind``
changes the options it names in the choice beneath it; one with ``kind``, or a bare name, replaces the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench import registry
from bench.errors import InputError
from bench.experiments.config import FIELDS, READ_BY, TrialConfig
from bench.experiments.options import CHOICES, as_table, complete

AxisPath = tuple[str, ...]  # ("strategy", "factor", "until")


def default_of(name: str) -> Any:
    """Return the default of a field, None where it has none."""
    info = FIELDS.get(name)
    return None if info is None or info.is_required() else info.default


def _is_partial(value: Any) -> bool:
    return isinstance(value, dict) and "kind" not in value


def assign(fields: dict[str, Any], path: AxisPath, value: Any) -> None:
    """Set ``path`` in ``fields``; a table without ``kind`` changes the options it names. Tables are copied.

    ``... .kind`` changes the kind and keeps the options that the new one has too.
    """
    name = path[0]
    if name in CHOICES and (len(path) > 1 or _is_partial(value)):
        below = as_table(CHOICES[name], fields.get(name, default_of(name)))
        fields[name] = _changed(below, path[1:], value, CHOICES[name])
    else:
        fields[name] = value


def _changed(table: Any, path: AxisPath, value: Any, group: str | None) -> Any:
    """Return a copy of a choice of ``group`` (None: another table) with ``value`` at ``path``."""
    table = dict(table) if isinstance(table, dict) else {"kind": table} if isinstance(table, str) else {}
    if not path:
        for key, inner in value.items():
            deeper = _is_partial(inner) and isinstance(table.get(key), dict | str)
            table[key] = _changed(table[key], (), inner, _group_of(group, table, key)) if deeper else inner
    elif path == ("kind",) and group is not None:
        entry = entry_of(group, {"kind": value})
        table = {"kind": value} | {key: kept for key, kept in table.items() if entry and key in entry.options}
    elif len(path) == 1 and not (_is_partial(value) and isinstance(table.get(path[0]), dict)):
        table[path[0]] = value
    else:
        table[path[0]] = _changed(table.get(path[0]), path[1:], value, _group_of(group, table, path[0]))
    return table


def _group_of(group: str | None, table: Any, option: str) -> str | None:
    entry = entry_of(group, table) if group else None
    return "factors" if entry and entry.options.get(option, {}).get("type") == "factor" else None


def stack(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            if _is_partial(value) and key in CHOICES and key not in fields:
                fields[key] = value  # stays partial: what it changes lies beneath
            else:
                assign(fields, (key,), value)
    return fields


def explicit(fields: Mapping[str, Any], path: AxisPath) -> bool:
    """Return whether an arm's own table says something about ``path``."""
    table: Any = fields
    for i, part in enumerate(path):
        if not isinstance(table, dict) or part not in table:
            return False
        table = as_table(CHOICES[part], table[part]) if i == 0 and part in CHOICES else table[part]
    return True


def reaches(fields: Mapping[str, Any], path: AxisPath) -> bool:
    """Return whether ``path`` names something that a trial with these fields has.

    The bit widths of a quantizer that takes none but 32 are out of reach, so that an axis ``bits`` leaves
    full-precision arms alone; so are the fields of another optimizer, where ``fields`` has one.
    """
    name = path[0]
    if name in READ_BY and fields.get("optimizer", READ_BY[name]) != READ_BY[name]:
        return False
    if path == ("bits",):
        quantizer = as_table("quantizers", fields.get("quantizer", default_of("quantizer")))
        entry = entry_of("quantizers", quantizer)
        return entry is None or any(
            entry.facts.get(key, [32]) != [32] for key in ("w_bits", "a_bits", "g_bits")
        )
    if len(path) == 1 or name not in CHOICES:
        return len(path) == 1
    return _has_option(CHOICES[name], as_table(CHOICES[name], fields.get(name, default_of(name))), path[1:])


def entry_of(group: str, table: Any) -> registry.Entry | None:
    kind = table.get("kind") if isinstance(table, dict) else None
    return registry.find(group, kind) if isinstance(kind, str) else None


def _has_option(group: str, table: Any, path: AxisPath) -> bool:
    if path == ("kind",):
        return True
    entry = entry_of(group, table)
    spec = entry.options.get(path[0], {} if entry.facts.get("open") else None) if entry else None
    if spec is None or len(path) == 1:
        return spec is not None
    if spec["type"] == "factor":
        return _has_option("factors", as_table("factors", table.get(path[0])), path[1:])
    return spec["type"] == "teacher" and (path[1] in FIELDS or path[1] == "recipe")


def option_paths(group: str, table: Any, prefix: str) -> list[str]:
    """Return the dotted names of a choice's options, those of a factor within it included."""
    entry = entry_of(group, table)
    names = []
    for option, spec in (entry.options if entry else {}).items():
        names.append(f"{prefix}.{option}")
        if spec["type"] == "factor":
            names += option_paths("factors", as_table("factors", table.get(option)), f"{prefix}.{option}")
    return names


def leaves(table: Mapping[str, Any], path: AxisPath = ()) -> Iterator[tuple[AxisPath, Any]]:
    """Yield the assignments of a table: options of partial choices (tables without ``kind``) one by one."""
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, dict) and "kind" not in value and value and here[0] in CHOICES:
            yield from leaves(value, here)
        else:
            yield here, value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables by dotted name."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return found if found or not prefix else {prefix: {}}


def has_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether a complete configuration has ``values``, by dotted name and as a file writes them.

    A choice may stand there as its name, a number or a table that leaves options out.
    """
    flat = flatten(config)
    tables = {name: value for name, value in values.items() if name not in flat}
    fields = dict(config)
    for name, value in tables.items():
        assign(fields, tuple(name.split(".")), value)
    changed = {name.split(".")[0] for name in tables}
    try:
        return all(flat[name] == value for name, value in values.items() if name in flat) and all(
            name in CHOICES and flatten(complete(CHOICES[name], fields[name])) == flatten(config.get(name))
            for name in changed
        )
    except InputError:  # a part that is not installed here, or another version of it
        return False


def differences(first: TrialConfig, second: TrialConfig) -> dict[str, tuple[Any, Any]]:
    """Return the dotted fields that differ, with both values. None: the configuration has no such option."""
    a, b = flatten(first.dump()), flatten(second.dump())
    return {
        key: (a.get(key), b.get(key))
        for key in [*a, *(k for k in b if k not in a)]
        if a.get(key) != b.get(key)
    }


def listed(key: str, allowed: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)
