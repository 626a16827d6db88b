"""What loading a data set returns: arrays of images of one size, or photographs of many sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Arrays:
    """A data set in memory: images uint8 (N, H, W, C) with C 1 or 3, labels int64 (N,) in [0, num_classes).

    ``groups`` is int64 (N,): training images of one photograph (patient, writer, ...) have the same number. A
    held-out part never splits a group. None means that the groups are not known.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    groups: np.ndarray | None = None


class Images(Protocol):
    """Images read one by one, from several threads; ``index`` (N,) has the type ``images.RECORD``."""

    index: np.ndarray

    def read(self, number: int, top: int = 0, bottom: int | None = None) -> np.ndarray:
        """Return rows ``top`` to ``bottom`` (default all) of an image: uint8 (rows, width, 3), read-only."""
        ...


@dataclass(frozen=True)
class Photographs:
    """A data set of photographs; ``mean_sum``, uint64, sums the central squares of the training images."""

    train: Images
    test: Images
    num_classes: int
    mean_sum: np.ndarray

    @property
    def y_train(self) -> np.ndarray:
        """Labels of the training images, int64 (N,)."""
        return self.train.index["label"].astype("int64")

    @property
    def y_test(self) -> np.ndarray:
        """Labels of the test images, int64 (N,)."""
        return self.test.index["label"].astype("int64")


Loaded: TypeAlias = Arrays | Photographs
