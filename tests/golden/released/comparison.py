"""The suite held against the numbers of the released code: functions that yield ``Row`` values.

A row says an item, what the release does, what the suite does, the largest difference found, the difference
allowed, and why that much is allowed. The test asserts the rows; ``fidelity`` writes the rows into
docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.golden.released import quantizer_rows, recipe_rows, svhn_rows
from tests.golden.released.base import DTYPES, Row

GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    **{f"weights, {p}": partial(quantizer_rows.weights, p) for p in DTYPES},
    **{f"activations, {p}": partial(quantizer_rows.activations, p) for p in DTYPES},
    **{f"{file}, {p}": partial(svhn_rows.svhn, file, p) for file in svhn_rows.ARMS for p in DTYPES},
    "schedules": recipe_rows.schedules,
    "adam": recipe_rows.adam,
    "images": recipe_rows.images,
    "alexnet": recipe_rows.alexnet,
    "initial weights": recipe_rows.initial_weights,
}
