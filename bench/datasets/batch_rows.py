"""The images that a trial trains on, their order, and the rows of a batch that belong to a worker."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.datasets.batches import Batches
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.randomness import key_of, permutation

UNIT_SCALES = {"divide_255": 1.0 / 255.0, "divide_256": 1.0 / 256.0}  # normalizations without a shift
ALONE = (0, 1)  # (rank, world_size) of the only worker of a trial


def rows(batch_size: int, worker: tuple[int, int] = ALONE, micro_batches: int = 1) -> Tensor:
    """Return the places of a worker's images in the global batch, int64 (batch_size / world_size,), CPU.

    ``worker = (rank, world_size)``: the rank of the worker and the number of workers. The batch is cut into
    ``micro_batches`` parts, and each part is divided among the workers in the order of their ranks. So part m
    of the global batch has the same images for every number of workers. Without micro-batches, rank r of R
    workers has the rows [r B / R, (r + 1) B / R) of a batch of B images. Raises ``ValueError`` where the
    batch cannot be divided evenly.
    """
    rank, world_size = worker
    if not 0 <= rank < world_size or batch_size % (world_size * micro_batches):
        of = f"a batch of {batch_size} in {micro_batches} parts"
        raise ValueError(f"{of} has no share {rank} of {world_size}")
    return torch.arange(batch_size).view(micro_batches, world_size, -1)[:, rank].reshape(-1)


def standardizing(
    sums: np.ndarray, squares: np.ndarray, count: int, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return (shift, scale), float32 of ``shape`` (..., C), from exact sums over ``count`` pixels.

    The shift is the mean of a channel, the scale 1 over the (population) standard deviation; 1 for a channel
    whose pixels are all equal.
    """
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    scale = 1.0 / np.where(deviation == 0.0, 1.0, deviation)
    shift, factor = (np.broadcast_to(value, shape).astype(np.float32, "C") for value in (mean, scale))
    return torch.from_numpy(shift), torch.from_numpy(factor)


def chosen_images(
    total: int, train_count: int, holdout: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, ascending, of the training images and of the held-out images (``ChosenImages``).

    ``groups`` (total,) numbers the images that belong together. Raises ``InputError`` where whole groups
    cannot make up ``holdout`` images.
    """
    order = permutation(total, key_of(0, "subset")).numpy()
    if groups is None or not holdout:
        return np.sort(order[:train_count]), np.sort(order[total - holdout :])
    names, sizes = np.unique(groups, return_counts=True)
    chosen, left = [], holdout
    for place in permutation(len(names), key_of(0, "subset", "groups")).tolist():
        if sizes[place] <= left:  # a group that is larger than what is still missing is skipped
            chosen.append(names[place])
            left -= int(sizes[place])
    if left:
        raise InputError(
            f"holdout: {holdout} images cannot be made up of whole groups (photographs); {holdout - left} can"
        )
    aside = np.isin(groups, chosen)
    kept = order[~aside[order]]
    return np.sort(kept[:train_count]), np.flatnonzero(aside)


class ChosenImages(Batches):
    """The images that a trial trains on, and their order: the base of both kinds of batches.

    ``steps_per_epoch`` is ``train_count`` over the batch size, rounded down. The remaining images at the end
    of an epoch's order are not used in this epoch.

    ``train_size`` and ``holdout`` are cut from one random order of the training images. This order depends on
    the number of images alone, not on the trial's seed. The first ``train_size`` images train, the last
    ``holdout`` images are held out. So every seed trains on the same images, a smaller ``train_size`` is part
    of a larger one, and a change of one number does not change the images of the other. Where the data says
    which images belong together (``Arrays.groups``), whole groups are held out, in a random order of the
    groups, and the other groups train.

    ``worker = (rank, world_size)``: the worker gets its own rows of each training and estimation batch (see
    ``rows``), with the draws of their positions in the global batch, and every ``world_size``-th batch of an
    evaluation.
    """

    def __init__(
        self,
        config: TrialConfig,
        total: int,
        test_count: int,
        num_classes: int,
        device: torch.device | str,
        worker: tuple[int, int],
        groups: np.ndarray | None = None,
    ) -> None:
        """Choose among ``total`` training images; raises ``InputError`` where there are too few."""
        self.train_count = catalog.training_count(
            total,
            batch_size=config.batch_size,
            train_size=config.train_size,
            holdout=config.holdout,
            name=catalog.label(config.dataset),
        )
        self.holdout_count = config.holdout
        self.test_count = test_count
        self.num_classes = num_classes
        self.batch_size = config.batch_size
        self.steps_per_epoch = self.train_count // config.batch_size
        self.device = torch.device(device)
        self._chosen, self._held_out = chosen_images(total, self.train_count, config.holdout, groups)
        self._seed = config.seed
        self._worker = worker
        self._samples = rows(config.batch_size, worker, config.micro_batches).to(self.device)
        self._order: tuple[int, Tensor] | None = None

    def indices(self, step: int) -> Tensor:
        """Return this worker's images in the batch of ``step``: int64 (batch_size / world_size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            key = key_of(self._seed, "order", epoch)
            self._order = epoch, permutation(self.train_count, key, self.device)
        batch = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return batch if self._worker == ALONE else batch[self._samples]

    def _estimated(self, count: int, batch_size: int) -> Iterator[Tensor]:
        """Yield this worker's indices of ``count`` batches, in a random order of the seed, over and over."""
        order = permutation(self.train_count, key_of(self._seed, "estimation"), self.device)
        places = rows(batch_size, self._worker).to(self.device)
        for batch in range(count):
            yield order[(places + batch * batch_size) % self.train_count]
