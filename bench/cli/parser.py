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
    Once,
    Parser,
    add_code,
    add_data,
    add_file,
    add_places,
    add_recorded,
    add_selection,
    filled,
    formats,
    gpu_share,
    number,
    option,
    path_argument,
)
from bench.errors import InputError, nearest

LISTS = ("quantizers", "strategies", "networks", "datasets", "schedules", "recipes", "experiments")
TRACKERS = ("tensorboard", "wandb", "mlflow", "aim")
SHELLS = ("bash", "zsh", "tcsh")
SPEED_MODES = ("eager", "compiled", "captured", "packed")
_TRIAL = "its id, the beginning of the id, or its folder"
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
    groups = f"one group with its options: {', '.join(LISTS)}"
    command.add_argument("what", nargs="?", metavar="GROUP", help=groups)


def _show(commands: Commands) -> None:
    command = commands.add("show", "what an experiment file expands to", "digits", "my.toml --diff 'EXP-Net'")
    add_file(command)
    add_selection(command)
    add_places(command)
    group = command.add_argument_group("what is shown")
    option(group, "--diff ARM", "how this arm differs from its baseline")
    option(group, "--cost", "the expected time and memory (loads torch)")
    option(group, "--layers", "what is quantized and what stays full precision (loads torch)")
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
    results = "a folder of records (runs); may be repeated: the records of several machines are put together"
    option(group, "--results DIR", results, path_argument, action="append")
    option(group, "--out DIR", "the folder to write to (report inside the first)", path_argument)
    written = f"the formats to write, of {','.join(FORMATS)} (all but parquet)"
    option(group, "--format LIST", written, formats, dest="formats", action="extend")


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
    option(group, "--dataset NAME", "the data set: `bench list datasets` (digits)")
    option(group, "--network NAME", "the network: `bench list networks` (by the images' size)")
    option(group, "--quantizer NAME", "the quantizer: `bench list quantizers` (dorefa)")
    option(group, "--bits W/A", "bits of weights and activations (the fewest there are)")
    option(group, "--width F", "the part of the network's channels", number(float, 0, strict=True))
    option(group, "--epochs N", "the epochs of a trial", number(int, 1))
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
    to = f"--to {'|'.join(TRACKERS)}"
    option(command, to, "the tracker (tensorboard)", choices=TRACKERS, default="tensorboard")
    group = add_places(command, data=False)
    out = "the folder to write to (logs/TRACKER inside the results folder)"
    option(group, "--out DIR", out, path_argument)


def _schema(commands: Commands) -> None:
    commands.add("schema", "the JSON Schema of experiment files, for editors", "> experiment.schema.json")


def _completion(commands: Commands) -> None:
    command = commands.add(
        "completion", "the script that completes words in a shell", "bash > ~/.bench-completion"
    )
    command.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="the shell")


def _run(commands: Commands) -> None:
    examples = "digits", "my.toml --profile quick --max-minutes 30"
    command = commands.add("run", "train what is not trained yet", *examples)
    add_file(command)
    add_selection(command)
    group = add_places(command)
    option(group, "--device D", "cpu, cuda or cuda:N (a GPU where there is one)")
    option(group, "--address A", "the address of an existing Ray cluster")
    option(group, "--no-ray", "use processes of this machine and nothing of Ray")
    group = command.add_argument_group("how many at once")
    option(group, "--jobs N", "trials at once", number(int, 1, high=4096))
    gpus = "the GPUs of a trial: 1, a share, or auto: as measured (auto)"
    option(group, "--gpus-per-trial F", gpus, gpu_share)
    cpus = "the CPU cores that Ray keeps for a trial"
    option(group, "--cpus-per-trial N", cpus, number(float, 0, strict=True))
    option(group, "--workers-per-trial N", "the processes of a trial (1)", number(int, 1), default=1)
    group = command.add_argument_group("limits and second attempts")
    log = "send the epochs to a tracker while they are recorded (logs/TRACKER inside the results folder)"
    option(group, f"--log {'|'.join(TRACKERS)}", log, choices=TRACKERS)
    option(group, "--max-minutes N", "stop at a checkpoint after so long", number(float, 0))
    option(group, "--fresh", "set old records aside and begin anew")
    option(group, "--accept-other-hardware", "go on with trials that were begun on other hardware")
    add_code(command)


def _verify(commands: Commands) -> None:
    command = commands.add(
        "verify", "run a recorded trial again and compare the records", "52fbdcf5b39cf1b5 --results results"
    )
    command.add_argument("trial", metavar="TRIAL", help=_TRIAL)
    group = add_places(command)
    option(group, "--device D", "cpu, cuda or cuda:N (what the record says)")
    add_code(command)


def _sharpness(commands: Commands) -> None:
    command = commands.add(
        "sharpness",
        "how sharp the minimum of a finished trial is, and the barrier between two trials",
        "52fbdcf5b39cf1b5 8e294037",
        "--experiment digits",
    )
    command.add_argument(
        "trials", nargs="*", metavar="TRIAL", help="ids, beginnings of ids or folders; the barrier needs two"
    )
    add_recorded(command)
    add_places(command)
    group = command.add_argument_group("what is measured")
    size = "norm of the noise over that of a filter's weights (0.05 0.1 0.2)"
    option(group, "--size S", size, number(float, 0, strict=True), nargs="+", default=[0.05, 0.1, 0.2])
    option(group, "--draws N", "draws of noise (10)", number(int, 2), default=10)
    option(group, "--images N", "training images, about (1024)", number(int, 1), default=1024)
    option(group, "--points N", "points between two trials (11)", number(int, 3), default=11)
    option(group, "--stored", "noise on the stored weights, before they are quantized")
    option(group, "--json FILE", "write the numbers to a file, too", path_argument)
    add_code(command)


def _export(commands: Commands) -> None:
    command = commands.add(
        "export",
        "write the network of a finished trial to a file, and check the file on the test images",
        "52fbdcf5b39cf1b5 --format packed",
        "52fbdcf5b39cf1b5 --format onnx --out digits.onnx",
    )
    command.add_argument("trial", metavar="TRIAL", help=_TRIAL)
    formats = f"{', '.join(EXPORTS)} (safetensors)"
    option(command, "--format F", formats, choices=EXPORTS, default="safetensors", action=Once)
    group = add_places(command)
    option(group, "--out PATH", "the file (network.* in the trial's folder)", path_argument)
    option(group, "--force", "replace the file where it exists")
    option(group, "--check", "write nothing; check the file that is there once more")
    integers = "safetensors and packed: also check and time the network on integers (needs a C compiler)"
    option(group, "--integers", integers)
    group = command.add_argument_group("what passes")
    ties = (
        "onnx, qonnx, --integers: predictions may differ where rounding moves an activation to another level"
    )
    option(group, "--accept-ties", ties)
    group = command.add_argument_group("what else is written")
    option(group, "--latent", "the full-precision weights that training updates")
    option(group, "--images FILE.npz", "the test images as the network reads them, and logits", path_argument)
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
    actions = "list, fetch, import, prepare or verify (list)"
    command.add_argument("what", nargs="?", default="list", metavar="ACTION", help=actions)
    command.add_argument("name", nargs="?", metavar="NAME", help="the data set")
    add_data(command.add_argument_group("where"))
    group = command.add_argument_group("import")
    option(group, "--as NAME", "the name of the new data set (that of the source)", dest="new_name")
    option(group, "--label COLUMN", "the column of the labels of Parquet files")
    group = command.add_argument_group("prepare")
    option(group, "--form jpeg|raw", "the files as they are (jpeg), or pixels", default="jpeg")
    option(group, "--short-side N", "the short side of raw images (352)", number(int, 1))
    option(group, "--max-corrupt N", "leave out up to N corrupt images (0)", number(int, 0), default=0)
    option(group, "--yes", "do not ask before writing")


def _doctor(commands: Commands) -> None:
    command = commands.add(
        "doctor",
        "what this machine has, what is slow on it, and whether resumed, captured and packed trials are "
        "exact on it",
        "--facts",
        "--json doctor.json",
    )
    option(command, "--facts", "what is there, without the checks, which take minutes")
    option(command, "--json FILE", "write what was found to this file", path_argument)
    group = add_places(command)
    option(group, "--device D", "cpu, cuda or cuda:N (a GPU where there is one)")


def _speed(commands: Commands) -> None:
    command = commands.add(
        "speed", "what a step costs here, as ratios to full precision", "--mode eager --json speed.json"
    )
    option(command, "--json FILE", "write the measurements to this file", path_argument)
    option(command, "--rounds N", "rounds of interleaved steps (7)", number(int, 2))
    option(command, f"--mode {'|'.join(SPEED_MODES)}", "this mode alone (all)", choices=SPEED_MODES)
    group = command.add_argument_group("instead of training steps")
    inference = "measure networks and layers on integers, in float32 and in int8, on one thread of the CPU"
    images = "measure the ways to read the folder of photographs imagefolder:NAME"
    chosen = group.add_mutually_exclusive_group()
    option(chosen, "--inference", inference)
    option(chosen, "--images NAME", images)
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
