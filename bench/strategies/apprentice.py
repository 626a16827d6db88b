"""Apprentice: knowledge distillation from a full-precision teacher.

Source: Mishra and Marr, *Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision
Network Accuracy*, arXiv 1711.05852, equation 1:  ``alpha H(y, p_T) + beta H(y, p_A) + gamma H(z_T, p_A)``
with alpha = 1, beta = gamma = 0.5.

Scheme A trains teacher and apprentice jointly from scratch; B takes a trained, frozen teacher (the alpha
term is then constant and left out); C is B from the weights of the full-precision apprentice, fine-tuned
(give it a smaller learning rate). The paper uses the teacher's logits z_T without softening: temperature 1
here, where ``H(z_T, p_A)`` is read as the cross entropy between softmax(z_T / T) and softmax(z_A / T), times
T^2 as in Hinton et al. (1503.02531). ``soft_loss = "mse"`` compares the logits themselves (Ba and Caruana,
1312.6184). Not stated in the paper and chosen here: in scheme A no gradient flows from the gamma term into
the teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.experiments.roles import joint_roles, needed_roles
from bench.networks import Network
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.distances import soft_cross_entropy

ENTRIES = [
    {
        "name": "apprentice",
        "factory": "Apprentice",
        "help": "distillation from a full-precision teacher: A jointly, B from a frozen one, C fine-tuned "
        "as well",
        "title": "Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network "
        "Accuracy",
        "arxiv": "1711.05852",
        "options": {
            "scheme": {
                "type": "str",
                "choices": ["A", "B", "C"],
                "help": "A joint, B frozen teacher, C fine-tuning",
            },
            "teacher": {
                "type": "teacher",
                "default": {},
                "joint_with": {"scheme": ["A"]},
                "cost": {"joint": 1.0, "frozen": 0.3333},
                "help": "the fields in which the full-precision teacher differs from the apprentice's own "
                "network",
            },
            "start": {
                "type": "teacher",
                "default": {},
                "only_with": {"scheme": ["C"]},
                "help": "scheme C: the fields in which the training of the full-precision start differs",
            },
            "alpha": {
                "default": 1.0,
                "min": 0,
                "only_with": {"scheme": ["A"]},
                "help": "scheme A: weight of the teacher's own loss",
            },
            "beta": {"default": 0.5, "min": 0, "help": "weight of the loss on the labels"},
            "gamma": {"default": 0.5, "min": 0, "help": "weight of the loss on the teacher's output"},
            "temperature": {
                "default": 1.0,
                "above": 0,
                "only_with": {"soft_loss": ["cross_entropy"]},
                "help": "of both softmaxes in the gamma term",
            },
            "soft_loss": {
                "choices": ["cross_entropy", "mse"],
                "default": "cross_entropy",
                "help": "the gamma term: cross entropy of the softmaxes, or squared distance of the logits",
            },
        },
    }
]


class Apprentice(Strategy):
    """Schemes A, B and C of the paper."""

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        self.joint = "teacher" in joint_roles(self.options)
        self.teacher = (
            self.further("teacher", build) if self.joint else self.frozen("teacher", build, weights)
        )
        if "start" in needed_roles(self.options):
            _load_start(network, weights["start"])

    def trained(self) -> dict[str, Network]:
        return {"teacher": self.teacher} if self.joint else {}

    def forward_only(self) -> list[Network]:
        return [] if self.joint else [self.teacher]

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        options = self.options
        if self.joint:
            targets = self.teacher(images)
        else:
            with torch.no_grad():
                targets = self.teacher(images)
        fixed = targets.detach().float()
        if options["soft_loss"] == "mse":
            soft = F.mse_loss(logits.float(), fixed)
        else:
            soft = soft_cross_entropy(logits.float(), fixed, options["temperature"])
        total = options["beta"] * loss(logits, labels) + options["gamma"] * soft
        return total + options["alpha"] * loss(targets, labels) if self.joint else total

    def largest_loss(self, largest: float) -> float:
        """Return the weighted sum of the terms' largest values.

        With logits of size L = ``largest``, the soft cross entropy at temperature T is at most T^2 (L / T) =
        T L, and the squared distance of two networks' logits at most (2 L)^2.
        """
        options = self.options
        soft = (
            (2.0 * largest) ** 2
            if options["soft_loss"] == "mse"
            else max(1.0, options["temperature"]) * largest
        )
        own = options["alpha"] * largest if self.joint else 0.0
        return own + options["beta"] * largest + options["gamma"] * soft


def _load_start(network: Network, weights: dict[str, Tensor]) -> None:
    """Copy the full-precision weights into ``network``; what its quantizers learn keeps its start."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    absent = [name for name in missing if "quantizer" not in name]
    if absent or unexpected:
        raise ValueError(f"the full-precision start does not fit the network: {[*absent, *unexpected][:3]}")
