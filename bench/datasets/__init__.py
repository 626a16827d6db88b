"""Sources of images, one module each, and the pipelines that make batches of them on the training device.

Importing this package, ``manage`` or a source does not import torch; ``make_data`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.datasets.loaded import Arrays, Loaded
from bench.errors import InputError

if TYPE_CHECKING:
    import torch

    from bench.datasets.batches import Batches
    from bench.experiments.config import TrialConfig

__all__ = ["Arrays", "load", "make_data"]


def load(dataset: Mapping[str, Any], data_dir: Path, expected: str | None = None) -> Loaded:
    """Return the images of ``dataset`` (``{"kind": ..., options}``) after a check of every byte.

    Photographs in shards may be larger than memory: their sizes and indices are checked, and the images stay
    on disk.

    ``expected`` is an earlier checksum (``catalog.checksum``), for instance that of a record. Raises
    ``InputError`` where the data is absent, corrupt, of another form, or has another checksum than
    ``expected``.
    """
    from bench.experiments import catalog

    source, options = catalog.source_of(dataset)
    images = source.load(options, data_dir)
    if isinstance(images, Arrays):
        images.check(catalog.label(dataset))
    if expected is not None and (found := source.checksum(options, data_dir)) != expected:
        raise InputError(
            f"data set '{catalog.label(dataset)}' in {data_dir} is not the one this was started with: "
            f"checksum {found}, expected {expected}"
        )
    return images


def make_data(
    images: Loaded,
    config: TrialConfig,
    input_size: int,
    device: torch.device | str,
    worker: tuple[int, int] = (0, 1),
) -> Batches:
    """Return the batches of the images that ``load`` returned.

    Args:
        images: Arrays lie on the device; photographs are read and cut by threads when a batch needs them.
        config: The trial's.
        input_size: Height and width, in pixels, of the images that the network reads.
        device: "cpu" or "cuda:N".
        worker: (rank, workers) of a team that shares each batch.
    """
    if isinstance(images, Arrays):
        from bench.datasets.device_batches import DeviceData

        return DeviceData(images, config, input_size, device, worker)
    from bench.datasets.streamed_batches import PhotographData

    return PhotographData(images, config, input_size, device, worker)
