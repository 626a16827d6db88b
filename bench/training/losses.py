"""The losses of the recipes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.experiments.config import TrialConfig
from bench.strategies import Loss


def squared_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``mean over batch and classes of max(0, 1 - t z)^2`` with t = +1 for the label's class, else -1.

    The loss of BNN (1602.02830, sec. 2). Logits (B, classes), labels (B,) int64, result 0-d.
    """
    targets = torch.full_like(logits, -1.0).scatter_(1, labels[:, None], 1.0)
    return (1.0 - targets * logits).clamp_min(0.0).square().mean()


def make_loss(config: TrialConfig) -> Loss:
    """Return the recipe's loss of (logits, labels), in float32 whatever the precision of the step."""
    if config.loss == "squared_hinge":
        return lambda logits, labels: squared_hinge(logits.float(), labels)
    smoothing = config.label_smoothing
    return lambda logits, labels: F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
