"""Distances between the outputs of two networks, which several strategies minimise. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 H(softmax(teacher / T), softmax(student / T))``, the mean over the batch.

    Both logits are (B, classes); the result is a 0-d tensor. The factor T^2 keeps the gradient's size
    (1503.02531, sec. 2).
    """
    target = torch.softmax(teacher / temperature, dim=1)
    return -(target * torch.log_softmax(student / temperature, dim=1)).sum(1).mean() * temperature**2


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``KL(softmax(teacher) || softmax(student))``, the mean over the batch.

    Both logits are (B, classes); the result is a 0-d tensor. The gradient reaches both.
    """
    log_q, log_p = torch.log_softmax(teacher, dim=1), torch.log_softmax(student, dim=1)
    return (log_q.exp() * (log_q - log_p)).sum(1).mean()


def half_squared_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return half the mean of the squared differences over all elements, 0-d; the gradient reaches both.

    The mean makes the weight of the term independent of the sizes of batch and feature maps.
    """
    return 0.5 * (one.float() - other.float()).square().mean()
