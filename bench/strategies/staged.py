"""Precision that falls in stages, alone or guided by a full-precision twin.

Source: Zhuang, Shen, Tan, Liu and Reid, *Towards Effective Low-bitwidth Convolutional Neural Networks*, CVPR
2018, arXiv 1711.00205. Its three methods are

    two-step      weights first, then activations as well: ``stages = ["1/32"]`` for a network of 1/1 bits
    progressive   bit widths that fall, 32 -> 16 -> 8 -> 4 -> 2: ``stages = ["32/32", "8/8", "4/4"]`` for 2/2
    guided        a full-precision twin is trained beside the network, each drawn to the other's feature maps

and any of them together. Each of n stages takes 1/n of the first ``until`` of all steps; then the bit widths
are the trial's own. So every arm has the same number of steps, where the paper trains each stage to its end;
the learning rate goes on as the recipe says, and so do the optimizer's moments. The paper begins with trained
full-precision weights, in the network (here: the field ``start``) and in the twin, which here begins anew
with the initial weights of a network of the same seed. The factor is the share of stages still to come, 0 in
the last one: while it is above 0, "expanded" accuracies are of the network at the stage's bit widths,
deployed ones of the trial's own.

Guided, what is minimised is ``L(network) + L(twin) + lambda R``, R half the mean squared difference of the
activations that the layers in ``layers`` read, quantized in the network and bounded in the twin; the
gradient of R reaches both, as in the paper. The paper sums where this takes the mean, so that lambda does
not depend on the sizes.

16 bits are not a width of the suite's quantizers: rounding to 65,536 levels is no more than float32 training
noise. A width between 32 and the trial's own needs a quantizer without learned scales, since a scale learned
for one width has no meaning at another. A stage of 32 and own widths alone takes every quantizer.

``stages = ["32/32"]`` alone is delayed quantization (brevitas' ``quant_delay_steps``): full precision up to
a step, and the trial's own bit widths behind it. Activations are bounded from the start; brevitas clips
them from that step on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig, parse_bits, short_bits
from bench.experiments.options import keywords
from bench.layers.activation_input import Quantizing
from bench.networks import Network
from bench.quantizers import FullPrecisionWeights, Interim, Quantizer, make_quantizer
from bench.schedules.times import shares_passed
from bench.strategies.base import Build, Loss, Strategy, Weights
from bench.strategies.distances import half_squared_distance
from bench.strategies.taps import Taps, block_inputs

ENTRIES = [
    {
        "name": "staged",
        "factory": "Staged",
        "help": "Zhuang et al.: weights first, then activations; or falling bit widths; a twin may guide",
        "title": "Towards Effective Low-bitwidth Convolutional Neural Networks",
        "arxiv": "1711.00205",
        "revision": 3,
        "options": {
            "stages": {
                "type": "names",
                "default": None,
                "repeats": True,
                "help": 'bit widths "W/A" of the stages before the trial\'s own, in order; null: none',
            },
            "until": {
                "default": 0.5,
                "above": 0,
                "below": 1,
                "help": "share of all steps that the stages take together",
            },
            "guided": {"default": False, "help": "train a full-precision twin as well"},
            "twin": {
                "type": "teacher",
                "default": {},
                "joint_with": {"guided": [True]},
                "only_with": {"guided": [True]},
                "cost": {"joint": 1.0},
                "help": "the fields in which the twin differs from the arm's own network in full precision",
            },
            "guidance": {
                "default": 1.0,
                "min": 0,
                "only_with": {"guided": [True]},
                "help": "lambda of the distance between the feature maps of both",
            },
            "layers": {
                "type": "names",
                "default": None,
                "only_with": {"guided": [True]},
                "help": "layers whose input is compared; null: the classifier and the last block before it",
            },
            "bn_reestimate": "shared",
        },
    }
]


class Stages(Strategy):
    """The network at the bit widths of its stages: ``widths`` in order, then the trial's own.

    Layers in full precision, such as the last one of a converted network, stay so in every stage.

    A subclass has the options ``until`` and ``bn_reestimate``.
    """

    def __init__(self, config: TrialConfig, steps_per_epoch: int, stages: Sequence[str]) -> None:
        super().__init__(config, steps_per_epoch)
        self.widths = [_widths(text, config) for text in stages]

    def stage(self, step: int) -> int:
        count, until = len(self.widths), self.options["until"]
        return shares_passed(
            (until * number / count for number in range(1, count + 1)), step, self.total_steps
        )

    def factor(self, step: int) -> float:
        """Return the share of stages that are still to come, 1 in the first and 0 in the last."""
        count = len(self.widths)
        return (count - self.stage(step)) / count if count else 0.0

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        device = next(network.parameters()).device
        for module in network.modules():
            if isinstance(module, Quantizing) and type(module.quantizer) is not Quantizer:
                module.interims = tuple(self._interim(module.quantizer, w, a, device) for w, a in self.widths)

    def before_step(self, network: Network, step: int) -> None:
        """Start the learned scales of the weights anew at the step from which on they are quantized."""
        if step and self._full(step - 1) and not self._full(step):
            for _, layer in network.low_precision_layers():
                layer.quantizer.start_(layer.weight)

    def _full(self, step: int) -> bool:
        """Return whether the weights are full precision at ``step``."""
        stage = self.stage(step)
        return stage < len(self.widths) and self.widths[stage][0] == 32

    def _interim(self, own: Quantizer, w_bits: int, a_bits: int, device: torch.device) -> Quantizer:
        """Return what quantizes at these widths what ``own`` quantizes at the trial's."""
        own_w, own_a, g_bits = self.config.bit_widths
        if w_bits in (32, own_w) and a_bits in (32, own_a):
            return Interim(own, w_bits, a_bits)
        kind, bits = self.config.quantizer["kind"], short_bits(self.config.bits)
        if own.state_dict():
            raise InputError(
                f"strategy.stages: '{w_bits}/{a_bits}': the quantizer '{kind}' learns scales, which have "
                f"no meaning at other widths; take 32 and the trial's own {bits} alone"
            )
        made: Quantizer = make_quantizer(
            kind,
            own_w if w_bits == 32 else w_bits,
            own_a if a_bits == 32 else a_bits,
            g_bits,
            **keywords(self.config.quantizer),
        ).to(device)
        made.draws = own.draws
        return Interim(
            FullPrecisionWeights(made) if isinstance(own, FullPrecisionWeights) else made, w_bits, a_bits
        )


class Staged(Stages):
    """The network at the bit widths of its stages, and where ``guided`` its twin."""

    def __init__(self, config: TrialConfig, steps_per_epoch: int) -> None:
        super().__init__(config, steps_per_epoch, config.strategy["stages"] or ())
        self.guided = self.options["guided"]
        if not self.widths and not self.guided:
            raise InputError("strategy: stages or guided = true is needed; without both it is plain training")

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        super().prepare(network, build, weights)
        if self.guided:
            self.twin = self.further("twin", build)
            layers = self.options["layers"] or block_inputs(network)[-2:]
            self.taps = [Taps(one, layers, "strategy.layers") for one in (network, self.twin)]
            own, other = (taps.shapes() for taps in self.taps)
            if own != other:
                raise InputError(f"strategy.twin: its layers read {other} where the network's read {own}")

    def trained(self) -> dict[str, Network]:
        return {"twin": self.twin} if self.guided else {}

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor, loss: Loss) -> Tensor:
        if not self.guided:
            return loss(logits, labels)
        answer = self.twin(images)
        own, other = ([layer.activate(y, again=True) for layer, y in taps.read()] for taps in self.taps)
        pairs = zip(own, other, strict=True)
        distance = torch.stack([half_squared_distance(one, two) for one, two in pairs]).sum()
        return loss(logits, labels) + loss(answer, labels) + self.options["guidance"] * distance

    def largest_loss(self, largest: float) -> float:
        """Return L for L = ``largest``; guided 2 L and, for each compared layer, lambda (2 L)^2 / 2."""
        if not self.guided:
            return largest
        compared = len(self.options["layers"] or (0, 0))
        return 2.0 * largest + compared * self.options["guidance"] * 0.5 * (2.0 * largest) ** 2


def _widths(text: str, config: TrialConfig) -> tuple[int, int]:
    """Return (weight, activation) bits of a stage; raises ``InputError`` for widths without quantizer."""
    w_bits, a_bits, g_bits = parse_bits(text, "strategy.stages")
    kind = config.quantizer["kind"]
    facts = registry.get("quantizers", kind).facts
    for bits, name, what in ((w_bits, "w_bits", "weights"), (a_bits, "a_bits", "activations")):
        if bits != 32 and bits not in facts[name]:
            known = ", ".join(map(str, sorted({*facts[name], 32})))
            raise InputError(f"strategy.stages: {text!r}: quantizer '{kind}' takes {known} bits of {what}")
    if g_bits != 32 or (w_bits, a_bits) == config.bit_widths[:2]:
        raise InputError(f'strategy.stages: {text!r}: expected "W/A", other than the trial\'s own bits')
    return w_bits, a_bits
