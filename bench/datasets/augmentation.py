"""The augmentations of training images: pure functions of a batch of images and of hash values.

Images are (B, H, W, C) uint8 on the training device, in the memory order that PyTorch calls channels last.
The hash values are int64 in [0, 2^32), a row for each image (``bench.randomness.sample_bits``). All
arithmetic is exact. Some of it is done in float32, where every intermediate value is an integer below 2^24 or
an exact binary fraction. So eager and compiled code, CPU and GPU give the same pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

SVHN_DRAWS = 2
CROP_FLIP_DRAWS = 3
PAD = 4

_UNIT = 1 << 15  # contrast factors are multiples of 2^-15


def svhn(images: Tensor, draws: Tensor) -> Tensor:
    """Return images with random brightness and contrast, float32 holding the integers 0..255.

    Brightness adds b, uniform in [-30, 30), to each pixel p. Contrast then gives m + r (p - m): r is uniform
    in [0.5, 1.5), m is the mean of the image's channel after brightness. After each of the two the result is
    clipped to 0..255 and truncated to uint8. Source: the data pipeline of the released SVHN training script,
    in the same order.

    ``draws`` is (B, 2): for b and for r. Two facts exclude rounding. Pixels are integers, so truncating the
    clipped p + b is the same as adding floor(b). And r is a multiple of 2^-15: with m = s / n and R = 2^15 r,
    floor(r p + (1 - r) s / n) is computed as floor((R p + floor((2^15 - R) s / n)) / 2^15).
    """
    count, height, width, channels = images.shape
    brightness = ((draws[:, 0] * 60) >> 32) - 30
    contrast = (_UNIT // 2) + (draws[:, 1] >> 17)
    # Rows of width * channels make long innermost loops; a broadcast over 3 channels is ten times slower.
    x = images.to(torch.float32).view(count, height, width * channels)
    x = x.add_(brightness.to(torch.float32)[:, None, None]).clamp_(0.0, 255.0)
    exact = torch.float32 if 255 * height * width < 1 << 24 else torch.float64
    total = x.sum(1, dtype=exact).view(count, width, channels).sum(1).to(torch.int64)
    offset = torch.div((_UNIT - contrast)[:, None] * total, height * width, rounding_mode="floor")
    offset = offset.to(torch.float32).repeat(1, width).view(count, 1, width * channels)
    x = x.mul_(contrast.to(torch.float32)[:, None, None]).add_(offset).mul_(1.0 / _UNIT)
    return x.clamp_(0.0, 255.0).floor_().view(count, height, width, channels)


def crop_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Return random crops of uint8 images padded with 4 black pixels on each side; half are mirrored.

    This is the usual augmentation of CIFAR (1512.03385, section 4.2), here with black (0) padding before
    normalisation. ``draws`` is (B, 3): for the row and the column of the crop (each 0..8), and for mirroring.
    """
    count, height, width, channels = images.shape
    padded = images.new_zeros(count, height + 2 * PAD, width + 2 * PAD, channels)
    padded[:, PAD : PAD + height, PAD : PAD + width] = images
    places = (draws[:, :2] * (2 * PAD + 1)) >> 32
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    cropped = windows[torch.arange(count, device=images.device), places[:, 0], places[:, 1]]
    # The choice uses bytes that wrap around, since torch.where takes ten times as long on a CPU.
    mirrored = (draws[:, 2] >> 31).to(torch.uint8)[:, None, None, None]
    return cropped.flip(2).sub_(cropped).mul_(mirrored).add_(cropped)
