"""Going on from a checkpoint: it is believed only as far as it fits the trial."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from bench.errors import InputError
from bench.text import clean
from bench.training import checkpoint
from bench.training.loop import Run


def resume(run: Run, state: dict[str, Any], path: Path) -> None:
    """Put ``run`` where its checkpoint stands; raises ``InputError`` naming ``path`` for another trial's.

    Nothing in the file is believed but the values of tensors, the step, clocks and memory: names, shapes and
    the optimizer's settings are those of the configuration.
    """
    expected = {"schema": checkpoint.SCHEMA, **run.state()}
    state = {"codes": expected["codes"], "peak_memory_bytes": 0, **state}  # earlier versions have neither
    flexible = ("optimizer", "one_level", "loss_sum", "correct")
    found, wanted = ({key: table[key] for key in table if key not in flexible} for table in (state, expected))
    problem = (
        checkpoint.misfit(found, wanted)
        or _odd_optimizer(run, state.get("optimizer"))
        or _odd_sums(run, state)
    )
    names = state.get("one_level")
    if problem is None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        problem = "one_level: no list of names"
    if problem is None and not 0 <= state["step"] <= run.total_steps:
        problem = f"step: {state['step']} of {run.total_steps}"
    for measured in ("training_seconds", "wall_seconds", "peak_memory_bytes"):
        if problem is None and not 0 <= state[measured] < math.inf:
            problem = f"{measured}: {state[measured]}"
    if problem is not None:
        raise InputError(
            f"{path}: not a checkpoint of this trial ({clean(problem, 300)}). Take it away, or begin anew "
            "with --fresh."
        )
    settings = run.optimizer.state_dict()["param_groups"]
    run.restore({**state, "optimizer": {"state": state["optimizer"]["state"], "param_groups": settings}})


def _odd_sums(run: Run, state: dict[str, Any]) -> str | None:
    """Return what is wrong with the epoch's sums: a number each, or one a worker of the former team."""
    for name, dtype in (("loss_sum", run.loss_sum.dtype), ("correct", run.correct.dtype)):
        found = state.get(name)
        fits = isinstance(found, torch.Tensor) and found.dtype == dtype and found.dim() <= 1 and found.numel()
        if not fits:
            return f"{name}: no sum of an epoch"
    return None


def _odd_optimizer(run: Run, found: Any) -> str | None:
    """Return what keeps ``found`` from being a state of the run's optimizer: names or shapes."""
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        return "optimizer: no table of states"
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    names = {"step", "exp_avg", "exp_avg_sq"} if run.config.optimizer == "adam" else {"momentum_buffer"}
    for key, values in found["state"].items():
        if not isinstance(key, int) or not 0 <= key < len(parameters) or not isinstance(values, dict):
            return f"optimizer.state: {str(key)[:40]}: there is no such parameter"
        if values.keys() != names:
            held = ", ".join(map(str, values))[:80]
            return f"optimizer.state.{key}: holds {held}, not {', '.join(sorted(names))}"
        for name, value in values.items():
            shape = torch.Size() if name == "step" else parameters[key].shape
            if value is None and name == "momentum_buffer":
                continue
            if not isinstance(value, torch.Tensor) or value.shape != shape or not value.is_floating_point():
                return f"optimizer.state.{key}.{name}: not numbers of the shape {tuple(shape)}"
    return None
