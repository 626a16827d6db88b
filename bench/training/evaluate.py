"""Accuracy of a network, counted in integers, and batch-norm statistics re-estimated."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.layers.diagnostics import in_evaluation

EVALUATION_BATCH = 256  # fixed: the batch size of an evaluation is part of what makes it reproducible


@dataclass(frozen=True)
class Accuracy:
    """Counts over a whole set; ``predicted[c]`` and ``labelled[c]`` are of the images of class c."""

    correct: int
    top5: int
    seen: int
    predicted: tuple[int, ...]
    labelled: tuple[int, ...]
    not_finite: int = 0  # images with a logit that is NaN or infinite

    @classmethod
    def of(cls, counts: list[int]) -> Accuracy:
        """Return what ``counts`` say, in the order of ``counts()``."""
        correct, top5, seen, not_finite, *histograms = counts
        classes = len(histograms) // 2
        return cls(correct, top5, seen, tuple(histograms[:classes]), tuple(histograms[classes:]), not_finite)

    def counts(self) -> list[int]:
        """Return the four numbers, then the images of each class as they are predicted and labelled."""
        return [self.correct, self.top5, self.seen, self.not_finite, *self.predicted, *self.labelled]

    @property
    def percent(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * self.correct / self.seen

    @property
    def percent_top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100.0 * self.top5 / self.seen

    def at_chance(self) -> bool:
        """Whether the network answers without regard to the image.

        Its accuracy is not more than 3 standard errors above the share of the commonest class, or over 90 %
        of its predictions are one class (always answering 1 scores 21.6 % on a digit set where 21.6 % are
        ones).
        """
        share = max(self.labelled) / self.seen
        error = (share * (1.0 - share) / self.seen) ** 0.5
        return self.correct / self.seen <= share + 3.0 * error or max(self.predicted) > 0.9 * self.seen


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Accuracy:
    """Return the counts of ``network`` as it stands (its clock says which form), in evaluation mode, fp32.

    ``batches`` yields images (B, 3, S, S) float32 and labels (B,) int64; counts are read from the device
    once.
    """
    totals: Tensor | None = None
    with in_evaluation(network):
        for images, labels in batches:
            logits = network(images)
            best = logits.topk(min(5, num_classes), dim=1).indices
            hits = best == labels[:, None]
            counts = torch.cat(
                [
                    torch.stack([hits[:, 0].sum(), hits.any(1).sum(), torch.ones_like(labels).sum()]),
                    (~torch.isfinite(logits)).any(1).sum()[None],
                    torch.bincount(best[:, 0], minlength=num_classes),
                    torch.bincount(labels, minlength=num_classes),
                ]
            )
            totals = counts if totals is None else totals + counts
    if totals is None:
        raise ValueError("nothing to evaluate: the set is empty")
    return Accuracy.of(totals.tolist())


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Replace the running statistics of every batch norm by their plain average over ``batches``, in place.

    Only batch norm is in training mode meanwhile: dropout and stochastic quantizers act as in evaluation.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, copy.deepcopy(norm.num_batches_tracked)) for norm in norms]
    with in_evaluation(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        for images, _ in batches:
            network(images)
    for norm, momentum, count in before:
        norm.momentum = momentum
        norm.num_batches_tracked = count
