"""Binary-Weight-Networks, the weights of XNOR-Net beside any activations (arXiv 1603.05279)."""

from __future__ import annotations

from torch import Tensor

from bench.quantizers.deployed import two_levels
from bench.quantizers.dorefa import mean_magnitude
from bench.quantizers.weights_only import WeightsOnly
from bench.quantizers.xnor import filter_weight

ENTRIES = [
    {
        "name": "bwn",
        "factory": "BWN",
        "help": "Binary-Weight-Networks: alpha sign(w) with alpha = mean |w| of the filter, XNOR-Net's "
        "weight gradient",
        "title": "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "arxiv": "1603.05279",
        "options": {},
        "w_bits": [1],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "g_bits": [32],
    },
]


class BWN(WeightsOnly):
    """Binary-Weight-Networks (arXiv 1603.05279, section 3.1).

    weight:  alpha sign(w), alpha = mean |w| of the filter (eq. 6), sign(0) = +1; gradient in
             ``xnor.filter_weight``

    At 32-bit activations it is the quantizer ``xnor``; below, the activations are those of ``WeightsOnly``.
    Statistic: alpha.
    """

    def statistics(self, w: Tensor) -> Tensor:
        """Return alpha, float32 of shape (out, 1, ...)."""
        return mean_magnitude(w, per_channel=True)

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return alpha sign(w), same shape and dtype."""
        return filter_weight(w, self.statistics(w) if statistics is None else statistics)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -alpha and alpha, (2, out, 1, ...)."""
        alpha = self.statistics(w) if statistics is None else statistics
        return two_levels(alpha, w)

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters: each has its alpha."""
        return w.shape[0]
