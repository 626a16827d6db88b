"""Deep mutual learning: networks that are trained together, each learning from the answers of the others.

Source: Zhang, Xiang, Hospedales and Lu, *Deep Mutual Learning*, arXiv 1706.00384, equations 4 to 9. With K
networks the k-th minimises ``L_k + w / (K - 1) sum over l != k of KL(p_l || p_k)``, p the softmax of the
logits at temperature 1 and w = 1. The answers of the others are constants of a network's gradient. The
trial's own network is the first one; it alone is evaluated and deployed.

The paper updates one network after the other and computes the answers anew in between. Here all networks
take their step at once from the same answers, which costs one forward pass for each network instead of two.
The peers differ in their initial weights, as in the paper; dropout and stochastic quantizers draw the same
numbers in layers of the same name. A peer is full precision unless ``peer`` says otherwise.

Read beside the paper: the authors' released code (github.com/YingZhangDUT/Deep-Mutual-Learning, commit
c3d6ff1ecae2), which takes the same direction of the divergence. Differences: it sums the divergences, where
the paper and this take their mean (``weight`` = K - 1 gives the sum), and each network has a batch of its
own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.experiments.config import TrialConfig
from bench.networks import Network
from bench.randomness import key_of
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.distances import divergence

ENTRIES = [
    {
        "name": "mutual",
        "factory": "Mutual",
        "help": "deep mutual learning: the network and its peers learn from the labels and from one another",
        "title": "Deep Mutual Learning",
        "arxiv": "1706.00384",
        "options": {
            "peers": {"default": 1, "min": 1, "max": 16, "help": "networks beside the trial's own"},
            "peer": {
                "type": "teacher",
                "default": {},
                "joint_with": {},
                "copies": "peers",
                "cost": {"joint": 1.0},
                "help": "the fields in which a peer differs from the arm's own network in full precision",
            },
            "weight": {
                "default": 1.0,
                "min": 0,
                "help": "w of the mean divergence from the answers of the others",
            },
        },
    }
]


class Mutual(Strategy):
    """The trial's network and ``peers`` further ones; the loss is the sum of what each minimises."""

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        peer = TrialConfig.model_validate(self.options["peer"])
        self.peers = [
            build(peer.model_copy(update={"seed": key_of(peer.seed, "peer", number)}))
            for number in range(1, self.options["peers"] + 1)
        ]

    def trained(self) -> dict[str, Network]:
        return {f"peer{number}": peer for number, peer in enumerate(self.peers, 1)}

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        answers = [logits, *(peer(images) for peer in self.peers)]
        terms = []
        for own in answers:
            others = [divergence(own.float(), a.detach().float()) for a in answers if a is not own]
            terms.append(loss(own, labels) + self.options["weight"] * torch.stack(others).mean())
        return torch.stack(terms).sum()

    def largest_loss(self, largest: float) -> float:
        """Return K (1 + w) L for L = ``largest``: no divergence is above the cross entropy of its logits."""
        return (1 + self.options["peers"]) * (1.0 + self.options["weight"]) * largest
