"""The learning rate: from ``initial`` down.

A learning rate is a function of (options, step, total_steps, steps_per_epoch, warmup), ``warmup`` in steps. p
is the share of the steps after the warm-up that are over.
"""

from __future__ import annotations

import math

from bench.schedules.times import Spec, progress_after_warmup, times_passed

LEARNING_RATES = [
    {
        "name": "constant",
        "factory": "constant_rate",
        "help": "initial throughout; a bare number means this",
        "options": {
            "initial": {"type": "float", "above": 0, "help": "the learning rate"},
            "warmup_epochs": "shared",
        },
    },
    {
        "name": "cosine",
        "factory": "cosine_rate",
        "help": "half a cosine from initial to final over all steps after the warm-up",
        "title": "SGDR: Stochastic Gradient Descent with Warm Restarts",
        "arxiv": "1608.03983",
        "options": ["initial", "final", "warmup_epochs"],
    },
    {
        "name": "linear",
        "factory": "linear_rate",
        "help": "a straight line from initial to final over all steps after the warm-up",
        "options": ["initial", "final", "warmup_epochs"],
    },
    {
        "name": "polynomial",
        "factory": "polynomial_rate",
        "help": "final + (initial - final) (1 - progress)^power",
        "options": {
            "initial": "shared",
            "final": "shared",
            "power": {"default": 2.0, "above": 0, "help": "the exponent"},
            "warmup_epochs": "shared",
        },
    },
    {
        "name": "exponential",
        "factory": "exponential_rate",
        "help": "initial (final / initial)^progress",
        "options": {
            "initial": "shared",
            "final": {"type": "float", "above": 0, "help": "what it falls to"},
            "warmup_epochs": "shared",
        },
    },
    {
        "name": "staircase",
        "factory": "staircase_rate",
        "help": "initial * decay^k after k times every_epochs",
        "options": {
            "initial": "shared",
            "decay": {"type": "float", "above": 0, "max": 1, "help": "what each step down multiplies by"},
            "every_epochs": "shared",
            "warmup_epochs": "shared",
        },
    },
    {
        "name": "step",
        "factory": "step_rate",
        "help": "initial, then times gamma at each of the times, or values[i] from the i-th on",
        "options": {
            "initial": "shared",
            "at": {
                "type": "floats",
                "default": None,
                "above": 0,
                "below": 1,
                "help": "fractions of all steps",
            },
            "at_epochs": {"type": "floats", "default": None, "above": 0, "help": "the same in epochs"},
            "gamma": {"type": "float", "default": None, "above": 0, "help": "what each time multiplies by"},
            "values": {"type": "floats", "default": None, "min": 0, "help": "the rate from each time on"},
            "warmup_epochs": "shared",
        },
    },
]


def constant_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """initial."""
    return spec["initial"]


def cosine_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """final + (initial - final) (1 + cos(pi p)) / 2."""
    p = progress_after_warmup(step, total_steps, warmup)
    return spec["final"] + (spec["initial"] - spec["final"]) * 0.5 * (1.0 + math.cos(math.pi * p))


def linear_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """final + (initial - final) (1 - p)."""
    p = progress_after_warmup(step, total_steps, warmup)
    return spec["final"] + (spec["initial"] - spec["final"]) * (1.0 - p)


def polynomial_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """final + (initial - final) (1 - p)^power."""
    share = (1.0 - progress_after_warmup(step, total_steps, warmup)) ** spec["power"]
    return spec["final"] + (spec["initial"] - spec["final"]) * share


def exponential_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """initial (final / initial)^p."""
    p = progress_after_warmup(step, total_steps, warmup)
    return spec["initial"] * (spec["final"] / spec["initial"]) ** p


def staircase_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """initial decay^k, k = floor(epoch / every_epochs)."""
    return spec["initial"] * spec["decay"] ** math.floor(step / (spec["every_epochs"] * steps_per_epoch))


def step_rate(spec: Spec, step: int, total_steps: int, steps_per_epoch: int, warmup: float) -> float:
    """initial before the first time; then initial gamma^i, or values[i - 1], after i of them."""
    passed = times_passed(spec, step, total_steps, steps_per_epoch)
    if spec["values"] is not None:
        return spec["values"][passed - 1] if passed else spec["initial"]
    return spec["initial"] * spec["gamma"] ** passed
