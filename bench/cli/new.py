"""``bench new``: a commented experiment file to start from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import registry
from bench.cli import OK
from bench.errors import InputError
from bench.experiments.catalog import facts, label
from bench.experiments.expand import load_experiment
from bench.experiments.options import as_table
from bench.experiments.toml_files import experiment_name
from bench.machine.folders import resolve_data_dir
from bench.records.files import explained
from bench.text import clean, command, inert, plural

_SMALL = 40  # pixels: data sets up to this size start with the small convolutional network

_FILE = """\
# An experiment file: arms that are trained with the same recipe, on the same batches, from the same
# initial weights.
# `{show}` shows what the file expands to, `{run}` trains.
# Every key: `bench schema`. Every name: `bench list`.
title = {title}

[defaults]                     # fields of every arm
dataset = {dataset}
network = {network}
width = {width}                   # the channels of every layer, as a part of the original network's
recipe = {recipe}              # optimiser, learning rate, batch size, augmentation: `bench list recipes`
epochs = {epochs}

[grid]                         # every arm is trained at every point of the grid
seed = [0, 1, 2]               # three seeds give an interval; one gives a number

[[arms]]                       # the upper bound
name = "Full precision"
quantizer = "full_precision"

[[arms]]                       # the low-precision network, trained as usual
name = "Plain"
quantizer = {quantizer}
bits = [{bits}]                 # bits of the weights / bits of the activations

[[arms]]                       # EXP-Net: every low-precision convolution has a companion whose output fades
name = "EXP-Net"
baseline = "Plain"             # the gain is measured against this arm, paired by seed
quantizer = {quantizer}
bits = [{bits}]
strategy = {{ kind = "progressive", merge = "sum", factor = {{ kind = "cosine", until = 0.5 }} }}

# What the experiment claims, tested with a correction for the number of claims:
# [[claims]]
# arm = "EXP-Net"
# over = "Plain"

[profiles.quick]               # `{run} --profile quick`: the same comparison at a small budget
epochs = {quick}
grid = {{ seed = [0] }}
"""


def new_command(args: argparse.Namespace) -> int:
    """Write the starting file ``args.file``; return the exit status.

    What is not given as an option is asked on a terminal, and has a default elsewhere. Raises ``InputError``
    where the file exists or where what was chosen makes no experiment: then nothing is left behind.
    """
    path: Path = args.file
    if path.suffix != ".toml":
        raise InputError(f"{clean(path)}: an experiment file's name ends with .toml, for instance my.toml")
    experiment_name(path)
    if path.exists():
        raise InputError(f"{clean(path)}: exists already; give another name")
    dataset = args.dataset or _ask("data set", "digits", "datasets")
    data_dir = resolve_data_dir(args.data)
    network = args.network or _ask("network", _network_for(dataset, data_dir), "networks")
    quantizer = args.quantizer or _ask("quantizer", "dorefa", "quantizers")
    text = file_text(path, dataset, network, quantizer, args.bits, args.width, args.epochs)
    path.touch(exist_ok=False)
    try:
        with explained(path):
            path.write_text(text, encoding="utf-8")
        experiment = load_experiment(path, data_dir=data_dir)
    except BaseException:
        path.unlink()
        raise
    print(inert(f"{path}: {plural(len(experiment.trials), 'trial')}. Next:"))
    data = ["--data", args.data] if args.data else []
    for words in (("show", path, *data), ("run", path, "--profile", "quick", *data)):
        print(inert(f"  {command(*words)}"))
    return OK


def file_text(
    path: Path,
    dataset: str,
    network: str,
    quantizer: str,
    bits: str | None = None,
    width: float | None = None,
    epochs: int | None = None,
) -> str:
    """Return a starting file's text; raises ``InputError`` for an unknown data set, network or quantizer."""
    tables = {}
    for group, name in (("datasets", dataset), ("networks", network), ("quantizers", quantizer)):
        tables[group] = as_table(group, name)
        registry.get(group, tables[group]["kind"], f"--{group.rstrip('s')}")
    known = registry.get("datasets", tables["datasets"]["kind"]).facts
    precisions = registry.get("quantizers", tables["quantizers"]["kind"]).facts
    small = (known.get("image_size") or _SMALL + 1) <= _SMALL
    total = epochs or (20 if small else 60)
    return _FILE.format(
        show=command("show", path),
        run=command("run", path),
        title=json.dumps(f"{label(tables['datasets'])}: does the full-precision companion help?"),
        dataset=json.dumps(dataset),
        network=_network_toml(network),
        width=width or (0.125 if dataset == "digits" else 0.25),
        recipe=json.dumps(known["default_recipe"]),
        epochs=total,
        quantizer=json.dumps(quantizer),
        bits=json.dumps(bits or f"{min(precisions['w_bits'])}/{min(precisions['a_bits'])}"),
        quick=max(2, total // 10),
    )


def _network_for(dataset: str, data_dir: Path) -> str:
    """Return the network that a starting file has where none was chosen: a small one for small images."""
    table = as_table("datasets", dataset)
    registry.get("datasets", table["kind"], "--dataset")
    size = facts(table, data_dir).image_size
    return "svhn_convnet" if (size or _SMALL + 1) <= _SMALL else "resnet18"


def _network_toml(network: str) -> str:
    """Return the network as the file has it: with the size that images get, where that can be chosen."""
    options = registry.get("networks", as_table("networks", network)["kind"]).options
    size = options.get("input_size", {}).get("default")
    return json.dumps(network) if size is None else f'{{ kind = "{network}", input_size = {size} }}  # pixels'


def _ask(what: str, default: str, group: str) -> str:
    """Return the answer to a question on a terminal, ``default`` elsewhere and for an empty answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return default
    own = {"npz": "npz:NAME", "imagefolder": "imagefolder:NAME", "python": "python:MODULE.FACTORY"}
    print(f"{group}: {', '.join(own.get(name, name) for name in registry.entries(group))}")
    try:
        return input(f"{what} [{default}]: ").strip() or default
    except EOFError:
        print()
        return default
