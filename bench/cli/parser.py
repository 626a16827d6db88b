"""The command line of ``bench``: its commands, their options, and messages that name the nearest valid word.

No module that reads tensors is imported here: ``bench --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from bench import __version__
from bench.errors import InputError, nearest

LISTS = ("quantizers", "strategies", "networks", "datasets", "schedules", "recipes", "experiments")
TRACKERS = ("tensorboard", "wandb", "mlflow", "aim")
SHELLS = ("bash", "zsh", "tcsh")
SPEED_MODES = ("eager", "compiled", "captured", "packed")
EXPORTS = ("safetensors", "packed", "onnx", "qonnx", "pt2")
FORMATS = ("md", "tex", "csv", "png", "pdf", "html", "parquet")


class _Help(RawDescriptionRichHelpFormatter):
    """Help in colour on a terminal; rich is imported when help is printed."""

    text_markup = help_markup = False  # square brackets are brackets
    group_name_formatter = str.capitalize


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one message, with the nearest valid name."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\nsee `{self.prog} --help`")


def _number(kind: type, low: float, *, strict: bool = False, high: float = math.inf) -> Callable[[str], Any]:
    """Return an argument type: a finite number of ``kind`` from ``low`` (above it where ``strict``) to
    ``high``.
    """
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


def _filled(text: str) -> str:
    """Return text in lines of the terminal's width, as argparse itself breaks help."""
    return textwrap.fill(text, max(20, shutil.get_terminal_size().columns - 2))


class _Commands:
    """Adds commands and the options that several of them share, in groups that ``--help`` shows."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.added = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(self, name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        """Add a command with its one-line help and examples of its use."""
        lines = "\n".join(f"  bench {name} {example}".rstrip() for example in examples)
        return self.added.add_parser(
            name,
            help=text,
            description=_filled(f"{text[0].upper()}{text[1:]}."),
            epilog=f"Example{'s' * (len(examples) > 1)}:\n{lines}",
            formatter_class=_Help,
            allow_abbrev=False,
        )


def _selection(command: argparse.ArgumentParser, what: str = "what is run") -> None:
    group = command.add_argument_group(f"which trials ({what})")
    group.add_argument("--profile", metavar="P", help="a profile of the file, for instance quick")
    group.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="a field and its value, for instance epochs=3 or strategy.factor.until=0.25; may be repeated",
    )
    group.add_argument(
        "--only",
        metavar="ARM",
        action="append",
        default=[],
        help="this arm and its baseline; may be repeated",
    )
    group.add_argument("--seeds", metavar="N", type=_number(int, 1), help="the seeds 0 to N-1")


def _places(command: argparse.ArgumentParser, *, data: bool = True) -> argparse._ArgumentGroup:
    group = command.add_argument_group("where")
    group.add_argument(
        "--results", metavar="DIR", type=_path, default=Path("runs"), help="the folder of the records (runs)"
    )
    if data:
        _data_option(group)
    return group


def _data_option(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--data", metavar="DIR", help="the folder of the data sets ($BENCH_DATA, else a cache folder)"
    )


def _code(command: argparse.ArgumentParser) -> None:
    command.add_argument_group("code of your own").add_argument(
        "--allow-code",
        metavar="MODULE",
        action="append",
        default=[],
        help="parts may be imported from this module or package, and from what lies in it; may be repeated",
    )


def _file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "file", type=Path, metavar="FILE", help="an experiment file, or the name of a shipped experiment"
    )


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of ``bench`` and the parsers of its commands by name."""
    parser = _Parser(
        prog="bench",
        description=_filled("Progressive learning of low-precision networks, compared fairly."),
        epilog="Examples:\n  bench show digits\n  bench run digits --profile quick",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"bench {__version__}", help="print the version and exit"
    )
    commands = _Commands(parser)
    _reading_commands(commands)
    _running_commands(commands)
    _sharpness_command(commands)
    _export_command(commands)
    _machine_commands(commands)
    return parser, dict(commands.added.choices)


def _reading_commands(commands: _Commands) -> None:
    """Add the commands that train nothing."""
    command = commands.add(
        "list",
        "what there is: quantizers, strategies, networks, data sets, schedules, recipes, experiments",
        "",
        "strategies",
    )
    command.add_argument(
        "what", nargs="?", metavar="GROUP", help=f"one group with its options: {', '.join(LISTS)}"
    )

    command = commands.add("show", "what an experiment file expands to", "digits", "my.toml --diff 'EXP-Net'")
    _file(command)
    _selection(command)
    _places(command)
    group = command.add_argument_group("what is shown")
    group.add_argument("--diff", metavar="ARM", help="how this arm differs from its baseline")
    group.add_argument("--cost", action="store_true", help="the expected time and memory (loads torch)")
    group.add_argument(
        "--layers",
        action="store_true",
        help="what is quantized and what stays full precision (loads torch)",
    )
    _code(command)

    command = commands.add("status", "where the trials stand and what `bench run` would do", "", "digits")
    command.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="the experiment file (every recorded experiment)"
    )
    _selection(command)
    _places(command)
    _code(command)

    command = commands.add(
        "report",
        "tables, figures and a page from the records",
        "digits --results runs",
        "my.toml --only EXP-Net --seeds 2 --format md,html",
        "--results runs --results other-machine/runs",
    )
    command.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="experiment files (every recorded experiment)"
    )
    _selection(command, "what was run")
    group = command.add_argument_group("where")
    group.add_argument(
        "--results",
        metavar="DIR",
        type=_path,
        action="append",
        help="a folder of records (runs); may be repeated: the records of several machines are put together",
    )
    group.add_argument(
        "--out", metavar="DIR", type=_path, help="the folder to write to (report inside the first)"
    )
    group.add_argument(
        "--format",
        metavar="LIST",
        type=_formats,
        dest="formats",
        help=f"the formats to write, of {','.join(FORMATS)} (all but parquet)",
    )

    command = commands.add(
        "new",
        "write a commented experiment file to start from",
        "my.toml",
        "my.toml --dataset imagefolder:flowers",
        "my.toml --quantizer bnn --network resnet20",
    )
    command.add_argument("file", type=_path, metavar="FILE", help="the file to write, for instance my.toml")
    group = command.add_argument_group("what it compares (asked on a terminal)")
    group.add_argument("--dataset", metavar="NAME", help="the data set: `bench list datasets` (digits)")
    group.add_argument(
        "--network", metavar="NAME", help="the network: `bench list networks` (by the images' size)"
    )
    group.add_argument("--quantizer", metavar="NAME", help="the quantizer: `bench list quantizers` (dorefa)")
    group.add_argument("--bits", metavar="W/A", help="bits of weights and activations (the fewest there are)")
    group.add_argument(
        "--width", metavar="F", type=_number(float, 0, strict=True), help="the part of the network's channels"
    )
    group.add_argument("--epochs", metavar="N", type=_number(int, 1), help="the epochs of a trial")
    _data_option(command.add_argument_group("where"))

    command = commands.add(
        "log",
        "send records to an experiment tracker",
        "--to tensorboard",
        "digits --to mlflow --results results --out tracked",
    )
    command.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="experiments (every recorded experiment)"
    )
    command.add_argument(
        "--to",
        choices=TRACKERS,
        default="tensorboard",
        metavar="|".join(TRACKERS),
        help="the tracker (tensorboard)",
    )
    group = _places(command, data=False)
    group.add_argument(
        "--out",
        metavar="DIR",
        type=_path,
        help="the folder to write to (logs/TRACKER inside the results folder)",
    )

    commands.add("schema", "the JSON Schema of experiment files, for editors", "> experiment.schema.json")

    command = commands.add(
        "completion", "the script that completes words in a shell", "bash > ~/.bench-completion"
    )
    command.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")


def _running_commands(commands: _Commands) -> None:
    """Add the commands that train."""
    command = commands.add(
        "run",
        "train what is not trained yet",
        "digits",
        "my.toml --profile quick --max-minutes 30",
    )
    _file(command)
    _selection(command)
    group = _places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (a GPU where there is one)")
    group.add_argument("--address", metavar="A", help="the address of an existing Ray cluster")
    group.add_argument(
        "--no-ray", action="store_true", help="use processes of this machine and nothing of Ray"
    )
    group = command.add_argument_group("how many at once")
    group.add_argument("--jobs", metavar="N", type=_number(int, 1, high=4096), help="trials at once")
    group.add_argument(
        "--gpus-per-trial",
        metavar="F",
        type=_gpu_share,
        help="the GPUs of a trial: 1, a share, or auto: as measured (auto)",
    )
    group.add_argument(
        "--cpus-per-trial",
        metavar="N",
        type=_number(float, 0, strict=True),
        help="the CPU cores that Ray keeps for a trial",
    )
    group.add_argument(
        "--workers-per-trial",
        metavar="N",
        type=_number(int, 1),
        default=1,
        help="the processes of a trial (1)",
    )
    group = command.add_argument_group("limits and second attempts")
    group.add_argument(
        "--log",
        choices=TRACKERS,
        metavar="|".join(TRACKERS),
        help="send the epochs to a tracker while they are recorded (logs/TRACKER inside the results folder)",
    )
    group.add_argument(
        "--max-minutes", metavar="N", type=_number(float, 0), help="stop at a checkpoint after so long"
    )
    group.add_argument("--fresh", action="store_true", help="set old records aside and begin anew")
    group.add_argument(
        "--accept-other-hardware",
        action="store_true",
        help="go on with trials that were begun on other hardware",
    )
    _code(command)

    command = commands.add(
        "verify", "run a recorded trial again and compare the records", "481117b5af5ba5d0 --results results"
    )
    command.add_argument("trial", metavar="TRIAL", help="its id, the beginning of the id, or its folder")
    group = _places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (what the record says)")
    _code(command)


def _sharpness_command(commands: _Commands) -> None:
    """Add the command that measures the minimum which a trial ended in."""
    command = commands.add(
        "sharpness",
        "how sharp the minimum of a finished trial is, and the barrier between two trials",
        "481117b5af5ba5d0",
        "481117b5af5ba5d0 0d5cfb34",
    )
    command.add_argument(
        "trials", nargs="+", metavar="TRIAL", help="ids, beginnings of ids or folders; the barrier needs two"
    )
    _places(command)
    group = command.add_argument_group("what is measured")
    group.add_argument(
        "--size",
        nargs="+",
        type=_number(float, 0, strict=True),
        default=[0.05, 0.1, 0.2],
        metavar="S",
        help="norm of the noise over that of a filter's weights (0.05 0.1 0.2)",
    )
    group.add_argument("--draws", type=_number(int, 2), default=10, metavar="N", help="draws of noise (10)")
    group.add_argument(
        "--images", type=_number(int, 1), default=1024, metavar="N", help="training images, about (1024)"
    )
    group.add_argument(
        "--points", type=_number(int, 3), default=11, metavar="N", help="points between two trials (11)"
    )
    group.add_argument(
        "--stored", action="store_true", help="noise on the stored weights, before they are quantized"
    )
    group.add_argument("--json", metavar="FILE", type=_path, help="write the numbers to a file, too")
    _code(command)


def _export_command(commands: _Commands) -> None:
    """Add the command that writes the network that ships."""
    command = commands.add(
        "export",
        "write the network of a finished trial to a file, and check the file on the test images",
        "481117b5af5ba5d0 --format packed",
        "481117b5af5ba5d0 --format onnx --out digits.onnx",
    )
    command.add_argument("trial", metavar="TRIAL", help="its id, the beginning of the id, or its folder")
    command.add_argument(
        "--format",
        choices=EXPORTS,
        default="safetensors",
        metavar="F",
        help=f"{', '.join(EXPORTS)} (safetensors)",
    )
    group = _places(command)
    group.add_argument("--out", metavar="PATH", type=_path, help="the file (network.* in the trial's folder)")
    group.add_argument("--force", action="store_true", help="replace the file where it exists")
    group = command.add_argument_group("what else is written")
    group.add_argument(
        "--latent", action="store_true", help="the full-precision weights that training updates"
    )
    group.add_argument(
        "--images",
        metavar="FILE.npz",
        type=_path,
        help="the test images as the network reads them, and logits",
    )
    _code(command)


def _machine_commands(commands: _Commands) -> None:
    """Add the commands about data sets and about this machine."""
    command = commands.add(
        "data",
        "list, fetch (download), import, prepare (write as shards) or verify data sets",
        "list",
        "fetch svhn",
        "import torchvision:FashionMNIST",
        "import downloads/flowers --as flowers",
        "prepare imagefolder:flowers --form jpeg",
    )
    command.add_argument(
        "what",
        nargs="?",
        default="list",
        metavar="ACTION",
        help="list, fetch, import, prepare or verify (list)",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="the data set")
    _data_option(command.add_argument_group("where"))
    group = command.add_argument_group("import")
    group.add_argument(
        "--as", metavar="NAME", dest="new_name", help="the name of the new data set (that of the source)"
    )
    group.add_argument("--label", metavar="COLUMN", help="the column of the labels of Parquet files")
    group = command.add_argument_group("prepare")
    group.add_argument(
        "--form", default="jpeg", metavar="jpeg|raw", help="the files as they are (jpeg), or pixels"
    )
    group.add_argument(
        "--short-side", metavar="N", type=_number(int, 1), help="the short side of raw images (352)"
    )
    group.add_argument(
        "--max-corrupt",
        metavar="N",
        type=_number(int, 0),
        default=0,
        help="leave out up to N corrupt images (0)",
    )
    group.add_argument("--yes", action="store_true", help="do not ask before writing")

    command = commands.add(
        "doctor",
        "what this machine has, what is slow on it, and whether resumed, captured and packed trials are exact on it",
        "--facts",
        "--json doctor.json",
    )
    command.add_argument(
        "--facts", action="store_true", help="what is there, without the checks, which take minutes"
    )
    command.add_argument("--json", metavar="FILE", type=_path, help="write what was found to this file")
    group = _places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (a GPU where there is one)")

    command = commands.add(
        "speed", "what a step costs here, as ratios to full precision", "--mode eager --json speed.json"
    )
    command.add_argument("--json", metavar="FILE", type=_path, help="write the measurements to this file")
    command.add_argument(
        "--rounds", metavar="N", type=_number(int, 2), help="rounds of interleaved steps (7)"
    )
    command.add_argument(
        "--mode", choices=SPEED_MODES, metavar="|".join(SPEED_MODES), help="this mode alone (all)"
    )
    group = command.add_argument_group("photographs")
    group.add_argument(
        "--images",
        metavar="NAME",
        help="measure instead the ways to read the folder of photographs imagefolder:NAME",
    )
    _data_option(group)


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
