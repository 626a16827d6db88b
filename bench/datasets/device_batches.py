"""Images resident on the training device as uint8, and the batches made of them there.

The images of a batch, their order and their augmentation are functions of the seed and the global step.
``train_batch`` returns the batch of any step in any order. So a resumed trial needs no state of the data, and
two arms with one seed see the same batches. The host never waits for the device, and there are no worker
processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.datasets import augmentation
from bench.datasets.batch_rows import ALONE, UNIT_SCALES, ChosenImages, standardizing
from bench.datasets.resize import RESIZES, Bilinear, OpenCVBilinear
from bench.datasets.sources import Arrays
from bench.experiments.config import TrialConfig
from bench.randomness import combine, key_of, sample_bits

_CHUNK = 256  # images resized or measured at a time


class DeviceData(ChosenImages):
    """The images of one trial on its device; ``ChosenImages`` chooses them and their order.

    Batches are ``(images, labels)``: images float32 (B, 3, S, S) in channels-last memory, labels int64 (B,).
    S is the input size of the network; grey images are repeated to three channels. With the augmentation
    ``crop_flip`` images stay on the device in their own size. There they are cropped, mirrored, normalised
    and resized to S without rounding; test images are resized in the same way. Otherwise images are resized
    once and kept as uint8, as in the paper.
    """

    def __init__(
        self,
        arrays: Arrays,
        config: TrialConfig,
        input_size: int,
        device: torch.device | str,
        worker: tuple[int, int] = ALONE,
    ) -> None:
        """Choose the images and move them to ``device``; raises ``InputError`` where there are too few."""
        total = len(arrays.x_train)
        super().__init__(config, total, len(arrays.x_test), arrays.num_classes, device, worker, arrays.groups)
        self.resident = True
        train, holdout = self._chosen, self._held_out
        x_train = arrays.x_train if len(train) == total else arrays.x_train[train]
        height, width = x_train.shape[1:3]
        fits = (height, width) == (input_size, input_size)
        resize = None if fits else RESIZES[config.resize](height, width, input_size, 3, self.device)
        self._augmentation = config.augmentation
        # With crop_flip, batches are resized instead of the stored images.
        self._batch_resize = (
            resize if config.augmentation == "crop_flip" and isinstance(resize, Bilinear) else None
        )
        early = None if self._batch_resize else resize
        self._train = _resident(x_train, arrays.y_train[train], early, self.device)
        self._holdout = _resident(arrays.x_train[holdout], arrays.y_train[holdout], early, self.device)
        self._test = _resident(arrays.x_test, arrays.y_test, early, self.device)
        self._shift, self._scale = _normalization(config.normalization, x_train, self.device)

        self._augmentation_key = key_of(config.seed, "augmentation", config.augmentation)

    def train_batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.prepare(self.indices(step), torch.full((), step, dtype=torch.int64, device=self.device))

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        return (self.indices(step),)

    def prepare(self, indices: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Gather, augment and normalise a training batch; ``step`` is 0-d int64. This can be compiled."""
        images, labels = (part.index_select(0, indices) for part in self._train)
        key = combine(self._augmentation_key, step)
        if self._augmentation == "svhn":
            draws = sample_bits(key, self._samples, (augmentation.SVHN_DRAWS,))
            return self._normalized(augmentation.svhn(images, draws)), labels
        if self._augmentation == "crop_flip":
            draws = sample_bits(key, self._samples, (augmentation.CROP_FLIP_DRAWS,))
            images = augmentation.crop_flip(images, draws)
        return self._finished(images), labels

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order(self._test, batch_size)

    def holdout_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order(self._holdout, batch_size)

    def estimation_batches(self, count: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self._estimated(count, batch_size):
            images, labels = (part.index_select(0, indices) for part in self._train)
            yield self._finished(images), labels

    def _in_order(self, part: tuple[Tensor, Tensor], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = part
        rank, world_size = self._worker
        for start in range(rank * batch_size, len(images), world_size * batch_size):
            yield self._finished(images[start : start + batch_size]), labels[start : start + batch_size]

    def _finished(self, images: Tensor) -> Tensor:
        """Return uint8 images normalised and channels last; images that are not yet resized are resized."""
        if self._batch_resize is None:
            return self._normalized(images.to(torch.float32))
        return self._normalized(self._batch_resize.sums(images), self._batch_resize.denominator)

    def _normalized(self, x: Tensor, denominator: int = 1) -> Tensor:
        """Return (x / denominator - shift) * scale as float32 (B, 3, S, S), channels last.

        ``x``, (B, S, S, 3), may be overwritten. Subtraction and multiplication are two operations in this
        order; a compiler must not fuse them into one rounding.
        """
        count, height, width, channels = x.shape
        if self._shift is None or isinstance(self._scale, float):
            return x.mul_(self._scale / denominator).to(torch.float32).permute(0, 3, 1, 2)
        rows = x.view(count, height, width * channels)
        shift = (self._shift * denominator).repeat(width)
        scale = (self._scale / denominator).repeat(width)
        rows = rows.sub_(shift).mul_(scale)
        return rows.view(count, height, width, channels).to(torch.float32).permute(0, 3, 1, 2)


def _resident(
    images: np.ndarray, labels: np.ndarray, resize: Bilinear | OpenCVBilinear | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return images as uint8 (N, S, S, 3) and labels as int64 on the device, resized in chunks."""
    stored = torch.from_numpy(np.ascontiguousarray(images))
    count, height, width, channels = stored.shape
    placed = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
    if resize is None and channels == 3:
        return stored.to(device), placed
    side = (height, width) if resize is None else (resize.size, resize.size)
    result = torch.empty((count, *side, 3), dtype=torch.uint8, device=device)
    for start in range(0, count, _CHUNK):
        chunk = stored[start : start + _CHUNK].to(device).expand(-1, -1, -1, 3).contiguous()
        result[start : start + _CHUNK] = chunk if resize is None else resize.to_uint8(chunk)
    return result, placed


def _normalization(
    kind: str, images: np.ndarray, device: torch.device
) -> tuple[Tensor | None, float | Tensor]:
    """Return (shift, scale) for pixels 0..255: numbers, or float32 (3,) where channels differ.

    A shift of None means that there is no shift. ``standardize`` takes each channel's mean and (population)
    standard deviation over the training images in their own size, from exact integer sums.
    """
    if kind != "standardize":
        return None, UNIT_SCALES[kind]
    channels = images.shape[3]
    total = np.zeros(channels, dtype=np.int64)
    squares = np.zeros(channels, dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        pixels = images[start : start + _CHUNK].reshape(-1, images[0].size).astype(np.uint32)
        total += pixels.sum(0, dtype=np.int64).reshape(-1, channels).sum(0)
        squares += (pixels * pixels).sum(0, dtype=np.int64).reshape(-1, channels).sum(0)
    shift, scale = standardizing(total, squares, images.size // channels, (3,))
    return shift.to(device), scale.to(device)
