"""``svhn_subset.npz``: 9,084 training and 1,999 test digits from SVHN's official files of cropped digits.

Training: the first 8,001 digits of SVHN's test part, then the first 1,083 of its training part. Test: the
digits 8,001 to 9,999 of SVHN's test part. No photograph contributes to both: the cut lies between two
photographs. The subset's accuracies are therefore not comparable with published numbers of SVHN.

Digits of one photograph are neighbours in the files. ``photographs`` tells them apart, so that a held-out
part takes whole photographs. The full-numbers release of SVHN (``digitStruct.mat``) says how many digits a
photograph has.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench.datasets.checksums import compute
from bench.datasets.svhn import SVHN
from bench.errors import InputError, readable

if TYPE_CHECKING:
    import numpy as np

NAME = "svhn_subset"
CHECKSUM = "sha256:93d96c7e7529c51bf4f4856b29ae4026bc7dcbe53413da20ccf6a6e34fb3157e"
TEST_DIGITS = 10_000  # of SVHN's test part, cut after TRAINED_ON
TRAINED_ON = 8_001
TRAINING_DIGITS = 1_083  # of SVHN's training part

# How many digits each photograph of the training images contributes, in order: 4,531 photographs.
_DIGITS_OF_PHOTOGRAPHS = Path(__file__).with_name("svhn_subset_photographs.txt")


def photographs() -> np.ndarray:
    """Return the number of the photograph that each training image was cut from: int64 (9084,), from 0."""
    import numpy as np

    counts = np.array([int(digit) for digit in _DIGITS_OF_PHOTOGRAPHS.read_text("ascii") if digit != "\n"])
    return np.repeat(np.arange(len(counts)), counts)


def build(data_dir: Path) -> Path:
    """Write ``svhn_subset.npz`` from SVHN's official files in ``data_dir`` and return its path.

    An existing file with the known checksum is kept. Raises ``InputError`` where SVHN's files are absent or
    corrupt, where another file of that name exists, or where the built file is not the known subset.
    """
    import numpy as np

    target = data_dir / f"{NAME}.npz"
    if target.exists():
        if _checksum(target) != CHECKSUM:
            raise InputError(
                f"{target} is there and is another file: its checksum is not {CHECKSUM}; move it away"
            )
        return target
    missing = SVHN.problem({}, data_dir)
    if missing:
        raise InputError(f"bench data prepare {NAME}: it is cut from SVHN's official files. {missing}")
    x_test, y_test = SVHN.part("test", data_dir)
    x_train, y_train = SVHN.part("train", data_dir)
    if len(x_test) < TEST_DIGITS or len(x_train) < TRAINING_DIGITS:
        raise InputError(
            f"bench data prepare {NAME}: {len(x_train):,} and {len(x_test):,} digits are too few"
        )
    cut, end, more = TRAINED_ON, TEST_DIGITS, TRAINING_DIGITS
    partial = target.with_name(f"{NAME}.part.npz")
    np.savez(
        partial,
        x_train=np.concatenate([x_test[:cut], x_train[:more]]),
        y_train=np.concatenate([y_test[:cut], y_train[:more]]).astype(np.uint8),
        x_test=x_test[cut:end],
        y_test=y_test[cut:end].astype(np.uint8),
    )
    found = _checksum(partial)
    if found != CHECKSUM:
        partial.unlink()
        raise InputError(
            f"bench data prepare {NAME}: what was built has the checksum {found}, expected {CHECKSUM}. "
            f"Either the digits differ or this NumPy ({np.__version__}) writes npz files "
            "otherwise; nothing was kept."
        )
    os.replace(partial, target)
    return target


def _checksum(path: Path) -> str:
    with readable(path), path.open("rb") as stream:
        return compute(stream)
