"""Photographs decoded to RGB by Pillow, one decoder everywhere: unprepared folders, shards of either form, tests.

Nothing is trusted: the kinds of file are few, the size is read in the header before memory is taken. Grey, palette,
CMYK (ImageNet has 22 such JPEGs) and transparent images become RGB; what a name ends in does not matter (ImageNet has
a PNG called .JPEG). The orientation noted by a camera is ignored, as in the usual ImageNet pipelines. No torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.text import clean

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
MAX_PIXELS = 80_000_000  # 240 MB decoded; Pillow itself begins to warn at 89 million
MAX_SIDE = 65_535
MAX_FILE = 256 << 20  # bytes


class BadImage(ValueError):
    """Bytes that are no image, or one that is refused; the text says why."""


def opened(data: bytes) -> Image:
    """Return the image of an encoded file, its header read and its size accepted, not decoded yet.

    Raises ``BadImage``.
    """
    import PIL.Image

    if not data:
        raise BadImage("an empty file")

    def open_it() -> Image:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)

    image = _guarded(open_it)
    width, height = image.size
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BadImage(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read")
    return image


def rgb(data: bytes, short_side: int | None = None) -> Image:
    """Return the decoded image in RGB, made smaller (bicubic, antialiased) where its short side is above ``short_side``.

    Raises ``BadImage``.
    """
    import PIL.Image

    image = opened(data)
    image = _guarded(lambda: image.convert("RGB"))
    size = stored_size(*image.size, short_side)
    return image if size == image.size else image.resize(size, PIL.Image.Resampling.BICUBIC)


def pixels(data: bytes) -> np.ndarray:
    """Return the decoded image as uint8 (height, width, 3); raises ``BadImage``."""
    import numpy as np

    return np.asarray(rgb(data))


def stored_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return (width, height) with the short side at most ``short_side``, the other in proportion, rounded half up."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    if width < height:
        return short_side, (2 * height * short_side + width) // (2 * width)
    return (2 * width * short_side + height) // (2 * height), short_side


def file_bytes(path: Path) -> bytes:
    """Return the bytes of an image file; raises ``BadImage``."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE:
        raise BadImage(f"a file of more than {MAX_FILE:,} bytes")
    return data


def _guarded(action: Callable[[], Image]) -> Image:
    try:
        return action()
    except MemoryError:
        raise BadImage("decoding it takes more memory than there is") from None
    except Exception as error:  # whatever a decoder makes of bytes that are no image
        name = type(error).__name__
        reason = "not an image of a known kind" if name == "UnidentifiedImageError" else str(error) or name
        raise BadImage(clean(reason, 160)) from None
