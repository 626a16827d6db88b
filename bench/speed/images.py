"""Images a second of each way to read a folder of photographs, beside ``torchvision.datasets.ImageFolder``.

Every way gives random resized crops, half of them mirrored, as float32 batches on the CPU. Each uses one
worker beside the process that takes the batches: ImageFolder's ``DataLoader`` a process, ours a thread.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.datasets.imagefolder import IMAGEFOLDER
from bench.datasets.photographs import shards
from bench.datasets.photographs.prepare import prepare, settings
from bench.datasets.streamed_batches import PhotographData
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import make_config
from bench.speed.timing import spread
from bench.text import plural
from bench.training import execution

SIZE = 224
BATCH = 32
REFERENCE = "ImageFolder"


def measure(name: str, data_dir: Path, rounds: int = 5, workers: int = 1) -> Iterator[dict[str, Any]]:
    """Yield a row of ``bench speed`` for each way to read ``imagefolder:NAME``.

    A row has the ``kind`` "data" and its ``source``. ``seconds`` is the median of a batch over ``rounds``
    epochs, in which the ways take turns. ``spread`` is the distance of the quartiles over the median.
    ``speedup`` is the median over the rounds of ImageFolder's seconds over the seconds of the row. Shards are
    first written into a temporary folder. Raises ``InputError`` for an absent folder.
    """
    dataset = {"kind": "imagefolder", "name": name.removeprefix("imagefolder:")}
    catalog.require(dataset, data_dir)
    root = IMAGEFOLDER.root(dataset, data_dir)
    if not (root / "train").is_dir():
        raise InputError(
            f"bench speed: {root} holds shards alone; ImageFolder, which they are compared with, needs images"
        )
    execution.keep_freed_memory()  # as in training
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as place:
        ways: dict[str, Callable[[], int]] = {REFERENCE: _imagefolder(root / "train", workers)}
        for form in shards.FORMS:
            how = settings(form, None, 0)
            manifest = prepare(
                name,
                lambda: IMAGEFOLDER.listing(dataset, data_dir),
                Path(place) / form,
                how,
                lambda _: True,
                lambda _: None,
            )
            ways[f"{form} shards"] = _ours(manifest, dataset, workers)
        for way in ways.values():
            way()
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for label, way in ways.items():
                begin = time.perf_counter()
                images = way()
                taken[label].append((time.perf_counter() - begin) * BATCH / images)
    for label, seconds in taken.items():
        yield {
            "kind": "data",
            "source": label,
            "data": catalog.label(dataset),
            "augmentation": "random_resized_crop",
            "input_size": SIZE,
            "batch_size": BATCH,
            "workers": workers,
            "seconds": statistics.median(seconds),
            "spread": spread(seconds),
            "images_per_second": BATCH / statistics.median(seconds),
            "speedup": statistics.median(a / b for a, b in zip(taken[REFERENCE], seconds, strict=True)),
        }


def text(row: dict[str, Any]) -> str:
    """Return a row in a line."""
    return (
        f"{row['data']} at {row['input_size']} px, {plural(row['workers'], 'worker')}: "
        f"{row['source']:12s}{row['images_per_second']:9,.0f} images/s  ±{100 * row['spread']:3.0f} %  "
        f"{row['speedup']:5.2f} x {REFERENCE}"
    )


def _imagefolder(folder: Path, workers: int) -> Callable[[], int]:
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return lambda: sum(len(labels) for _, labels in loader)


def _ours(manifest: shards.Manifest, dataset: dict[str, str], workers: int) -> Callable[[], int]:
    """Return an action that reads one epoch from shards; images are decoded when a batch needs them."""
    config = make_config(
        {
            "dataset": dataset,
            "network": "resnet20",
            "quantizer": "full_precision",
            "width": 1.0,
            "epochs": 1_000_000,
            "batch_size": BATCH,
            "augmentation": "random_resized_crop",
            "normalization": "divide_255",
        }
    )
    photographs = shards.load(manifest, resident_bytes=0)
    data = PhotographData(photographs, config, SIZE, "cpu", workers=workers)
    steps = iter(range(config.epochs * data.steps_per_epoch))
    return lambda: sum(len(data.train_batch(next(steps))[1]) for _ in range(data.steps_per_epoch))
