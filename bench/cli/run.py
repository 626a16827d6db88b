"""``bench run``: plan the trials, place them, say how they ended."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Sequence

from bench.cli import OK, WRONG_INPUT
from bench.cli import status as overview
from bench.cli.selection import Selection
from bench.costs.predict import known_seconds
from bench.devices import find_devices
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.trials import Experiment
from bench.folders import resolve_data_dir
from bench.launch.data_parallel import TRAIN_TOGETHER, check_workers, groups, together, torchrun_workers
from bench.launch.execute import TRAIN, Task
from bench.launch.options import RunOptions
from bench.launch.placement import place, shared_gpus
from bench.launch.plan import Planned, costs, plan, priorities
from bench.launch.session import Session, Stop, exit_status
from bench.progress import Progress, inert, plural, say
from bench.records.locks import Busy
from bench.records.store import Store


def run_command(args: argparse.Namespace) -> int:
    """Train what is not trained yet; return the exit status. Under ``torchrun`` every process calls this."""
    selection = Selection.of(args)
    options = RunOptions(
        results=args.results.absolute(),
        data_dir=resolve_data_dir(args.data),
        device=args.device,
        gpus_per_trial=args.gpus_per_trial,
        cpus_per_trial=args.cpus_per_trial,
        workers_per_trial=args.workers_per_trial,
        address=args.address,
        no_ray=args.no_ray,
        jobs=args.jobs,
        max_minutes=args.max_minutes,
        fresh=args.fresh,
        accept_other_hardware=args.accept_other_hardware,
        function=args.train,
    )
    report = ["bench", "report", str(args.file)]
    report += ["--profile", args.profile] if args.profile else []
    report += ["--results", str(args.results)]
    started = torchrun_workers()
    if not started:
        return run(selection, options, report)
    if not options.no_ray or options.workers_per_trial != started:
        raise InputError(f"torchrun started {started} workers: give --no-ray --workers-per-trial {started}")
    kind = find_devices(options.device)[0].partition(":")[0]
    return together(kind, lambda: run(selection, options, report))


def run(selection: Selection, options: RunOptions, report: Sequence[str]) -> int:
    """Run the selected trials from this process and say how they ended; return the exit status.

    ``report`` are the words of the command that shows the results; they are printed last.
    """
    experiment = selection.load(options.data_dir)
    options.check()
    devices = _devices(experiment, options)
    store = Store(options.results)
    store.experiment_folder(experiment.name)
    store.check_writable()
    if options.fresh:
        _retire(store, [trial.id for trial in experiment.trials if trial.id is not None])
    planned = plan(experiment.trials, store)
    _tidy(store, planned)
    lines = [line.as_dict() for line in experiment.index]
    store.write_index(experiment.name, experiment.text, lines, file=experiment.path.name)
    labels = {line["id"]: overview.label(line) for line in reversed(lines)}

    say(inert(f"{experiment.title or experiment.name}: {plural(len(planned), 'trial')}"))
    for p in planned:
        if p.action == "redo":
            say(inert(p.state.reason))
        elif p.action == "refused":  # the exit status will be 2: this is why
            say(inert(f"bench: {p.state.reason}"), sys.stderr)
    status = OK
    if any(p.action not in ("keep", "leave", "refused") for p in planned):
        say(f"will {', '.join(overview.intent(p.state for p in planned))}")
        session = _session(options, store, planned, labels, devices[0])
        with session.stop.watching(options.max_minutes), shared_gpus(options, session, devices):
            place(options, session, devices)
        session.progress.close()
        session.close()
        status = exit_status(session.outcomes.values())
        _closing_words(session, labels)
    else:
        say("nothing to train: every trial is finished")
    if any(p.action == "refused" for p in planned):
        status = WRONG_INPUT
    say()
    say(overview.results_table(lines, {p.id: store.inspect(p.id) for p in planned}))
    say()
    say(inert(shlex.join(report)))
    return status


def _devices(experiment: Experiment, options: RunOptions) -> list[str]:
    """Return the devices to train on; raises ``InputError`` where the data is absent or a trial cannot be shared out."""
    for trial in experiment.trials:
        if trial.id is None:
            catalog.require(trial.config.dataset, options.data_dir)
            kind = trial.config.dataset["kind"]
            raise InputError(f"{options.data_dir}: the data set '{kind}' is not there")
    devices = ["cluster"] if options.address else find_devices(options.device)
    for trial in experiment.trials:
        check_workers(trial.config, options.workers_per_trial)
    if options.workers_per_trial > 1 and not options.address and not torchrun_workers():
        groups(devices, options.workers_per_trial)
    return devices


def _retire(store: Store, ids: Sequence[str]) -> None:
    """Set the records of these trials aside, for ``--fresh``."""
    aside = []
    for id in ids:
        if store.folder(id).exists():
            with store.lock(id):
                aside.append(store.retire(id))
    if aside:
        say(inert(f"--fresh: {plural(len(aside), 'record')} moved to <id>.old-<n>, for instance {aside[0]}"))


def _tidy(store: Store, planned: Sequence[Planned]) -> None:
    """Remove what trials that were killed after their last record left behind."""
    for p in planned:
        if p.action in ("keep", "leave") and store.leftovers(p.id, finished=True):
            with contextlib.suppress(Busy), store.lock(p.id):
                store.tidy(p.id, finished=True)


def _session(
    options: RunOptions, store: Store, planned: Sequence[Planned], labels: dict[str, str], device: str
) -> Session:
    """Return the queue of the trials that are to be trained, with the progress to be shown."""
    measured = known_seconds({p.id: p.config for p in planned}, device, options.data_dir)
    todo = [p for p in planned if p.action not in ("keep", "leave", "refused")]
    progress = Progress(
        {p.id: labels.get(p.id, p.id) for p in todo},
        {p.id: p.config.epochs for p in todo},
        costs(todo, measured),
    )
    for p in todo:
        if p.action in ("continue", "retry"):
            progress.resumed(p.id, p.state.epochs)
    function = options.function or (TRAIN if options.workers_per_trial == 1 else TRAIN_TOGETHER)
    tasks = {
        p.id: Task(
            p.id,
            p.config.dump(),
            p.needs,
            str(store.root),
            str(options.data_dir),
            retry=p.action == "retry",
            accept_other_hardware=options.accept_other_hardware,
            function=function,
        )
        for p in todo
    }
    known = {"keep": "done", "leave": "diverged", "refused": "refused"}
    return Session(
        tasks,
        priorities(planned, measured),
        {p.id: known[p.action] for p in planned if p.action in known},
        store,
        progress,
        Stop(),
    )


def _closing_words(session: Session, labels: dict[str, str]) -> None:
    """Say which trials failed, were refused, are another runner's or are unfinished, and why."""
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
        say(f"stopped{why} with {unfinished} unfinished: the same command goes on from here")
