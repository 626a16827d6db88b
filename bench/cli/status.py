"""Texts about where trials stand: what ``bench status`` prints, and the table at the end of ``bench run``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.cli import OK
from bench.cli.screen import PIPED, Screen
from bench.cli.tuning import choices_text
from bench.errors import InputError
from bench.experiments.labels import value_text, values_text
from bench.experiments.selection import Selection
from bench.launch.plan import ACTIONS
from bench.launch.progress import pace
from bench.machine.folders import resolve_data_dir
from bench.records.files import StoreError
from bench.records.store import State, Store
from bench.text import command, inert, percent, plural
from bench.tuning.search import unfold

STATUSES = ("done", "failed", "diverged", "running", "unfinished", "missing", "damaged")
DROPPED = "dropped"  # unfinished for good: stopped at a rung of a search, for configurations that were worse
_LISTED = 20  # lines of detail of one kind


def status_command(args: argparse.Namespace) -> int:
    """Print where the trials stand; return the exit status."""
    store = Store(args.results)
    if args.file is not None:
        selection = Selection.of(args)
        experiment, standing = unfold(selection.load(args.file, resolve_data_dir(args.data)), store)
        lines = [line.as_dict() for line in experiment.index]
        states = {trial.id: store.inspect(trial.id) for trial in experiment.trials if trial.id is not None}
        epochs = {trial.id: trial.config.epochs for trial in experiment.trials if trial.id is not None}
        dropped = standing.dropped if standing is not None else set()
        states |= {
            id: replace(states[id], status=DROPPED) for id in dropped if states[id].status == "unfinished"
        }
        allowed = [word for module in args.allow_code for word in ("--allow-code", module)]
        data = ["--data", args.data] if args.data else []
        run = command("run", args.file, *selection.words(), "--results", args.results, *data, *allowed)
        title, data_list = experiment.title or experiment.name, command("data", "list", *data)
        print(status_text(title, lines, states, epochs, run, Screen.of(sys.stdout), data_list))
        if standing is not None:
            print(f"\n{choices_text(standing)}")
        return OK
    for option in ("profile", "overrides", "only", "seeds"):
        if getattr(args, option):
            raise InputError(f"--{'set' if option == 'overrides' else option} needs the experiment file")
    if not args.results.is_dir():
        make = command("run", "FILE", "--results", args.results)
        raise InputError(f"--results {args.results}: there is no such folder; `{make}` makes it")
    print(results_text(store, Screen.of(sys.stdout)))
    return OK


def label(line: Mapping[str, Any]) -> str:
    """Return the name of a trial for people: its arm (or what it is needed for) and its grid point."""
    return f"{arm_name(line)} {values_text(line.get('grid', {}))}".strip()


def arm_name(line: Mapping[str, Any]) -> str:
    """Return the arm of an index line; a trial that others need is called by its role."""
    if line.get("arm") is not None:
        return str(line["arm"])
    role = line.get("role") or "needed"
    return f"({role} of {line['tunes']})" if line.get("tunes") else f"({role})"


def status_text(
    title: str,
    lines: Sequence[Mapping[str, Any]],
    states: Mapping[str, State],
    epochs: Mapping[str, int],
    run: str = "bench run",
    screen: Screen = PIPED,
    data_list: str = "bench data list",
) -> str:
    """Return counts, a table of the arms, what is wrong or half done, and what ``bench run`` would do.

    Args:
        title: The first line.
        lines: Lines of the index.
        states: The states of the trials, by id.
        epochs: How many epochs a trial has in all, by id.
        run: The command that goes on, as the last line names it.
        screen: What the text is written for.
        data_list: The command that tells about absent data.
    """
    ids = list(dict.fromkeys(line["id"] for line in lines if line["id"] is not None))
    counts = Counter(states[id].status for id in ids)
    out = [inert(title), f"{plural(len(ids), 'trial')}: " + (_counted(counts) or "none")]
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        arms.setdefault(arm_name(line), []).append(line)
    rows = []
    columns = [*STATUSES, *([DROPPED] if counts[DROPPED] else [])]
    for arm, of_arm in arms.items():
        c = Counter(states[line["id"]].status if line["id"] else "no data" for line in of_arm)
        rows.append([inert(arm), str(len(of_arm)), *(str(c[s] or ".") for s in columns)])
    out += ["", screen.table(["arm", "trials", *columns], rows, right=range(1, 10)), ""]
    names = {line["id"]: label(line) for line in reversed(lines)}
    for status in ("failed", "diverged", "damaged", "running", "unfinished"):
        of_status = [id for id in ids if states[id].status == status]
        for id in of_status[:_LISTED]:
            state = states[id]
            at = f"epoch {state.epochs} of {epochs.get(id, '?')}"
            if state.last is not None:
                at = ", ".join(filter(None, [at, *pace(state.last, epochs.get(id))]))
            what = {"unfinished": at, "running": f"{at}, by {state.reason}"}.get(status, state.reason)
            out.append(inert(f"{status} {id} {names[id]}: {what}"))
        if len(of_status) > _LISTED:
            out.append(f"{status}: and {len(of_status) - _LISTED} more")
    if absent := sum(line["id"] is None for line in lines):
        out.append(f"{plural(absent, 'trial')} without identity: the data is absent (`{data_list}`)")
    if counts[DROPPED]:
        stopped = f"{plural(counts[DROPPED], 'trial')} stopped at a rung for good"
        out.append(f"{stopped}: other configurations were better there (tuning.jsonl)")
    phrases = intent(states[id] for id in ids if states[id].status != DROPPED)
    what = f"will {', '.join(phrases)}." if phrases else "has nothing to do."
    return "\n".join([*out, f"`{inert(run)}` {what}"])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in (*STATUSES, DROPPED) if counts.get(status))


def intent(states: Iterable[State]) -> list[str]:
    """Return phrases that say what ``bench run`` does with trials in these states."""
    actions = Counter("refused" if state.newer else ACTIONS[state.status] for state in states)
    words = {
        "train": "train {} from the beginning",
        "continue": "continue {}",
        "retry": "retry {} that failed",
        "redo": "set {} damaged aside and train again",
        "busy": "wait for {} that run elsewhere",
        "refused": "leave {} of a newer version",
        "leave": "leave {} diverged",
        "keep": "keep {} done",
    }
    return [text.format(actions[action]) for action, text in words.items() if actions[action]]


def results_table(
    lines: Sequence[Mapping[str, Any]], states: Mapping[str, State], screen: Screen = PIPED
) -> str:
    """Return arm, grid point, accuracy of each trial, or why there is none."""
    axes = list(dict.fromkeys(axis for line in lines for axis in line.get("grid", {})))
    axes = [axis for axis in axes if axis != "seed"] + ["seed"]
    named = {line["id"] for line in lines if line.get("arm") is not None}
    rows = []
    for line in lines:
        if line.get("arm") is None and line["id"] in named:
            continue  # a teacher that is an arm's run as well stands there
        state = states[line["id"]]
        if state.status == "done":
            result = percent(state.accuracy)
        else:
            result = f"{state.status}: {state.reason}" if state.reason else state.status
        grid = line.get("grid", {})
        rows.append([arm_name(line), *(value_text(grid.get(axis, "")) for axis in axes), result, line["id"]])
    rows = [[inert(cell) for cell in row] for row in rows]
    return screen.table(["arm", *axes, "test accuracy", "trial"], rows)


def recorded_epochs(store: Store, id: str) -> int | None:
    """Return how many epochs a recorded trial has in all, None where its record does not tell."""
    config = (store.read_trial(id) or {}).get("config")
    epochs = config.get("epochs") if isinstance(config, dict) else None
    return epochs if isinstance(epochs, int) else None


def results_text(store: Store, screen: Screen = PIPED) -> str:
    """Return where the trials of every experiment in a results folder stand, and what belongs to none."""
    parts, indexed = [], set()
    for name in store.experiments():
        try:
            lines, tuned = store.index(name), store.tuning(name)
        except StoreError as error:
            parts.append(f"{inert(name)}: damaged: {inert(error)}")
            continue
        ids = list(dict.fromkeys(line["id"] for line in lines))
        indexed.update(ids)
        states, epochs = dict[str, State](), {}
        dropped = {id for line in tuned if line.get("dropped_at") for id in line["trials"].values()}
        for id in ids:
            states[id] = store.inspect(id)
            if id in dropped and states[id].status == "unfinished":
                states[id] = replace(states[id], status=DROPPED)
            with contextlib.suppress(StoreError):
                if (count := recorded_epochs(store, id)) is not None:
                    epochs[id] = count
        parts.append(status_text(name, lines, states, epochs, screen=screen))
    others = [id for id in store.ids() if id not in indexed]
    if others:
        counts = Counter(store.inspect(id).status for id in others)
        parts.append(f"{plural(len(others), 'trial')} of no experiment here: {_counted(counts)}")
    return "\n\n".join(parts) or f"{store.root}: no records"
