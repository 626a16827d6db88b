"""``bench run``: plan the trials, place them, say how they ended."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.cli import OK, WRONG_INPUT
from bench.cli import status as overview
from bench.cli.log import log_folder
from bench.cli.screen import Screen
from bench.cli.tuning import choices_text
from bench.costs.predict import known_seconds
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.selection import Selection
from bench.experiments.trials import Experiment, Trial
from bench.launch.data_parallel import (
    TRAIN_TOGETHER,
    check_workers,
    device_groups,
    run_as_team,
    torchrun_workers,
)
from bench.launch.execute import TRAIN, Task
from bench.launch.feed import Feeder
from bench.launch.options import RunOptions
from bench.launch.placement import place, shared_gpus
from bench.launch.plan import Planned, costs, plan, priorities, tuning_priority
from bench.launch.progress import Progress
from bench.launch.session import Session, Stop, exit_status
from bench.machine.devices import find_devices
from bench.machine.folders import resolve_data_dir
from bench.records.locks import Busy
from bench.records.store import Store
from bench.records.trackers import following
from bench.text import command, inert, plural, say
from bench.tuning.phases import WantedTrial
from bench.tuning.search import ROLE, Search, Unfolded, progress_text, unfold

_LEFT = ("keep", "leave", "refused")  # what is done with trials that are not trained


def run_command(args: argparse.Namespace) -> int:
    """Train what is not trained yet; return the exit status. Under ``torchrun`` every process calls this."""
    selection = Selection.of(args)
    given = {field.name: getattr(args, field.name) for field in fields(RunOptions) if field.name in args}
    places = {"results": args.results.absolute(), "data_dir": resolve_data_dir(args.data)}
    options = RunOptions(**given | places, function=args.train)
    report = report_text(args.file, selection, args.results, args.data, args.allow_code)
    started = torchrun_workers()
    if not started:
        return run(args.file, selection, options, report)
    if not options.no_ray or options.workers_per_trial != started:
        raise InputError(f"torchrun started {started} workers: give --no-ray --workers-per-trial {started}")
    kind = find_devices(options.device)[0].partition(":")[0]
    return run_as_team(kind, lambda: run(args.file, selection, options, report))


def report_text(
    file: Path,
    selection: Selection,
    results: Path | str,
    data: str | os.PathLike[str] | None,
    allow_code: Sequence[str],
) -> str:
    """Return the command that reports the trials of a run; with overrides it expands the file as the run."""
    allowed = [word for module in allow_code for word in ("--allow-code", module)]
    more = [*(["--data", str(data)] if data else []), *allowed] if selection.overrides else []
    return command("report", file, *selection.words(), "--results", results, *more)


def run(file: Path, selection: Selection, options: RunOptions, report: str) -> int:
    """Run the selected trials from here, say how they ended and, last, ``report``; return the exit status."""
    experiment = selection.load(file, options.data_dir)
    options.check()
    devices = _devices(experiment, options)
    store = Store(options.results)
    store.experiment_folder(experiment.name)
    store.check_writable()
    if options.fresh:
        everything = unfold(experiment, store)[0]
        _check_networks(everything, everything.trials, options.data_dir)
        _retire_all(everything, store)
    search = Search(experiment, store) if experiment.tuning else None
    unfolded = search.unfold() if search else None
    wanted = unfolded.wanted if unfolded else [WantedTrial(trial) for trial in experiment.trials]
    planned = plan([one.trial for one in wanted], store)
    if not options.fresh:
        ids = {p.id for p in planned if p.action not in _LEFT}
        trials = [one.trial for one in wanted if one.trial.id in ids]
        _check_networks(unfolded.experiment if unfolded else experiment, trials, options.data_dir)
    _remove_leftovers(store, planned)
    experiment = _write_index(experiment, store, search, unfolded)
    _announce(experiment, planned, unfolded)
    status = OK
    if any(p.action not in _LEFT for p in planned):
        status = _train(experiment, options, store, devices, wanted, planned, search)
        if search:
            unfolded = search.unfold()
            experiment = _write_index(experiment, store, search, unfolded)
    else:
        say("nothing to train: every trial is finished")
    if any(p.action == "refused" for p in planned):
        status = WRONG_INPUT
    _print_results(experiment, store, unfolded)
    say(inert(report))
    return status


def _write_index(
    experiment: Experiment, store: Store, search: Search | None, unfolded: Unfolded | None
) -> Experiment:
    """Write the experiment's index and what its search chose; return it with the trials known so far."""
    if search and unfolded:
        search.write(unfolded, experiment.path.name)
        return unfolded.experiment
    store.write_index(experiment.name, experiment.text, _index_lines(experiment), file=experiment.path.name)
    return experiment


def _announce(experiment: Experiment, planned: Sequence[Planned], unfolded: Unfolded | None) -> None:
    """Say what will be trained, and why trials begin anew or are refused."""
    say(inert(f"{experiment.title or experiment.name}: {plural(len(planned), 'trial')}"))
    if unfolded:
        say(progress_text(unfolded.standing))
    for p in planned:
        if p.action == "redo":
            say(inert(p.state.reason))
        elif p.action == "refused":  # the exit status will be 2: this is why
            say(inert(f"bench: {p.state.reason}"), sys.stderr)
    if any(p.action not in _LEFT for p in planned):
        say(f"will {', '.join(overview.intent(p.state for p in planned))}")


def _train(
    experiment: Experiment,
    options: RunOptions,
    store: Store,
    devices: Sequence[str],
    wanted: Sequence[WantedTrial],
    planned: Sequence[Planned],
    search: Search | None,
) -> int:
    """Train what is not trained yet, and what a search asks for meanwhile; return the exit status."""
    session = Session({}, {}, {}, store, Progress({}, {}, {}), Stop())
    _enqueue(session, options, wanted, planned, _labels(experiment), devices[0])
    if search:
        session.reduction = search.tuning.reduction

        def enqueue(further: Sequence[WantedTrial], unfolded: Unfolded) -> None:
            planned = plan([one.trial for one in further], store)
            _enqueue(session, options, further, planned, _labels(unfolded.experiment), devices[0])

        session.feed = Feeder(search, session, enqueue, experiment.path.name)
    trackers = following(store, experiment.name, options.log, log_folder(options.results, options.log or ""))
    with trackers, session.stop.watching(options.max_minutes), shared_gpus(options, session, devices):
        place(options, session, devices)
    session.progress.close()
    session.close()
    _say_how_trials_ended(session, options.fresh)
    return exit_status(session.outcomes.values())


def _print_results(experiment: Experiment, store: Store, unfolded: Unfolded | None) -> None:
    """Print the choices of the search and the results of the final trials."""
    if unfolded:
        say()
        say(choices_text(unfolded.standing))
    finals = [line for line in _index_lines(experiment) if line["role"] != ROLE]
    states = {line["id"]: store.inspect(line["id"]) for line in finals}
    say()
    say(overview.results_table(finals, states, Screen.of(sys.stdout)))
    say()


def _devices(experiment: Experiment, options: RunOptions) -> list[str]:
    """Return the devices to train on. Raises ``InputError`` for absent data or an uneven batch."""
    for trial in experiment.trials:
        if trial.id is None:
            catalog.require(trial.config.dataset, options.data_dir)
            kind = trial.config.dataset["kind"]
            raise InputError(f"{options.data_dir}: the data set '{kind}' is not there")
    for dataset in {catalog.label(t.config.dataset): t.config.dataset for t in experiment.trials}.values():
        for line in catalog.remarks(dataset, options.data_dir):
            say(inert(line))
    devices = ["cluster"] if options.address else find_devices(options.device)
    for trial in experiment.trials:
        check_workers(trial.config, options.workers_per_trial)
    if options.workers_per_trial > 1 and not options.address and not torchrun_workers():
        device_groups(devices, options.workers_per_trial)
    return devices


def _check_networks(experiment: Experiment, trials: Sequence[Trial], data_dir: Path) -> None:
    """Raise ``InputError`` where what is to be trained cannot be built; torch is loaded for that alone."""
    if trials:
        from bench.costs.rehearsal import check_networks

        check_networks(experiment, trials, data_dir)


def _retire_all(experiment: Experiment, store: Store) -> None:
    """Set the records of all trials aside, tuning trials included, for ``--fresh``."""
    aside = []
    for trial in experiment.trials:
        if trial.id is not None and store.folder(trial.id).exists():
            with store.lock(trial.id):
                aside.append(store.retire(trial.id))
    if aside:
        say(inert(f"--fresh: {plural(len(aside), 'record')} moved to <id>.old-<n>, for instance {aside[0]}"))


def _remove_leftovers(store: Store, planned: Sequence[Planned]) -> None:
    """Remove what trials that were killed after their last record left behind."""
    for p in planned:
        if p.action in ("keep", "leave") and store.leftovers(p.id, finished=True):
            with contextlib.suppress(Busy), store.lock(p.id):
                store.tidy(p.id, finished=True)


def _index_lines(experiment: Experiment) -> list[dict[str, Any]]:
    return [line.as_dict() for line in experiment.index]


def _labels(experiment: Experiment) -> dict[str, str]:
    """Return the names of the trials for people, by id."""
    return {line["id"]: overview.label(line) for line in reversed(_index_lines(experiment))}


def _enqueue(
    session: Session,
    options: RunOptions,
    wanted: Sequence[WantedTrial],
    planned: Sequence[Planned],
    labels: Mapping[str, str],
    device: str,
) -> None:
    """Put the trials that are to be trained into the queue of a session and into its progress.

    The chain behind a tuning trial ends with a final trial, so a tuning trial has the priority of both.
    """
    measured = known_seconds({p.id: p.config for p in planned}, device, options.data_dir)
    taken, order = costs(planned, measured), priorities(planned, measured)
    known = {"keep": "done", "leave": "diverged", "refused": "refused"}
    function = options.function or (TRAIN if options.workers_per_trial == 1 else TRAIN_TOGETHER)
    for one, p in zip(wanted, planned, strict=True):
        if p.action in known:
            session.known[p.id] = known[p.action]
            continue
        task = Task(
            p.id,
            p.config.dump(),
            p.needs,
            str(session.store.root),
            str(options.data_dir),
            retry=p.action == "retry",
            accept_other_hardware=options.accept_other_hardware,
            until=one.until,
            bracket=one.bracket,
            function=function,
        )
        rank = order[p.id] if p.config.evaluate_test else tuning_priority(order[p.id], taken[p.id])
        session.add(task, labels.get(p.id, p.id), p.config.epochs, taken[p.id], rank)
        if p.action in ("continue", "retry"):
            session.progress.resumed(p.id, p.state.epochs)


def _say_how_trials_ended(session: Session, fresh: bool) -> None:
    """Say which trials failed, were refused, are another runner's or are unfinished, and why.

    ``fresh``: whether the run had ``--fresh``, with which the same command would begin anew.
    """
    labels = session.progress.labels
    outcomes = list(session.outcomes.values())
    for outcome in outcomes:
        name = labels.get(outcome.id, outcome.id)
        if outcome.status == "failed":
            log = session.store.log(outcome.id)
            say(inert(f"failed: {name}: {outcome.reason}; see {log}"), sys.stderr)
        elif outcome.status == "refused":
            say(inert(f"bench: {name}: {outcome.reason}"), sys.stderr)
    counts = Counter(outcome.status for outcome in outcomes)
    if counts["busy"]:
        who = next(outcome.reason for outcome in outcomes if outcome.status == "busy")
        say(inert(f"{plural(counts['busy'], 'trial')} left to another runner: {who}"))
    if counts["stopped"]:
        why = f" ({session.stop.reason})" if session.stop.reason else ""
        unfinished = plural(counts["stopped"], "trial")
        same = "the same command without --fresh" if fresh else "the same command"
        say(f"stopped{why} with {unfinished} unfinished: {same} goes on from here")
