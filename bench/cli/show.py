"""The texts of ``bench list`` and ``bench show``. Only ``--cost`` and ``--layers`` load torch.

Names and titles come from files of other people: they pass through ``clean``, so that a terminal does not act
on them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import registry
from bench.cli import OK
from bench.cli.parser import LISTS
from bench.cli.screen import PIPED, Screen
from bench.cli.tuning import phase_costs, phases_text
from bench.errors import InputError, nearest
from bench.experiments.config import TrialConfig, short_bits
from bench.experiments.labels import label, value_text
from bench.experiments.overrides import differences, flatten, listed
from bench.experiments.selection import Selection
from bench.experiments.shipped import shipped_experiments
from bench.experiments.toml_files import recipe_names
from bench.experiments.trials import Experiment, IndexLine
from bench.machine.folders import resolve_data_dir
from bench.records.store import Store
from bench.text import clean, command, plural
from bench.tuning.search import Search

# The groups of the registry behind a name of `bench list`, where they are not the one group of this name.
_GROUPS = {"schedules": ("factors", "learning_rates"), "recipes": (), "experiments": ()}


def list_command(args: argparse.Namespace) -> int:
    """Print what ``bench list`` shows; return the exit status."""
    print(list_text(args.what, Screen.of(sys.stdout)))
    return OK


def show_command(args: argparse.Namespace) -> int:
    """Print what ``bench show`` shows; return the exit status."""
    data_dir = resolve_data_dir(args.data)
    experiment = Selection.of(args).load(args.file, data_dir)
    store, screen = Store(args.results), Screen.of(sys.stdout)
    asked = {"diff": args.diff, "cost": args.cost, "layers": args.layers}
    print(show_text(experiment, store=store, data_dir=data_dir, screen=screen, **asked))
    return OK


def list_text(what: str | None = None, screen: Screen = PIPED) -> str:
    """Return a table of each group (name, paper, arXiv id, help), or that of ``what`` with its options.

    Raises ``InputError`` for a wrong name.
    """
    if what is not None and what not in LISTS:
        raise InputError(f"bench list: no '{what[:80]}'.{nearest(what, LISTS)} Known: {', '.join(LISTS)}.")
    parts = []
    for name in [what] if what else LISTS:
        if name == "recipes":
            parts.append("\n".join(["Recipes", _recipe_table(screen)]))
        if name == "experiments":
            parts.append("\n".join(["Experiments", _experiment_table(screen)]))
        for group in _GROUPS.get(name, (name,)):
            title = group.replace("_", " ").capitalize()
            found = registry.entries(group).values()
            header = ["name", "paper", "arXiv", "help"]
            rows = [[e.name, e.title, e.arxiv, e.help] for e in found]
            if any(e.package for e in found):  # parts of other packages are there
                header.insert(1, "from")
                for row, entry in zip(rows, found, strict=True):
                    row.insert(1, entry.package or "bench")
            parts.append("\n".join([title, screen.table(header, rows)]))
            options = [row for entry in found for row in _option_rows(entry)]
            if what and options:
                columns = ("option", "takes", "default", "help")
                parts.append("\n".join([f"{title}: options", screen.table(columns, options)]))
    return "\n\n".join(parts)


def _experiment_table(screen: Screen) -> str:
    rows = []
    for name, path in shipped_experiments().items():
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        rows.append((name, ", ".join(content.get("profiles", {})), content.get("title", "")))
    return screen.table(("name", "profiles", "title"), rows)


def _recipe_table(screen: Screen) -> str:
    rows = []
    for name, path in recipe_names().items():
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        source = fields.get("source", "")
        ids = [id.rstrip(",.;)") for id in re.findall(r"\barXiv[ :](\S+)", source)]
        rows.append((name, source, ", ".join(ids), fields.get("title", "")))
    return screen.table(("name", "source", "arXiv", "help"), rows)


def _option_rows(entry: registry.Entry) -> Iterable[tuple[str, str, str, str]]:
    for option, spec in entry.options.items():
        takes = " | ".join(map(str, spec["choices"])) if "choices" in spec else spec["type"]
        default = value_text(spec["default"]) if "default" in spec else "needed"
        yield f"{entry.name}.{option}", takes, default, spec.get("help", "")


def show_text(
    experiment: Experiment,
    *,
    store: Store | None = None,
    diff: str | None = None,
    cost: bool = False,
    layers: bool = False,
    data_dir: Path | str | None = None,
    screen: Screen = PIPED,
) -> str:
    """Return what an experiment expands to: trials with identities and needs, and the parity of its arms.

    An identity of absent data is shown as ``?``.

    Args:
        experiment: What is shown.
        store: The records that say how far a search is; None: the phases of a search are not shown.
        diff: An arm: what differs between it and its baseline is shown, field by field.
        cost: Whether the time and memory are added, which loads torch.
        layers: Whether the layers are added, which loads torch.
        data_dir: The data folder.
        screen: What the text is written for.

    Raises:
        InputError: The arm ``diff`` does not exist or has no baseline.
    """
    parts = [_heading(experiment, data_dir)]
    decided, phases = experiment, [("", experiment, dict[str, float]())]
    if experiment.tuning is not None and store is not None and diff is None:
        search = Search(experiment, store)
        unfolded = search.unfold()
        parts.append(phases_text(search, unfolded.standing))
        decided, phases = unfolded.experiment, phase_costs(search)
    if diff is not None:
        parts.append(_diff_text(experiment, diff, screen))
    else:
        parts += [_trials_text(decided, screen), _arms_text(experiment, screen)]
    if cost or layers:
        from bench.costs.rehearsal import check_networks

        check_networks(decided, decided.trials, resolve_data_dir(data_dir))
    if cost:
        from bench.costs.tables import cost_text

        parts += [title + cost_text(trials, data_dir, shares) for title, trials, shares in phases]
    if layers:
        from bench.costs.tables import layers_text

        parts.append(layers_text(experiment, data_dir))
    return "\n\n".join(part for part in parts if part)


def _heading(experiment: Experiment, data_dir: Path | str | None) -> str:
    extra = sum(line.arm is None for line in experiment.index)
    counts = f"{plural(len(experiment.arms), 'arm')}, {plural(len(experiment.trials), 'trial')}"
    if extra:
        counts += f" ({extra} wanted as teachers or starts)"
    profile = f", profile {experiment.profile}" if experiment.profile else ""
    lines = [clean(experiment.title)] if experiment.title else []
    lines.append(clean(f"{experiment.path}{profile}: {counts}"))
    if any(trial.id is None for trial in experiment.trials):
        absent = sorted({label("datasets", t.config.dataset) for t in experiment.trials if t.id is None})
        known = command("data", "list", *(["--data", data_dir] if data_dir is not None else []))
        lines.append(clean(f"Absent data, so no identity yet (?): {', '.join(absent)}. See `{known}`."))
    return "\n".join(lines)


def _columns(config: TrialConfig) -> dict[str, str]:
    """Return what a line of the table of trials tells of a configuration."""
    return {
        "dataset": label("datasets", config.dataset),
        "network": label("networks", config.network),
        "width": f"{config.width:g}",
        "quantizer": label("quantizers", config.quantizer),
        "bits": short_bits(config.bits),
        "strategy": label("strategies", config.strategy),
        "epochs": str(config.epochs),
        "precision": config.precision,
        "seed": str(config.seed),
    }


def _trials_text(experiment: Experiment, screen: Screen) -> str:
    """Return the table of trials; what is the same in all of them stands above it."""
    wanted: dict[int, list[str]] = {}
    axes: dict[int, dict[str, str]] = {}
    for line in experiment.index:
        wanted.setdefault(id(line.trial), []).append(line.arm or f"({line.role})")
        shown = {name: value_text(value) for name, value in line.grid.items()}
        axes.setdefault(id(line.trial), {}).update(shown if line.arm else {})
    facts = [(_columns(trial.config), axes.get(id(trial), {})) for trial in experiment.trials]
    first = facts[0][0]
    common = [name for name in first if name != "seed" and len({row[name] for row, _ in facts}) == 1]
    varying = [name for name in first if name not in common]
    further = dict.fromkeys(n for _, grid in facts for n in grid if n not in first and "strategy." not in n)
    rows = []
    for trial, (row, grid) in zip(experiment.trials, facts, strict=True):
        arms = " = ".join(dict.fromkeys(wanted.get(id(trial), [])))
        needs = ", ".join(f"{role} {needed or '?'}" for role, needed in trial.needs.items())
        rows.append(
            (trial.id or "?", arms, *(row[n] for n in varying), *(grid.get(n, "") for n in further), needs)
        )
    header = ["id", "arm", *varying, *further, "needs"]
    if not any(trial.needs for trial in experiment.trials):
        header, rows = header[:-1], [row[:-1] for row in rows]
    above = clean("In all of them: " + ", ".join(f"{name} {first[name]}" for name in common))
    return "\n".join([*([above] if common else []), screen.table(header, rows)])


def _arms_text(experiment: Experiment, screen: Screen) -> str:
    """Return the table of arms: what each is measured against, in how many pairs, and what differs."""
    rows = []
    for arm in experiment.arms:
        lines = experiment.lines(arm.name)
        pairs = _pairs(lines)
        fields = dict.fromkeys(key.split(".")[0] for line in pairs for key in _differences(line))
        own = [name for name in fields if not listed(name, arm.allow_differences)]
        allowed = [f"{name} (allowed)" for name in fields if name not in own]
        against = f"{len(pairs)} of {len(lines)}" if arm.baseline else ""
        rows.append((arm.name, str(len(lines)), arm.baseline or "", against, ", ".join(own + allowed)))
    return "\n".join(["Arms", screen.table(("arm", "trials", "baseline", "pairs", "differs in"), rows)])


def _pairs(lines: Sequence[IndexLine]) -> list[IndexLine]:
    return [line for line in lines if line.baseline_trial is not None]


def _differences(line: IndexLine) -> Mapping[str, tuple[Any, Any]]:
    assert line.baseline_trial is not None
    return differences(line.trial.config, line.baseline_trial.config)


def _diff_text(experiment: Experiment, name: str, screen: Screen) -> str:
    """Return, field by field, what differs between an arm and its baseline over all pairs."""
    arms = {arm.name: arm for arm in experiment.arms}
    if name not in arms:
        raise InputError(
            f"{clean(experiment.path)}: --diff: there is no arm {name[:80]!r}.{nearest(name, arms)} "
            f"Arms: {clean(', '.join(arms))}."
        )
    baseline = arms[name].baseline
    if baseline is None:
        raise InputError(f"{clean(experiment.path)}: --diff: arm {name[:80]!r} has no baseline")
    pairs = _pairs(experiment.lines(name))
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for line in pairs:
        own = flatten(line.trial.config.dump())
        for key, values in _differences(line).items():
            if _same_in_the_arm(key, values[0], own):
                continue
            sides = found.setdefault(key, ({}, {}))
            for side, value in zip(sides, values, strict=True):
                side["-" if value is None else value_text(value)] = None
    counted = plural(len(pairs), "pair")
    if not found:
        return f"{clean(name)} and its baseline {clean(baseline)} are the same in {counted}."
    rows = []
    for key, (mine, theirs) in found.items():
        reason = "allowed by the arm" if listed(key, arms[name].allow_differences) else ""
        if key == "bits" and not reason:
            reason = "the quantizers have no bit widths in common"
        rows.append((key, ", ".join(mine), ", ".join(theirs), reason))
    header = ("field", clean(name), clean(baseline), "")
    lines = [screen.table(header, rows), f"Everything else is the same in {counted}."]
    if experiment.deviations:
        lines += ["", "What still deviates from the source that the experiment reproduces:"]
        lines += [f"- {clean(text, 400)}" for text in experiment.deviations]
    return "\n".join(lines)


def _same_in_the_arm(key: str, value: Any, own: Mapping[str, Any]) -> bool:
    """Return whether ``key`` is a field of a teacher that is as the arm itself has it: not worth a line."""
    role, _, rest = key.removeprefix("strategy.").partition(".")
    return key == f"strategy.{role}.{rest}" and rest in own and own[rest] == value
