"""The views of photographs that a network sees: which rectangle, resized how, mirrored or not.

Every function is a pure function of the images' sizes and of hash values in [0, 2^32)
(``bench.randomness.sample_bits``), one row an image. S is the network's input size, 224 in the papers; every
other length scales with S. Rectangles are computed for a whole batch at once. Images, which differ in size,
are resized one by one: on the CPU that is faster than padding them to a common size and multiplying by
matrices.

In training (``TRAINING`` maps the names):

- ``random_resized_crop`` (Szegedy et al., 1409.4842, as torchvision draws it): a rectangle of 8 to 100 % of
  the area and a ratio of width to height in [3/4, 4/3], log-uniform; of ten tries the first that fits, else
  the largest central one of a ratio in range; bilinear, antialiased; half of them mirrored.
- ``scale_jitter`` (after the released AlexNet scripts): the short side s uniform among the whole numbers S ..
  308/224 S, width and height each times a factor uniform in [0.85, 1.15]; neither more than the image's own
  nor less than S, truncated to whole pixels; cubic; a crop of S x S uniform among all places; half of them
  mirrored.
- ``scale_jitter_released`` (the released AlexNet scripts as they run): the same, but s is below 308/224 S,
  and the crop never takes the last row or column, because the scripts draw its place from 0 .. spare - 1.

In tests (``view``): the short side becomes 256/224 S, rounded; the central S x S. Cubic after either
``scale_jitter``, else bilinear and antialiased. After ``scale_jitter_released`` (``view_released``) each side
is truncated instead of rounded, is never enlarged, and is raised to S where it is below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

TRIES = 10
RESIZED_CROP_DRAWS = 2 * TRIES + 3
JITTER_DRAWS = 6
AREA = (0.08, 1.0)
RATIO = (3.0 / 4.0, 4.0 / 3.0)
JITTER = (0.85, 1.15)


class Window(NamedTuple):
    """Where to cut an image, the size of the resized cut, and its kept S x S square; int64 (B,) each.

    The rectangle is ``top, left, height, width`` of the image; it becomes ``to_height`` x ``to_width``, of
    which the square at ``row, column`` is kept and, where ``flip`` is 1, mirrored.
    """

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    to_height: np.ndarray
    to_width: np.ndarray
    row: np.ndarray
    column: np.ndarray
    flip: np.ndarray


def uniform(draws: np.ndarray) -> np.ndarray:
    """Return float64 numbers in (0, 1), uniform, of hash values."""
    return (draws + 0.5) / 4294967296.0


def whole_number(draws: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Return whole numbers from 0 to count - 1, uniform, of hash values."""
    return draws * count >> 32


def resized_crop(heights: np.ndarray, widths: np.ndarray, draws: np.ndarray, size: int) -> Window:
    """Return the windows of ``random_resized_crop``; ``draws`` is int64 (B, RESIZED_CROP_DRAWS)."""
    tries = uniform(draws[:, : 2 * TRIES]).reshape(-1, 2, TRIES)
    area = (heights * widths)[:, None] * (AREA[0] + (AREA[1] - AREA[0]) * tries[:, 0])
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * tries[:, 1])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    first = fits.argmax(1)[:, None]
    h, w = (np.take_along_axis(x, first, 1)[:, 0] for x in (h, w))
    top = whole_number(draws[:, -3], np.maximum(heights - h + 1, 1))
    left = whole_number(draws[:, -2], np.maximum(widths - w + 1, 1))
    found = fits.any(1)
    # the largest central rectangle: the whole side, the other as the nearest ratio in range allows
    shape = widths / heights
    central_w = np.where(shape > RATIO[1], np.rint(heights * RATIO[1]), widths).astype(np.int64)
    central_h = np.where(shape < RATIO[0], np.rint(widths / RATIO[0]), heights).astype(np.int64)
    h, w = np.where(found, h, central_h), np.where(found, w, central_w)
    top, left = np.where(found, top, (heights - h) // 2), np.where(found, left, (widths - w) // 2)
    to, zero = np.full_like(h, size), np.zeros_like(h)
    return Window(top, left, h, w, to, to, zero, zero, draws[:, -1] >> 31)


def scale_jitter(
    heights: np.ndarray, widths: np.ndarray, draws: np.ndarray, size: int, last: int = 1
) -> Window:
    """Return the windows of ``scale_jitter``, or of ``scale_jitter_released``.

    Args:
        heights: int64 (B,), in pixels.
        widths: int64 (B,), in pixels.
        draws: int64 (B, JITTER_DRAWS), hash values.
        size: S, height and width of the crops.
        last: 1 where the largest side and the last places are drawn, too; 0: ``scale_jitter_released``.
    """
    short = size + whole_number(draws[:, 0], size * 308 // 224 - size + last)
    factors = JITTER[0] + (JITTER[1] - JITTER[0]) * uniform(draws[:, 1:3])
    to_h, to_w = jittered_size(heights, widths, short, factors, size)
    row, column = (
        whole_number(draws[:, i], np.maximum(side - size + last, 1)) for i, side in ((3, to_h), (4, to_w))
    )
    zero = np.zeros_like(to_h)
    return Window(zero, zero, heights, widths, to_h, to_w, row, column, draws[:, 5] >> 31)


def jittered_size(
    heights: np.ndarray, widths: np.ndarray, short: np.ndarray, factors: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (height, width), int64 (B,), to resize to.

    Each side times ``short`` over the shorter side and times its factor, at most itself, at least ``size``,
    truncated.

    Args:
        heights: int64 (B,), in pixels.
        widths: int64 (B,), in pixels.
        short: int64 (B,), the shorter side before the factors.
        factors: float64 (B, 2), of width and height.
        size: S, height and width of the crops.
    """
    scale = short / np.minimum(heights, widths)
    to_w = np.maximum(size, np.minimum(widths, scale * factors[:, 0] * widths)).astype(np.int64)
    to_h = np.maximum(size, np.minimum(heights, scale * factors[:, 1] * heights)).astype(np.int64)
    return to_h, to_w


def view(heights: np.ndarray, widths: np.ndarray, size: int) -> Window:
    """Return the windows of tests: short side 256/224 S, rounded, the other in proportion; central square."""
    short = (2 * 256 * size + 224) // (2 * 224)
    least = np.minimum(heights, widths)
    to_h, to_w = ((2 * side * short + least) // (2 * least) for side in (heights, widths))
    return _central(heights, widths, to_h, to_w, size)


def view_released(heights: np.ndarray, widths: np.ndarray, size: int) -> Window:
    """Return the test windows of the released AlexNet scripts: sides truncated, not enlarged, at least S."""
    scale = (256 * size / 224) / np.minimum(heights, widths)
    to_h, to_w = (
        np.maximum(size, np.minimum(side, scale * side)).astype(np.int64) for side in (heights, widths)
    )
    return _central(heights, widths, to_h, to_w, size)


def _central(
    heights: np.ndarray, widths: np.ndarray, to_h: np.ndarray, to_w: np.ndarray, size: int
) -> Window:
    """Return the windows of whole images resized to the given sizes, of which the central S x S is kept."""
    zero = np.zeros_like(to_h)
    return Window(zero, zero, heights, widths, to_h, to_w, (to_h - size) // 2, (to_w - size) // 2, zero)


scale_jitter_released = partial(scale_jitter, last=0)
TRAINING: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray, np.ndarray, int], Window]]] = {
    "random_resized_crop": (RESIZED_CROP_DRAWS, resized_crop),
    "scale_jitter": (JITTER_DRAWS, scale_jitter),
    "scale_jitter_released": (JITTER_DRAWS, scale_jitter_released),
}
CUBIC = ("scale_jitter", "scale_jitter_released")
AUGMENTATIONS = ("none", *TRAINING)


def resized(
    cut: np.ndarray, to_height: int, to_width: int, row: int, column: int, size: int, cubic: bool
) -> Tensor:
    """Return S x S pixels of ``cut`` resized, uint8 (S, S, 3).

    Args:
        cut: uint8 (H, W, 3).
        to_height: Of ``cut`` resized.
        to_width: Of ``cut`` resized.
        row: The top of the S x S pixels.
        column: Their left edge.
        size: S.
        cubic: As OpenCV does it: a = -0.75, half-pixel centres, edges repeated, no antialiasing. Otherwise
            bilinear with antialiasing, as PyTorch and Pillow compute it.
    """
    pixels = torch.from_numpy(np.require(cut, requirements=["C", "W"]))
    if cubic:
        return _cubic(pixels, to_height, to_width, row, column, size)
    image = pixels.permute(2, 0, 1)[None]
    if (to_height, to_width) != cut.shape[:2]:
        image = interpolate(
            image, (to_height, to_width), mode="bilinear", antialias=True, align_corners=False
        )
    return image[0, :, row : row + size, column : column + size].permute(1, 2, 0)


def _cubic(cut: Tensor, to_height: int, to_width: int, row: int, column: int, size: int) -> Tensor:
    """Return the pixels of ``resized`` with ``cubic``, computing only the S x S pixels asked for."""
    height, width, channels = cut.shape
    rows, row_weights = _taps(height, to_height, row, size)
    columns, column_weights = _taps(width, to_width, column, size)
    low, high = int(columns.min()), int(columns.max()) + 1
    above, below = int(rows.min()), int(rows.max()) + 1
    x = cut[above:below, low:high].to(torch.float32).view(below - above, -1)
    x = _weighted(x, rows - above, row_weights)
    x = x.view(size, high - low, channels).transpose(0, 1).reshape(high - low, -1)
    x = _weighted(x, columns - low, column_weights)
    x = x.view(size, size, channels).transpose(0, 1)
    return x.round().clamp_(0.0, 255.0).to(torch.uint8)


def _weighted(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over k of the rows ``places[k]`` of ``x`` (N, M) times ``weights[k]``: (count, M)."""
    total = x.index_select(0, places[0]).mul_(weights[0, :, None])
    for k in range(1, 4):
        total.addcmul_(x.index_select(0, places[k]), weights[k, :, None])
    return total


def _taps(source: int, target: int, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the source positions (4, count) of target pixels ``start`` .. and their weights, float32."""
    position = (np.arange(start, start + count) + 0.5) * (source / target) - 0.5
    base = np.floor(position)
    t, a = position - base, -0.75
    near = [((a + 2.0) * d - (a + 3.0)) * d * d + 1.0 for d in (t, 1.0 - t)]
    far = [((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a for d in (t + 1.0, 2.0 - t)]
    weights = np.stack([far[0], near[0], near[1], far[1]])
    places = np.clip(base.astype(np.int64) + np.arange(-1, 3)[:, None], 0, source - 1)
    return torch.from_numpy(places), torch.from_numpy(weights.astype(np.float32))
