"""What a run would do with each trial, and in which order trials start: the longest chain of work first.

Pure functions of the trials and the records. No torch is imported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.roles import roles, step_cost
from bench.experiments.start import needed_trial
from bench.experiments.trials import Trial
from bench.records.store import State, Store

MACS = 100e6  # multiply-accumulates of an image, assumed of a network that does not say

ACTIONS = {
    "missing": "train",
    "unfinished": "continue",
    "failed": "retry",
    "damaged": "redo",
    "done": "keep",
    "diverged": "leave",
    "running": "busy",
}


@dataclass(frozen=True)
class Planned:
    """A wanted trial, where it stands, and what a run does with it."""

    id: str
    config: TrialConfig
    needs: dict[str, str]
    state: State
    action: str  # train, continue, retry, redo; keep, leave, busy, refused


def plan(trials: Iterable[Trial], store: Store) -> list[Planned]:
    """Return what a run would do with each trial, in order; ``InputError`` where its data is absent."""
    planned = []
    for trial in trials:
        if trial.id is None:
            raise InputError("a trial without its data has no identity; fetch the data first")
        needs = {role: needed for role, needed in trial.needs.items() if needed is not None}
        needs |= needed_trial(trial.config.start)
        state = store.inspect(trial.id)
        action = "refused" if state.newer else ACTIONS[state.status]
        planned.append(Planned(trial.id, trial.config, needs, state, action))
    return planned


def relative_cost(config: TrialConfig) -> float:
    """Return about how long a trial takes, in no particular unit: enough to start the longest first."""
    facts = registry.get("datasets", config.dataset["kind"]).facts
    images = config.train_size or facts.get("train_count") or 50_000
    per_image = _operations(config) * step_cost(config.strategy)
    for role in roles(config.strategy):
        if config.strategy[role.name]:  # empty until an experiment is expanded
            per_image += role.cost * _operations(TrialConfig.model_validate(config.strategy[role.name]))
    return config.epochs * images * per_image


def _operations(config: TrialConfig) -> float:
    """Return the multiply-accumulates of an image at the width of ``config``.

    The layers between the first and the last grow with the square of the width.
    """
    entry = registry.entries("networks").get(config.network["kind"])
    macs = entry.facts.get("macs") if entry is not None else None
    return (macs or MACS) * (0.05 + config.width) * config.width


def costs(planned: Sequence[Planned], measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return how long each trial takes, by id.

    Trials with ``measured`` seconds take those. The cost of the others is their relative cost, brought to
    seconds by the median ratio over the trials of which both are known; without any measured trial all costs
    are relative ones.
    """
    relative = {p.id: relative_cost(p.config) for p in planned}
    known = {id: seconds for id, seconds in (measured or {}).items() if id in relative}
    scale = statistics.median(seconds / relative[id] for id, seconds in known.items()) if known else 1.0
    return {id: known.get(id, scale * cost) for id, cost in relative.items()}


def priorities(planned: Sequence[Planned], measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return each trial's cost plus the cost of the longest chain of trials that wait for it, by id."""
    taken = costs(planned, measured)
    waiting: dict[str, list[str]] = {}
    for p in planned:
        for needed in p.needs.values():
            waiting.setdefault(needed, []).append(p.id)
    found: dict[str, float] = {}

    def priority(id: str) -> float:
        if id not in found:
            found[id] = taken[id]  # stands while the chain is computed, so that a cycle does not hang
            found[id] += max(
                (priority(other) for other in waiting.get(id, ()) if other in taken), default=0.0
            )
        return found[id]

    return {id: priority(id) for id in taken}


def startable(
    needs: Mapping[str, Collection[str]],
    done: Callable[[str], bool],
    priorities: Mapping[str, float],
    last: Collection[str] = (),
) -> list[str]:
    """Return the queued trials that can start now, the longest chain of work first.

    This is the whole policy, whoever places the trials. It never leaves a place empty for a trial that is
    still to come, so a run ends within a trial's length of the best possible time, and close to that where
    trials are many. ``needs`` has the queued trials by id, with the trials that each needs; ``done`` says
    whether such a one is done. The trials of ``last`` want a device to themselves and start after all others.
    """
    ready = [id for id, needed in needs.items() if all(map(done, needed))]
    return sorted(ready, key=lambda id: (id in last, -priorities.get(id, 0.0)))


def tuning_priority(priority: float, cost: float) -> float:
    """Return the priority of a tuning trial: a final trial of about the same cost waits for the choice."""
    return priority + cost
