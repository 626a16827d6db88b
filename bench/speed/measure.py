"""``bench speed``: what a training step costs on this device, as ratios to full precision.

Every measured step is a real one (``bench.training.loop.Run``): batch gathered and augmented, forward pass,
loss, backward pass, optimizer. All rows of one network, mode and dtype are measured in turn, round after
round. So a machine that changes its speed changes it for all rows alike. The ratio of a row is the median
over the rounds of its time over the time of the plain full-precision row in the same round. Images are
synthetic: no data set is needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.costs.at_once import at_once
from bench.costs.measure import make_run, step_at, synthetic
from bench.datasets import Arrays
from bench.machine.devices import cpu_count, cpu_name, device_name
from bench.machine.folders import resolve_data_dir
from bench.records.files import write_atomic
from bench.speed import images as photographs
from bench.speed import inference
from bench.speed.cases import BATCH, CASES, NETWORKS, PLAIN, UNIT, Case
from bench.speed.floor import allocated, floor_seconds, peak_memory_cpu, roofline
from bench.speed.timing import interleaved, summary, timed
from bench.text import say
from bench.training import execution
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run
from bench.training.provenance import provenance

SCHEMA = 1
ROUNDS = 7
PACK = 8  # trials at once on a GPU; on a CPU one trial a core
Further = tuple[dict[str, Any], Callable[[], object], int]  # (fields of the row, the action, its images)
# What is timed beside each network, from (the unit's run, network, width, mode): see docs/tools/peers.py.
EXTRAS: list[Callable[[Run, str, float, str], list[Further]]] = []


def measure(
    network: str,
    width: float,
    mode: str,
    dtype: str,
    device: str,
    rounds: int,
    rates: dict[str, float],
    cases: Sequence[Case] = CASES,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network: the step of every case, the data alone, evaluation alone.

    Other modes and precisions than eager fp32 also get the eager step of DoReFa 1/1 in fp32, measured in the
    same rounds, so that modes can be compared.

    Args:
        network: Its name in the registry.
        width: The width multiplier of its channels.
        mode: "eager", "compiled" or "captured".
        dtype: "fp32" or "bf16".
        device: "cpu" or "cuda:N".
        rounds: The number of measurements of each row.
        rates: The result of ``roofline`` for this precision.
        cases: The rows. The first is the unit of the ratios; evaluation is measured on the second.
    """
    if mode != "eager":
        torch._dynamo.reset()  # a process keeps a limited number of compiled networks
    arrays = synthetic(4 * BATCH)
    runs: list[Run] = []
    actions: list[Callable[[], None]] = []
    first: list[float] = []
    memory: list[int] = []
    for case in cases:
        before = allocated(device)
        execution.reset_peak_memory(device)
        run = make_run(case.config(network, width, dtype), arrays, device, mode)
        actions.append(step_at(run, 0 if case.factor_on else run.total_steps - 1))
        first.append(timed(actions[-1], device))
        on_gpu = device.startswith("cuda")
        memory.append(execution.peak_memory(device) - before if on_gpu else peak_memory_cpu(run, actions[-1]))
        runs.append(run)
    further = _further(network, width, mode, dtype, device, runs, arrays)
    taken = interleaved([*actions, *(action for _, action, _ in further)], device, rounds)
    common = {"network": network, "width": width, "mode": mode, "dtype": dtype, "batch_size": BATCH}
    for case, run, seconds, start, peak in zip(cases, runs, taken, first, memory, strict=False):
        row: dict[str, Any] = {**common, **case.row(), **summary(seconds, taken[0])}
        row["images_per_second"] = BATCH / row["seconds"]
        row["operations"] = run.step_flops(case.factor_on)
        row["roofline_share"] = floor_seconds(run, case.factor_on, rates) / row["seconds"]
        row["first_step_seconds"] = start
        row["peak_memory_bytes"] = peak
        yield row
    for (about, _, count), seconds in zip(further, taken[len(cases) :], strict=True):
        row = {**common, **about, **summary(seconds, taken[0])}
        yield {**row, "images_per_second": count / row["seconds"]}


def _further(
    network: str, width: float, mode: str, dtype: str, device: str, runs: list[Run], arrays: Arrays
) -> list[Further]:
    """Return the further actions that the rounds of ``measure`` time; ``runs`` are those of the cases."""
    unit_run, data = runs[0], runs[0].data
    fixed = data.train_batch(0)

    def without_data() -> None:
        unit_run.optimizer.zero_grad(set_to_none=True)
        unit_run.backward(*fixed)
        unit_run.optimizer.step()

    def evaluation() -> None:
        evaluate(runs[1].network, data.test_batches(EVALUATION_BATCH), 10)

    further: list[Further] = [
        ({"kind": "training without data"}, without_data, BATCH),
        ({"kind": "data"}, lambda: data.train_batch(0), BATCH),
        ({"kind": "evaluation"}, evaluation, data.test_count),
    ]
    if (mode, dtype) != ("eager", "fp32"):
        reference = make_run(PLAIN.config(network, width, "fp32"), arrays, device, "eager")
        further.append(({"kind": "eager fp32"}, step_at(reference, 0), BATCH))
    for extra in EXTRAS:
        further += extra(unit_run, network, width, mode)
    return further


def measure_packed(
    network: str, width: float, dtype: str, device: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of several trials at once, each in a process of its own: the unit and DoReFa 1/1.

    ``seconds`` is the time of a step of one of the trials, ``images_per_second`` the rate of all together.
    ``throughput`` is this rate over the rate of one process alone in the same rounds. Where a process dies,
    there are no rows, and stderr says so.

    Args:
        network: Its name in the registry.
        width: The width multiplier of its channels.
        dtype: "fp32" or "bf16".
        device: "cpu" or "cuda:N".
        rounds: The number of measurements of each row.
    """
    cuda = device.startswith("cuda")
    count, inner = (PACK, "captured") if cuda else (cpu_count(), "eager")
    cases = (UNIT, PLAIN)
    try:
        found = at_once([case.config(network, width, dtype) for case in cases], count, device, inner, rounds)
    except EOFError:
        say(f"bench speed: {network} {width:g}x packed: a process is gone (out of memory?)", sys.stderr)
        return
    unit = [statistics.mean(each) for each in found[0].together]
    for case, result in zip(cases, found, strict=True):
        seconds = [statistics.mean(each) for each in result.together]
        rates = [sum(1.0 / one for one in each) for each in result.together]
        row = {"network": network, "width": width, "mode": "packed", "packed_mode": inner, "dtype": dtype}
        yield {
            **row,
            "batch_size": BATCH,
            "processes": count,
            **case.row(),
            **summary(seconds, unit),
            "images_per_second": BATCH * statistics.median(rates),
            "throughput": statistics.median(r * alone for r, alone in zip(rates, result.alone, strict=True)),
            "peak_memory_bytes": max(result.memory),
        }


def dtypes(device: str) -> list[str]:
    """Return the precisions that ``device`` computes natively."""
    return ["fp32", "bf16"] if execution.has_native_bf16(device) else ["fp32"]


def modes(device: str) -> list[str]:
    """Return the modes that ``device`` supports."""
    if not execution.has_compiler():
        return ["eager", "packed"]
    return ["eager", "compiled", *(["captured"] if device.startswith("cuda") else []), "packed"]


def text(row: dict[str, Any]) -> str:
    parts = [
        row.get("quantizer"),
        row.get("bits"),
        row.get("strategy", "plain").replace("plain", ""),
        row.get("merge"),
    ]
    if row.get("merge") is not None:
        parts.append("f > 0" if row["factor_on"] else "f = 0")
    if "processes" in row:
        parts.append(f"{row['processes']} at once, {row['throughput']:.2f} times one")
    name = row["kind"] if row.get("kind") not in (None, "peer") else " ".join(part for part in parts if part)
    return (
        f"{row['network']:13s}{row['width']:5g}x {row['mode']:9s}{row['dtype']:5s} {name:44s}"
        f"{1e3 * row['seconds']:9.2f} ms  ±{100 * row['spread']:4.0f} %  ratio {row['ratio']:5.2f}  "
        f"{row['images_per_second']:10,.0f} images/s"
    )


def main(args: argparse.Namespace) -> int:
    """Measure every case on every device of this machine, or what ``--images`` or ``--inference`` ask for.

    Prints a line for each row, and writes the file of ``--json``.
    """
    if args.images is not None:
        found = photographs.measure(args.images, resolve_data_dir(args.data), args.rounds or ROUNDS)
        return _on_the_cpu(args, found, photographs.text)
    if args.inference:
        return _on_the_cpu(args, inference.measure(args.rounds or ROUNDS), inference.text)
    devices = ["cuda:0", "cpu"] if torch.cuda.is_available() else ["cpu"]
    rounds = args.rounds or ROUNDS
    rows: list[dict[str, Any]] = []
    rates: dict[str, Any] = {}
    load, complete = [_load_average()], True
    execution.quiet_profiler()
    for device in devices:
        kind = device.partition(":")[0]
        name = device_name(device)
        execution.apply(execution.decide(UNIT.config("resnet20", 1.0, "fp32"), 0, device))
        rates[name] = {dtype: roofline(device, dtype) for dtype in dtypes(device)}
        for dtype, rate in rates[name].items():
            say(
                f"{name}: {dtype} {rate['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
                f"{rate['bytes_per_second'] / 1e9:,.1f} GB/s{', one thread' if kind == 'cpu' else ''}"
            )
        chosen = [args.mode] if args.mode else modes(device)
        for network, width in NETWORKS:
            for mode in [mode for mode in chosen if mode in modes(device)]:
                for dtype in dtypes(device):
                    if mode == "packed":
                        found = measure_packed(network, width, dtype, device, rounds)
                    else:
                        found = measure(network, width, mode, dtype, device, rounds, rates[name][dtype])
                    complete &= _collect(
                        {"device": name}, found, rows, f"{network} {width:g}x {mode} {dtype}"
                    )
                    gc.collect()
                    if rows and args.json:
                        found_on, loads = rows[0]["device"], [*load, _load_average()]
                        write_json(args.json, found_on, rows=rows, rates=rates, load_average=loads)
    return 0 if complete else 1


def _collect(
    about: dict[str, Any], found: Iterator[dict[str, Any]], rows: list[dict[str, Any]], what: str
) -> bool:
    """Print and append the rows of ``found``; return False where a measurement failed.

    The other measurements can still go on.
    """
    try:
        for row in found:
            if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
                say(f"bench speed: a measurement of {what} is not finite", sys.stderr)
            rows.append({**about, **row})
            say(text(row))
    except Exception as error:  # a compiler or a device failed
        say(f"bench speed: {what} cannot be measured ({type(error).__name__}: {error})", sys.stderr)
        return False
    return True


def _on_the_cpu(
    args: argparse.Namespace, found: Iterator[dict[str, Any]], line: Callable[[dict[str, Any]], str]
) -> int:
    """Print and write the rows of ``found``, which are measured on one thread of the CPU."""
    torch.set_num_threads(1)
    rows, load = [], [_load_average()]
    for row in found:
        rows.append({"device": cpu_name(), **row})
        say(line(rows[-1]))
    if args.json:
        write_json(args.json, cpu_name(), rows=rows, load_average=[*load, _load_average()])
    return 0


def write_json(path: Path, device: str, **found: Any) -> None:
    """Write what was measured on the device of this name, with versions and commit."""
    source = provenance(None)
    document = {"schema": SCHEMA, "device": device, "versions": source["versions"], **found}
    document |= {"commit": source["commit"], "dirty": source["dirty"]}
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode(), "--json")


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
