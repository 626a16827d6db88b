"""Networks small enough to compute by hand, and strategies that train them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.strategies import Strategy, make_strategy
from tests.configs import make_config

FULL = make_config(quantizer="full_precision", bits="32/32").dump()
IMAGES = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
LABELS = np.array([0, 1, 1])


class Linear(nn.Module):
    """logits = images @ weight: (B, 2) @ (2, 2)."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images @ self.weight


def images() -> Tensor:
    return torch.tensor(IMAGES)


def labels() -> Tensor:
    return torch.tensor(LABELS)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def strategy(
    kind: str, *networks: Linear, weights: Mapping[str, Any] | None = None, **options: Any
) -> Strategy:
    """Return a prepared strategy; ``networks`` are handed out in turn where it builds further ones."""
    made = make_strategy(make_config(strategy={"kind": kind, **options}), 5)
    waiting = iter(networks)
    made.prepare(Linear(np.eye(2)), lambda _config: next(waiting), weights or {})
    return made


# -- the same in NumPy, float64, written from the papers --


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


def hard(z: np.ndarray) -> float:
    """Return the cross entropy with the labels, the mean over the batch."""
    return -log_softmax(z)[np.arange(len(z)), LABELS].mean()


def hard_gradient(z: np.ndarray) -> np.ndarray:
    """Return the gradient of ``hard`` with respect to the logits."""
    return (softmax(z) - np.eye(2)[LABELS]) / len(z)


def kl(target: np.ndarray, z: np.ndarray) -> float:
    """Return KL(softmax(target) || softmax(z)), the mean over the batch."""
    return (softmax(target) * (log_softmax(target) - log_softmax(z))).sum(1).mean()
