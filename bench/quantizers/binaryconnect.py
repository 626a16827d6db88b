"""BinaryConnect: weights of +1 and -1 in both passes, real ones between them (arXiv 1511.00363)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.quantizers.functional import bipolar, compute_dtype, with_slope
from bench.quantizers.shared import SignWeights, WeightsOnly

ENTRIES = [
    {
        "name": "binaryconnect",
        "factory": "BinaryConnect",
        "help": "weights sign(w) without a scale, drawn with the hard sigmoid if asked; stored weights "
        "clipped to [-1, 1]",
        "title": "BinaryConnect: Training Deep Neural Networks with binary weights during propagations",
        "arxiv": "1511.00363",
        "options": {
            "stochastic": {
                "default": False,
                "help": "in training, a weight is +1 with probability clip((w + 1) / 2, 0, 1)",
            }
        },
        "w_bits": [1],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


class BinaryConnect(SignWeights, WeightsOnly):
    """BinaryConnect (arXiv 1511.00363).

    weight:      sign(w), sign(0) = +1 (eq. 1). With ``stochastic``, while training, +1 with the probability
                 of the hard sigmoid clip((w + 1) / 2, 0, 1) and -1 otherwise (eq. 2 and 3). The gradient
                 passes straight: the stored weights get dL/dq (Algorithm 1).
    after_step_: clips the stored weights to [-1, 1] (section 2.4)

    One draw serves a whole training step, all its samples and workers. In evaluation the weights are
    sign(w): the paper does so for the deterministic variant, and evaluates the stochastic one with its real
    weights (section 2.6), which would not be a low-precision network. The paper's scaling of learning rates
    by the initialisation's coefficients (section 2.5) is a matter of the recipe and is left out. The
    activations are full precision; see ``WeightsOnly``.
    """

    def __init__(self, *args: Any, stochastic: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stochastic = stochastic

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        real = w.detach()
        if self.stochastic and self.training:
            # +1 where u < (w + 1) / 2, that is w > 2u - 1; 2u - 1 is exact for u of 24 bits
            noise = self.stream.uniform_weights(w).to(compute_dtype(w)).mul(2.0).sub_(1.0)
            return with_slope(w, bipolar(noise.sub_(real)).neg_(), 1.0)
        return with_slope(w, bipolar(real), 1.0)
