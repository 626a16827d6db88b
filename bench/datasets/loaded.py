"""What loading a data set returns: arrays of images of one size, or photographs of many sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from bench.errors import InputError

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

    def check(self, name: str) -> None:
        """Raise ``InputError`` unless the arrays are as above; ``name`` is that of the data set."""
        size = self.x_train.shape[1:]
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if x.dtype != "uint8" or x.ndim != 4 or x.shape[3] not in (1, 3) or x.shape[1:] != size:
                wanted = f"uint8 {('N', *size)}" if part == "test" else "uint8 (N, H, W, 1 or 3)"
                raise InputError(f"data set '{name}': x_{part} is {x.dtype} {x.shape}; expected {wanted}")
            good = y.dtype == "int64" and y.shape == x.shape[:1] and len(y) > 0
            if not good or y.min() < 0 or y.max() >= self.num_classes:
                wanted = f"int64 ({len(x)},) from 0 to {self.num_classes - 1}"
                raise InputError(f"data set '{name}': y_{part} is {y.dtype} {y.shape}; expected {wanted}")
        if self.groups is not None and self.groups.shape != self.y_train.shape:
            raise InputError(
                f"data set '{name}': groups is {self.groups.shape}; expected {self.y_train.shape}"
            )


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
