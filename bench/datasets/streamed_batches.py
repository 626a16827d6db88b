"""Batches of photographs, decoded and cut by threads a few steps ahead, from memory or from shards on disk.

As in ``bench.datasets.device_batches`` a batch is a function of the seed and the global step. The threads get
step numbers, and their results are a cache. So a resumed trial begins at any step without restoring anything,
and reading ahead changes no pixel. Shards are read image by image at random positions, which is fast on a
solid-state disk or from a warm cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from bench.datasets.batch_rows import ALONE, UNIT_SCALES, ChosenImages, standardizing
from bench.datasets.loaded import Images, Photographs
from bench.datasets.photographs import crops
from bench.datasets.photographs.images import MEAN_SIDE
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.machine.devices import cpu_count
from bench.randomness import combine, key_of, sample_bits

AHEAD = 3  # batches that threads prepare while the network trains on another
KEPT_BYTES = 1 << 30  # views of test images up to this size are kept after the first evaluation


class PhotographData(ChosenImages):
    """The photographs of one trial, of any sizes and number, with the interface of ``DeviceData``.

    ``ChosenImages`` chooses the images and their order. Batches are ``(images, labels)``: images float32
    (B, 3, S, S) in channels-last memory on the device, labels int64 (B,). ``photographs.crops`` describes the
    crops; they are uint8 and are normalised on the device. ``standardize`` takes the mean and deviation of
    each channel over the training images in their stored size. ``pixel_mean`` subtracts the mean image of all
    training images (short side 256, central square; its central S/256 * 256/224 part at S) and divides by
    255.
    """

    def __init__(
        self,
        photographs: Photographs,
        config: TrialConfig,
        input_size: int,
        device: torch.device | str,
        worker: tuple[int, int] = ALONE,
        workers: int | None = None,
    ) -> None:
        """Choose the images.

        Args:
            photographs: What ``load`` returned.
            config: The trial's.
            input_size: Height and width of a crop, in pixels.
            device: "cpu" or "cuda:N".
            worker: (rank, workers) of a team that shares each batch.
            workers: How many threads cut images; None: 1 on a CPU, at most 16 beside a GPU.

        Raises:
            InputError: There are too few images, or the augmentation is not one for photographs.
        """
        if config.augmentation not in crops.AUGMENTATIONS:
            raise InputError(
                f"augmentation: '{config.augmentation}' is for images of one small size; "
                f"photographs take one of {', '.join(crops.AUGMENTATIONS)}"
            )
        counts = len(photographs.train.index), len(photographs.test.index)
        super().__init__(config, *counts, photographs.num_classes, device, worker)
        self.resident = False
        self.size = input_size
        self.workers = workers or (1 if self.device.type == "cpu" else min(16, cpu_count()))
        self._images = photographs
        self._augmentation = config.augmentation
        self._cubic = config.augmentation in crops.CUBIC
        self._view = crops.view_released if config.augmentation == "scale_jitter_released" else crops.view
        self._key = key_of(config.seed, "augmentation", config.augmentation)
        shift, scale = _normalization(config.normalization, photographs, self._chosen, input_size)
        self._shift = None if shift is None else shift.to(self.device)
        self._scale = scale if isinstance(scale, float) else scale.to(self.device)
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: dict[int, tuple[list[Future], Tensor, np.ndarray]] = {}
        self._kept: dict[str, list[Tensor]] = {}

    # -- training --------------------------------------------------------------------------------------------

    def train_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the augmented training batch of ``step`` (from 0); threads begin the next batches."""
        wanted = range(step, step + AHEAD + 1)
        for other in [other for other in self._under_way if other not in wanted]:
            for future in self._under_way.pop(other)[0]:
                future.cancel()
        for each in wanted:
            if each not in self._under_way:
                numbers = self._chosen[self.indices(each).cpu().numpy()]
                begun = self._begin(self._images.train, numbers, self._windows(numbers, each))
                self._under_way[each] = (*begun, numbers)
        futures, pixels, numbers = self._under_way.pop(step)
        for future in futures:
            future.result()
        return self._finished(pixels), self._labels(self._images.train, numbers)

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        """Return the finished batch of ``step``: images are cut on the CPU, before the step."""
        return self.train_batch(step)

    def prepare(self, images: Tensor, labels: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels unchanged, since ``inputs`` returns finished batches."""
        return images, labels

    def _windows(self, numbers: np.ndarray, step: int) -> crops.Window:
        heights, widths = _sizes(self._images.train, numbers)
        if self._augmentation == "none":
            return self._view(heights, widths, self.size)
        many, cut = crops.TRAINING[self._augmentation]
        draws = sample_bits(combine(self._key, step), self._samples.cpu(), (many,)).numpy()
        return cut(heights, widths, draws, self.size)

    # -- evaluation ------------------------------------------------------------------------------------------

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order("test", self._images.test, np.arange(self.test_count), batch_size)

    def holdout_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order("holdout", self._images.train, self._held_out, batch_size)

    def estimation_batches(self, count: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [self._chosen[indices.cpu().numpy()] for indices in self._estimated(count, batch_size)]
        for pixels, numbers in self._views(self._images.train, batches):
            yield self._finished(pixels), self._labels(self._images.train, numbers)

    def _in_order(
        self, part: str, images: Images, numbers: np.ndarray, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        rank, world_size = self._worker
        starts = range(rank * batch_size, len(numbers), world_size * batch_size)
        batches = [numbers[start : start + batch_size] for start in starts]
        key = f"{part} {batch_size}"
        kept = self._kept.get(key)
        keep = kept is None and 3 * self.size**2 * len(numbers) <= KEPT_BYTES
        views: list[Tensor] = []
        read = self._views(images, batches) if kept is None else zip(kept, batches, strict=True)
        for pixels, which in read:
            if keep:
                views.append(pixels)
            yield self._finished(pixels), self._labels(images, which)
        if keep:
            self._kept[key] = views

    def _views(self, images: Images, batches: list[np.ndarray]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield the uint8 views of batches while threads prepare the next ones."""
        begun: dict[int, tuple[list[Future], Tensor]] = {}
        try:
            for place, numbers in enumerate(batches):
                for each in range(place, min(place + 2, len(batches))):
                    if each not in begun:
                        heights, widths = _sizes(images, batches[each])
                        begun[each] = self._begin(
                            images, batches[each], self._view(heights, widths, self.size)
                        )
                futures, pixels = begun.pop(place)
                for future in futures:
                    future.result()
                yield pixels, numbers
        finally:
            for futures, _ in begun.values():
                for future in futures:
                    future.cancel()

    # -- pixels ----------------------------------------------------------------------------------------------

    def _begin(
        self, images: Images, numbers: np.ndarray, windows: crops.Window
    ) -> tuple[list[Future], Tensor]:
        """Let the threads cut a batch; return (futures to wait for, the pixels, uint8 (B, S, S, 3))."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="photographs")
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        pinned = self.device.type == "cuda"
        pixels = torch.empty((len(numbers), self.size, self.size, 3), dtype=torch.uint8, pin_memory=pinned)
        cut = _Cut(images, numbers, windows, pixels, self.size, self._cubic)
        return [self._pool.submit(cut, start) for start in range(0, len(numbers), _Cut.CHUNK)], pixels

    def _labels(self, images: Images, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(images.index["label"][numbers].astype(np.int64)).to(self.device)

    def _finished(self, pixels: Tensor) -> Tensor:
        """Return uint8 (B, S, S, 3) on the device, normalised: float32 (B, 3, S, S), channels last."""
        x = pixels.to(self.device, non_blocking=True).to(torch.float32)
        if self._shift is not None:
            x = x.sub_(self._shift)
        return x.mul_(self._scale).permute(0, 3, 1, 2)


class _Cut:
    """Cuts the images of a batch into its rows of ``pixels``, one chunk a call.

    The object has no reference to ``PhotographData``, so that waiting threads do not keep the data alive.
    """

    CHUNK = 8

    def __init__(
        self,
        images: Images,
        numbers: np.ndarray,
        windows: crops.Window,
        pixels: Tensor,
        size: int,
        cubic: bool,
    ) -> None:
        self.images, self.numbers, self.pixels, self.size, self.cubic = images, numbers, pixels, size, cubic
        self.windows = np.stack(windows, axis=1).tolist()

    def __call__(self, start: int) -> None:
        for i in range(start, min(start + self.CHUNK, len(self.numbers))):
            top, left, height, width, to_height, to_width, row, column, flip = self.windows[i]
            cut = self.images.read(int(self.numbers[i]), top, top + height)[:, left : left + width]
            image = crops.resized(cut, to_height, to_width, row, column, self.size, self.cubic)
            self.pixels[i] = image.flip(1) if flip else image


def _sizes(images: Images, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = images.index[numbers]
    return chosen["height"].astype(np.int64), chosen["width"].astype(np.int64)


def _normalization(
    kind: str, photographs: Photographs, chosen: np.ndarray, size: int
) -> tuple[Tensor | None, float | Tensor]:
    """Return (shift, scale) for pixels 0..255: numbers, or float32 (S, S, 3) where positions differ.

    A shift of None means that there is no shift.
    """
    if kind in UNIT_SCALES:
        return None, UNIT_SCALES[kind]
    if kind == "pixel_mean":
        mean = photographs.mean_sum.astype(np.float64) / len(photographs.train.index)
        square = torch.from_numpy(mean.astype(np.float32)).permute(2, 0, 1)[None]
        short = (2 * MEAN_SIDE * size + 224) // (2 * 224)
        if short != MEAN_SIDE:
            square = torch.nn.functional.interpolate(square, (short, short), mode="bilinear", antialias=True)
        edge = (short - size) // 2
        shift = square[0, :, edge : edge + size, edge : edge + size].permute(1, 2, 0).contiguous()
        return shift, 1.0 / 255.0
    index = photographs.train.index[chosen]
    count = int((index["height"].astype(np.int64) * index["width"]).sum())
    sums, squares = (index[name].astype(np.int64).sum(0) for name in ("sums", "squares"))
    return standardizing(sums, squares, count, (size, size, 3))
