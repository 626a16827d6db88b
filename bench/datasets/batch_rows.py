"""Which rows of the global batch a worker trains on, where several share a trial."""

from __future__ import annotations

import torch
from torch import Tensor

WHOLE = (0, 1)  # the share (rank, ranks) of a trial's only worker


def rows(batch_size: int, share: tuple[int, int] = WHOLE, micro_batches: int = 1) -> Tensor:
    """Return the positions in the global batch of a worker's images: int64 (batch_size / ranks,) on the CPU.

    ``share = (rank, ranks)``. The batch is cut into ``micro_batches`` parts and each part among the ranks, in order, so
    that part m of the global batch is the same images whatever the number of workers: without micro-batches rank r has
    the rows [r B / R, (r + 1) B / R). Raises ``ValueError`` where that does not come out even.
    """
    rank, ranks = share
    if not 0 <= rank < ranks or batch_size % (ranks * micro_batches):
        raise ValueError(f"a batch of {batch_size} in {micro_batches} parts has no share {rank} of {ranks}")
    return torch.arange(batch_size).view(micro_batches, ranks, -1)[:, rank].reshape(-1)
