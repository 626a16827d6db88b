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
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import datasets
from bench.config import TrialConfig
from bench.estimate import make_run
from bench.store import write_atomic
from bench.training import execution
from bench.training.evaluate import EVALUATION_BATCH, evaluate
from bench.training.loop import Run
from bench.training.provenance import provenance

SCHEMA = 1
BATCH = 128
ROUNDS = 7
ON = {"kind": "constant", "until": 0.5}  # on at step 0, off at the last
NETWORKS = (("svhn_convnet", 0.25), ("svhn_convnet", 1.0), ("resnet20", 1.0))
MERGES = ("sum", "difference", "concat", "preactivation")


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


UNIT = Case("full_precision", "32/32")
CASES = (
    UNIT,
    Case("dorefa", "1/1"),
    Case("dorefa", "1/2"),
    Case("dorefa", "2/2"),
    Case("dorefa_channelwise", "1/1"),
    Case("bnn", "1/1"),
    Case("xnor", "1/1"),
    Case("syq", "2/2"),
    *(Case("dorefa", "1/1", "progressive", merge, on) for merge in MERGES for on in (True, False)),
    Case("dorefa", "1/1", "apprentice"),
)


def synthetic(count: int = 4 * BATCH, size: int = 32) -> datasets.Arrays:
    """Return ``count`` training and test images of random uint8 pixels, 10 classes."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    return datasets.Arrays(pixels, labels, pixels, labels, 10)


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


def _step(run: Run, factor_on: bool) -> Callable[[], None]:
    at = 0 if factor_on else run.total_steps - 1

    def action() -> None:
        run.step = at
        run.train_step()

    return action


def roofline(device: str) -> dict[str, float]:
    """Return the measured rate of a matrix product (FLOP/s) and of a copy (bytes/s) on ``device``, float32."""
    n = 4096 if device.startswith("cuda") else 768
    a = torch.randn(n, n, device=device)
    flops = 2 * n**3 / min(timed(lambda: a @ a, device) for _ in range(7))
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / min(timed(lambda: target.copy_(source), device) for _ in range(7))
    return {"flops_per_second": flops, "bytes_per_second": moved}


def measure(
    network: str, width: float, mode: str, dtype: str, device: str, rounds: int, rates: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network: every case's step, then the data pipeline and evaluation alone."""
    arrays = synthetic()
    runs, first = [], []
    for case in CASES:
        run = make_run(case.config(network, width, dtype), arrays, device, mode)
        begin = time.perf_counter()
        _step(run, case.factor_on)()
        first.append(time.perf_counter() - begin)
        runs.append(run)
    actions = [_step(run, case.factor_on) for case, run in zip(CASES, runs, strict=True)]
    unit_run = runs[0]
    data = unit_run.data
    fixed = data.train_batch(0)

    def without_data() -> None:
        loss, _ = unit_run.forward(*fixed)
        unit_run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        unit_run.optimizer.step()

    def evaluation() -> None:
        evaluate(runs[1].network, data.test_batches(EVALUATION_BATCH), 10)

    extra = [("training without data", without_data, BATCH), ("data", lambda: data.train_batch(0), BATCH)]
    extra.append(("evaluation", evaluation, data.test_count))
    taken = interleaved([*actions, *(action for _, action, _ in extra)], device, rounds)
    common = {"network": network, "width": width, "mode": mode, "dtype": dtype, "batch_size": BATCH}
    for case, run, seconds, start in zip(CASES, runs, taken, first, strict=False):
        cost = run.step_flops(case.factor_on)
        row: dict[str, Any] = {**common, "quantizer": case.quantizer, "bits": case.bits, "strategy": case.strategy}
        row |= {"merge": case.merge, "factor_on": case.factor_on, **summary(seconds, taken[0])}
        row["images_per_second"] = BATCH / row["seconds"]
        row["roofline_share"] = cost / rates["flops_per_second"] / row["seconds"]
        row["first_step_seconds"] = start
        row["peak_memory_bytes"] = execution.peak_memory(device)
        yield row
    for (kind, _, images), seconds in zip(extra, taken[len(CASES) :], strict=True):
        yield {
            **common,
            "kind": kind,
            **summary(seconds, taken[0]),
            "images_per_second": images / statistics.median(seconds),
        }


def dtypes(device: str) -> list[str]:
    """Return the precisions that ``device`` computes natively."""
    return ["fp32", "bf16"] if execution.has_native_bf16(device) else ["fp32"]


def modes(device: str) -> list[str]:
    """Return the modes that can be had on ``device``."""
    return ["eager", "compiled"] if device.startswith("cuda") or execution.has_compiler() else ["eager"]


def _text(row: dict[str, Any]) -> str:
    name = row.get("kind") or " ".join(
        str(part)
        for part in (
            row["quantizer"],
            row["bits"],
            row["strategy"] if row["strategy"] != "plain" else "",
            row["merge"] or "",
            "" if row["merge"] is None else ("f > 0" if row["factor_on"] else "f = 0"),
        )
        if part
    )
    return (
        f"{row['network']:13s}{row['width']:5g}x {row['mode']:9s}{row['dtype']:5s} {name:44s}"
        f"{1e3 * row['seconds']:9.2f} ms  ±{100 * row['spread']:4.0f} %  ratio {row['ratio']:5.2f}  "
        f"{row['images_per_second']:10,.0f} images/s"
    )


def main(args: argparse.Namespace) -> int:
    """Measure everything on every device of this machine, print a line a row, write ``--json``."""
    devices = ["cuda:0", "cpu"] if torch.cuda.is_available() else ["cpu"]
    rows: list[dict[str, Any]] = []
    for device in devices:
        kind = device.partition(":")[0]
        name = torch.cuda.get_device_name(device) if kind == "cuda" else execution.cpu_name()
        rates = roofline(device)
        print(
            f"{name}: {rates['flops_per_second'] / 1e9:,.0f} GFLOP/s, {rates['bytes_per_second'] / 1e9:,.1f} GB/s"
            f"{', one thread' if kind == 'cpu' else ''}",
            flush=True,
        )
        for network, width in NETWORKS:
            for mode in [args.mode] if args.mode else modes(device):
                for dtype in dtypes(device):
                    rounds = args.rounds or ROUNDS
                    for row in measure(network, width, mode, dtype, device, rounds, rates):
                        if not all(math.isfinite(v) for v in row.values() if isinstance(v, float)):
                            print(f"bench speed: a measurement of {network} is not finite", file=sys.stderr)
                        rows.append({"device": name, **row})
                        print(_text(row), flush=True)
                    gc.collect()
    if args.json is not None:
        source = provenance(None)
        document = {"schema": SCHEMA, "device": rows[0]["device"], "versions": source["versions"], "rows": rows}
        document |= {"commit": source["commit"], "dirty": source["dirty"]}
        write_atomic(args.json, (json.dumps(document, indent=1) + "\n").encode())
    return 0
