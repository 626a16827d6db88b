"""Sources of images, one module each, and the pipeline that holds them on the training device.

Importing this package, ``catalog``, ``manage`` or a source imports no torch; ``DeviceData`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.datasets.source import Arrays
from bench.errors import InputError

if TYPE_CHECKING:
    from bench.datasets.pipeline import DeviceData

__all__ = ["Arrays", "DeviceData", "load"]


def load(dataset: Mapping[str, Any], data_dir: Path, expected: str | None = None) -> Arrays:
    """Return the images of ``dataset`` (``{"kind": ..., options}``), every byte of its files checked.

    ``expected`` is a checksum taken before (``catalog.checksum``), for instance the one a record was made with.
    Raises ``InputError`` where the data is absent, corrupt, or not the one expected.
    """
    from bench.datasets import catalog

    source, options = catalog.source_of(dataset)
    arrays = source.load(options, data_dir)
    if expected is not None and (found := source.checksum(options, data_dir)) != expected:
        raise InputError(
            f"data set '{catalog.label(dataset)}' in {data_dir} is not the one this was started with: "
            f"checksum {found}, expected {expected}"
        )
    return arrays


def __getattr__(name: str) -> Any:
    if name == "DeviceData":
        from bench.datasets.pipeline import DeviceData

        return DeviceData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
