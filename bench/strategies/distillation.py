"""Knowledge distillation: the network learns from the softened answers of a trained, frozen teacher.

Source: Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531, section
2. What is minimised is ``w T^2 H(softmax(z_T / T), softmax(z / T)) + (1 - w) L(z, y)`` with the teacher's
logits z_T, the network's logits z and the recipe's loss L on the labels y. Both softmaxes have the
temperature T in the first term, and L is computed at temperature 1. The factor T^2 keeps the size of the
first term's gradient when T changes.

The paper does not fix w and T: it asks for "a considerably lower weight" on the labels, and tried T from 1 to
20. The defaults here are w = 0.9 and T = 4. ``apprentice`` with the scheme B is the special case T = 1, w =
0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.networks import Network
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.distances import soft_cross_entropy

ENTRIES = [
    {
        "name": "distillation",
        "factory": "Distillation",
        "help": "Hinton's distillation: softened answers of a frozen teacher beside the labels",
        "title": "Distilling the Knowledge in a Neural Network",
        "arxiv": "1503.02531",
        "options": {
            "teacher": "shared",
            "temperature": {
                "default": 4.0,
                "above": 0,
                "help": "T of both softmaxes in the term of the teacher",
            },
            "weight": {
                "default": 0.9,
                "min": 0,
                "max": 1,
                "help": "w of the term of the teacher; the loss on the labels has 1 - w",
            },
        },
    }
]


class Distillation(Strategy):
    """The trial's network beside a frozen teacher, which gets no gradient and stays in evaluation mode."""

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        self.teacher = self.frozen("teacher", build, weights)

    def forward_only(self) -> list[Network]:
        return [self.teacher]

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        with torch.no_grad():
            targets = self.teacher(images)
        weight = self.options["weight"]
        soft = soft_cross_entropy(logits.float(), targets.float(), self.options["temperature"])
        return weight * soft + (1.0 - weight) * loss(logits, labels)

    def largest_loss(self, largest: float) -> float:
        """Return w max(1, T) L + (1 - w) L for L = ``largest``: such logits' soft term is at most T L."""
        weight = self.options["weight"]
        return weight * max(1.0, self.options["temperature"]) * largest + (1.0 - weight) * largest
