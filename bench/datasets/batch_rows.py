"""Which images a trial trains on, in which order, and which rows of a batch belong to a worker that shares
the trial.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.randomness import key_of, permutation

WHOLE = (0, 1)  # the share (rank, ranks) of a trial's only worker


def rows(batch_size: int, share: tuple[int, int] = WHOLE, micro_batches: int = 1) -> Tensor:
    """Return the positions in the global batch of a worker's images: int64 (batch_size / ranks,) on the CPU.

    ``share = (rank, ranks)``. The batch is cut into ``micro_batches`` parts and each part among the ranks, in
    order, so that part m of the global batch is the same images whatever the number of workers: without
    micro-batches rank r has the rows [r B / R, (r + 1) B / R). Raises ``ValueError`` where that does not come
    out even.
    """
    rank, ranks = share
    if not 0 <= rank < ranks or batch_size % (ranks * micro_batches):
        raise ValueError(f"a batch of {batch_size} in {micro_batches} parts has no share {rank} of {ranks}")
    return torch.arange(batch_size).view(micro_batches, ranks, -1)[:, rank].reshape(-1)


def chosen_images(
    total: int, train_count: int, holdout: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, ascending, of the images trained on and of those set aside (see ``ChosenImages``).

    ``groups`` (total,) numbers the images that belong together. Raises ``InputError`` where whole groups
    cannot make up ``holdout`` images.
    """
    order = permutation(total, key_of(0, "subset")).numpy()
    if groups is None or not holdout:
        return np.sort(order[:train_count]), np.sort(order[total - holdout :])
    names, sizes = np.unique(groups, return_counts=True)
    chosen, left = [], holdout
    for place in permutation(len(names), key_of(0, "subset", "groups")).tolist():
        if sizes[place] <= left:  # a group that is too large for the rest is passed over
            chosen.append(names[place])
            left -= int(sizes[place])
    if left:
        raise InputError(
            f"holdout: {holdout} images cannot be made up of whole groups (photographs); {holdout - left} can"
        )
    aside = np.isin(groups, chosen)
    kept = order[~aside[order]]
    return np.sort(kept[:train_count]), np.flatnonzero(aside)


class ChosenImages:
    """Which images a trial trains on and in which order; the base of both kinds of batches.

    ``steps_per_epoch`` is ``train_count`` over the batch size, rounded down: the images left over at the end
    of an epoch's order are not used in it.

    ``train_size`` and ``holdout`` are cut from one random order of the training images that depends on their
    number alone, not on the trial's seed: the first ``train_size`` train, the last ``holdout`` are set aside.
    So every seed trains on the same images, a smaller ``train_size`` is part of a larger one, and changing
    one leaves the other's images as they were. Where the data knows which images belong together
    (``Arrays.groups``), whole groups are set aside, as they come in a random order of the groups, and the
    others train.

    ``share = (rank, ranks)``: of each training and estimation batch the rows that are this worker's (see
    ``rows``), with the draws of their positions in the global batch, and every ``ranks``-th batch of the
    tests.
    """

    def __init__(
        self,
        config: TrialConfig,
        total: int,
        test_count: int,
        num_classes: int,
        device: torch.device | str,
        share: tuple[int, int],
        groups: np.ndarray | None = None,
    ) -> None:
        """Choose among ``total`` training images.

        Raises ``InputError`` where they are fewer than asked for.
        """
        self.train_count = catalog.split(
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
        self._chosen, self._aside = chosen_images(total, self.train_count, config.holdout, groups)
        self._seed = config.seed
        self._share = share
        self._samples = rows(config.batch_size, share, config.micro_batches).to(self.device)
        self._order: tuple[int, Tensor] | None = None

    def indices(self, step: int) -> Tensor:
        """Return this worker's images of the batch of ``step``, counted among the images trained on.

        int64 (batch_size / ranks,) on the device.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            key = key_of(self._seed, "order", epoch)
            self._order = epoch, permutation(self.train_count, key, self.device)
        batch = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return batch if self._share == WHOLE else batch[self._samples]

    def _estimated(self, count: int, batch_size: int) -> Iterator[Tensor]:
        """Yield this worker's indices of ``count`` batches in a random order fixed by the seed, begun again
        at its end.
        """
        order = permutation(self.train_count, key_of(self._seed, "estimation"), self.device)
        places = rows(batch_size, self._share).to(self.device)
        for batch in range(count):
            yield order[(places + batch * batch_size) % self.train_count]
