"""The data's interface for the training loop: images on the device, or photographs read when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batches(Protocol):
    """The images of one trial.

    A batch is a function of the seed and the global step, so a resumed trial has no state to restore. Images
    of a batch are float32 (B, 3, S, S) in channels-last memory, labels are int64 (B,), both on ``device``.
    With several workers, each has its own rows of a training batch and every n-th batch of an evaluation.
    ``resident``: all images lie on the device, so ``prepare`` may be compiled and recorded with the step.
    """

    train_count: int
    holdout_count: int
    test_count: int
    num_classes: int
    batch_size: int
    steps_per_epoch: int
    device: torch.device
    resident: bool

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        """Return the inputs of ``prepare`` for the training batch of the global ``step`` (from 0)."""

    @property
    def prepare(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The function that returns the augmented batch, given ``*inputs(step)`` and the 0-d step."""

    def train_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the training batch of the global ``step``: ``prepare(*inputs(step), step)``."""

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the test images in their order; the last batch may be smaller."""

    def holdout_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the held-out training images, un-augmented; nothing where ``holdout`` is 0."""

    def estimation_batches(self, count: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over ``count`` un-augmented training batches in an order of the seed, over and over."""
