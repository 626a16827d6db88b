"""The command line of ``bench``: its commands, their options, and messages that name the nearest valid word.

No module that reads tensors is imported here: ``bench --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.errors import InputError, nearest

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


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of ``bench`` and the parsers of its commands by name."""
    parser = _Parser(
        prog="bench", description="Progressive learning of low-precision networks.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

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
            help="code of this module and of what lies in it may be imported: networks of your own, parts of other packages",
        )

    def places(command: argparse.ArgumentParser, *, data: bool = True) -> None:
        command.add_argument(
            "--results", metavar="DIR", type=_path, default=Path("runs"), help="records (runs)"
        )
        if data:
            command.add_argument("--data", metavar="DIR", help="data sets ($BENCH_DATA, else a cache folder)")

    command = add("list", "what there is: quantizers, strategies, networks, datasets, schedules, recipes")
    command.add_argument("what", nargs="?", metavar="|".join(LISTS))

    command = add("show", "what an experiment file expands to")
    command.add_argument("file", type=Path, metavar="FILE")
    selection(command)
    places(command)
    command.add_argument("--diff", metavar="ARM", help="how this arm differs from its baseline")
    command.add_argument("--cost", action="store_true", help="expected time and memory (loads torch)")
    command.add_argument(
        "--layers", action="store_true", help="what is quantized, what stays full precision (torch)"
    )
    code(command)

    command = add("run", "train what is not trained yet")
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

    command = add("status", "where the trials stand and what `bench run` would do")
    command.add_argument("file", type=Path, nargs="?", metavar="FILE")
    selection(command)
    places(command)
    code(command)

    command = add("report", "tables and figures from the records")
    command.add_argument("files", type=Path, nargs="*", metavar="FILE")
    selection(command)
    places(command, data=False)
    command.add_argument(
        "--out", metavar="DIR", type=_path, help="where to (report inside the results folder)"
    )
    command.add_argument(
        "--format", metavar=",".join(FORMATS), type=_formats, default=list(FORMATS), dest="formats"
    )

    command = add("verify", "run a recorded trial again and compare the records")
    command.add_argument("trial", metavar="TRIAL", help="its id, the beginning of it, or its folder")
    places(command)
    command.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (what the record says)")
    code(command)

    command = add("data", "list, fetch (download), prepare (write as shards) or verify data sets")
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

    command = add("speed", "what a step costs here, as ratios to full precision")
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


def parse(
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
