"""FitNets: the network first learns to give a teacher's middle features, then its answers.

Source: Romero, Ballas, Kahou, Chassang, Gatta and Bengio, *FitNets: Hints for Thin Deep Nets*, ICLR 2015,
arXiv 1412.6550. Two stages, one after the other (algorithm 1):

    hints         (1/2) ||u - r(v)||^2 (eq. 3), u what the teacher's hint layer gives, v the network's guided
                  layer, r a convolutional regressor with the nonlinearity of the hint layer. What lies behind
                  the guided layer gets no gradient.
    distillation  H(y, p) + lambda H(p_T, p) (eq. 4), the second term at temperature 3; lambda falls linearly
                  from 4 at the first step of the stage to 1 at the last one of the trial (section 3.1).

Both layers are named by the layer that reads them; the default is the middle one of the blocks, in the
network as in the teacher. v is what that layer reads bounded, not quantized. The first stage takes the share
``until`` of all steps, where the paper trains it until the hints stop getting better; the squared distance
is a mean over all elements, where the paper sums. Where the feature maps of the network are larger than the
teacher's, the regressor's kernel takes up the difference (section 2.2).

Read beside the paper: the authors' released code (github.com/adri-romsor/FitNets, commit 1402bfd79f7f).
Differences: it puts no regressor between layers of equal channels and size, where the network is compared
with the teacher channel by channel; here a regressor always stands there, of one pixel then. Its second stage
is a training of its own, with a new learning rate and new moments; here both go on. ``train_flops`` counts
every step as a step of the whole network and the regressor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.errors import InputError
from bench.networks import Network
from bench.randomness import Clock
from bench.schedules.times import shares_passed
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.distances import half_squared_distance, soft_cross_entropy
from bench.strategies.taps import Helper, Shape, Taps, block_inputs, with_positions

ENTRIES = [
    {
        "name": "fitnets",
        "factory": "FitNets",
        "help": "FitNets: hints from a frozen teacher's middle features first, then distillation",
        "title": "FitNets: Hints for Thin Deep Nets",
        "arxiv": "1412.6550",
        "options": {
            "teacher": "shared",
            "until": {
                "default": 0.25,
                "above": 0,
                "below": 1,
                "help": "share of all steps that the stage of hints takes",
            },
            "hint": {
                "type": "str",
                "default": None,
                "help": "the teacher's layer that reads the hint; null: that of the middle block",
            },
            "guided": {
                "type": "str",
                "default": None,
                "help": "the network's layer that reads what is guided; null: that of the middle block",
            },
            "temperature": {"default": 3.0, "above": 0, "help": "of both softmaxes"},
            "first_lambda": {"default": 4.0, "min": 0, "help": "lambda where distillation begins"},
            "last_lambda": {"default": 1.0, "min": 0, "help": "lambda at the end"},
        },
    }
]


class Regressor(Helper):
    """A convolution from the guided layer's features to the hint's size, without padding, with a bias."""

    def __init__(self, guided: Shape, hint: Shape) -> None:
        super().__init__()
        (channels, height, width), (wanted, *size) = (*guided, 1, 1)[:3], (*hint, 1, 1)[:3]
        if height < size[0] or width < size[1]:
            raise InputError(f"strategy.guided: its features, {guided}, are smaller than the hint's, {hint}")
        kernel = (height - size[0] + 1, width - size[1] + 1)
        self.conv = nn.Conv2d(channels, wanted, kernel)
        self.macs = self.conv.weight.numel() * size[0] * size[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) or (B, C) to the hint's channels and size, (B, C', H', W')."""
        return self.conv(with_positions(x))


class FitNets(Strategy):
    """The network with a regressor in the stage of hints, and with the teacher's answers behind it."""

    HINTS, DISTILLATION = 0, 1

    def stage(self, step: int) -> int:
        return shares_passed([self.options["until"]], step, self.total_steps)

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        self.teacher = self.frozen("teacher", build, weights)
        hint = self.options["hint"] or _middle(self.teacher)
        guided = self.options["guided"] or _middle(network)
        self.hints = Taps(self.teacher, [hint], "strategy.hint", frozen=True)
        self.guided = Taps(network, [guided], "strategy.guided")
        self.regressor = Regressor(*self.guided.shapes(), *self.hints.shapes())
        self.clock: Clock = self.guided.layers[guided].layer.clock
        self.first = next(step for step in range(self.total_steps) if self.stage(step) == self.DISTILLATION)

    def trained(self) -> dict[str, Helper]:
        return {"regressor": self.regressor}

    def forward_only(self) -> list[Network]:
        return [self.teacher]

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        with torch.no_grad():
            answer = self.teacher(images)
        [(reader, hint)], [(layer, features)] = self.hints.read(), self.guided.read()
        if self.clock.stage == self.HINTS:
            found = reader.bounded(self.regressor(layer.bounded(features)))
            return half_squared_distance(found, with_positions(reader.bounded(hint)))
        temperature = self.options["temperature"]
        soft = soft_cross_entropy(logits.float(), answer.float(), temperature) / temperature**2
        return loss(logits, labels) + self.distillation_weight() * soft

    def distillation_weight(self) -> Tensor:
        """Return lambda at the clock's step, float32 of shape ()."""
        first, last = self.options["first_lambda"], self.options["last_lambda"]
        steps = max(self.total_steps - 1 - self.first, 1)
        return first + (last - first) * (self.clock.step.float() - self.first) / steps

    def largest_loss(self, largest: float) -> float:
        """Return the larger one of both stages' largest values.

        For logits and features of size L = ``largest``: (2 L)^2 / 2 of the hints; L + lambda L / T of
        distillation.
        """
        share = max(self.options["first_lambda"], self.options["last_lambda"])
        distillation = largest + share * max(1.0, 1.0 / self.options["temperature"]) * largest
        return max(0.5 * (2.0 * largest) ** 2, distillation)


def _middle(network: nn.Module) -> str:
    """Return the layer that reads the output of the middle block."""
    names = block_inputs(network)
    return names[len(names) // 2]
