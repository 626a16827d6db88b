"""Schedules: pure functions of the global step, for the progressive factor f(t) and for the learning rate.

Progress is ``step / total_steps`` for steps 0 .. total_steps - 1; an epoch is ``step / steps_per_epoch``. Nothing is
counted or remembered, so a resumed trial reads the same values. Times are fractions of the training (``until``, ``at``)
or epochs (``until_epochs``, ``at_epochs``): a schedule in fractions keeps its shape when the budget changes.

Plain floats, no torch. Sources of the released schedules: the training scripts of Progressive Learning of Low-Precision
Networks (arXiv 1905.11781): the factor as a cosine to 0 over 50 of 200 epochs (SVHN) and as a staircase halving every 4
(AlexNet) or 5 (SVHN) epochs that snaps to 0 below 0.001.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from bench.errors import InputError

# Literals read by bench/registry.py without importing this module; see there for the keys.
FACTORS: list[dict[str, Any]] = [
    {
        "name": "cosine",
        "factory": "cosine_factor",
        "help": "(1 + cos(pi u)) / 2 until u = 1, then 0",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "options": {
            "until": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "below": 1,
                "help": "fraction of all steps",
            },
            "until_epochs": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "the same in epochs",
            },
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
    {
        "name": "linear",
        "factory": "linear_factor",
        "help": "1 - u until u = 1, then 0",
        "options": {
            "until": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "below": 1,
                "help": "fraction of all steps",
            },
            "until_epochs": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "the same in epochs",
            },
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
    {
        "name": "exponential",
        "factory": "exponential_factor",
        "help": "0.001^u until u = 1, then 0",
        "options": {
            "until": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "below": 1,
                "help": "fraction of all steps",
            },
            "until_epochs": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "the same in epochs",
            },
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
    {
        "name": "constant",
        "factory": "constant_factor",
        "help": "1 until u = 1, then 0; 1 throughout with keep and no until",
        "options": {
            "until": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "below": 1,
                "help": "fraction of all steps",
            },
            "until_epochs": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "the same in epochs",
            },
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
    {
        "name": "staircase",
        "factory": "staircase_factor",
        "help": "decay^k after k times every_epochs, 0 once below cutoff",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "options": {
            "every_epochs": {"type": "float", "above": 0, "help": "epochs between two steps down"},
            "decay": {
                "type": "float",
                "default": 0.5,
                "min": 0,
                "below": 1,
                "help": "what each step down multiplies by",
            },
            "cutoff": {"type": "float", "default": 0.001, "min": 0, "max": 1, "help": "smaller values are 0"},
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
    {
        "name": "step",
        "factory": "step_factor",
        "help": "1, then values[i] from at[i] on",
        "options": {
            "at": {
                "type": "floats",
                "default": None,
                "nullable": True,
                "min": 0,
                "below": 1,
                "help": "fractions of all steps",
            },
            "at_epochs": {
                "type": "floats",
                "default": None,
                "nullable": True,
                "min": 0,
                "help": "the same in epochs",
            },
            "values": {
                "type": "floats",
                "min": 0,
                "max": 1,
                "help": "the factor from each of these times on",
            },
            "keep": {"type": "bool", "default": False, "help": "an upper bound: the factor need not reach 0"},
        },
    },
]

LEARNING_RATES: list[dict[str, Any]] = [
    {
        "name": "constant",
        "factory": "constant_rate",
        "help": "initial throughout; a bare number means this",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the learning rate"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise to it over the first epochs",
            },
        },
    },
    {
        "name": "cosine",
        "factory": "cosine_rate",
        "help": "half a cosine from initial to final over all steps after the warm-up",
        "title": "SGDR: Stochastic Gradient Descent with Warm Restarts",
        "arxiv": "1608.03983",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the highest learning rate"},
            "final": {"type": "float", "default": 0.0, "min": 0, "help": "what it falls to"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
    {
        "name": "linear",
        "factory": "linear_rate",
        "help": "a straight line from initial to final over all steps after the warm-up",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the highest learning rate"},
            "final": {"type": "float", "default": 0.0, "min": 0, "help": "what it falls to"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
    {
        "name": "polynomial",
        "factory": "polynomial_rate",
        "help": "final + (initial - final) (1 - progress)^power",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the highest learning rate"},
            "final": {"type": "float", "default": 0.0, "min": 0, "help": "what it falls to"},
            "power": {"type": "float", "default": 2.0, "above": 0, "help": "the exponent"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
    {
        "name": "exponential",
        "factory": "exponential_rate",
        "help": "initial (final / initial)^progress",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the highest learning rate"},
            "final": {"type": "float", "above": 0, "help": "what it falls to"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
    {
        "name": "staircase",
        "factory": "staircase_rate",
        "help": "initial * decay^k after k times every_epochs",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the first learning rate"},
            "decay": {"type": "float", "above": 0, "max": 1, "help": "what each step down multiplies by"},
            "every_epochs": {"type": "float", "above": 0, "help": "epochs between two steps down"},
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
    {
        "name": "step",
        "factory": "step_rate",
        "help": "initial, then times gamma at each of the times, or values[i] from the i-th on",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the first learning rate"},
            "at": {
                "type": "floats",
                "default": None,
                "nullable": True,
                "above": 0,
                "below": 1,
                "help": "fractions of all steps",
            },
            "at_epochs": {
                "type": "floats",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "the same in epochs",
            },
            "gamma": {
                "type": "float",
                "default": None,
                "nullable": True,
                "above": 0,
                "help": "what each time multiplies by",
            },
            "values": {
                "type": "floats",
                "default": None,
                "nullable": True,
                "min": 0,
                "help": "the rate from each time on",
            },
            "warmup_epochs": {
                "type": "float",
                "default": 0.0,
                "min": 0,
                "help": "linear rise over the first epochs",
            },
        },
    },
]

_EXPONENTIAL_FLOOR = 0.001  # where `exponential` drops to 0


def factor_value(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return f at ``step`` of a completed factor ``{"kind": ..., options}``: a number in [0, 1], 0 for good once 0.

    ``step`` counts from 0 to ``total_steps - 1``; ``steps_per_epoch`` turns epochs into steps.
    """
    return _FACTORS[spec["kind"]](spec, step, total_steps, steps_per_epoch)


def learning_rate_value(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate at ``step`` of a completed schedule ``{"kind": ..., options}``.

    During a warm-up of w = warmup_epochs * steps_per_epoch steps it is ``initial * (step + 1) / w``; the kinds that
    fall continuously start after it, those in stairs keep their times, counted from the start.
    """
    warmup = spec["warmup_epochs"] * steps_per_epoch
    if step < warmup:
        return spec["initial"] * min(1.0, (step + 1) / warmup)
    return _RATES[spec["kind"]](spec, step, total_steps, steps_per_epoch, warmup)


# --- factors ---


def _share(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return u = progress / until: 1 and more once the factor is gone."""
    if spec["until_epochs"] is not None:
        return step / (spec["until_epochs"] * steps_per_epoch)
    return step / total_steps / spec["until"]


def cosine_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """(1 + cos(pi u)) / 2 for u < 1, else 0."""
    u = _share(spec, step, total_steps, steps_per_epoch)
    return 0.5 * (1.0 + math.cos(math.pi * u)) if u < 1.0 else 0.0


def linear_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 - u for u < 1, else 0."""
    return max(0.0, 1.0 - _share(spec, step, total_steps, steps_per_epoch))


def exponential_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """0.001^u for u < 1, else 0."""
    u = _share(spec, step, total_steps, steps_per_epoch)
    return _EXPONENTIAL_FLOOR**u if u < 1.0 else 0.0


def constant_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 for u < 1, else 0; without an end (only with ``keep``) 1 throughout."""
    if spec["until"] is None and spec["until_epochs"] is None:
        return 1.0
    return 1.0 if _share(spec, step, total_steps, steps_per_epoch) < 1.0 else 0.0


def staircase_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """decay^k with k = floor(epoch / every_epochs), and 0 where that is below ``cutoff``."""
    value = spec["decay"] ** math.floor(step / (spec["every_epochs"] * steps_per_epoch))
    return value if value >= spec["cutoff"] else 0.0


def step_factor(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 before the first time, values[i] from the i-th on."""
    passed = _passed(spec, step, total_steps, steps_per_epoch)
    return spec["values"][passed - 1] if passed else 1.0


def _passed(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> int:
    """Return how many of the times ``at`` or ``at_epochs`` have come at ``step``."""
    if spec["at_epochs"] is not None:
        return bisect_right([epoch * steps_per_epoch for epoch in spec["at_epochs"]], step)
    return bisect_right(spec["at"], step / total_steps)


# --- learning rates ---


def _progress(step: int, total_steps: int, warmup: float) -> float:
    return min(1.0, (step - warmup) / (total_steps - warmup))


def constant_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """initial."""
    return spec["initial"]


def cosine_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """final + (initial - final) (1 + cos(pi p)) / 2, p = the share of the steps after the warm-up that are over."""
    p = _progress(step, total_steps, warmup)
    return spec["final"] + (spec["initial"] - spec["final"]) * 0.5 * (1.0 + math.cos(math.pi * p))


def linear_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """final + (initial - final) (1 - p)."""
    return spec["final"] + (spec["initial"] - spec["final"]) * (1.0 - _progress(step, total_steps, warmup))


def polynomial_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """final + (initial - final) (1 - p)^power."""
    share = (1.0 - _progress(step, total_steps, warmup)) ** spec["power"]
    return spec["final"] + (spec["initial"] - spec["final"]) * share


def exponential_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """initial (final / initial)^p."""
    return spec["initial"] * (spec["final"] / spec["initial"]) ** _progress(step, total_steps, warmup)


def staircase_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """initial decay^k, k = floor(epoch / every_epochs)."""
    return spec["initial"] * spec["decay"] ** math.floor(step / (spec["every_epochs"] * steps_per_epoch))


def step_rate(
    spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int, warmup: float
) -> float:
    """initial before the first time; then initial gamma^i, or values[i - 1], after i of them."""
    passed = _passed(spec, step, total_steps, steps_per_epoch)
    if spec["values"] is not None:
        return spec["values"][passed - 1] if passed else spec["initial"]
    return spec["initial"] * spec["gamma"] ** passed


_FACTORS = {entry["name"]: globals()[entry["factory"]] for entry in FACTORS}
_RATES = {entry["name"]: globals()[entry["factory"]] for entry in LEARNING_RATES}


# --- checks that single options cannot express ---


def problems(group: str, spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with the options of a schedule taken together, as (option, message) pairs.

    ``group`` is "factors" or "learning_rates"; each option has passed its own check.
    """
    found: list[tuple[str, str]] = []

    def exactly_one(first: str, second: str) -> None:
        given = [name for name in (first, second) if spec[name] is not None]
        if not given:
            found.append((first, f"missing: exactly one of '{first}' and '{second}' is needed"))
        elif len(given) == 2:
            found.append((second, f"exactly one of '{first}' and '{second}' can be given, not both"))

    if "until" in spec:
        endless = spec["kind"] == "constant" and spec["keep"]
        if not (endless and spec["until"] is None and spec["until_epochs"] is None):
            exactly_one("until", "until_epochs")
    if "at" in spec:
        exactly_one("at", "at_epochs")
        for name in ("at", "at_epochs"):
            times = spec[name]
            if times is not None and (not times or any(b <= a for a, b in itertools.pairwise(times))):
                found.append((name, f"expected times that rise, one at least, not {times!r}"))
        times = spec["at"] if spec["at"] is not None else spec["at_epochs"]
        if times is not None and spec["values"] is not None and len(times) != len(spec["values"]):
            found.append(("values", f"{len(spec['values'])} values for {len(times)} times"))
    if group == "learning_rates" and spec["kind"] == "step":
        exactly_one("gamma", "values")
    if group == "learning_rates" and "final" in spec and spec["final"] > spec["initial"]:
        found.append(("final", f"{spec['final']!r} is above the initial {spec['initial']!r}"))
    if group == "factors" and spec["kind"] == "step" and not found:
        values = spec["values"]
        if 0.0 in values and any(values[values.index(0.0) :]):
            found.append(("values", "once 0 the factor stays 0"))
    return found


def never_removed(spec: Mapping[str, Any], epochs: int, steps_per_epoch: int | None) -> str | None:
    """Return why the factor is not exactly 0 at the last step, or None when it is, or when ``keep`` says it may.

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


def check_factor(
    spec: Mapping[str, Any], epochs: int, steps_per_epoch: int, where: str = "strategy.factor"
) -> None:
    """Raise ``InputError`` where the factor does not end at 0: ``never_removed`` for callers who know the steps."""
    reason = never_removed(spec, epochs, steps_per_epoch)
    if reason:
        raise InputError(f"{where}: {reason}")
