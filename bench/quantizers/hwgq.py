"""HWGQ: activations quantized as the positive half of a Gaussian (arXiv 1702.00953)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.bwn import BWN
from bench.quantizers.deployed import ActivationMap, level_table
from bench.quantizers.functional import compute_dtype, inside, to_levels, with_slope

ENTRIES = [
    {
        "name": "hwgq",
        "factory": "HWGQ",
        "help": "activations on the levels that suit half a Gaussian best, clipped gradient; BWN's weights",
        "title": "Deep Learning with Low Precision by Half-wave Gaussian Quantization",
        "arxiv": "1702.00953",
        "options": {
            "uniform": {
                "default": True,
                "help": "equally spaced levels; false: the levels of Lloyd's algorithm, without that "
                "constraint",
            }
        },
        "w_bits": [1],
        "a_bits": [1, 2, 3, 4, 32],
    }
]

# Minimisers of E (q(x) - x)^2 over a standard normal x > 0, by Lloyd's iteration to 1e-10. k bits have 2^k -
# 1 positive levels. A test finds them again. The released network has 0.538 at 2 bits.
UNIFORM_STEPS = {1: 0.7978845608, 2: 0.5388119234, 3: 0.3217289091, 4: 0.1842433428}
FREE_LEVELS = {
    1: (0.7978845608,),
    2: (0.3177163693, 1.0001060462, 1.8935948116),
    3: (0.1457062441, 0.4413208894, 0.750442618, 1.0856353125, 1.467528268, 1.9386124065, 2.6250625082),
    4: (
        *(0.0701552458, 0.2109280945, 0.3531096295, 0.4977137046, 0.6458762918, 0.7989269803, 0.9584903552),
        *(1.1266398575, 1.3061468361, 1.5009123335, 1.7167788628, 1.9632237951, 2.2574403196, 2.6366142042),
        3.2135622376,
    ),
}


def half_gaussian_levels(bits: int, uniform: bool) -> tuple[float, ...]:
    """Return the 2^bits - 1 positive levels, rising; the lowest level of the quantizer is 0."""
    if uniform:
        return tuple(UNIFORM_STEPS[bits] * code for code in range(1, 2**bits))
    return FREE_LEVELS[bits]


class HWGQ(BWN):
    """Half-wave Gaussian quantization (arXiv 1702.00953).

    activation:  0 where x <= 0, else the nearest of the positive levels (eq. 9); so a small positive x
                 becomes the lowest positive level. The levels minimise the squared error over the positive
                 half of a standard normal variable (eq. 10), equally spaced by default. Gradient: that of
                 the clipped ReLU, 1[0 < x <= highest level] (eq. 14 and section 4.2.1).
    bound:       the clipped ReLU, min(max(x, 0), highest level); ReLU at 32 bits
    weight:      BWN's, alpha sign(w)

    Levels and gradient of the activations are those of the authors' Caffe layer, compared formula by formula
    (github.com/zhaoweicai/hwgq, src/caffe/layers/quant_layer.cpp, commit f0b1945). Of the weights that is
    true of the levels alone: its binary_conv_layer.cpp passes their gradient straight. The inputs are taken
    to be normal, which batch norm in front of the activation sees to; that of the authors' networks has no
    learned scale and shift. The paper uses 2 bits.
    """

    levels: Tensor
    thresholds: Tensor

    def __init__(self, *args: Any, uniform: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.a_bits < 32:
            levels = torch.tensor((0.0, *half_gaussian_levels(self.a_bits, uniform)))
            middles = (levels[1:-1] + levels[2:]) / 2.0
            self.set_table(torch.cat([torch.zeros(1), middles]), levels)

    def set_table(self, thresholds: Tensor, levels: Tensor) -> None:
        """Set the levels of the activations, (2^k,), and the thresholds between them, (2^k - 1,)."""
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("thresholds", thresholds, persistent=False)

    def bound_map(self) -> ActivationMap:
        """Return the clipped ReLU; ReLU at 32 bits."""
        if self.a_bits == 32:
            return ActivationMap("relu")
        return ActivationMap("clip", 0.0, float(self.levels[-1]))

    def activation_map(self) -> ActivationMap:
        """Return the table of the levels; ReLU at 32 bits."""
        if self.a_bits == 32:
            return self.bound_map()
        return level_table(self.thresholds, self.levels)

    def bound(self, x: Tensor) -> Tensor:
        """Return the clipped ReLU, any shape; ReLU at 32 bits."""
        if self.a_bits == 32:
            return torch.relu(x)
        real = x.detach().to(compute_dtype(x))
        return with_slope(x, real.clamp_min(0.0).minimum(self.levels[-1]), self._slope(real))

    def _slope(self, real: Tensor) -> Tensor:
        return inside(real, 0.0, self.levels[-1]) * (real > 0)

    def activation(self, x: Tensor) -> Tensor:
        if self.a_bits == 32:
            return torch.relu(x)
        return with_slope(x, to_levels(x, self.thresholds, self.levels), self._slope(x.detach()))
