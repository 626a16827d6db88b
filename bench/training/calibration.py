"""The hand-over of training images to a strategy that changes weights by them (``Strategy.calibrate``)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.datasets.batch_rows import rows
from bench.datasets.batches import Batches
from bench.networks import Network
from bench.strategies import Strategy
from bench.training.distributed import Team


def calibrate(strategy: Strategy, network: Network, team: Team, images: Tensor, step: int) -> None:
    """Let the strategy calibrate the network before ``step``.

    The first worker calibrates, with the images of all; the others take over its network.

    Args:
        strategy: Calibrates.
        network: Is changed in place.
        team: The workers that share the trial.
        images: Training images, (N, 3, S, S).
        step: The step that comes next.
    """
    if team.first:
        strategy.calibrate(network, images, step)
    if team.size > 1:
        state = team.from_first(lambda: {n: v.cpu() for n, v in network.state_dict().items()})
        network.load_state_dict(state)


def estimation_images(data: Batches, team: Team, count: int, batch_size: int) -> Tensor:
    """Return ``count`` training images without augmentation, or all where there are fewer: (N, 3, S, S).

    Each worker reads its rows of every batch; the sum of all workers' tensors, each 0 outside its own rows,
    is exact.
    """
    count = min(count, data.train_count)
    batches = data.estimation_batches(-(-count // batch_size), batch_size)
    if team.size == 1:
        return torch.cat([images for images, _ in batches])[:count]
    whole = []
    for images, _ in batches:
        batch = images.new_zeros((batch_size, *images.shape[1:]))
        batch[rows(batch_size, team.rank_and_size).to(images.device)] = images
        whole.append(team.total(batch))
    return torch.cat(whole)[:count]
