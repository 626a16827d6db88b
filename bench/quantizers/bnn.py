"""Binarized Neural Networks: weights and activations of +1 and -1 (arXiv 1602.02830)."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

from bench.quantizers.functional import bipolar, compute_dtype, pass_inside
from bench.quantizers.shared import SignActivations, SignWeights

ENTRIES = [
    {
        "name": "bnn",
        "factory": "BNN",
        "help": "sign(w) and sign(x), gradient of hard tanh, stored weights clipped to [-1, 1]",
        "title": "Binarized Neural Networks: Training Neural Networks with Weights and Activations "
        "Constrained to +1 or -1",
        "arxiv": "1602.02830",
        "options": {
            "stochastic": {
                "default": False,
                "help": "in training, an activation is +1 with probability clip((x + 1) / 2, 0, 1)",
            }
        },
        "w_bits": [1],
        "a_bits": [1],
    }
]


class _StochasticSign(Function):
    @staticmethod
    def forward(ctx, x, uniform):
        ctx.save_for_backward(x)
        # +1 where u < (x + 1) / 2, that is x > 2u - 1. Both 2u - 1 for 24-bit u and the sign are exact.
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


class BNN(SignWeights, SignActivations):
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

    def sign(self, x: Tensor) -> Tensor:
        """Return sign(x), or the drawn sign in training with ``stochastic``; any shape (batch, ...)."""
        if self.stochastic and self.training:
            return stochastic_sign(x, self.stream.uniform(x))
        return super().sign(x)
