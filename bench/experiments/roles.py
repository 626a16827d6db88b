"""The further networks of a strategy and what its steps cost, as the strategy's registry entry declares them.

An option of the type ``"teacher"`` is a role: another network, by its configuration. Under the values of
other options in ``joint_with`` the network is trained within the trial; else it is a trial of its own,
finished before. ``"cost"`` says what a step of the trial pays for the network, in training steps of it:
``{"joint": 1.0, "frozen": 0.33}``; ``"copies"`` names the option that says how many such networks there are.
The fact ``"step_cost"`` of the entry lists ``{"only_with": {option: [values]}, "factor": number}``: the
first that holds is the cost of a step, in a strategy with a factor of a step with the factor above 0, over
the cost of a step of plain training. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.experiments.options import applies, holds


@dataclass(frozen=True)
class Role:
    """A further network of a strategy. It is ``joint`` where the trial itself trains the network.

    ``cost`` is what a step pays for the network and all its copies, in training steps of the network.
    """

    name: str
    joint: bool
    cost: float


def role_names(kind: str) -> tuple[str, ...]:
    """Return every role that a strategy can have, whatever its options are."""
    options = registry.get("strategies", kind).options
    return tuple(name for name, spec in options.items() if spec["type"] == "teacher")


def roles(strategy: Mapping[str, Any]) -> tuple[Role, ...]:
    """Return the roles of a completed strategy ``{"kind": ..., options}``."""
    options = registry.get("strategies", strategy["kind"]).options
    found = []
    for name in role_names(strategy["kind"]):
        spec = options[name]
        if applies(spec, strategy):
            joint = "joint_with" in spec and holds(spec["joint_with"], strategy)
            cost = spec.get("cost", {}).get("joint" if joint else "frozen", 0.0)
            cost *= strategy[spec["copies"]] if spec.get("copies") else 1
            found.append(Role(name, joint, cost))
    return tuple(found)


def needed_roles(strategy: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the roles whose networks are trials of their own, finished before this one starts."""
    return tuple(role.name for role in roles(strategy) if not role.joint)


def joint_roles(strategy: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the roles whose networks are trained within the trial."""
    return tuple(role.name for role in roles(strategy) if role.joint)


def step_cost(strategy: Mapping[str, Any]) -> float:
    """Return what a step costs, with the factor above 0 where there is one, over a plain training step."""
    for case in registry.get("strategies", strategy["kind"]).facts.get("step_cost", ()):
        if holds(case.get("only_with", {}), strategy):
            return case["factor"]
    return 1.0
