"""Decoded photographs of many sizes in memory, and the measurements of each. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bench.machine.devices import cpu_count

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
R = TypeVar("R")
MEAN_SIDE = 256  # of the mean image: short side 256 and its central square, as the AlexNet lineage takes it
# An image's place and size, its class, and of each channel the sum of its pixels and of their squares.
RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("label", "<u4"),
        ("sums", "<u8", (3,)),
        ("squares", "<u8", (3,)),
    ]
)


class InMemory:
    """Decoded images of any size: ``pixels`` has uint8 (height, width, 3) for each record of ``index``."""

    def __init__(self, index: np.ndarray, pixels: Sequence[np.ndarray]) -> None:
        self.index, self.pixels = index, pixels

    def read(self, number: int, top: int = 0, bottom: int | None = None) -> np.ndarray:
        """See ``Images``."""
        return self.pixels[number][top:bottom]


def measured(image: Image) -> tuple[list[int], list[int]]:
    """Return of each channel of an RGB image the sum of its pixels and of their squares, exactly."""
    counts = np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
    values = np.arange(256, dtype=np.int64)
    return (counts @ values).tolist(), (counts @ values**2).tolist()


def central_square(image: Image, side: int = MEAN_SIDE) -> np.ndarray:
    """Return the central square of an RGB image resized (bilinear, antialiased) to the short side ``side``.

    uint8 (side, side, 3). The square begins at half the surplus, rounded down.
    """
    import PIL.Image

    width, height = image.size
    left, top = max(width - height, 0) / 2, max(height - width, 0) / 2
    short = min(width, height)
    box = (left, top, left + short, top + short)
    return np.asarray(image.resize((side, side), PIL.Image.Resampling.BILINEAR, box=box))


def corrupt_text(found: Sequence[tuple[str, str]]) -> str:
    """Return the text of a message about corrupt images: their number, and the first few by name."""
    named = "; ".join(f"{name}: {reason}" for name, reason in found[:5])
    more = f"; and {len(found) - 5:,} more" if len(found) > 5 else ""
    return f"{len(found):,} corrupt image{'s' if len(found) > 1 else ''}: {named}{more}"


def in_threads(action: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``action`` of each item, in order, computed by threads a few hundred items ahead at most."""
    with ThreadPoolExecutor(min(16, cpu_count())) as pool:
        for start in range(0, len(items), 256):
            yield from pool.map(action, items[start : start + 256])
