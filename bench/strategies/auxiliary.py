"""The full-precision auxiliary module: a second, full-precision way from every block to the labels.

Source: Zhuang, Liu, Tan, Shen and Reid, *Training Quantized Neural Networks with a Full-precision Auxiliary
Module*, CVPR 2020, arXiv 1903.11236. Each block p of the low-precision network hands on y_p. An adaptor
phi_p, a full-precision 1x1 convolution with batch norm, reads y_p, and the aggregation collects the adapted
outputs:

    g_0 = phi_0(y_0),   g_p = ReLU(g_(p-1) + phi_p(y_p)),   H = linear(mean over positions of g_P)

Where the channels or the size change, g_(p-1) first goes through a strided 1x1 convolution with batch norm.
What is minimised is ``L(F, labels) + w L(H, labels)`` with the network's logits F, the module's logits H and
w = 1. The second term reaches every block without going through the quantized layers behind it. The module
is thrown away at the end, so the deployed network is the low-precision one alone.

Read beside the paper: the authors' released code (github.com/1157942086/CVPR2020_Auxiliary_Quantization,
commit 1703204c7600), whose adaptors stand at the output of every block before its activation, the first one
without ReLU. Differences: there the network starts from trained full-precision weights (here: the field
``start``), and the module from weights trained with them; here the module begins anew. Where a size does not
divide (unpadded convolutions), the result of the strided convolution is cropped to the centre.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from bench.networks import Network
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.taps import Helper, Shape, Taps, block_inputs, class_count, pointwise, with_positions

ENTRIES = [
    {
        "name": "auxiliary",
        "factory": "Auxiliary",
        "help": "a full-precision module reads every block and has its own loss; dropped at the end",
        "title": "Training Quantized Neural Networks with a Full-precision Auxiliary Module",
        "arxiv": "1903.11236",
        "step_cost": [{"factor": 1.15}],
        "options": {
            "layers": {
                "type": "names",
                "default": None,
                "help": "layers whose input the module reads; null: one a block, and the classifier",
            },
            "weight": {"default": 1.0, "above": 0, "help": "w of the module's own loss"},
        },
    }
]


class AuxiliaryModule(Helper):
    """Adaptors, aggregation and classifier of the auxiliary module.

    ``shapes``: of what it reads from one image, (C, H, W) or (C,) each, in order. Maps these tensors with a
    batch dimension to logits (B, classes).
    """

    def __init__(self, shapes: list[Shape], classes: int) -> None:
        super().__init__()
        sizes = [(*shape, 1, 1)[:3] for shape in shapes]
        self.adaptors = nn.ModuleList([pointwise(channels, channels) for channels, _, _ in sizes])
        self.macs = sum(channels**2 * height * width for channels, height, width in sizes)
        changes: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            if before == after:
                changes.append(nn.Identity())
                continue
            stride = max(1, before[1] // after[1])
            changes.append(pointwise(before[0], after[0], stride))
            height, width = ((size - 1) // stride + 1 for size in before[1:])
            self.macs += before[0] * after[0] * height * width
        self.changes = nn.ModuleList(changes)
        self.linear = nn.Linear(sizes[-1][0], classes)
        self.macs += self.linear.weight.numel()

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map what the blocks hand on to logits (B, classes)."""
        first, *others = map(with_positions, features)
        gathered = self.adaptors[0](first)
        for change, adaptor, y in zip(self.changes, list(self.adaptors)[1:], others, strict=True):
            gathered = torch.relu(_cropped(change(gathered), y) + adaptor(y))
        return self.linear(gathered.mean((2, 3)))


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """Return the centre of ``x`` in the height and width of ``like``."""
    top, left = ((x.shape[d] - like.shape[d]) // 2 for d in (2, 3))
    return x[:, :, top : top + like.shape[2], left : left + like.shape[3]]


class Auxiliary(Strategy):
    """The trial's network with an ``AuxiliaryModule``, which is trained and checkpointed with it."""

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        layers = self.options["layers"] or block_inputs(network)
        self.taps = Taps(network, layers, "strategy.layers")
        self.module = AuxiliaryModule(self.taps.shapes(), class_count(network))

    def trained(self) -> dict[str, Helper]:
        return {"auxiliary": self.module}

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        return loss(logits, labels) + self.options["weight"] * loss(self.module(self.taps.take()), labels)

    def largest_loss(self, largest: float) -> float:
        """Return (1 + w) L for L = ``largest``."""
        return (1.0 + self.options["weight"]) * largest
