"""What is known of data sets without loading them: the place, the presence, the size. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import registry
from bench.errors import InputError
from bench.experiments.options import keywords


@dataclass(frozen=True)
class Facts:
    """What is known of a data set without reading its images; None where only absent files could tell."""

    num_classes: int | None = None
    train_count: int | None = None
    test_count: int | None = None
    image_size: int | None = None  # the longer side, in pixels
    default_recipe: str | None = None


class DataSource(Protocol):
    """What a data set's registered source answers; ``bench.datasets.sources.Source`` says more."""

    def label(self, options: Mapping[str, Any]) -> str: ...
    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts: ...
    def problem(self, options: Mapping[str, Any], data_dir: Path) -> str | None: ...
    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None: ...
    def remarks(self, options: Mapping[str, Any], data_dir: Path, thorough: bool = False) -> list[str]: ...
    def load(self, options: Mapping[str, Any], data_dir: Path) -> Any: ...


def source_of(dataset: Mapping[str, Any]) -> tuple[DataSource, dict[str, Any]]:
    """Return the source of ``{"kind": name, options}`` and its options."""
    return registry.load("datasets", dataset["kind"]), keywords(dataset)


def label(dataset: Mapping[str, Any]) -> str:
    """Return what messages and ``bench data`` call a data set: ``cifar10``, ``svhn_extra``, ``npz:NAME``."""
    source, options = source_of(dataset)
    return source.label(options)


def checksum(dataset: Mapping[str, Any], data_dir: Path) -> str | None:
    """Return what stands for the data in a trial's identity, or None where it is absent.

    For known sets a digest of the published checksums, once every file is there in its published size;
    loading and ``bench data verify`` check the files themselves. For ``npz`` the file's SHA-256. Raises
    ``InputError`` for a name that leads out of the data folder.
    """
    source, options = source_of(dataset)
    return source.checksum(options, data_dir)


def require(dataset: Mapping[str, Any], data_dir: Path) -> None:
    """Raise ``InputError`` where the data is absent: what is missing, where, and how to get it."""
    source, options = source_of(dataset)
    problem = source.problem(options, data_dir)
    if problem:
        raise InputError(problem)


def facts(dataset: Mapping[str, Any], data_dir: Path) -> Facts:
    """Return classes, counts and image size; of ``npz`` from the file's headers, None where it is absent."""
    source, options = source_of(dataset)
    return source.facts(options, data_dir)


def remarks(dataset: Mapping[str, Any], data_dir: Path) -> list[str]:
    """Return a line for each kind of file of the data set that is not read, with the count and a name."""
    source, options = source_of(dataset)
    return [f"{source.label(options)}: {line}" for line in source.remarks(options, data_dir)]


def training_count(
    total: int, *, batch_size: int, train_size: int | None = None, holdout: int = 0, name: str = ""
) -> int:
    """Return how many of ``total`` training images are trained on: ``train_size``, or all but ``holdout``.

    The steps of an epoch are that over ``batch_size``, rounded down.

    Args:
        total: The training images of the data set.
        batch_size: Images of a step.
        train_size: None: all but ``holdout``.
        holdout: Training images that are held out.
        name: The data set, in messages.

    Raises:
        InputError: The images do not suffice.
    """
    of = f" of data set '{name}'" if name else ""
    if train_size is None:
        count = total - holdout
        if count < 1:
            raise InputError(f"holdout: {holdout} of the {total} training images{of} leave none to train on")
    else:
        count = train_size
        if train_size + holdout > total:
            what = (
                f"train_size + holdout: {train_size} + {holdout}" if holdout else f"train_size: {train_size}"
            )
            raise InputError(f"{what} is more than the {total} training images{of}")
    if batch_size > count:
        raise InputError(f"batch_size: {batch_size} is more than the {count} images{of} trained on")
    return count
