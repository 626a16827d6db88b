"""The factor f(t) of a full-precision part: from 1 to exactly 0.

The released scripts of Progressive Learning of Low-Precision Networks (arXiv 1905.11781) have two factors: a
cosine to 0 over 50 of 200 epochs (SVHN), and a staircase that halves every 4 (AlexNet) or 5 (SVHN) epochs and
is 0 below 0.001.

A factor is a function of (options, step, total_steps, steps_per_epoch). u is the progress over ``until``.
"""

from __future__ import annotations

import math

from bench.schedules.times import Spec, progress_to_end, times_passed

FACTORS = [
    {
        "name": "cosine",
        "factory": "cosine_factor",
        "help": "(1 + cos(pi u)) / 2 until u = 1, then 0",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "options": ["until", "until_epochs", "keep"],
    },
    {
        "name": "linear",
        "factory": "linear_factor",
        "help": "1 - u until u = 1, then 0",
        "options": ["until", "until_epochs", "keep"],
    },
    {
        "name": "exponential",
        "factory": "exponential_factor",
        "help": "0.001^u until u = 1, then 0",
        "options": ["until", "until_epochs", "keep"],
    },
    {
        "name": "constant",
        "factory": "constant_factor",
        "help": "1 until u = 1, then 0; 1 throughout with keep and no until",
        "endless": True,
        "options": ["until", "until_epochs", "keep"],
    },
    {
        "name": "staircase",
        "factory": "staircase_factor",
        "help": "decay^k after k times every_epochs, 0 once below cutoff",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "options": {
            "every_epochs": "shared",
            "decay": {"default": 0.5, "min": 0, "below": 1, "help": "what each step down multiplies by"},
            "cutoff": {"default": 0.001, "min": 0, "max": 1, "help": "smaller values are 0"},
            "keep": "shared",
        },
    },
    {
        "name": "step",
        "factory": "step_factor",
        "help": "1, then values[i] from at[i] on",
        "options": {
            "at": {"type": "floats", "default": None, "min": 0, "below": 1, "help": "fractions of all steps"},
            "at_epochs": {"type": "floats", "default": None, "min": 0, "help": "the same in epochs"},
            "values": {
                "type": "floats",
                "min": 0,
                "max": 1,
                "help": "the factor from each of these times on",
            },
            "keep": "shared",
        },
    },
]

EXPONENTIAL_FLOOR = 0.001  # where `exponential` drops to 0


def cosine_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """(1 + cos(pi u)) / 2 for u < 1, else 0."""
    u = progress_to_end(spec, step, total_steps, steps_per_epoch)
    return 0.5 * (1.0 + math.cos(math.pi * u)) if u < 1.0 else 0.0


def linear_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 - u for u < 1, else 0."""
    return max(0.0, 1.0 - progress_to_end(spec, step, total_steps, steps_per_epoch))


def exponential_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """0.001^u for u < 1, else 0."""
    u = progress_to_end(spec, step, total_steps, steps_per_epoch)
    return EXPONENTIAL_FLOOR**u if u < 1.0 else 0.0


def constant_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 for u < 1, else 0; without an end (only with ``keep``) 1 throughout."""
    if spec["until"] is None and spec["until_epochs"] is None:
        return 1.0
    return 1.0 if progress_to_end(spec, step, total_steps, steps_per_epoch) < 1.0 else 0.0


def staircase_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """decay^k with k = floor(epoch / every_epochs), and 0 where that is below ``cutoff``."""
    value = spec["decay"] ** math.floor(step / (spec["every_epochs"] * steps_per_epoch))
    return value if value >= spec["cutoff"] else 0.0


def step_factor(spec: Spec, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """1 before the first time, values[i] from the i-th on."""
    passed = times_passed(spec, step, total_steps, steps_per_epoch)
    return spec["values"][passed - 1] if passed else 1.0
