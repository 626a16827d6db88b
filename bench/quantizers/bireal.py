"""Bi-Real Net: a closer derivative of the sign, weights with a magnitude (arXiv 1808.00278)."""

from __future__ import annotations

from torch import Tensor

from bench.quantizers.deployed import two_levels
from bench.quantizers.dorefa import mean_magnitude
from bench.quantizers.functional import bipolar, compute_dtype, inside, with_slope
from bench.quantizers.shared import SignActivations

ENTRIES = [
    {
        "name": "bireal",
        "factory": "BiReal",
        "help": "alpha sign(w) per filter; sign(x) with a piecewise linear derivative (ApproxSign)",
        "title": "Bi-Real Net: Enhancing the Performance of 1-bit CNNs With Improved Representational "
        "Capability and Advanced Training Algorithm",
        "arxiv": "1808.00278",
        "w_bits": [1, 32],
        "a_bits": [1, 32],
    }
]


def approximate_sign(x: Tensor) -> Tensor:
    """Return sign(x), sign(0) = +1; any shape. The gradient is 2 - 2 |x| where |x| < 1, else 0.

    That is the derivative of the paper's ApproxSign, 2x + x^2 below 0 and 2x - x^2 above.
    """
    real = x.detach().to(compute_dtype(x))
    return with_slope(x, bipolar(real), (2.0 - 2.0 * real.abs()).clamp_min_(0.0))


class BiReal(SignActivations):
    """Bi-Real Net (arXiv 1808.00278).

    weight:      alpha sign(w), alpha = mean |w| of the filter, a constant of the gradient; sign(0) = +1.
                 Gradient: dL/dw = dL/dq where |w| <= 1, else 0.
    activation:  sign(x), see ``approximate_sign``; at 32 bits clip(x, -1, 1)
    bound:       clip(x, -1, 1)

    The forward maps and gradients are those of the authors' PyTorch code, compared formula by formula
    (github.com/liuzechun/Bi-Real-net, pytorch_implementation/BiReal18_34/birealnet.py, commit 27cf653), but
    that a weight or activation of exactly 0 is +1 here and 0 there. The paper takes one alpha for the
    layer, and its magnitude-aware gradient of the weights has alpha as a further factor, which that code
    leaves out. The deployed network may leave alpha out: the batch norm behind the convolution absorbs it.

    The paper's network is ``resnet18`` with ``block = "post"``, ``shortcut_per = "convolution"`` and
    ``shortcut = "D"``. Its start is a network trained with 32/32 bits of this quantizer, whose activations
    are clipped instead of rectified; an arm begins from it with ``start``. (The authors' README trains the
    start with ReLU, then with a leaky clip, then with the clip.) Statistic: alpha.
    """

    def statistics(self, w: Tensor) -> Tensor | None:
        """Return alpha, float32 of shape (out, 1, ...); None at 32 bits."""
        return mean_magnitude(w, per_channel=True) if self.w_bits == 1 else None

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        if self.w_bits == 32:
            return w
        alpha = mean_magnitude(w, per_channel=True) if statistics is None else statistics
        real = w.detach()
        return with_slope(w, bipolar(real).mul_(alpha), inside(real, -1.0, 1.0))

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters at 1 bit: each has its alpha."""
        return w.shape[0] if self.w_bits == 1 else 0

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return -alpha and alpha, (2, out, 1, ...)."""
        if self.w_bits == 32:
            return None
        return two_levels(mean_magnitude(w, per_channel=True) if statistics is None else statistics, w)

    def sign(self, x: Tensor) -> Tensor:
        return approximate_sign(x)
