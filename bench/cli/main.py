"""The ``bench`` command: reads the command line, calls the module that does the work, turns errors into one message.

Each command imports what it needs when it runs, so that ``list``, ``show`` and ``status`` answer without torch.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench.errors import InputError, nearest

if TYPE_CHECKING:
    from bench.experiments.expand import Experiment
    from bench.launch.pool import Planned, Session
    from bench.records.store import Store

OK, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 3
LISTS = ("quantizers", "strategies", "networks", "datasets", "schedules", "recipes")
SPEED_MODES = ("eager", "compiled", "captured", "packed")
FORMATS = ("md", "tex", "csv", "png", "pdf", "html")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one message, with the nearest valid name."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\nsee `{self.prog} --help`")


def _number(kind: type, low: float, *, strict: bool = False, high: float = math.inf) -> Callable[[str], Any]:
    """Return an argument type: a finite number of ``kind`` from ``low`` (above it where ``strict``) to ``high``."""
    name = "whole number" if kind is int else "number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (strict and value == low) or value > high:
            bounds = f"{'above' if strict else 'from'} {low:g}" + (
                "" if math.isinf(high) else f" to {high:g}"
            )
            raise argparse.ArgumentTypeError(f"expected a {name} {bounds}, not {text!r}")
        return value

    return parse


def _gpu_share(text: str) -> Any:
    return text if text == "auto" else _number(float, 0, strict=True)(text)


def _path(text: str) -> Path:
    """Return the path of an option; whether something is there is asked later."""
    try:
        os.stat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no path: there is a NUL in it") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no path here: {error.strerror}") from None
    return Path(text)


def _formats(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for name in chosen:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no format of reports.{nearest(name, FORMATS)} Known: {', '.join(FORMATS)}"
            )
    if not chosen:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(FORMATS)}")
    return chosen


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser and those of the commands by name."""
    parser = _Parser(
        prog="bench", description="Progressive learning of low-precision networks.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    def selection(command: argparse.ArgumentParser) -> None:
        command.add_argument("--profile", metavar="P", help="a profile of the file, for instance quick")
        command.add_argument(
            "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="set a field"
        )
        command.add_argument(
            "--only", metavar="ARM", action="append", default=[], help="this arm and its baseline"
        )
        command.add_argument("--seeds", metavar="N", type=_number(int, 1), help="the seeds 0 .. N-1")

    def code(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--allow-code",
            metavar="MODULE",
            action="append",
            default=[],
            help="networks of your own may be imported from this module, and from what lies in it",
        )

    def places(command: argparse.ArgumentParser, *, data: bool = True) -> None:
        command.add_argument(
            "--results", metavar="DIR", type=_path, default=Path("runs"), help="records (runs)"
        )
        if data:
            command.add_argument("--data", metavar="DIR", help="data sets ($BENCH_DATA, else a cache folder)")

    command = add(
        "list", _list, "what there is: quantizers, strategies, networks, datasets, schedules, recipes"
    )
    command.add_argument("what", nargs="?", metavar="|".join(LISTS))

    command = add("show", _show, "what an experiment file expands to")
    command.add_argument("file", type=Path, metavar="FILE")
    selection(command)
    places(command)
    command.add_argument("--diff", metavar="ARM", help="how this arm differs from its baseline")
    command.add_argument("--cost", action="store_true", help="expected time and memory (loads torch)")
    command.add_argument(
        "--layers", action="store_true", help="what is quantized, what stays full precision (torch)"
    )
    code(command)

    command = add("run", _run, "train what is not trained yet")
    command.add_argument("file", type=Path, metavar="FILE")
    selection(command)
    places(command)
    command.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (a GPU where there is one)")
    command.add_argument(
        "--gpus-per-trial", metavar="F", type=_gpu_share, help="1, a share, or auto: as measured (auto)"
    )
    command.add_argument("--cpus-per-trial", metavar="N", type=_number(float, 0, strict=True), help="for Ray")
    command.add_argument(
        "--workers-per-trial", metavar="N", type=_number(int, 1), default=1, help="processes of one"
    )
    command.add_argument("--address", metavar="A", help="an existing Ray cluster's")
    command.add_argument(
        "--no-ray", action="store_true", help="use processes of this machine, nothing of Ray"
    )
    command.add_argument("--jobs", metavar="N", type=_number(int, 1, high=4096), help="trials at once")
    command.add_argument(
        "--max-minutes", metavar="N", type=_number(float, 0), help="then stop at a checkpoint"
    )
    command.add_argument("--fresh", action="store_true", help="set old records aside, begin anew")
    code(command)
    command.add_argument(
        "--accept-other-hardware", action="store_true", help="go on with trials begun on other hardware"
    )

    command = add("status", _status, "where the trials stand and what `bench run` would do")
    command.add_argument("file", type=Path, nargs="?", metavar="FILE")
    selection(command)
    places(command)
    code(command)

    command = add("report", _report, "tables and figures from the records")
    command.add_argument("files", type=Path, nargs="*", metavar="FILE")
    command.add_argument("--profile", metavar="P")
    places(command, data=False)
    command.add_argument(
        "--out", metavar="DIR", type=_path, help="where to (report inside the results folder)"
    )
    command.add_argument(
        "--format", metavar=",".join(FORMATS), type=_formats, default=list(FORMATS), dest="formats"
    )

    command = add("verify", _verify, "run a recorded trial again and compare the records")
    command.add_argument("trial", metavar="TRIAL", help="its id, the beginning of it, or its folder")
    places(command)
    command.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (what the record says)")
    code(command)

    command = add("data", _data, "list, fetch (download), prepare (write as shards) or verify data sets")
    command.add_argument("what", nargs="?", default="list", metavar="list|fetch|prepare|verify")
    command.add_argument("name", nargs="?", metavar="NAME")
    command.add_argument(
        "--form", default="jpeg", metavar="jpeg|raw", help="prepare: the files as they are, or pixels"
    )
    command.add_argument(
        "--short-side", metavar="N", type=_number(int, 1), help="prepare: of raw images (352)"
    )
    command.add_argument(
        "--max-corrupt",
        metavar="N",
        type=_number(int, 0),
        default=0,
        help="prepare: leave out up to N corrupt images",
    )
    command.add_argument("--yes", action="store_true", help="prepare: do not ask before writing")
    command.add_argument("--data", metavar="DIR", help="data sets ($BENCH_DATA, else a cache folder)")

    command = add("speed", _speed, "what a step costs here, as ratios to full precision")
    command.add_argument("--json", metavar="FILE", type=_path, help="write the measurements there")
    command.add_argument(
        "--rounds", metavar="N", type=_number(int, 2), help="rounds of interleaved steps (default 7)"
    )
    command.add_argument("--mode", choices=SPEED_MODES, help="this mode alone (compiling takes minutes)")
    command.add_argument(
        "--images",
        metavar="NAME",
        help="instead: the ways to read the folder of photographs imagefolder:NAME",
    )
    command.add_argument(
        "--data", metavar="DIR", help="for --images: data sets ($BENCH_DATA, else a cache folder)"
    )
    return parser, dict(commands.choices)


def _parse(
    parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser], argv: Sequence[str]
) -> argparse.Namespace:
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in commands and not {"-h", "--help"} & set(argv[: argv.index(first)]):
        raise InputError(
            f"no command is called '{first}'.{nearest(first, commands)} Known: {', '.join(commands)}."
        )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = list((commands[args.command] if args.command else parser)._option_string_actions)
        words = [word.partition("=")[0] for word in unknown if word.startswith("-")] or unknown
        hints = [
            f"{word}: no such option of `bench {args.command or ''}`.{nearest(word, known)}" for word in words
        ]
        if not any(word.startswith("-") for word in unknown):
            hints = [f"{' '.join(unknown)}: one argument too many for `bench {args.command}`"]
        raise InputError(
            "\n".join([*hints, f"see `{' '.join(filter(None, ['bench', args.command]))} --help`"])
        )
    return args


def main(argv: Sequence[str] | None = None, *, train: str | None = None) -> int:
    """Run the ``bench`` command and return its exit status; ``train`` replaces the training function (in tests)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that this terminal cannot show is no error
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, commands = _parser()
        args = _parse(parser, commands, argv)
        if args.command is None:
            parser.print_help()
            return WRONG_INPUT
        args.train = train
        from bench.experiments.permission import from_command_line, granted

        with granted(from_command_line(getattr(args, "allow_code", []))):
            status = args.run(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        from bench.progress import inert

        lines = str(error).splitlines() or ["wrong input"]
        with contextlib.suppress(BrokenPipeError):
            print(
                "\n".join([f"bench: {inert(lines[0])}", *(f"  {inert(line)}" for line in lines[1:])]),
                file=sys.stderr,
            )
        return WRONG_INPUT
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a file or folder that cannot be used, and that nobody explained better
        from bench.progress import inert

        if error.filename is None:
            raise
        print(f"bench: {inert(error.filename)}: {inert(error.strerror)}", file=sys.stderr)
        return WRONG_INPUT


# --- commands --------------------------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> Experiment:
    from bench.datasets.folders import resolve_data_dir
    from bench.experiments.expand import load_experiment

    args.data = resolve_data_dir(args.data)
    return load_experiment(
        args.file,
        profile=args.profile,
        overrides=args.overrides,
        only=args.only,
        seeds=args.seeds,
        data_dir=args.data,
    )


def _list(args: argparse.Namespace) -> int:
    from bench.cli import show

    if args.what is not None and args.what not in LISTS:
        raise InputError(
            f"bench list: no '{args.what}'.{nearest(args.what, LISTS)} Known: {', '.join(LISTS)}."
        )
    print(show.list_text(args.what, full=not sys.stdout.isatty()))
    return OK


def _show(args: argparse.Namespace) -> int:
    from bench.cli import show

    full = not sys.stdout.isatty()
    text = show.show_text(
        _load(args), diff=args.diff, cost=args.cost, layers=args.layers, data_dir=args.data, full=full
    )
    print(text)
    return OK


def _report(args: argparse.Namespace) -> int:
    from bench import reporting

    out = args.out if args.out is not None else args.results / "report"
    return reporting.write_report(args.files or None, args.profile, args.results, out, args.formats)


def _verify(args: argparse.Namespace) -> int:
    from bench.datasets.folders import resolve_data_dir
    from bench.launch.pool import TRAIN
    from bench.launch.verify import verify

    return verify(
        args.trial, args.results, resolve_data_dir(args.data), args.device, function=args.train or TRAIN
    )


def _data(args: argparse.Namespace) -> int:
    from bench.datasets import manage
    from bench.datasets.folders import resolve_data_dir

    actions = ("list", "fetch", "prepare", "verify")
    if args.what not in actions:
        raise InputError(
            f"bench data: no '{args.what}'.{nearest(args.what, actions)} Known: {', '.join(actions)}."
        )
    folder = resolve_data_dir(args.data)
    if args.what == "fetch":
        if args.name is None:
            raise InputError("bench data fetch: which data set? `bench data list` names them")
        _print(manage.fetch(args.name, folder))
    elif args.what == "prepare":
        if args.name is None:
            raise InputError("bench data prepare: which data set? `bench data list` names them")
        line = manage.prepare(
            args.name,
            folder,
            form=args.form,
            short_side=args.short_side,
            max_corrupt=args.max_corrupt,
            yes=args.yes,
            say=_print,
        )
        _print(line)
    elif args.what == "verify":
        _print(manage.verify(args.name, folder))
    elif args.name is not None:
        raise InputError(f"bench data list: takes no name ({args.name!r})")
    else:
        _print(manage.list_text(folder))
    return OK


def _print(text: str) -> None:
    """Print lines that hold names of files and folders, made harmless for a terminal."""
    from bench.progress import inert

    print("\n".join(map(inert, text.split("\n"))), flush=True)


def _speed(args: argparse.Namespace) -> int:
    from bench.speed.measure import main

    return main(args)


def _status(args: argparse.Namespace) -> int:
    from bench.cli import status as overview
    from bench.records.store import Store

    store = Store(args.results)
    if args.file is not None:
        experiment = _load(args)
        lines = [line.as_dict() for line in experiment.index]
        states = {trial.id: store.inspect(trial.id) for trial in experiment.trials if trial.id is not None}
        epochs = {trial.id: trial.config.epochs for trial in experiment.trials if trial.id is not None}
        print(overview.status_text(experiment.title or experiment.name, lines, states, epochs))
        return OK
    for option in ("profile", "overrides", "only", "seeds"):
        if getattr(args, option):
            raise InputError(f"--{'set' if option == 'overrides' else option} needs the experiment file")
    if not args.results.is_dir():
        raise InputError(f"--results {args.results}: there is no such folder; `bench run` makes it")
    print(overview.results_text(store))
    return OK


def _run(args: argparse.Namespace) -> int:
    from bench.devices import find_devices
    from bench.launch.data_parallel import together, torchrun_workers

    started = torchrun_workers()
    if not started:
        return _run_here(args)
    if not args.no_ray or args.workers_per_trial != started:
        raise InputError(f"torchrun started {started} workers: give --no-ray --workers-per-trial {started}")
    return together(find_devices(args.device)[0].partition(":")[0], lambda: _run_here(args))


def _run_here(args: argparse.Namespace) -> int:
    from bench.cli import status as overview
    from bench.datasets import catalog
    from bench.devices import find_devices
    from bench.launch.data_parallel import check_workers, groups, torchrun_workers
    from bench.launch.pool import exit_status, plan
    from bench.progress import plural, say
    from bench.records.store import Store

    experiment = _load(args)
    for trial in experiment.trials:
        if trial.id is None:
            catalog.require(trial.config.dataset, args.data)
            raise InputError(f"{args.data}: the data set '{trial.config.dataset['kind']}' is not there")
    _check_placement(args)
    devices = ["cluster"] if args.address else find_devices(args.device)
    for trial in experiment.trials:
        check_workers(trial.config, args.workers_per_trial)
    if args.workers_per_trial > 1 and not args.address and not torchrun_workers():
        groups(devices, args.workers_per_trial)
    store = Store(args.results.absolute())
    store.experiment_folder(experiment.name)
    store.check_writable()
    if args.fresh:
        _retire(store, [trial.id for trial in experiment.trials if trial.id is not None])
    planned = plan(experiment.trials, store)
    _tidy(store, planned)
    lines = [line.as_dict() for line in experiment.index]
    store.write_index(experiment.name, experiment.text, lines, file=experiment.path.name)
    labels = {line["id"]: overview.label(line) for line in reversed(lines)}

    say(overview.one_line(f"{experiment.title or experiment.name}: {plural(len(planned), 'trial')}"))
    todo = [p for p in planned if p.action not in ("keep", "leave", "refused")]
    for p in planned:
        if p.action == "redo":
            say(overview.one_line(p.state.reason))
        elif p.action == "refused":  # the exit status will be 2: this is why
            say(overview.one_line(f"bench: {p.state.reason}"), sys.stderr)
    status = OK
    if todo:
        say(f"will {', '.join(overview.intent(p.state for p in planned))}")
        session = _session(args, store, planned, labels, devices[0])
        with session.stop.watching(args.max_minutes), _sharing(args, session, devices):
            _place(args, session, devices)
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
    profile = f" --profile {args.profile}" if args.profile else ""
    say()
    say(overview.one_line(f"bench report {args.file}{profile} --results {args.results}"))
    return status


def _check_placement(args: argparse.Namespace) -> None:
    workers = args.workers_per_trial
    if workers > 1 and args.gpus_per_trial not in (None, workers):
        raise InputError(
            f"--gpus-per-trial does not go with --workers-per-trial {workers}: each worker has one GPU"
        )
    if args.no_ray:
        for option in ("address", "cpus_per_trial"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} is for Ray; it does not go with --no-ray")
    gpus = args.gpus_per_trial
    if isinstance(gpus, float) and gpus > 1 and workers == 1:
        raise InputError(
            f"--gpus-per-trial {gpus:g}: a trial takes one GPU, or a share of one, in this version"
        )
    if gpus is not None and args.device == "cpu":
        raise InputError("--gpus-per-trial does not go with --device cpu")


def _retire(store: Store, ids: Sequence[str]) -> None:
    from bench.progress import inert, plural, say

    aside = []
    for id in ids:
        if store.folder(id).exists():
            with store.lock(id):
                aside.append(store.retire(id))
    if aside:
        say(inert(f"--fresh: {plural(len(aside), 'record')} moved to <id>.old-<n>, for instance {aside[0]}"))


def _tidy(store: Store, planned: Sequence[Planned]) -> None:
    """Remove what trials that were killed after their last record left behind."""
    from bench.records.locks import Busy

    for p in planned:
        if p.action in ("keep", "leave") and store.leftovers(p.id, finished=True):
            with contextlib.suppress(Busy), store.lock(p.id):
                store.tidy(p.id, finished=True)


def _session(
    args: argparse.Namespace, store: Store, planned: Sequence[Planned], labels: dict[str, str], device: str
) -> Session:
    from bench.costs.predict import known_seconds
    from bench.devices import threads_per_trial
    from bench.launch.data_parallel import TRAIN_TOGETHER
    from bench.launch.pool import TRAIN, Session, Stop, Task, costs, priorities
    from bench.progress import Progress

    measured = known_seconds({p.id: p.config for p in planned}, device, args.data)
    todo = [p for p in planned if p.action not in ("keep", "leave", "refused")]
    progress = Progress(
        {p.id: labels.get(p.id, p.id) for p in todo},
        {p.id: p.config.epochs for p in todo},
        costs(todo, measured),
    )
    for p in todo:
        if p.action in ("continue", "retry"):
            progress.resumed(p.id, p.state.epochs)
    tasks = {
        p.id: Task(
            p.id,
            p.config.dump(),
            p.needs,
            str(store.root),
            str(args.data),
            threads=threads_per_trial(args.device or ""),
            retry=p.action == "retry",
            accept_other_hardware=args.accept_other_hardware,
            function=args.train or (TRAIN if args.workers_per_trial == 1 else TRAIN_TOGETHER),
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


@contextlib.contextmanager
def _sharing(args: argparse.Namespace, session: Session, devices: Sequence[str]) -> Iterator[None]:
    """Find out how many trials share each GPU of this machine, and let their kernels overlap meanwhile."""
    if not devices[0].startswith("cuda") or args.workers_per_trial > 1:
        yield
        return
    from bench.devices import cpu_count
    from bench.launch import gpu_sharing
    from bench.progress import say

    share = None if args.gpus_per_trial in (None, "auto") else args.gpus_per_trial
    with gpu_sharing.overlapping(devices, share) as words:
        configs = {id: task.config for id, task in session.tasks.items()}
        session.room, more = gpu_sharing.make_room(
            configs, devices, share, cpu_count(), args.jobs, str(args.data)
        )
        for text in filter(None, (words, more)):
            say(text)
        yield


def _share_device(session: Session, trials: float) -> None:
    """Note in the tasks how many trials share a device at most."""
    from dataclasses import replace

    session.tasks = {id: replace(task, pack=max(1, int(trials + 1e-9))) for id, task in session.tasks.items()}


def _place(args: argparse.Namespace, session: Session, devices: Sequence[str]) -> None:
    """Run the session's trials with Ray, or without it where that is wanted or Ray is not to be had."""
    from bench.devices import cpu_count, threads_per_trial
    from bench.launch.data_parallel import groups, own_device, run_torchrun, torchrun_workers
    from bench.launch.pool import run_pool
    from bench.progress import plural, say

    workers = args.workers_per_trial
    if torchrun_workers():
        say(f"one trial at a time on the {workers} workers of torchrun")
        run_torchrun(session, own_device("cpu" if devices[0] == "cpu" else "cuda"))
        return
    on_gpu = devices[0] != "cpu"
    if not args.no_ray:
        from bench.launch import ray_tune

        if why := ray_tune.unavailable(args.address):
            if args.address:
                raise InputError(f"--address needs Ray, which cannot be imported ({why})")
            say(f"Ray cannot be imported ({why}): going on as with --no-ray")
        else:
            with (
                ray_tune.cluster(args.address, devices) as resources,
                session.stop.watching(),  # Ray has signal handlers of its own; ours count
            ):
                if args.address:  # it may have GPUs where this machine has none
                    on_gpu = args.device != "cpu" and bool(args.device or resources.get("GPU"))
                cpus = args.cpus_per_trial or float(threads_per_trial("cuda" if on_gpu else "cpu"))
                gpus = (
                    args.gpus_per_trial
                    if isinstance(args.gpus_per_trial, float)
                    else 1.0 / session.room.equal_share
                )
                gpus = gpus if on_gpu and workers == 1 else float(on_gpu)
                _share_device(session, 1.0 / gpus if on_gpu else threads_per_trial("cpu") / cpus)
                ray_tune.check_resources(resources, cpus, gpus, workers)
                say(f"Ray: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")
                ray_tune.run_ray(
                    session, cpus=cpus, gpus=gpus, jobs=args.jobs, workers=workers, cluster=bool(args.address)
                )
            return
    if workers > 1:
        devices = groups(devices, workers)
        jobs = args.jobs or (len(devices) if on_gpu else max(1, cpu_count() // workers))
    elif on_gpu:
        jobs = min(session.room.total, sum(session.room.slots.values()))
        _share_device(session, session.room.most)
    else:
        jobs = args.jobs or max(1, cpu_count() // threads_per_trial("cpu"))
        _share_device(session, math.ceil(jobs * threads_per_trial("cpu") / cpu_count()))
    say(f"{plural(jobs, 'trial')} at once on {', '.join(devices)}")
    run_pool(session, devices, jobs)


def _closing_words(session: Session, labels: dict[str, str]) -> None:
    from collections import Counter

    from bench.cli.status import one_line
    from bench.progress import plural, say

    outcomes = list(session.outcomes.values())
    for outcome in outcomes:
        if outcome.status == "failed":
            log = session.store.log(outcome.id)
            say(
                one_line(f"failed: {labels.get(outcome.id, outcome.id)}: {outcome.reason}; see {log}"),
                sys.stderr,
            )
        elif outcome.status == "refused":
            say(one_line(f"bench: {labels.get(outcome.id, outcome.id)}: {outcome.reason}"), sys.stderr)
    counts = Counter(outcome.status for outcome in outcomes)
    if counts["busy"]:
        who = next(outcome.reason for outcome in outcomes if outcome.status == "busy")
        say(one_line(f"{plural(counts['busy'], 'trial')} left to another runner: {who}"))
    if counts["stopped"]:
        why = f" ({session.stop.reason})" if session.stop.reason else ""
        say(
            f"stopped{why} with {plural(counts['stopped'], 'trial')} unfinished: the same command goes on from here"
        )


if __name__ == "__main__":
    raise SystemExit(main())
