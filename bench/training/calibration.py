"""The hand-over of training images to a strategy that changes weights by them (``Strategy.calibrate``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.datasets.batch_rows import rows

if TYPE_CHECKING:
    from bench.training.loop import Run


def calibrate(run: Run, count: int) -> None:
    """Let the strategy of ``run`` calibrate its network on ``count`` training images before the present step.

    The first worker calibrates, with the images of all; the others take over its network.
    """
    images = estimation_images(run, count)
    if run.team.first:
        run.strategy.calibrate(run.network, images, run.step)
    if run.team.size > 1:
        state = run.team.from_first(lambda: {n: v.cpu() for n, v in run.network.state_dict().items()})
        run.network.load_state_dict(state)


def estimation_images(run: Run, count: int) -> Tensor:
    """Return ``count`` training images without augmentation, or all where there are fewer: (N, 3, S, S).

    Each worker reads its rows of every batch; the sum of all workers' tensors, each 0 outside its own rows,
    is exact.
    """
    count, size = min(count, run.data.train_count), run.config.batch_size
    batches = run.data.estimation_batches(-(-count // size), size)
    if run.team.size == 1:
        return torch.cat([images for images, _ in batches])[:count]
    places = rows(size, run.team.rank_and_size).to(run.device)
    whole = []
    for images, _ in batches:
        batch = images.new_zeros((size, *images.shape[1:]))
        batch[places] = images
        whole.append(run.team.total(batch))
    return torch.cat(whole)[:count]
