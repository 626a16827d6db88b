"""Incremental quantization: the largest weights are quantized and frozen, portion by portion.

Source: Zhou, Yao, Guo, Xu and Chen, *Incremental Network Quantization: Towards Lossless CNNs with
Low-Precision Weights*, ICLR 2017, arXiv 1702.03044. Of each layer the largest weights by magnitude are
quantized and never changed again; the free ones stay in full precision and are trained to make up for it.
The accumulated portions are 50, 75, 87.5 and 100 percent (the paper's for ResNet-18 and VGG-16).

The paper's powers of two are the quantizer ``inq``; this strategy is the partition alone and takes any
quantizer. Two small parts fit what is there better than one: the levels are checked like those of every
quantizer, and the partition can be compared with other ways to the same levels. Before the share ``begin``
of all steps nothing is quantized; with ``begin = 0`` and the field ``start`` training begins from a trained
network, as in the paper. The last portion is frozen at the share ``until``; behind it batch norms and
full-precision layers are trained alone. The factor is the free share of the weights.

Differences: frozen weights keep their stored value and are quantized at each step, so that the scale of a
layer is that of all its weights in training and when deployed. With ``inq`` the largest weight fixes it,
which is frozen first; a free weight that reaches 1.5 times the highest level moves all levels. The authors'
code (github.com/AojunZhou/Incremental-Network-Quantization) finds the levels at each portion, from all
weights, and keeps the values in between. Each portion of theirs is a training of its own, with a new learning
rate and new moments, and none follows the last one; here both go on. Learned scales begin with the first
weights that are frozen, and are trained by the frozen weights. Activations are quantized from the first step
on, where the trial's bits say so; the paper leaves them in full precision.
"""

from __future__ import annotations

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.layers.low_precision import LowPrecisionLayer
from bench.layers.partition import Partition
from bench.networks import Network
from bench.schedules.times import shares_passed
from bench.strategies.base import Build, Strategy, Weights

ENTRIES = [
    {
        "name": "incremental",
        "factory": "Incremental",
        "help": "INQ: the largest weights are quantized and frozen, portion by portion",
        "title": "Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights",
        "arxiv": "1702.03044",
        "revision": 2,
        "options": {
            "portions": {
                "type": "floats",
                "default": [0.5, 0.75, 0.875, 1.0],
                "above": 0,
                "max": 1,
                "help": "shares of the weights that are frozen, one after the other; the last is 1",
            },
            "begin": {
                "default": 0.25,
                "min": 0,
                "below": 1,
                "help": "share of all steps before the first portion is frozen",
            },
            "until": {
                "default": 0.75,
                "above": 0,
                "below": 1,
                "help": "share of all steps before the last portion is frozen",
            },
            "bn_reestimate": "shared",
        },
    }
]


class Incremental(Strategy):
    """The partition of each low-precision layer's weights, and the steps at which portions are frozen."""

    def __init__(self, config: TrialConfig, steps_per_epoch: int) -> None:
        super().__init__(config, steps_per_epoch)
        portions, begin, until = (self.options[name] for name in ("portions", "begin", "until"))
        if portions != sorted(set(portions)) or portions[-1] != 1.0:
            raise InputError(f"strategy.portions: {portions}: expected rising shares, the last of them 1")
        if begin >= until:
            raise InputError(f"strategy.until: {until} must be above begin, {begin}")
        gap = (until - begin) / max(len(portions) - 1, 1)
        self.times = [*(begin + number * gap for number in range(len(portions) - 1)), until]

    def portion(self, step: int) -> float:
        """Return the share of the weights that is frozen at ``step``.

        Portion i is frozen from begin + i (until - begin) / (n - 1) on.
        """
        return [0.0, *self.options["portions"]][shares_passed(self.times, step, self.total_steps)]

    def factor(self, step: int) -> float:
        """Return the share of the weights that is still free."""
        return 1.0 - self.portion(step)

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        for layer in self._layers(network):
            layer.partition = Partition(layer.weight)

    def before_step(self, network: Network, step: int) -> None:
        portion, before = self.portion(step), self.portion(step - 1) if step else 0.0
        for layer in self._layers(network) if portion > before else ():
            assert layer.partition is not None
            if before == 0.0:  # until now no weight was scaled
                layer.quantizer.start_(layer.weight)
            layer.partition.freeze_(layer.weight, portion)

    @staticmethod
    def _layers(network: Network) -> list[LowPrecisionLayer]:
        return [layer for _, layer in network.low_precision_layers() if layer.quantizer.w_bits < 32]
