"""Binarized Neural Networks: weights and activations of +1 and -1 (arXiv 1602.02830)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from bench.quantizers.base import Quantizer
from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import bipolar, clip, compute_dtype, pass_inside, sign_window

ENTRIES = [
    {
        "name": "bnn",
        "factory": "BNN",
        "help": "sign(w) and sign(x), gradient of hard tanh, stored weights clipped to [-1, 1]",
        "title": "Binarized Neural Networks: Training Neural Networks with Weights and Activations "
        "Constrained to +1 or -1",
        "arxiv": "1602.02830",
        "revision": 1,
        "options": {
            "stochastic": {
                "type": "bool",
                "default": False,
                "help": "in training, an activation is +1 with probability clip((x + 1) / 2, 0, 1)",
            },
        },
        "w_bits": [1],
        "a_bits": [1],
        "g_bits": [32],
    },
]


class _StochasticSign(Function):
    @staticmethod
    def forward(ctx, x, uniform):
        ctx.save_for_backward(x)
        # +1 where u < (x + 1) / 2, that is x > 2u - 1; 2u - 1 is exact for 24-bit u, and a difference's sign
        # is too.
        noise = uniform.to(compute_dtype(x)).mul(2.0).sub_(1.0)
        return bipolar(noise.sub_(x)).neg_().to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return pass_inside(grad, x, -1.0, 1.0), None


def stochastic_sign(x: Tensor, uniform: Tensor) -> Tensor:
    """Return +1 with probability clip((x + 1) / 2, 0, 1), else -1 (eq. 2 and 3); any shape.

    ``uniform``: numbers in [0, 1), u < probability gives +1. The expectation is hard tanh of x, and so is
    the gradient: 1[|x| <= 1].
    """
    return _StochasticSign.apply(x, uniform)


class BNN(Quantizer):
    """Binarized Neural Networks (arXiv 1602.02830).

    weight:      sign(w), sign(0) = +1 (eq. 1); gradient 1[|w| <= 1] (eq. 4). ``after_step_`` clips the
                 stored weights to [-1, 1] (Algorithm 1), after which the gradient passes everywhere, as the
                 paper writes it.
    activation:  sign(x), gradient 1[|x| <= 1]; with ``stochastic`` drawn while training
                 (``stochastic_sign``) and deterministic in evaluation, the one use that the paper makes of
                 it
    bound:       hard tanh, clip(x, -1, 1)
    """

    def __init__(self, *args, stochastic: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.stochastic = stochastic

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return sign(w), same shape and dtype."""
        return sign_window(w)

    def bound(self, x: Tensor) -> Tensor:
        """Return clip(x, -1, 1)."""
        return clip(x, -1.0, 1.0)

    def activation(self, x: Tensor) -> Tensor:
        """Return sign(x), or the drawn sign in training with ``stochastic``; any shape (batch, ...)."""
        if self.stochastic and self.training:
            return stochastic_sign(x, self.stream.uniform(x))
        return sign_window(x)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -1 and +1."""
        return w.new_tensor([-1.0, 1.0]).reshape(2, *[1] * w.dim())

    def bound_map(self) -> ActivationMap:
        """Return clip(x, -1, 1)."""
        return ActivationMap("clip", -1.0, 1.0)

    def activation_map(self) -> ActivationMap:
        """Return sign(x)."""
        return ActivationMap("sign")

    @torch.no_grad()
    def after_step_(self, w: Tensor) -> None:
        """Clip the stored weights to [-1, 1]."""
        w.clamp_(-1.0, 1.0)
