"""The command line of ``bench``: its commands, their options, and messages that name the nearest valid word.

No module that reads tensors is imported here: ``bench --help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import __version__
from bench.cli.arguments import (
    FORMATS,
    Commands,
    Help,
    Parser,
    add_code,
    add_data,
    add_file,
    add_places,
    add_selection,
    filled,
    formats,
    gpu_share,
    number,
    path_argument,
)
from bench.errors import InputError, nearest

LISTS = ("quantizers", "strategies", "networks", "datasets", "schedules", "recipes", "experiments")
TRACKERS = ("tensorboard", "wandb", "mlflow", "aim")
SHELLS = ("bash", "zsh", "tcsh")
SPEED_MODES = ("eager", "compiled", "captured", "packed")
EXPORTS = ("safetensors", "packed", "onnx", "qonnx", "pt2")


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of ``bench`` and the parsers of its commands by name."""
    parser = Parser(
        prog="bench",
        description=filled("Progressive learning of low-precision networks, compared fairly."),
        epilog="Examples:\n  bench show digits\n  bench run digits --profile quick",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"bench {__version__}", help="print the version and exit"
    )
    commands = Commands(parser)
    for add in _COMMANDS:
        add(commands)
    return parser, dict(commands.added.choices)


def _list(commands: Commands) -> None:
    command = commands.add(
        "list",
        "what there is: quantizers, strategies, networks, data sets, schedules, recipes, experiments",
        "",
        "strategies",
    )
    command.add_argument(
        "what", nargs="?", metavar="GROUP", help=f"one group with its options: {', '.join(LISTS)}"
    )


def _show(commands: Commands) -> None:
    command = commands.add("show", "what an experiment file expands to", "digits", "my.toml --diff 'EXP-Net'")
    add_file(command)
    add_selection(command)
    add_places(command)
    group = command.add_argument_group("what is shown")
    group.add_argument("--diff", metavar="ARM", help="how this arm differs from its baseline")
    group.add_argument("--cost", action="store_true", help="the expected time and memory (loads torch)")
    group.add_argument(
        "--layers",
        action="store_true",
        help="what is quantized and what stays full precision (loads torch)",
    )
    add_code(command)


def _status(commands: Commands) -> None:
    command = commands.add("status", "where the trials stand and what `bench run` would do", "", "digits")
    command.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="the experiment file (every recorded experiment)"
    )
    add_selection(command)
    add_places(command)
    add_code(command)


def _report(commands: Commands) -> None:
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
    add_selection(command, "what was run")
    group = command.add_argument_group("where")
    group.add_argument(
        "--results",
        metavar="DIR",
        type=path_argument,
        action="append",
        help="a folder of records (runs); may be repeated: the records of several machines are put together",
    )
    group.add_argument(
        "--out", metavar="DIR", type=path_argument, help="the folder to write to (report inside the first)"
    )
    group.add_argument(
        "--format",
        metavar="LIST",
        type=formats,
        dest="formats",
        help=f"the formats to write, of {','.join(FORMATS)} (all but parquet)",
    )


def _new(commands: Commands) -> None:
    command = commands.add(
        "new",
        "write a commented experiment file to start from",
        "my.toml",
        "my.toml --dataset imagefolder:flowers",
        "my.toml --quantizer bnn --network resnet20",
    )
    command.add_argument(
        "file", type=path_argument, metavar="FILE", help="the file to write, for instance my.toml"
    )
    group = command.add_argument_group("what it compares (asked on a terminal)")
    group.add_argument("--dataset", metavar="NAME", help="the data set: `bench list datasets` (digits)")
    group.add_argument(
        "--network", metavar="NAME", help="the network: `bench list networks` (by the images' size)"
    )
    group.add_argument("--quantizer", metavar="NAME", help="the quantizer: `bench list quantizers` (dorefa)")
    group.add_argument("--bits", metavar="W/A", help="bits of weights and activations (the fewest there are)")
    group.add_argument(
        "--width", metavar="F", type=number(float, 0, strict=True), help="the part of the network's channels"
    )
    group.add_argument("--epochs", metavar="N", type=number(int, 1), help="the epochs of a trial")
    add_data(command.add_argument_group("where"))


def _log(commands: Commands) -> None:
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
    group = add_places(command, data=False)
    group.add_argument(
        "--out",
        metavar="DIR",
        type=path_argument,
        help="the folder to write to (logs/TRACKER inside the results folder)",
    )


def _schema(commands: Commands) -> None:
    commands.add("schema", "the JSON Schema of experiment files, for editors", "> experiment.schema.json")


def _completion(commands: Commands) -> None:
    command = commands.add(
        "completion", "the script that completes words in a shell", "bash > ~/.bench-completion"
    )
    command.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")


def _run(commands: Commands) -> None:
    command = commands.add(
        "run",
        "train what is not trained yet",
        "digits",
        "my.toml --profile quick --max-minutes 30",
    )
    add_file(command)
    add_selection(command)
    group = add_places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (a GPU where there is one)")
    group.add_argument("--address", metavar="A", help="the address of an existing Ray cluster")
    group.add_argument(
        "--no-ray", action="store_true", help="use processes of this machine and nothing of Ray"
    )
    group = command.add_argument_group("how many at once")
    group.add_argument("--jobs", metavar="N", type=number(int, 1, high=4096), help="trials at once")
    group.add_argument(
        "--gpus-per-trial",
        metavar="F",
        type=gpu_share,
        help="the GPUs of a trial: 1, a share, or auto: as measured (auto)",
    )
    group.add_argument(
        "--cpus-per-trial",
        metavar="N",
        type=number(float, 0, strict=True),
        help="the CPU cores that Ray keeps for a trial",
    )
    group.add_argument(
        "--workers-per-trial",
        metavar="N",
        type=number(int, 1),
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
        "--max-minutes", metavar="N", type=number(float, 0), help="stop at a checkpoint after so long"
    )
    group.add_argument("--fresh", action="store_true", help="set old records aside and begin anew")
    group.add_argument(
        "--accept-other-hardware",
        action="store_true",
        help="go on with trials that were begun on other hardware",
    )
    add_code(command)


def _verify(commands: Commands) -> None:
    command = commands.add(
        "verify", "run a recorded trial again and compare the records", "481117b5af5ba5d0 --results results"
    )
    command.add_argument("trial", metavar="TRIAL", help="its id, the beginning of the id, or its folder")
    group = add_places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (what the record says)")
    add_code(command)


def _sharpness(commands: Commands) -> None:
    command = commands.add(
        "sharpness",
        "how sharp the minimum of a finished trial is, and the barrier between two trials",
        "481117b5af5ba5d0",
        "481117b5af5ba5d0 0d5cfb34",
    )
    command.add_argument(
        "trials", nargs="+", metavar="TRIAL", help="ids, beginnings of ids or folders; the barrier needs two"
    )
    add_places(command)
    group = command.add_argument_group("what is measured")
    group.add_argument(
        "--size",
        nargs="+",
        type=number(float, 0, strict=True),
        default=[0.05, 0.1, 0.2],
        metavar="S",
        help="norm of the noise over that of a filter's weights (0.05 0.1 0.2)",
    )
    group.add_argument("--draws", type=number(int, 2), default=10, metavar="N", help="draws of noise (10)")
    group.add_argument(
        "--images", type=number(int, 1), default=1024, metavar="N", help="training images, about (1024)"
    )
    group.add_argument(
        "--points", type=number(int, 3), default=11, metavar="N", help="points between two trials (11)"
    )
    group.add_argument(
        "--stored", action="store_true", help="noise on the stored weights, before they are quantized"
    )
    group.add_argument("--json", metavar="FILE", type=path_argument, help="write the numbers to a file, too")
    add_code(command)


def _export(commands: Commands) -> None:
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
    group = add_places(command)
    group.add_argument(
        "--out", metavar="PATH", type=path_argument, help="the file (network.* in the trial's folder)"
    )
    group.add_argument("--force", action="store_true", help="replace the file where it exists")
    group = command.add_argument_group("what passes")
    group.add_argument(
        "--accept-ties",
        action="store_true",
        help="onnx and qonnx: a prediction may differ where rounding moves an activation across a threshold",
    )
    group = command.add_argument_group("what else is written")
    group.add_argument(
        "--latent", action="store_true", help="the full-precision weights that training updates"
    )
    group.add_argument(
        "--images",
        metavar="FILE.npz",
        type=path_argument,
        help="the test images as the network reads them, and logits",
    )
    add_code(command)


def _data(commands: Commands) -> None:
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
    add_data(command.add_argument_group("where"))
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
        "--short-side", metavar="N", type=number(int, 1), help="the short side of raw images (352)"
    )
    group.add_argument(
        "--max-corrupt",
        metavar="N",
        type=number(int, 0),
        default=0,
        help="leave out up to N corrupt images (0)",
    )
    group.add_argument("--yes", action="store_true", help="do not ask before writing")


def _doctor(commands: Commands) -> None:
    command = commands.add(
        "doctor",
        "what this machine has, what is slow on it, and whether resumed, captured and packed trials are "
        "exact on it",
        "--facts",
        "--json doctor.json",
    )
    command.add_argument(
        "--facts", action="store_true", help="what is there, without the checks, which take minutes"
    )
    command.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write what was found to this file"
    )
    group = add_places(command)
    group.add_argument("--device", metavar="D", help="cpu, cuda or cuda:N (a GPU where there is one)")


def _speed(commands: Commands) -> None:
    command = commands.add(
        "speed", "what a step costs here, as ratios to full precision", "--mode eager --json speed.json"
    )
    command.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write the measurements to this file"
    )
    command.add_argument("--rounds", metavar="N", type=number(int, 2), help="rounds of interleaved steps (7)")
    command.add_argument(
        "--mode", choices=SPEED_MODES, metavar="|".join(SPEED_MODES), help="this mode alone (all)"
    )
    group = command.add_argument_group("photographs")
    group.add_argument(
        "--images",
        metavar="NAME",
        help="measure instead the ways to read the folder of photographs imagefolder:NAME",
    )
    add_data(group)


_COMMANDS = (
    _list,
    _show,
    _status,
    _report,
    _new,
    _log,
    _schema,
    _completion,
    _run,
    _verify,
    _sharpness,
    _export,
    _data,
    _doctor,
    _speed,
)


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
