"""The 1,797 handwritten digits of 8x8 pixels in scikit-learn (E. Alpaydin and C. Kaynak, UCI, 1998).

Nothing is downloaded. Grey values v in 0..16 become uint8 by ``round(255 v / 16)``. In each class, in the
order of the data set, the first two thirds (rounded down) are training images and the others test images:
1,195 and 602. The data set is ordered by writer, so most test images come from writers without training
images. A random split would mix the writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.datasets.sources import Arrays, Source
from bench.errors import InputError

ENTRIES = [
    {
        "name": "digits",
        "factory": "DIGITS",
        "help": "scikit-learn's 1,797 handwritten digits of 8x8, embedded: 1,195 train, 602 test",
        "title": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI, 1998)",
        "num_classes": 10,
        "image_size": 8,
        "train_count": 1195,
        "test_count": 602,
        "default_recipe": "digits",
    }
]

CHECKSUM = "sha256:9aac15753be523eb61b34ad164e5bbc9a6776f485ad3708d309151a1361fcce7"


def digest(arrays: Arrays) -> str:
    """Return the SHA-256 of shapes and contents of the four arrays."""
    import hashlib

    total = hashlib.sha256()
    for part in (arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test):
        total.update(repr((part.shape, str(part.dtype))).encode())
        total.update(part.tobytes())
    return "sha256:" + total.hexdigest()


class _Digits(Source):
    kind = "digits"

    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        return CHECKSUM

    def load(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        import numpy as np
        from sklearn.datasets import load_digits

        grey, labels = load_digits(return_X_y=True)
        images = ((grey.astype(np.int64) * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = labels.astype(np.int64)
        train = np.zeros(len(labels), dtype=bool)
        for digit in range(10):
            places = np.flatnonzero(labels == digit)
            train[places[: 2 * len(places) // 3]] = True
        arrays = Arrays(images[train], labels[train], images[~train], labels[~train], 10)
        found = digest(arrays)
        if found != CHECKSUM:
            raise InputError(
                f"scikit-learn's digits are not the ones known here: {found}, expected {CHECKSUM}"
            )
        return arrays


DIGITS = _Digits()
