"""The command line of ``bench``: its commands, their options, and messages that name the nearest valid word.

No module that reads tensors is imported here: ``bench --help`` answers at once.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import __version__
from bench.cli.arguments import (
    FORMATS,
    Help,
    Once,
    Parser,
    add,
    add_code,
    add_data,
    add_file,
    add_places,
    add_selection,
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (text, examples, add_arguments) in _COMMANDS.items():
        lines = "\n".join(f"  bench {name} {example}".rstrip() for example in examples)
        command = commands.add_parser(
            name,
            help=text,
            description=filled(f"{text[0].upper()}{text[1:]}."),
            epilog=f"Example{'s' * (len(examples) > 1)}:\n{lines}",
            formatter_class=Help,
            allow_abbrev=False,
        )
        add_arguments(command)
    return parser, dict(commands.choices)


def filled(text: str) -> str:
    """Return text in lines of the terminal's width, as argparse itself breaks help."""
    return textwrap.fill(text, max(20, shutil.get_terminal_size().columns - 2))


_Arguments = Callable[[argparse.ArgumentParser], None]  # adds the arguments of a command to its parser
_COMMANDS: dict[str, tuple[str, tuple[str, ...], _Arguments]] = {}


def _command(name: str, text: str, *examples: str) -> Callable[[_Arguments], _Arguments]:
    """Register a command with its one-line help, examples of its use, and what adds its arguments."""

    def register(add_arguments: _Arguments) -> _Arguments:
        _COMMANDS[name] = text, examples, add_arguments
        return add_arguments

    return register


@_command(
    "list",
    "what there is: quantizers, strategies, networks, data sets, schedules, recipes, experiments",
    "",
    "strategies",
)
def _list(command: argparse.ArgumentParser) -> None:
    add(command, "what GROUP", f"one group with its options: {', '.join(LISTS)}", nargs="?")


@_command("show", "what an experiment file expands to", "digits", "my.toml --diff 'EXP-Net'")
def _show(command: argparse.ArgumentParser) -> None:
    add_file(command)
    add_selection(command)
    add_places(command)
    group = command.add_argument_group("what is shown")
    add(group, "--diff ARM", "how this arm differs from its baseline")
    add(group, "--cost", "the expected time and memory (loads torch)")
    add(group, "--layers", "what is quantized and what stays full precision (loads torch)")
    add_code(command)


@_command("status", "where the trials stand and what `bench run` would do", "", "digits")
def _status(command: argparse.ArgumentParser) -> None:
    add(command, "file FILE", "the experiment file (every recorded experiment)", Path, nargs="?")
    add_selection(command)
    add_places(command)
    add_code(command)


@_command(
    "report",
    "tables, figures and a page from the records",
    "digits --results runs",
    "my.toml --only EXP-Net --seeds 2 --format md,html",
    "--results runs --results other-machine/runs",
)
def _report(command: argparse.ArgumentParser) -> None:
    add(command, "files FILE", "experiment files (every recorded experiment)", Path, nargs="*")
    add_selection(command, "what was run")
    group = command.add_argument_group("where")
    results = "a folder of records (runs); may be repeated: the records of several machines are put together"
    add(group, "--results DIR", results, path_argument, action="append")
    add(group, "--out DIR", "the folder to write to (report inside the first)", path_argument)
    written = f"the formats to write, of {','.join(FORMATS)} (all but parquet)"
    add(group, "--format LIST", written, formats, dest="formats", action="extend")
    add_data(group)
    add_code(command)


@_command(
    "new",
    "write a commented experiment file to start from",
    "my.toml",
    "my.toml --dataset imagefolder:flowers",
    "my.toml --quantizer bnn --network resnet20",
)
def _new(command: argparse.ArgumentParser) -> None:
    add(command, "file FILE", "the file to write, for instance my.toml", path_argument)
    group = command.add_argument_group("what it compares (asked on a terminal)")
    add(group, "--dataset NAME", "the data set: `bench list datasets` (digits)")
    add(group, "--network NAME", "the network: `bench list networks` (by the images' size)")
    add(group, "--quantizer NAME", "the quantizer: `bench list quantizers` (dorefa)")
    add(group, "--bits W/A", "bits of weights and activations (the fewest there are)")
    add(group, "--width F", "the part of the network's channels", number(float, 0, strict=True))
    add(group, "--epochs N", "the epochs of a trial", number(int, 1))
    add_data(command.add_argument_group("where"))


@_command(
    "log",
    "send records to an experiment tracker",
    "--to tensorboard",
    "digits --to mlflow --results results --out tracked",
)
def _log(command: argparse.ArgumentParser) -> None:
    add(command, "files FILE", "experiments (every recorded experiment)", Path, nargs="*")
    to = f"--to {'|'.join(TRACKERS)}"
    add(command, to, "the tracker (tensorboard)", choices=TRACKERS, default="tensorboard")
    group = add_places(command, data=False)
    add(group, "--out DIR", "the folder to write to (logs/TRACKER inside the results folder)", path_argument)


@_command("schema", "the JSON Schema of experiment files, for editors", "> experiment.schema.json")
def _schema(command: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no argument."""


@_command("completion", "the script that completes words in a shell", "bash > ~/.bench-completion")
def _completion(command: argparse.ArgumentParser) -> None:
    add(command, f"shell {'|'.join(SHELLS)}", "the shell", choices=SHELLS)


@_command("run", "train what is not trained yet", "digits", "my.toml --profile quick --max-minutes 30")
def _run(command: argparse.ArgumentParser) -> None:
    add_file(command)
    add_selection(command)
    group = add_places(command)
    add(group, "--device D", "cpu, cuda or cuda:N (a GPU where there is one)")
    add(group, "--address A", "the address of an existing Ray cluster")
    add(group, "--no-ray", "use processes of this machine and nothing of Ray")
    group = command.add_argument_group("how many at once")
    add(group, "--jobs N", "trials at once", number(int, 1, high=4096))
    gpus = "the GPUs of a trial: 1, a share, or auto: as measured (auto)"
    add(group, "--gpus-per-trial F", gpus, gpu_share)
    cpus = "the CPU cores that Ray keeps for a trial"
    add(group, "--cpus-per-trial N", cpus, number(float, 0, strict=True))
    add(group, "--workers-per-trial N", "the processes of a trial (1)", number(int, 1), default=1)
    group = command.add_argument_group("limits and second attempts")
    log = "send the epochs to a tracker while they are recorded (logs/TRACKER inside the results folder)"
    add(group, f"--log {'|'.join(TRACKERS)}", log, choices=TRACKERS)
    add(group, "--max-minutes N", "stop at a checkpoint after so long", number(float, 0))
    add(group, "--fresh", "set old records aside and begin anew")
    add(group, "--accept-other-hardware", "go on with trials that were begun on other hardware")
    add_code(command)


@_command(
    "verify", "run a recorded trial again and compare the records", "52fbdcf5b39cf1b5 --results results"
)
def _verify(command: argparse.ArgumentParser) -> None:
    add(command, "trial TRIAL", _TRIAL)
    group = add_places(command)
    add(group, "--device D", "cpu, cuda or cuda:N (what the record says)")
    add_code(command)


@_command(
    "sharpness",
    "how sharp the minimum of a finished trial is, and the barrier between two trials",
    "52fbdcf5b39cf1b5 8e294037",
    "--experiment digits",
)
def _sharpness(command: argparse.ArgumentParser) -> None:
    add(command, "trials TRIAL", "ids, beginnings of ids or folders; the barrier needs two", nargs="*")
    group = command.add_argument_group("instead of trials")
    recorded = (
        "all final trials recorded of an experiment; the lines go to NAME/sharpness.jsonl in the results, "
        "and `bench report` shows them"
    )
    add(group, "--experiment NAME", recorded)
    add(group, "--only ARM", "this arm of it; may be repeated", action="append", default=[])
    add_places(command)
    group = command.add_argument_group("what is measured")
    size = "norm of the noise over that of a filter's weights (0.05 0.1 0.2)"
    add(group, "--size S", size, number(float, 0, strict=True), nargs="+", default=[0.05, 0.1, 0.2])
    add(group, "--draws N", "draws of noise (10)", number(int, 2), default=10)
    add(group, "--images N", "training images, about (1024)", number(int, 1), default=1024)
    add(group, "--points N", "points between two trials (11)", number(int, 3), default=11)
    add(group, "--stored", "noise on the stored weights, before they are quantized")
    add(group, "--json FILE", "write the numbers to a file, too", path_argument)
    add_code(command)


@_command(
    "export",
    "write the network of a finished trial to a file, and check the file on the test images",
    "52fbdcf5b39cf1b5 --format packed",
    "52fbdcf5b39cf1b5 --format onnx --out digits.onnx",
)
def _export(command: argparse.ArgumentParser) -> None:
    add(command, "trial TRIAL", _TRIAL)
    formats = f"{', '.join(EXPORTS)} (safetensors)"
    add(command, "--format F", formats, choices=EXPORTS, default="safetensors", action=Once)
    group = add_places(command)
    add(group, "--out PATH", "the file (network.* in the trial's folder)", path_argument)
    add(group, "--force", "replace the file where it exists")
    add(group, "--check", "write nothing; check the file that is there once more")
    integers = "safetensors and packed: also check and time the network on integers (needs a C compiler)"
    add(group, "--integers", integers)
    group = command.add_argument_group("what passes")
    ties = (
        "onnx, qonnx, --integers: predictions may differ where rounding moves an activation to another level"
    )
    add(group, "--accept-ties", ties)
    group = command.add_argument_group("what else is written")
    add(group, "--latent", "the full-precision weights that training updates")
    add(group, "--images FILE.npz", "the test images as the network reads them, and logits", path_argument)
    add_code(command)


@_command(
    "data",
    "list, fetch (download), import, prepare (write as shards) or verify data sets",
    "list",
    "fetch svhn",
    "import torchvision:FashionMNIST",
    "import downloads/flowers --as flowers",
    "prepare imagefolder:flowers --form jpeg",
)
def _data(command: argparse.ArgumentParser) -> None:
    add(command, "what ACTION", "list, fetch, import, prepare or verify (list)", nargs="?", default="list")
    add(command, "name NAME", "the data set", nargs="?")
    add_data(command.add_argument_group("where"))
    group = command.add_argument_group("import")
    add(group, "--as NAME", "the name of the new data set (that of the source)", dest="new_name")
    add(group, "--label COLUMN", "the column of the labels of Parquet files")
    group = command.add_argument_group("prepare")
    add(group, "--form jpeg|raw", "the files as they are (jpeg), or pixels", default="jpeg")
    add(group, "--short-side N", "the short side of raw images (352)", number(int, 1))
    add(group, "--max-corrupt N", "leave out up to N corrupt images (0)", number(int, 0), default=0)
    add(group, "--yes", "do not ask before writing")


@_command(
    "doctor",
    "what this machine has, what is slow on it, and whether resumed, captured and packed trials are "
    "exact on it",
    "--facts",
    "--json doctor.json",
)
def _doctor(command: argparse.ArgumentParser) -> None:
    add(command, "--facts", "what is there, without the checks, which take minutes")
    add(command, "--json FILE", "write what was found to this file", path_argument)
    group = add_places(command)
    add(group, "--device D", "cpu, cuda or cuda:N (a GPU where there is one)")


@_command("speed", "what a step costs here, as ratios to full precision", "--mode eager --json speed.json")
def _speed(command: argparse.ArgumentParser) -> None:
    add(command, "--json FILE", "write the measurements to this file", path_argument)
    add(command, "--rounds N", "rounds of interleaved steps (7)", number(int, 2))
    add(command, f"--mode {'|'.join(SPEED_MODES)}", "this mode alone (all)", choices=SPEED_MODES)
    group = command.add_argument_group("instead of training steps")
    inference = "measure networks and layers on integers, in float32 and in int8, on one thread of the CPU"
    images = "measure the ways to read the folder of photographs imagefolder:NAME"
    chosen = group.add_mutually_exclusive_group()
    add(chosen, "--inference", inference)
    add(chosen, "--images NAME", images)
    add_data(group)


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
