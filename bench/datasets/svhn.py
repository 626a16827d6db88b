"""SVHN, cropped digits.

Source: Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011. ``svhn`` has
73,257 training and 26,032 test digits. ``{ kind = "svhn", extra = true }`` trains on the paper's "train +
extra", 604,388 digits of which the 73,257 come first. The MATLAB files lie in the data folder itself, where
torchvision puts them. In the files the digit 0 has the label 10; here it is class 0, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.datasets.sources import (
    Arrays,
    Download,
    Facts,
    PublishedFile,
    PublishedSource,
    checked_labels,
    described,
)

if TYPE_CHECKING:
    import numpy as np

ENTRIES = [
    {
        "name": "svhn",
        "factory": "SVHN",
        "help": "SVHN: 73,257 (with extra 604,388) + 26,032 house-number digits of 32x32",
        "title": "Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011)",
        "options": {
            "extra": {"default": False, "help": "train on train + extra, 604,388 digits, as the paper"}
        },
        "num_classes": 10,
        "image_size": 32,
        "train_count": 73_257,
        "test_count": 26_032,
        "default_recipe": "svhn_figure",
    }
]

FILES = {
    "train": PublishedFile("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
    "extra": PublishedFile("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7", 1_329_278_602),
    "test": PublishedFile("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", 64_275_384),
}
_SITE = "http://ufldl.stanford.edu/housenumbers/"
EXTRA_COUNT = 531_131


class _SVHN(PublishedSource):
    kind = "svhn"

    def labels(self, data_dir: Path) -> dict[str, dict[str, Any]]:
        return {"svhn": {"extra": False}, "svhn_extra": {"extra": True}}

    def label(self, options: Mapping[str, Any]) -> str:
        return "svhn_extra" if options.get("extra") else "svhn"

    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts:
        facts = super().facts(options, data_dir)
        count = (facts.train_count or 0) + (EXTRA_COUNT if options.get("extra") else 0)
        return replace(facts, train_count=count)

    def files(self, options: Mapping[str, Any]) -> Sequence[PublishedFile]:
        return [
            FILES[split] for split in ("train", "extra", "test") if split != "extra" or options.get("extra")
        ]

    def downloads(self, options: Mapping[str, Any]) -> Sequence[Download]:
        return [Download(_SITE + file.path, file.path, file.md5) for file in self.files(options)]

    def read(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        import numpy as np

        x_train, y_train = self.part("train", data_dir, options)
        x_test, y_test = self.part("test", data_dir, options)
        if options.get("extra"):
            x_extra, y_extra = self.part("extra", data_dir, options)
            x_train, y_train = np.concatenate([x_train, x_extra]), np.concatenate([y_train, y_extra])
        return Arrays(x_train, y_train, x_test, y_test, 10)

    def part(
        self, split: str, data_dir: Path, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return digits, uint8 (N, 32, 32, 3), and labels, int64 (N,), of ``train``, ``extra`` or ``test``.

        The file's MD5 is checked. Raises ``InputError``.
        """
        import numpy as np
        import scipy.io

        with self.reading(FILES[split], data_dir, options or {}) as stream:
            content = scipy.io.loadmat(stream, variable_names=("X", "y"))
            pixels, digits = content["X"], content["y"]
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
                raise ValueError(
                    f"expected uint8 pixels of the shape (32, 32, 3, N), not {described(pixels)}"
                )
            images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
            return images, checked_labels(digits.reshape(-1), len(images), 11) % 10


SVHN = _SVHN()
