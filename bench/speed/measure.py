"""``bench speed``: what a training step costs on this device, as ratios to full precision.

Every step measured is the real one (``bench.training.loop.Run``): batch gathered and augmented, forward, loss, backward,
optimizer. All rows of one network, mode and dtype are measured in turn, round after round, so that a machine that speeds up
or slows down does so for all of them alike; the ratio of a row is the median over rounds of its time over that of the
full-precision plain row of the same round. Images are synthetic: no data set is needed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.costs.measure import at_once, make_run, step_at, synthetic
from bench.devices import cpu_count
from bench.experiments.config import TrialConfig
from bench.folders import resolve_data_dir
from bench.records.store import write_atomic
from bench.speed import images as photographs
from bench.speed import peers
from bench.training import execution
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run
from bench.training.provenance import provenance

SCHEMA = 1
BATCH = 128
ROUNDS = 7
MODES = ("eager", "compiled", "captured", "packed")
PACK = 8  # trials at once on a GPU; on the CPU one a core
ON = {"kind": "constant", "until": 0.5}  # on at step 0, off at the last
NETWORKS = (("svhn_convnet", 0.25), ("svhn_convnet", 1.0), ("resnet20", 1.0))
MERGES = ("sum", "difference", "concat", "preactivation")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One row: what is trained, and whether its factor is above 0."""

    quantizer: str
    bits: str
    strategy: str = "plain"
    merge: str | None = None
    factor_on: bool = False

    def config(self, network: str, width: float, precision: str) -> TrialConfig:
        """Return the trial whose step is measured."""
        strategy: dict[str, Any] = {"kind": self.strategy}
        full = {"dataset": "digits", "network": network, "width": width, "epochs": 2, "batch_size": BATCH}
        full |= {"augmentation": "crop_flip", "precision": precision}
        if self.merge is not None:
            strategy |= {"merge": self.merge, "factor": ON}
        if self.strategy == "apprentice":
            strategy |= {"scheme": "B", "teacher": TrialConfig.model_validate(full).dump()}
        return TrialConfig.model_validate(
            {**full, "quantizer": self.quantizer, "bits": self.bits, "strategy": strategy}
        )

    def row(self) -> dict[str, Any]:
        """Return what a row says of it."""
        row = {"quantizer": self.quantizer, "bits": self.bits, "strategy": self.strategy}
        return {**row, "merge": self.merge, "factor_on": self.factor_on}


UNIT = Case("full_precision", "32/32")
PLAIN = Case("dorefa", "1/1")
CASES = (
    UNIT,
    PLAIN,
    Case("dorefa", "1/2"),
    Case("dorefa", "2/2"),
    Case("dorefa_channelwise", "1/1"),
    Case("bnn", "1/1"),
    Case("xnor", "1/1"),
    Case("syq", "2/2"),
    *(Case("dorefa", "1/1", "progressive", merge, on) for merge in MERGES for on in (True, False)),
    Case("dorefa", "1/1", "apprentice"),
)


# --- timing -----------------------------------------------------------------------------------------------------------


def timed(action: Callable[[], object], device: str) -> float:
    """Return the seconds that ``action`` takes, the device's work included."""
    begin = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def interleaved(actions: Sequence[Callable[[], object]], device: str, rounds: int) -> list[list[float]]:
    """Return the seconds of each action, round by round, every action once a round; one round before does not count."""
    for action in actions:
        timed(action, device)
    taken = [[timed(action, device) for action in actions] for _ in range(rounds)]
    return [list(column) for column in zip(*taken, strict=True)]


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def summary(seconds: Sequence[float], unit: Sequence[float]) -> dict[str, float]:
    """Return the statistics of a row from its seconds and those of the unit in the same rounds."""
    return {
        "seconds": statistics.median(seconds),
        "spread": spread(seconds),
        "ratio": statistics.median(a / b for a, b in zip(seconds, unit, strict=True)),
    }


# --- the floor --------------------------------------------------------------------------------------------------------


def roofline(device: str, dtype: str) -> dict[str, float]:
    """Return the measured rate of arithmetic in ``dtype`` (FLOP/s) and of a copy (bytes/s) on ``device``.

    Arithmetic: the faster of a matrix product and a 3x3 convolution, which other libraries than the product's may do.
    """
    n = 4096 if device.startswith("cuda") else 768
    a = torch.randn(n, n, device=device).to(DTYPES[dtype])
    flops = 2 * n**3 / min(timed(lambda: a @ a, device) for _ in range(25))
    images = (
        torch.randn(BATCH, 64, 32, 32, device=device).to(DTYPES[dtype]).to(memory_format=torch.channels_last)
    )
    kernel = torch.randn(64, 64, 3, 3, device=device).to(DTYPES[dtype]).to(memory_format=torch.channels_last)
    work = 2 * images.numel() * 64 * 9
    flops = max(
        flops, work / min(timed(lambda: F.conv2d(images, kernel, padding=1), device) for _ in range(25))
    )
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / min(timed(lambda: target.copy_(source), device) for _ in range(7))
    return {"flops_per_second": flops, "bytes_per_second": moved}


@torch.no_grad()
def step_bytes(run: Run, factor_on: bool) -> int:
    """Return the bytes that a step of ``run`` has to move at least, were everything between two convolutions fused.

    Of each convolution and linear layer the input and output once forward; backward the input and the gradients of both
    once; of each weight: read forward and backward, its gradient written, Adam's pass over weight, gradient and two
    moments (ten times four bytes). Activations at 4 bytes, at 2 in bf16.
    """
    moved = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        y: Tensor = output[0] if isinstance(output, tuple) else output
        moved += 3 * inputs[0][0].numel() + 2 * y[0].numel()

    layers = [module for module in run.network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    run.network.eval()
    run.clock.set(0, 1.0 if factor_on else 0.0)
    try:
        size = run.network.input_size
        run.network(torch.zeros(1, 3, size, size, device=run.device).to(memory_format=torch.channels_last))
    finally:
        for handle in handles:
            handle.remove()
        run.network.train()
    weights = sum(p.numel() for p in run.network.parameters())
    return (4 if run.config.precision == "fp32" else 2) * moved * run.config.batch_size + 40 * weights


def floor_seconds(run: Run, factor_on: bool, rates: dict[str, float]) -> float:
    """Return what the arithmetic of a step costs at the measured rates: its operations or its bytes, the longer."""
    operations = run.step_flops(factor_on) / rates["flops_per_second"]
    return max(operations, step_bytes(run, factor_on) / rates["bytes_per_second"])


# --- measuring --------------------------------------------------------------------------------------------------------


def _peer_step(layer: peers.Layer, run: Run, width: float, device: str, mode: str) -> Callable[[], None]:
    """Return a training step of a peer's network on the batches of ``run``."""
    network = peers.svhn_convnet(layer, width).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(network) if mode != "eager" else network

    def action() -> None:
        images, labels = run.data.train_batch(0)
        with run._autocast():
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return action


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def _peak_memory_cpu(run: Run, action: Callable[[], None]) -> int:
    """Return the bytes of all tensors at the peak of a step on the CPU: weights, moments, gradients and what it allocates.

    The libraries' own scratch memory is not among them, nor are the images.
    """
    networks = [run.network, *run.trained.values(), *run.strategy.forward_only()]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
    tensors += [
        value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    live = peak = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(
    network: str, width: float, mode: str, dtype: str, device: str, rounds: int, rates: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network: every case's step, peers, then the data pipeline and evaluation alone.

    In other modes and precisions also the eager step of DoReFa 1/1 in fp32, in the same rounds, to compare modes by.
    """
    if mode != "eager":
        torch._dynamo.reset()  # what other networks were compiled to, of which a process keeps a limited number
    arrays = synthetic(4 * BATCH)
    runs, actions, first = [], [], []
    memory: list[int] = []
    for case in CASES:
        before = _allocated(device)
        execution.reset_peak_memory(device)
        run = make_run(case.config(network, width, dtype), arrays, device, mode)
        actions.append(step_at(run, 0 if case.factor_on else run.total_steps - 1))
        first.append(timed(actions[-1], device))
        if device.startswith("cuda"):
            memory.append(execution.peak_memory(device) - before)
        else:
            memory.append(_peak_memory_cpu(run, actions[-1]))
        runs.append(run)
    unit_run = runs[0]
    data = unit_run.data
    fixed = data.train_batch(0)

    def without_data() -> None:
        unit_run.optimizer.zero_grad(set_to_none=True)
        unit_run.backward(*fixed)
        unit_run.optimizer.step()

    def evaluation() -> None:
        evaluate(runs[1].network, data.test_batches(EVALUATION_BATCH), 10)

    extra: list[tuple[dict[str, Any], Callable[[], object], int]] = [
        ({"kind": "training without data"}, without_data, BATCH),
        ({"kind": "data"}, lambda: data.train_batch(0), BATCH),
        ({"kind": "evaluation"}, evaluation, data.test_count),
    ]
    if (mode, dtype) != ("eager", "fp32"):
        reference = make_run(PLAIN.config(network, width, "fp32"), arrays, device, "eager")
        extra.append(({"kind": "eager fp32"}, step_at(reference, 0), BATCH))
    for name, layer in peers.installed().items() if network == "svhn_convnet" else ():
        about: dict[str, Any] = {
            "kind": "peer",
            "peer": name,
            "what": peers.WHAT[name],
            "quantizer": name,
            "bits": "1/1",
        }
        try:
            action = _peer_step(layer, unit_run, width, device, mode)
            about["first_step_seconds"] = timed(action, device)
        except Exception as error:  # a library that cannot be compiled, or does not know this torch
            print(
                f"bench speed: {name} in mode {mode} cannot be measured ({type(error).__name__})",
                file=sys.stderr,
            )
            continue
        extra.append((about, action, BATCH))
    taken = interleaved([*actions, *(action for _, action, _ in extra)], device, rounds)
    common = {"network": network, "width": width, "mode": mode, "dtype": dtype, "batch_size": BATCH}
    for case, run, seconds, start, peak in zip(CASES, runs, taken, first, memory, strict=False):
        row: dict[str, Any] = {**common, **case.row(), **summary(seconds, taken[0])}
        row["images_per_second"] = BATCH / row["seconds"]
        row["operations"] = run.step_flops(case.factor_on)
        row["roofline_share"] = floor_seconds(run, case.factor_on, rates) / row["seconds"]
        row["first_step_seconds"] = start
        row["peak_memory_bytes"] = peak
        yield row
    for (about, _, images), seconds in zip(extra, taken[len(CASES) :], strict=True):
        row = {**common, **about, **summary(seconds, taken[0])}
        yield {**row, "images_per_second": images / row["seconds"]}


def measure_packed(
    network: str, width: float, dtype: str, device: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of several trials at once, each in a process: the unit and DoReFa 1/1.

    ``seconds`` of a step of one among them, ``images_per_second`` of all; ``throughput`` is that over the throughput of
    one process alone in the same rounds.
    """
    cuda = device.startswith("cuda")
    count, inner = (PACK, "captured") if cuda else (cpu_count(), "eager")
    cases = (UNIT, PLAIN)
    try:
        found = at_once([case.config(network, width, dtype) for case in cases], count, device, inner, rounds)
    except EOFError:
        print(
            f"bench speed: {network} {width:g}x packed: a process is gone (out of memory?)", file=sys.stderr
        )
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
    """Return the modes that can be had on ``device``."""
    compiles = execution.has_compiler()
    possible = {
        "eager": True,
        "compiled": compiles,
        "captured": compiles and device.startswith("cuda"),
        "packed": True,
    }
    return [mode for mode in MODES if possible[mode]]


def _text(row: dict[str, Any]) -> str:
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
    """Measure everything on every device of this machine, or ``--images`` alone; print a line a row, write ``--json``."""
    if args.images is not None:
        return _images(args)
    devices = ["cuda:0", "cpu"] if torch.cuda.is_available() else ["cpu"]
    rounds = args.rounds or ROUNDS
    rows: list[dict[str, Any]] = []
    rates: dict[str, Any] = {}
    load, complete = [_load_average()], True
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # else the profiler, which counts memory, writes to the terminal
    for device in devices:
        kind = device.partition(":")[0]
        name = torch.cuda.get_device_name(device) if kind == "cuda" else execution.cpu_name()
        execution.apply(execution.decide(UNIT.config("resnet20", 1.0, "fp32"), 0, device))
        rates[name] = {dtype: roofline(device, dtype) for dtype in dtypes(device)}
        for dtype, rate in rates[name].items():
            print(
                f"{name}: {dtype} {rate['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
                f"{rate['bytes_per_second'] / 1e9:,.1f} GB/s{', one thread' if kind == 'cpu' else ''}",
                flush=True,
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
                    if rows:
                        _write(args.json, rows, {"rates": rates, "load_average": [*load, _load_average()]})
    return 0 if complete else 1


def _collect(
    about: dict[str, Any], found: Iterator[dict[str, Any]], rows: list[dict[str, Any]], what: str
) -> bool:
    """Print and append the rows of ``found``; return False where measuring failed, so that the rest can still be done."""
    try:
        for row in found:
            if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
                print(f"bench speed: a measurement of {what} is not finite", file=sys.stderr)
            rows.append({**about, **row})
            print(_text(row), flush=True)
    except Exception as error:  # of a compiler or a device
        print(f"bench speed: {what} cannot be measured ({type(error).__name__}: {error})", file=sys.stderr)
        return False
    return True


def _images(args: argparse.Namespace) -> int:
    """Measure the ways to read a folder of photographs, on the CPU."""
    torch.set_num_threads(1)
    rows, load = [], [_load_average()]
    for row in photographs.measure(args.images, resolve_data_dir(args.data), args.rounds or ROUNDS):
        rows.append({"device": execution.cpu_name(), **row})
        print(photographs.text(row), flush=True)
    _write(args.json, rows, {"load_average": [*load, _load_average()]})
    return 0


def _write(path: Path | None, rows: list[dict[str, Any]], more: dict[str, Any]) -> None:
    """Write the measurements, where a file was asked for."""
    if path is None:
        return
    source = provenance(None)
    document = {"schema": SCHEMA, "device": rows[0]["device"], "versions": source["versions"], "rows": rows}
    document |= {**more, "commit": source["commit"], "dirty": source["dirty"]}
    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
