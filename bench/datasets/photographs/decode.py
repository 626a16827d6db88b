"""Encoded photographs to 8-bit RGB with Pillow: one decoder for folders, shards, archives and tests.

The bytes are not trusted. Only the formats in ``FORMATS`` are read, and the size in the header is checked
before memory is taken. The suffix of a name does not matter (ImageNet has a PNG called .JPEG). What becomes
of each kind of image:

- grey, 1-bit, palette, CMYK, YCbCr: converted to RGB by Pillow (colour profiles are ignored);
- 16 bits a channel: the high byte of each value, in grey as in colour, so that 65535 becomes 255 and 0 stays
  0; a TIFF of 9 to 15 bits is scaled by its own number of bits, and a TIFF whose 0 is white is inverted;
- transparency (alpha, or a transparent palette entry or colour): composed on ``BACKGROUND``, a middle grey,
  on which black drawings and white drawings both stay visible;
- an orientation noted by the camera (EXIF): the image is turned accordingly;
- several frames or pages: the first one is read, and ``bench data verify`` names the image;
- signed or 32-bit integers, floating point, Lab: refused by name, because nothing says which value is white.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.text import clean

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
# The suffixes that torchvision's ImageFolder reads.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
BACKGROUND = (128, 128, 128)  # RGB under transparent pixels
MAX_PIXELS = 80_000_000  # 240 MB decoded; Pillow itself begins to warn at 89 million
MAX_SIDE = 65_535
MAX_FILE = 256 << 20  # bytes
_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
# photometric interpretation 0 means that 0 is white; sample format 2 means signed integers


class BadImage(ValueError):
    """Bytes that are no image, or an image that is refused; the text says why."""


def opened(data: bytes) -> Image:
    """Return the image of an encoded file, its header read and its size accepted, its pixels not decoded.

    Raises ``BadImage`` for bytes that are no image of a known format, and for kinds of images that are
    refused.
    """
    import PIL.Image

    if not data:
        raise BadImage("an empty file")
    image = _guarded(lambda: PIL.Image.open(io.BytesIO(data), formats=FORMATS))
    width, height = image.size
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BadImage(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read")
    if image.mode == "F":
        raise BadImage("32-bit floating-point pixels, of which nothing says which value is white")
    signed = 2 in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())
    if signed or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("signed or 32-bit integer pixels, of which nothing says which value is white")
    if image.mode == "LAB":
        raise BadImage("Lab colours, which are not converted")
    if image.mode == "RGB" and "16" in _raw_mode(image) and "transparency" in image.info:
        raise BadImage("16-bit colours with a transparent colour, which Pillow does not read")
    return image


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the decoded image, turned as the camera noted; raises ``BadImage``."""
    image = opened(data)
    width, height = image.size
    return (height, width) if _orientation(image, data) in _SIDEWAYS else (width, height)


def rgb(data: bytes, short_side: int | None = None) -> Image:
    """Return the decoded image in RGB, its short side reduced (bicubic); raises ``BadImage``."""
    import PIL.Image

    image = opened(data)
    orientation = _orientation(image, data)
    image = _guarded(lambda: _rgb(image))
    if orientation != 1:
        image = image.transpose(PIL.Image.Transpose[_TURNS[orientation]])
    target = stored_size(*image.size, short_side)
    return image if target == image.size else image.resize(target, PIL.Image.Resampling.BICUBIC)


def pixels(data: bytes) -> np.ndarray:
    """Return the decoded image as uint8 (height, width, 3); raises ``BadImage``."""
    import numpy as np

    return np.asarray(rgb(data))


def treatment(data: bytes) -> str:
    """Return how the image is treated beyond a conversion to RGB; ``""`` for most images, and bad ones.

    The text is part of the image's digest, so that data whose pixels a version of this module decodes
    otherwise has another identity.
    """
    try:
        image = opened(data)
        parts = []
        if _sixteen_bit_grey(image):
            parts.append("16-bit grey: high byte")
        if image.has_transparency_data:
            parts.append("transparency on {}, {}, {}".format(*BACKGROUND))
        orientation = _orientation(image, data)
        if orientation != 1:
            parts.append(f"orientation {orientation}")
    except BadImage:
        return ""
    return "; ".join(parts)


def digest(data: bytes) -> bytes:
    """Return an image's SHA-256 in the data set's checksum: of its bytes and its ``treatment``."""
    return hashlib.sha256(data + treatment(data).encode()).digest()


def frames(data: bytes) -> int:
    """Return how many frames or pages the file holds, of which the first is read; raises ``BadImage``."""
    image = opened(data)
    return _guarded(lambda: getattr(image, "n_frames", 1))


def stored_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return (width, height) with the short side at most ``short_side``, the other rounded half up."""
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


def _rgb(image: Image) -> Image:
    """Return the opened image decoded, in RGB, with any transparency composed on ``BACKGROUND``."""
    import PIL.Image

    transparent = image.info.get("transparency")
    if _sixteen_bit_grey(image):
        return _from_sixteen_bits(image, transparent)
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, (*BACKGROUND, 255)), over).convert(
        "RGB"
    )


def _from_sixteen_bits(image: Image, transparent: int | None) -> Image:
    """Return a grey image of more than 8 bits in RGB; ``transparent`` is a PNG's transparent value."""
    import numpy as np
    import PIL.Image

    tags = getattr(image, "tag_v2", {})
    bits = int(next(iter(tags.get(_BITS_PER_SAMPLE, (16,))))) if tags else 16
    values = np.asarray(image).astype(np.int64)
    grey = np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
    if tags and tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    result = np.stack([grey] * 3, axis=2)
    if transparent is not None:
        result[values == transparent] = BACKGROUND
    return PIL.Image.fromarray(result)


def _sixteen_bit_grey(image: Image) -> bool:
    """Return whether pixels are grey values of 9 to 16 bits; Pillow's mode ``I`` means 16 in PNG and PPM."""
    return image.mode.startswith("I")


def _raw_mode(image: Image) -> str:
    """Return how the file stores its pixels, as Pillow's decoder names it: ``RGB;16B``, ..."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _orientation(image: Image, data: bytes) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where none is noted or the note is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF itself
    if image.format == "PNG" and b"eXIf" not in data and b"exif" not in data:
        return 1  # Pillow would decode the whole image in search of the note
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a damaged note makes of the parser
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _guarded(action: Callable[[], T]) -> T:
    """Return the result of ``action``; every error of a decoder becomes ``BadImage``."""
    try:
        return action()
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("decoding it takes more memory than there is") from None
    except Exception as error:  # whatever a decoder makes of bytes that are no image
        name = type(error).__name__
        reason = "not an image of a known kind" if name == "UnidentifiedImageError" else str(error) or name
        raise BadImage(clean(reason, 160)) from None
