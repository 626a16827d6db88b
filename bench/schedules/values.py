"""The value of a schedule at a step; the registry knows the function of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import registry


def factor_value(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return f at ``step`` of a completed factor ``{"kind": ..., options}``, in [0, 1]; once 0 it stays 0.

    ``step`` counts from 0 to ``total_steps - 1``; ``steps_per_epoch`` turns epochs into steps.
    """
    return registry.load("factors", spec["kind"])(spec, step, total_steps, steps_per_epoch)


def learning_rate_value(spec: Mapping[str, Any], step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate at ``step`` of a completed schedule ``{"kind": ..., options}``.

    During a warm-up of w = warmup_epochs * steps_per_epoch steps it is ``initial * (step + 1) / w``; the
    kinds that fall continuously start after it, those in stairs keep their times, counted from the start.
    """
    warmup = spec["warmup_epochs"] * steps_per_epoch
    if step < warmup:
        return spec["initial"] * min(1.0, (step + 1) / warmup)
    return registry.load("learning_rates", spec["kind"])(spec, step, total_steps, steps_per_epoch, warmup)
