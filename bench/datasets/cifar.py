"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, Learning multiple layers of features from tiny images, 2009).

The files are those of the archives' Python version, in torchvision's folders (``cifar-10-batches-py``,
``cifar-100-python``). The files are pickles. Each is read only after its MD5 matched, by a reader that
accepts NumPy arrays and plain Python types alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.datasets.sources import Arrays, Download, PublishedFile, PublishedSource, checked_labels, described

ENTRIES = [
    {
        "name": "cifar10",
        "factory": "CIFAR10",
        "help": "CIFAR-10: 50,000 + 10,000 photographs of 32x32 in 10 classes",
        "title": "Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)",
        "num_classes": 10,
        "image_size": 32,
        "train_count": 50_000,
        "test_count": 10_000,
        "default_recipe": "cifar_sgd",
    },
    {
        "name": "cifar100",
        "like": "cifar10",
        "factory": "CIFAR100",
        "help": "CIFAR-100: 50,000 + 10,000 photographs of 32x32 in 100 classes",
        "num_classes": 100,
    },
]

_SITE = "https://www.cs.toronto.edu/~kriz/"
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and Python's plain types; anything else in a pickle is an error."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


@dataclass(eq=False)
class CIFAR(PublishedSource):
    """CIFAR-10 or CIFAR-100: training and test files, the key of the labels, the archive."""

    kind: str
    train: Sequence[PublishedFile]
    test: PublishedFile
    key: str
    classes: int
    archive: Download

    def files(self, options: Mapping[str, Any]) -> Sequence[PublishedFile]:
        return (*self.train, self.test)

    def downloads(self, options: Mapping[str, Any]) -> Sequence[Download]:
        return (self.archive,)

    def read(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        import numpy as np

        parts = [self._part(file, data_dir) for file in self.train]
        x_test, y_test = self._part(self.test, data_dir)
        x_train = np.concatenate([x for x, _ in parts])
        return Arrays(x_train, np.concatenate([y for _, y in parts]), x_test, y_test, self.classes)

    def _part(self, file: PublishedFile, data_dir: Path) -> tuple[Any, Any]:
        import numpy as np

        with self.reading(file, data_dir, {}) as stream:
            content = _ArraysOnly(stream, encoding="latin1").load()
            rows, labels = content["data"], np.array(content[self.key])
            return pixels(rows), checked_labels(labels, len(rows), self.classes)


def pixels(rows: Any) -> Any:
    """Return images (N, 32, 32, 3) of rows (N, 3072): red, green and blue plane, each 32 rows of 32."""
    import numpy as np

    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise ValueError(f"expected uint8 pixels of the shape (N, 3072), not {described(rows)}")
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


CIFAR10 = CIFAR(
    "cifar10",
    [
        PublishedFile("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f", 31_035_704),
        PublishedFile("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec", 31_035_320),
        PublishedFile("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751", 31_035_999),
        PublishedFile("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a", 31_035_696),
        PublishedFile("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb", 31_035_623),
    ],
    PublishedFile("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e", 31_035_526),
    key="labels",
    classes=10,
    archive=Download(
        _SITE + "cifar-10-python.tar.gz",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        unpack=True,
    ),
)
CIFAR100 = CIFAR(
    "cifar100",
    [PublishedFile("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d", 155_249_918)],
    PublishedFile("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    key="fine_labels",
    classes=100,
    archive=Download(
        _SITE + "cifar-100-python.tar.gz",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        unpack=True,
    ),
)
