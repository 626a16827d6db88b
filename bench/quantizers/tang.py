"""Compact binary networks (AAAI 2017): PReLU, bipolar weights, several binarizations."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import bipolar, channelwise, compute_dtype, inside, with_slope
from bench.quantizers.shared import SignWeights

ENTRIES = [
    {
        "name": "tang",
        "factory": "Tang",
        "help": "sign(w) pushed to +-1 by a penalty; PReLU, then as many binarizations of what is left as "
        "A has bits",
        "title": "How to Train a Compact Binary Neural Network with High Accuracy? (AAAI 2017)",
        "options": {
            "bipolar": {
                "default": 5e-7,
                "min": 0.0,
                "help": "coefficient d of the penalty d sum(1 - w^2) on the stored weights",
            },
            "slope": {"default": 0.25, "help": "what the learned slopes of PReLU start at"},
        },
        "w_bits": [1],
        "a_bits": [1, 2, 3, 4],
        "revision": 3,
    }
]


LARGEST = 2.0**106  # of what is binarized several times, so that means of magnitudes are finite


def residual_signs(x: Tensor, count: int) -> Tensor:
    """Return the sum of ``count`` scaled signs, each of what the ones before leave; no gradient.

    r_0 = x, r_i = r_(i-1) - m_i sign(r_(i-1)), m_i the mean |r_(i-1)| of the sample (of all numbers of a
    vector); returned is the sum of m_i sign(r_(i-1)), of x clipped to +-2^106. One sign alone is not
    scaled.
    """
    if count == 1:
        return bipolar(x)
    left, total = x.clamp(-LARGEST, LARGEST), torch.zeros_like(x)
    axes = tuple(range(1, x.dim())) or (0,)
    for _ in range(count):
        part = left.abs().mean(axes, keepdim=True) * bipolar(left)
        left, total = left - part, total + part
    return total


class Tang(SignWeights):
    """Tang et al. 2017, "How to train a compact binary neural network with high accuracy?".

    weight:       sign(w) without a scale, sign(0) = +1, gradient 1[|w| <= 1]
    penalty:      d sum(1 - w^2), which pushes the weights to +1 and -1 (instead of L2 decay, which pulls to
                  0)
    after_step_:  clips the stored weights to [-1, 1], where the penalty is least
    bound:        PReLU, its slope a parameter for each channel of the input
    activation:   ``residual_signs`` of the bound, k of them for k bits; gradient 1[|z| <= 1] for one, and
                  straight through for more, whose sum approximates the identity

    PReLU stands where the suite's networks have their activation, behind the batch norm; in the paper it
    stands behind the convolution, where its slope absorbs the scale of the weights, and batch norm and sign
    follow. The last layer is full precision here; the paper binarizes it and puts one learned scale behind
    it. The low learning rate that the paper asks for is the recipe's. Only the paper's abstract could be seen
    when this was checked, and no code of the authors. The abstract names PReLU, the bipolar regulariser,
    the low learning rate, the scale behind the last layer and several binarizations of the activations. The
    form of the penalty, its default 5e-7 and the scale of each binarization, the mean of a sample, were
    written from memory of the paper.
    """

    slope: nn.Parameter
    read_by: ClassVar = {"slope": ("bound", "activation")}

    def __init__(self, *args: Any, bipolar: float = 5e-7, slope: float = 0.25, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.penalty, self.initial_slope = bipolar, slope
        self.create_input_parameters(1)

    def create_input_parameters(self, channels: int, device: Any = None) -> None:
        """Create the slopes of PReLU, of shape (channels,)."""
        self.slope = nn.Parameter(torch.full((channels,), self.initial_slope, device=device))

    def bound_map(self) -> ActivationMap:
        """Return PReLU."""
        return ActivationMap("prelu", tensors={"slope": self.slope.detach()})

    def activation_map(self) -> ActivationMap:
        """Return the sum of signs of PReLU."""
        return ActivationMap("residual", bits=self.a_bits, tensors={"slope": self.slope.detach()})

    def _prelu(self, x: Tensor) -> Tensor:
        real = x.to(compute_dtype(x))
        return torch.where(real > 0, real, real * channelwise(self.slope, x))

    def bound(self, x: Tensor) -> Tensor:
        """Return PReLU(x), (B, channels, ...), or any shape where one slope serves the layer."""
        return self._prelu(x).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        """Return the sum of signs, in the shape of ``x`` (batch, ...)."""
        z = self._prelu(x)
        slope = inside(z.detach(), -1.0, 1.0) if self.a_bits == 1 else 1.0
        return with_slope(z, residual_signs(z.detach(), self.a_bits), slope).to(x.dtype)

    @torch.no_grad()
    def add_penalty_(self, *weights: Tensor) -> None:
        """Add -2 d w to the gradients of the weights."""
        for w in weights:
            if w.grad is not None:
                w.grad.sub_(w, alpha=2.0 * self.penalty)
