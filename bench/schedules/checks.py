"""Checks of schedules that single options cannot express; they go by the options' names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from bench import registry
from bench.schedules.times import shares_passed
from bench.schedules.values import factor_value

Found = list[tuple[str, str]]  # (option, message)


def problems(group: str, spec: Mapping[str, Any]) -> Found:
    """Return what is wrong with the options of a schedule taken together, as (option, message) pairs.

    ``group`` is "factors" or "learning_rates"; each option has passed its own check. A kind whose registry
    entry says ``"endless": True`` needs no end beside ``keep = true``.
    """
    found: Found = []
    if "until" in spec:
        endless = registry.get(group, spec["kind"]).facts.get("endless") and spec["keep"]
        if not (endless and spec["until"] is None and spec["until_epochs"] is None):
            found += _exactly_one(spec, "until", "until_epochs")
    if "at" in spec:
        found += _times(spec)
    if "gamma" in spec:
        found += _exactly_one(spec, "gamma", "values")
        if not found and spec["gamma"] is not None:
            passed = len(spec["at"] or spec["at_epochs"])
            if math.log10(spec["initial"]) + passed * math.log10(spec["gamma"]) > 300:
                found.append(("gamma", f"{passed} times {spec['gamma']!r} is no finite rate"))
    if "final" in spec and spec["final"] > spec["initial"]:
        found.append(("final", f"{spec['final']!r} is above the initial {spec['initial']!r}"))
    if group == "factors" and "values" in spec and not found:
        values = spec["values"]
        if 0.0 in values and any(values[values.index(0.0) :]):
            found.append(("values", "once 0 the factor stays 0"))
    return found


def _exactly_one(spec: Mapping[str, Any], first: str, second: str) -> Found:
    given = [name for name in (first, second) if spec[name] is not None]
    if not given:
        return [(first, f"missing: exactly one of '{first}' and '{second}' is needed")]
    if len(given) == 2:
        return [(second, f"exactly one of '{first}' and '{second}' can be given, not both")]
    return []


def _times(spec: Mapping[str, Any]) -> Found:
    """Return what is wrong with the times ``at`` or ``at_epochs`` and the ``values`` that go with them."""
    found = _exactly_one(spec, "at", "at_epochs")
    for name in ("at", "at_epochs"):
        times = spec[name]
        if times is not None and (not times or any(b <= a for a, b in itertools.pairwise(times))):
            found.append((name, f"expected times that rise, one at least, not {times!r}"))
    times = spec["at"] if spec["at"] is not None else spec["at_epochs"]
    if times is not None and spec["values"] is not None and len(times) != len(spec["values"]):
        found.append(("values", f"{len(spec['values'])} values for {len(times)} times"))
    return found


def never_removed(spec: Mapping[str, Any], epochs: int, steps_per_epoch: int | None) -> str | None:
    """Return why the factor is not exactly 0 at the last step, None where it is or ``keep`` allows it.

    ``steps_per_epoch`` None (the size of the data set is not known) takes an epoch as many steps.
    """
    if spec["keep"]:
        return None
    steps = steps_per_epoch or 1_000_000
    total = epochs * steps
    last = factor_value(spec, total - 1, total, steps)
    if last == 0.0:
        return None
    length = f"{epochs} epochs" + (f" of {steps_per_epoch} steps" if steps_per_epoch else "")
    return (
        f"the factor is still {last:.3g} at the last step of {length}; it must end at 0, or say keep = true"
    )


def no_step_behind(share: float, epochs: int, steps_per_epoch: int) -> str | None:
    """Return that no step is left behind the ``share`` of all steps, None where there is one."""
    total = epochs * steps_per_epoch
    if shares_passed([share], total - 1, total):
        return None
    return f"{share:g} of {total} steps leaves no step behind it; train longer, or end it earlier"
