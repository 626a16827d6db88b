"""Arms and their baselines: which runs are compared, whether that is fair, and the lines of the index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench import registry
from bench.errors import shown
from bench.experiments.arms import PlannedArm
from bench.experiments.config import TrialConfig
from bench.experiments.identity import identity, identity_document
from bench.experiments.library import Library
from bench.experiments.overrides import AxisPath, differences, listed
from bench.experiments.resolve import Run
from bench.experiments.toml_files import Problems
from bench.experiments.trials import Arm, IndexLine, Trial
from bench.text import clean

# Fields in which an arm and its baseline may always differ. Checkpointing of activations changes no number.
ALWAYS_ALLOWED = ("quantizer", "strategy", "activation_checkpointing")


@dataclass(frozen=True)
class ArmRuns:
    """An arm, its runs, the axes that reached it, and for each run its partner in the baseline."""

    arm: PlannedArm
    runs: tuple[Run, ...]
    axes: tuple[AxisPath, ...]
    partners: tuple[Run | None, ...] = ()


def pair_arms(
    arms: Sequence[PlannedArm], runs: Mapping[str, Sequence[Run]], problems: Problems
) -> list[ArmRuns]:
    """Return the arms, each run with its baseline's run; unfair or missing pairs go to ``problems``."""
    axes = {
        arm.name: tuple(a.path for a in arm.axes if any(a.path in run.axes for run in runs[arm.name]))
        for arm in arms
    }
    paired = []
    for arm in arms:
        partners: list[Run | None] = [None] * len(runs[arm.name])
        if arm.baseline is not None:
            partners = _pair(arm, runs[arm.name], runs[arm.baseline], axes[arm.baseline], problems)
        paired.append(ArmRuns(arm, tuple(runs[arm.name]), axes[arm.name], tuple(partners)))
    return paired


def _pair(
    arm: PlannedArm, runs: Sequence[Run], others: Sequence[Run], axes: Sequence[AxisPath], problems: Problems
) -> list[Run | None]:
    """Return each run's partner: the baseline's run at the same point of the baseline's axes."""
    free = [path for path in axes if listed(".".join(path), arm.allow_differences)]
    fixed = [path for path in dict.fromkeys((*axes, ("seed",))) if path not in free]
    table: dict[str, list[Run]] = {}
    for other in others:
        table.setdefault(_key(other, fixed), []).append(other)
    partners: list[Run | None] = []
    for run in runs:
        candidates = table.get(_key(run, fixed), [])
        found = candidates
        if len(found) > 1:
            found = [other for other in found if _key(other, free) == _key(run, free)]
        if len(found) != 1:
            names = fixed if len(fixed) > 1 else axes
            point = ", ".join(f"{'.'.join(path)} = {run.value(path)}" for path in names)
            many = "several runs" if candidates else "no run"
            problems.add(
                f"{arm.where}.baseline", f"{many} of {shown(arm.baseline)} to pair with at {clean(point)}"
            )
            partners.append(None)
            continue
        _check_parity(arm, run, found[0], problems)
        partners.append(found[0] if found[0].config.precision == run.config.precision else None)
    return partners


def _check_parity(arm: PlannedArm, run: Run, other: Run, problems: Problems) -> None:
    """Report the fields in which a run and its partner differ without leave."""
    allowed = [*arm.allow_differences, *ALWAYS_ALLOWED]
    if bits_forced(run.config, other.config):
        allowed.append("bits")
    for key, (mine, theirs) in differences(run.config, other.config).items():
        if not listed(key, allowed):
            problems.add(
                f"{arm.where}.{key}",
                f"{shown(mine)}, but {shown(theirs)} in the baseline {shown(other.arm)}: make them equal, "
                f"or list '{key.split('.')[0]}' in allow_differences",
            )


def bits_forced(first: TrialConfig, second: TrialConfig) -> bool:
    """Return whether the bit widths of one configuration are impossible for the quantizer of the other."""
    for one, other in ((first, second), (second, first)):
        facts = registry.get("quantizers", one.quantizer["kind"]).facts
        for key, bits in zip(("w_bits", "a_bits", "g_bits"), other.bit_widths, strict=True):
            if bits not in facts.get(key, [32]):
                return True
    return False


def _key(run: Run, paths: Iterable[AxisPath]) -> str:
    return json.dumps([run.value(path) for path in paths], sort_keys=True, default=str)


@dataclass
class Trials:
    """The unique trials of an experiment, in the order in which they were asked for."""

    library: Library
    by_document: dict[str, Trial] = field(default_factory=dict)

    def of(self, config: TrialConfig, needs: Mapping[str, str | None]) -> Trial:
        """Return the trial of a configuration: the one already there, or a new one with its identity."""
        key = document_key(config)
        if key not in self.by_document:
            id = identity(config, self.library.checksum(config))
            self.by_document[key] = Trial(id, config, dict(needs))
        return self.by_document[key]


def document_key(config: TrialConfig) -> str:
    """Return a text that is the same for two configurations if, and only if, their identities are."""
    return json.dumps(identity_document(config), sort_keys=True)


def assemble(
    paired: Sequence[ArmRuns], library: Library, profile: str | None
) -> tuple[tuple[Arm, ...], tuple[Trial, ...], tuple[IndexLine, ...]]:
    """Return the arms, the unique trials (needed ones first), and a line of the index for each wanted run."""
    trials = Trials(library)
    needed: dict[tuple[str, str], IndexLine] = {}
    made: dict[int, Trial] = {}
    for item in paired:
        for run in item.runs:
            needs = {}
            for role, config in run.needs.items():
                trial = trials.of(config, {})
                needs[role] = trial.id
                line = IndexLine(None, None, {"seed": config.seed}, trial, role=role, profile=profile)
                needed.setdefault((role, document_key(config)), line)
            made[id(run)] = trials.of(run.config, needs)
    axes = {item.arm.name: item.axes for item in paired}
    index = [line for item in paired for line in _lines(item, axes, made, profile)]
    arms = tuple(
        Arm(
            item.arm.name,
            item.arm.baseline,
            item.arm.published,
            item.arm.allow_differences,
            {axis.name: len(axis.values) for axis in item.arm.axes if axis.path in item.axes},
        )
        for item in paired
    )
    return arms, tuple(trials.by_document.values()), (*index, *needed.values())


def _lines(
    item: ArmRuns, axes: Mapping[str, Sequence[AxisPath]], made: Mapping[int, Trial], profile: str | None
) -> list[IndexLine]:
    """Return the lines of one arm; runs that are the same trial at the same point are one line."""
    arm = item.arm
    names = list(dict.fromkeys((*item.axes, *(axes[arm.baseline] if arm.baseline else ()))))
    if ("seed",) not in names:
        names.append(("seed",))
    lines: dict[tuple[str, str], IndexLine] = {}
    for run, partner in zip(item.runs, item.partners, strict=True):
        grid = {".".join(path): run.value(path) for path in names}
        line = IndexLine(
            arm.name,
            arm.baseline,
            grid,
            made[id(run)],
            made[id(partner)] if partner else None,
            profile=profile,
        )
        key = document_key(run.config), json.dumps(grid, sort_keys=True, default=str)
        lines.setdefault(key, line)
    return list(lines.values())
