"""Choices from the registry: a name or a table becomes a checked table ``{kind = ..., options}``."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from bench import registry, schedules
from bench.errors import InputError, nearest, shown
from bench.experiments import permission
from bench.machine import foreign

NAMED = ("npz:", "imagefolder:")  # data sets of the user's own, KIND:NAME
# the fields that are a choice from the registry -> its group
CHOICES = {
    "dataset": "datasets",
    "network": "networks",
    "quantizer": "quantizers",
    "strategy": "strategies",
    "learning_rate": "learning_rates",
}


def as_table(group: str, value: Any) -> Any:
    """Return a choice written in a short form as the table it stands for; anything else unchanged.

    A name is ``{kind = name}``, ``"npz:NAME"`` the kind ``npz`` with that name and so ``imagefolder:NAME``, a
    number a constant learning rate.
    """
    if group == "learning_rates" and isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "initial": value}
    if isinstance(value, str):
        value = {"kind": value}
    if group == "datasets" and isinstance(value, dict) and str(value.get("kind")).startswith(NAMED):
        kind, _, name = value["kind"].partition(":")
        return {**value, "kind": kind, "name": name}
    return value


def complete(group: str, value: Any, where: str = "") -> dict[str, Any]:
    """Return ``{"kind": name, **every option}`` from a name or a table ``{kind = ..., options}``.

    A part of another package has ``package``, its name and version, beside the options.

    Unknown options, wrong types, values out of range and options that do not go together raise
    ``InputError``, a line each; ``where`` is the key in the file.
    """
    where = where or registry.GROUPS[group][0].replace(" ", "_")
    value = as_table(group, value)
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise InputError(f'{where}: expected a name or a table {{ kind = "..." }}, not {shown(value)}')
    kind = value["kind"]
    if group == "networks" and (permission.is_own(kind) or kind == "python"):
        permission.split(kind, where)
    entry = registry.get(group, kind, where)
    problems, further = [], {}
    for option in value:
        if option == "kind" or option in entry.options or (option == "package" and entry.package):
            continue
        if entry.facts.get("open"):
            problems += _check_free_option(value[option], f"{where}.{option}", option)
            further[option] = value[option]
        else:
            known = f" Options: {', '.join(entry.options)}." if entry.options else " It has no options."
            hint = nearest(option, entry.options)
            problems.append(f"{where}.{option}: '{kind}' has no such option.{hint}{known}")
    result: dict[str, Any] = {"kind": kind}
    if entry.package:
        if value.get("package", entry.package) != entry.package:
            problems.append(
                f"{where}.package: '{kind}' is code of {entry.package} here, but of "
                f"{shown(value['package'])} in this configuration; another version is another trial"
            )
        result["package"] = entry.package
    for option, spec in entry.options.items():
        if option in value:
            try:
                result[option] = _checked(value[option], spec, f"{where}.{option}")
            except InputError as error:
                problems.append(str(error))
        elif "default" in spec:
            result[option] = copy.deepcopy(spec["default"])
        else:
            problems.append(
                f"{where}.{option}: missing; '{kind}' needs it ({spec.get('help', spec['type'])})"
            )
    result |= further
    if not problems:
        problems += _check_combination(group, entry, result, where)
    if problems:
        raise InputError("\n".join(problems))
    return result


def _check_free_option(value: Any, where: str, option: str) -> list[str]:
    """Return what is wrong with the name or the value of an option that the user's own code gets."""
    if not foreign.is_module(option) or "." in option or option == "num_classes":
        return [f"{where}: no function can be given an option of this name"]
    values = value if isinstance(value, list | tuple) else [value]
    finite = (isinstance(one, str | int) or (isinstance(one, float) and math.isfinite(one)) for one in values)
    if all(finite):
        return []
    return [f"{where}: expected text, a number, true or false, or a list of them, not {shown(value)}"]


def _check_combination(group: str, entry: registry.Entry, choice: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with a choice's options taken together."""
    problems = []
    for option, spec in entry.options.items():
        if not applies(spec, choice) and choice[option] != spec.get("default"):
            pairs = spec["only_with"].items()
            needed = " and ".join(f"{name} = {' or '.join(map(repr, values))}" for name, values in pairs)
            problems.append(f"{where}.{option}: {shown(choice[option])} has a meaning only with {needed}")
    if group in ("factors", "learning_rates"):
        problems += [f"{where}.{option}: {text}" for option, text in schedules.problems(group, choice)]
    return problems


def keywords(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a completed choice: what its factory is called with."""
    return {option: value for option, value in choice.items() if option not in ("kind", "package")}


def holds(condition: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    """Return whether each option that ``condition`` names has one of the values that it lists."""
    return all(choice.get(name) in values for name, values in condition.items())


def applies(spec: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    """Return whether an option has a meaning beside the others: its declaration's ``only_with`` holds."""
    return holds(spec.get("only_with", {}), choice)


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "min": (operator.ge, "at least"),
    "max": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}
_TYPES: dict[str, tuple[Any, str]] = {
    "float": ((int, float), "a number"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
}


def takes_null(spec: Mapping[str, Any]) -> bool:
    """Return whether null is a value of an option: because it is the default, or by declaration."""
    return bool(spec.get("nullable")) or spec.get("default", "") is None


def _checked(value: Any, spec: Mapping[str, Any], where: str) -> Any:
    """Check one option against its declaration and return it in its canonical type."""
    if value is None and takes_null(spec):
        return None
    if "choices" in spec:
        for choice in spec["choices"]:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        hint = nearest(str(value), map(str, spec["choices"])) if isinstance(value, str) else ""
        raise InputError(
            f"{where}: {shown(value)} is not one of {', '.join(map(repr, spec['choices']))}.{hint}"
        )
    kind = spec["type"]
    if kind == "factor":
        return complete("factors", value, where)
    if kind == "factors":
        if not isinstance(value, dict) or not value:
            raise InputError(f"{where}: expected a table of layers and their factors, not {shown(value)}")
        return {layer: complete("factors", factor, f"{where}.{layer}") for layer, factor in value.items()}
    if kind == "teacher":
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: expected a table of the fields in which it differs, not {shown(value)}"
            )
        return value  # completed to a whole configuration when the experiment is expanded
    if kind in ("names", "floats"):
        item, words = ("str", "names") if kind == "names" else ("float", "numbers")
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"{where}: expected a list of {words}, not {shown(value)}")
        listed = [_scalar(v, item, spec, f"{where}[{i}]") for i, v in enumerate(value)]
        if kind == "names" and not spec.get("repeats") and len(set(listed)) < len(listed):
            raise InputError(f"{where}: lists {shown(next(v for v in listed if listed.count(v) > 1))} twice")
        return listed
    return _scalar(value, kind, spec, where)


def _scalar(value: Any, kind: str, spec: Mapping[str, Any], where: str) -> Any:
    types, words = _TYPES[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{where}: expected {words}, not {shown(value)}")
    if kind == "float":
        try:
            value = float(value) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            raise InputError(f"{where}: {shown(value)} is too large") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {value!r} is not a finite number")
    for key, (fits, words) in _BOUNDS.items():
        if key in spec and not fits(value, spec[key]):
            raise InputError(f"{where}: {shown(value)} must be {words} {spec[key]}")
    return value
