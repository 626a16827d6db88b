"""The functions of ``import bench``: the commands, with DataFrames in place of files.

Wrong input raises ``bench.InputError`` with the message that the command would print.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import pandas as pd
from pydantic import ConfigDict, ValidationError, validate_call

from bench.cli import WRONG_INPUT
from bench.errors import InputError, nearest, shown
from bench.experiments.selection import Selection
from bench.experiments.shipped import locate
from bench.experiments.trials import Experiment
from bench.machine.folders import resolve_data_dir
from bench.machine.foreign import from_command_line, granted
from bench.records.files import write_atomic
from bench.reporting.frames import epoch_frame, to_parquet, trial_frame
from bench.reporting.records import experiments_in, read_experiment
from bench.reporting.write import write_report

if TYPE_CHECKING:
    from torch import nn

    from bench.integer.convert import LayerRun
    from bench.networks import Network

F = TypeVar("F", bound=Callable[..., Any])
Place = str | PathLike[str]


def _checked(function: F) -> F:
    """Return ``function`` with the types of its arguments checked: ``InputError`` names the argument."""
    check = validate_call(config=ConfigDict(strict=True))(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments  # TypeError, as of any function
        try:
            return check(*args, **kwargs)
        except ValidationError as error:
            if error.title != function.__name__:
                raise
            wrong = dict.fromkeys(found["loc"][0] for found in error.errors(include_url=False))
        places = list(signature.parameters)
        names = [name if isinstance(name, str) else places[min(name, len(given) - 1)] for name in wrong]
        types = {name: signature.parameters[name].annotation.replace("Place", "path") for name in names}
        raise InputError(
            "\n".join(f"{name}: expected {types[name]}, not {shown(given[name])}" for name in names)
        )

    return cast(F, checked)


@dataclass(frozen=True)
class Results:
    """The records of experiments: a row a trial in ``trials``, a row an epoch in ``epochs``."""

    trials: pd.DataFrame
    epochs: pd.DataFrame

    def to_parquet(self, folder: Place) -> list[Path]:
        """Write ``trials.parquet`` and ``epochs.parquet`` into a folder and return their paths."""
        written = []
        for name, frame in (("trials", self.trials), ("epochs", self.epochs)):
            path = Path(folder) / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, to_parquet(frame))
            written.append(path)
        return written


@_checked
def load_experiment(
    file: Place,
    *,
    profile: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    data: Place | None = None,
    allow_code: Sequence[str] = (),
) -> Experiment:
    """Read, check and expand an experiment file; nothing is trained and torch is not imported.

    Args:
        file: The experiment file, or the name of a shipped experiment.
        profile: A profile of the file, for instance "quick".
        overrides: Fields and their values, for instance ``{"epochs": 3, "strategy.factor.until": 0.25}``.
        only: The arms that are wanted; their baselines stay.
        seeds: N for the seeds 0 to N-1 in place of the file's.
        data: The folder of the data sets (``$BENCH_DATA``, else a cache folder).
        allow_code: Modules of your own that parts may be imported from.

    Returns:
        The experiment: ``trials`` with their configurations and identities, ``arms``, ``index``, ``claims``.

    Raises:
        InputError: Everything that is wrong with the file, a line each.
    """
    selection = Selection(profile, _override_texts(overrides), tuple(only), seeds)
    with granted(from_command_line(allow_code)):
        return selection.load(Path(file), resolve_data_dir(data))


@_checked
def run(
    file: Place,
    *,
    profile: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    results: Place = "runs",
    data: Place | None = None,
    device: str | None = None,
    gpus_per_trial: float | Literal["auto"] | None = None,
    cpus_per_trial: float | None = None,
    workers_per_trial: int = 1,
    address: str | None = None,
    no_ray: bool = False,
    jobs: int | None = None,
    log: str | None = None,
    max_minutes: float | None = None,
    fresh: bool = False,
    accept_other_hardware: bool = False,
    allow_code: Sequence[str] = (),
) -> Results:
    """Train what is not trained yet, as ``bench run`` does, and return what is recorded of the experiment.

    Every argument is the option of ``bench run`` with its name; the first five are those of
    ``load_experiment``. An interrupted run (Ctrl-C, the stop button of a notebook) stops at a checkpoint, and
    the same call goes on from there.

    Returns:
        The results of the whole experiment, as ``bench.results`` returns them. A trial that failed or did not
        finish is a row with its ``status`` and ``reason``.

    Raises:
        InputError: What was asked for cannot be run.
    """
    from bench.cli import run as command
    from bench.launch.options import RunOptions

    path = Path(file)
    selection = Selection(profile, _override_texts(overrides), tuple(only), seeds)
    options = RunOptions(
        results=Path(results).absolute(),
        data_dir=resolve_data_dir(data),
        device=device,
        gpus_per_trial=float(gpus_per_trial) if isinstance(gpus_per_trial, int) else gpus_per_trial,
        cpus_per_trial=cpus_per_trial,
        workers_per_trial=workers_per_trial,
        address=address,
        no_ray=no_ray,
        jobs=jobs,
        log=log,
        max_minutes=max_minutes,
        fresh=fresh,
        accept_other_hardware=accept_other_hardware,
    )
    shown = command.report_text(path, selection, Path(results), data, allow_code)
    with granted(from_command_line(allow_code)):
        if command.run(path, selection, options, shown) == WRONG_INPUT:
            raise InputError(f"{path}: some trials were refused; the lines above say why")
    return _read(results, locate(path).stem)


@_checked
def results(folder: Place = "runs", experiment: Place | None = None) -> Results:
    """Return the records of a results folder as DataFrames.

    ``trials`` has a row for every trial that the experiments want, whatever became of it (``status``): its
    arm and baseline, ``seed``, ``accuracy`` (final test accuracy of the deployed network, percent),
    ``wall_seconds``, ``model_bits``, ``grid.AXIS`` and ``config.FIELD`` among others. ``epochs`` has a row
    for every epoch of every trial; ``trials.merge(epochs, on="id")`` joins the two.

    Args:
        folder: The results folder.
        experiment: One experiment, by its name or file; all that are recorded by default.

    Raises:
        InputError: There is no such experiment, or its index is damaged.
    """
    return _read(folder, experiment)


def _read(folder: Place, experiment: Place | None) -> Results:
    read = [read_experiment(Path(folder), name) for name in recorded(folder, experiment)]
    return Results(trial_frame(read), epoch_frame(read))


def recorded(folder: Place, experiment: Place | None = None) -> list[str]:
    """Return the names of the experiments meant; raises ``InputError`` where none is recorded."""
    known = experiments_in(Path(folder))
    name = Path(experiment).name.removesuffix(".toml") if experiment is not None else None
    if name is not None and name not in known:
        raise InputError(f"{folder}: no experiment '{name}' is recorded here.{nearest(name, known)}")
    if not known:
        raise InputError(f"{folder}: no experiment is recorded here")
    return [name] if name is not None else known


@_checked
def report(
    results: Place | Sequence[Place] = "runs",
    *experiments: Place,
    profile: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    out: Place | None = None,
    formats: Sequence[str] | None = None,
    data: Place | None = None,
    allow_code: Sequence[str] = (),
) -> Path:
    """Write tables, figures and pages of recorded experiments; return their folder.

    Args:
        results: The results folder, or several that make one report.
        *experiments: Experiment files or names; every recorded experiment by default.
        profile: Only what was run with this profile.
        overrides: Only what ``run`` with these overrides trains; the file is expanded with them.
        only: Only these arms and their baselines.
        seeds: N for the seeds 0 to N-1.
        out: The folder to write to (``report`` inside the first results folder).
        formats: Some of md, tex, csv, png, pdf, html, parquet (all but parquet).
        data: The folder of the data sets, where there are overrides.
        allow_code: Modules of your own that parts may be imported from, where there are overrides.

    Raises:
        InputError: There is nothing to report, or an input is wrong.
    """
    folders = [Path(results)] if isinstance(results, str | PathLike) else [Path(each) for each in results]
    folder = Path(out) if out is not None else folders[0] / "report"
    selection = Selection(profile, _override_texts(overrides), tuple(only), seeds)
    files = [Path(file) for file in experiments] or None
    with granted(from_command_line(allow_code)):
        write_report(files, selection, folders, folder, formats, Path(data) if data else None)
    return folder


def network(
    name: str | Mapping[str, Any],
    quantizer: str | Mapping[str, Any] = "full_precision",
    bits: str = "32/32",
    *,
    num_classes: int = 10,
    strategy: str | Mapping[str, Any] = "plain",
    width: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    allow_code: Sequence[str] = (),
    **fields: Any,
) -> Network:
    """Return an initialised network, an ``nn.Module``, as a trial with these fields trains it.

    Args:
        name: The network: a name of ``bench list networks``, or a table with options.
        quantizer: A name of ``bench list quantizers``, or a table with options.
        bits: Bits of weights and activations, "W/A" or "W/A/G".
        num_classes: The length of the logits.
        strategy: With "progressive", "anneal" a table: the network is the expanded one, at the factor of
            step 0.
        width: The multiplier on every channel count.
        seed: The seed of the initial weights.
        device: Where the network lies.
        allow_code: Modules of your own that parts may be imported from.
        **fields: Further fields of a trial, for instance ``initialization``.

    Raises:
        InputError: A name, bit width or option does not exist.
    """
    from bench.experiments.config import make_config
    from bench.randomness import Clock
    from bench.strategies import make_strategy
    from bench.training.setup import make_network

    neutral = {"dataset": "digits", "epochs": 1, "batch_size": 32, "learning_rate": 1e-3}
    chosen = {"network": name, "quantizer": quantizer, "bits": bits, "strategy": strategy}
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes: expected a whole number from 1, not {shown(num_classes)}")
    with granted(from_command_line(allow_code)):
        config = make_config({**neutral, **chosen, "width": width, "seed": seed, **fields})
        return make_network(config, num_classes, Clock(seed, device), make_strategy(config, 1))


def load(
    trial: Place,
    results: Place = "runs",
    data: Place | None = None,
    *,
    integers: bool = False,
    allow_code: Sequence[str] = (),
) -> nn.Module:
    """Return the low-precision network of a finished trial: a plain module that maps images to logits.

    Nothing of training is in it. The logits equal those of the trained network, bit for bit. Images are
    float32 (B, 3, S, S) as the trial's recipe prepares them; S is the module's attribute ``input_size``.

    Args:
        trial: A trial's id, the beginning of the id, or its folder; or a file that ``bench export`` wrote in
            the format safetensors, packed or pt2. ONNX files are run by onnxruntime.
        results: The folder of the records.
        data: The folder of the data sets, as for ``bench run``.
        integers: Whether low-precision layers run on integers where they can, on the CPU. A C compiler is
            needed. Logits then equal the trained network's but for rounding (``docs/export.md``);
            ``layer_runs`` tells which layers run how.
        allow_code: Modules of your own that the network may be imported from.

    Raises:
        InputError: There is no such trial or file, the trial is not finished, the file is damaged, or
            with ``integers`` there is no C compiler.
    """
    with granted(from_command_line(allow_code)):
        suffix = Path(trial).suffix
        if suffix == ".safetensors":
            from bench.export.files import read_file

            plain = read_file(Path(trial))
        elif suffix == ".pt2":
            if integers:
                raise InputError(f"{trial}: a pt2 file has no levels; load the trial, or a packed file")
            from bench.export.pt2 import run_pt2

            return run_pt2(Path(trial))
        elif suffix == ".onnx":
            raise InputError(f"{trial}: onnxruntime runs an ONNX file; load the trial, or another format")
        else:
            from bench.records.store import Store
            from bench.training.deploy import prepare

            store = Store(Path(results))
            plain = prepare(store, store.find(str(trial)), resolve_data_dir(data)).plain
    if not integers:
        return plain
    from bench.integer.convert import integer_network

    return integer_network(plain)


def layer_runs(network: nn.Module) -> list[LayerRun]:
    """Return how each layer of a network of ``load`` runs: on integers or in float32, and why."""
    from bench.integer.convert import layer_runs as found

    return found(network)


def _override_texts(overrides: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return overrides as ``--set`` has them."""
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={_toml(value)}" for key, value in overrides.items())
    return tuple(overrides)


def _toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(value, allow_nan=False)
    raise InputError(f"overrides: {value!r} is no text, number, truth value, list or table")
