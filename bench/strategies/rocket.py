"""Rocket launching: a full-precision booster is trained beside the network and shares its lowest layer.

Source: Zhou, Fan, Cui, Bian, Zhu and Gai, *Rocket Launching: A Universal and Efficient Framework for Training
Well-performing Light Net*, AAAI 2018, arXiv 1708.04106. What is minimised is

    L(z, y) + L(b, y) + lambda ||z - b||^2

with the network's logits z and the booster's logits b; the squared distance is a sum over the classes and a
mean over the batch. The gradient block keeps the third term from changing the booster: b is a constant of
it, so that its gradient reaches the network alone and, through the network, the shared layers. With ``block
= false`` the term reaches both.

Here the network is the light net because of its precision, not its depth: the booster is the arm's own
network in full precision, and what both share is the first convolution, which is full precision in both.
``shared`` names other modules; the weights of low-precision layers can be shared, too, and are then
quantized in the network alone. Batch norms of shared modules share scale and shift; running statistics are
each network's own. Layers of the same name begin with the same weights, shared or not.

Read beside the paper: the authors' released code (github.com/zhougr1993/Rocket-Launching, README at commit
012a6cf80467). The loss and the gradient block are the same. Differences: all of its commands take lambda =
0.03, where the default here is 1; give ``weight = 0.03`` to do as the authors did. It shares convolutions
alone, of whole groups of blocks, and each network has batch norms of its own; names of convolutions in
``shared`` do so, too.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.errors import InputError, nearest
from bench.networks import Network
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.taps import class_count

ENTRIES = [
    {
        "name": "rocket",
        "factory": "Rocket",
        "help": "rocket launching: a full-precision booster beside the network, with the same lowest layer",
        "title": "Rocket Launching: A Universal and Efficient Framework for Training Well-performing "
        "Light Net",
        "arxiv": "1708.04106",
        "options": {
            "booster": {
                "type": "teacher",
                "default": {},
                "joint_with": {},
                "cost": {"joint": 1.0},
                "help": "fields in which the booster differs from the arm's network in full precision",
            },
            "weight": {"default": 1.0, "min": 0, "help": "lambda of the distance"},
            "block": {"default": True, "help": "keep the distance from changing the booster"},
            "shared": {
                "type": "names",
                "default": None,
                "help": "modules whose weights both networks share; null: the first convolution",
            },
        },
    }
]


class Rocket(Strategy):
    """The trial's network and its booster, trained together."""

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        self.booster = self.further("booster", build)
        self.classes = class_count(network)
        for name in self.options["shared"] or _first_convolution(network):
            share_parameters(network, self.booster, name)

    def trained(self) -> dict[str, Network]:
        return {"booster": self.booster}

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        answer = self.booster(images)
        target = answer.detach() if self.options["block"] else answer
        distance = (logits.float() - target.float()).square().sum(1).mean()
        return loss(logits, labels) + loss(answer, labels) + self.options["weight"] * distance

    def largest_loss(self, largest: float) -> float:
        """Return 2 L + lambda C (2 L)^2 for L = ``largest`` and C classes."""
        return 2.0 * largest + self.options["weight"] * self.classes * (2.0 * largest) ** 2


def share_parameters(network: nn.Module, booster: nn.Module, name: str) -> None:
    """Let the module ``name`` of ``booster`` have the parameters of that of ``network``.

    Raises ``InputError`` for a name that a network does not have and for parameters of other names or shapes.
    """
    for one, what in ((network, "the network"), (booster, "the booster")):
        known = dict(one.named_modules())
        if not name or name not in known:
            raise InputError(f"strategy.shared: {what} has no module called '{name}'{nearest(name, known)}")
    mine, other = network.get_submodule(name), booster.get_submodule(name)
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (mine, other)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise InputError(
            f"strategy.shared: '{name}' has parameters of {shapes[0]} and, in the booster, {shapes[1]}"
        )
    for path, parameter in mine.named_parameters():
        module, _, last = path.rpartition(".")
        setattr(other.get_submodule(module), last, parameter)


def _first_convolution(network: nn.Module) -> list[str]:
    """Return the name of the full-precision first convolution; raises ``InputError`` without one."""
    for name, module in network.named_modules():
        if getattr(module, "full_precision_reason", None) == "the first convolution":
            return [name]
    raise InputError(
        "strategy.shared: the network has no full-precision first convolution; name what is shared"
    )
