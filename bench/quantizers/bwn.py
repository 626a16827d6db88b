"""Binary-Weight-Networks, the weights of XNOR-Net beside any activations (arXiv 1603.05279)."""

from __future__ import annotations

from bench.quantizers.shared import WeightsOnly
from bench.quantizers.xnor import FilterSigns

ENTRIES = [
    {
        "name": "bwn",
        "factory": "BWN",
        "help": "Binary-Weight-Networks: alpha sign(w) with alpha = mean |w| of the filter, XNOR-Net's "
        "weight gradient",
        "title": "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "arxiv": "1603.05279",
        "w_bits": [1],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


class BWN(FilterSigns, WeightsOnly):
    """Binary-Weight-Networks (arXiv 1603.05279, section 3.1).

    weight:  alpha sign(w), alpha = mean |w| of the filter (eq. 6), sign(0) = +1; gradient in
             ``xnor.filter_weight``

    At 32-bit activations it is the quantizer ``xnor``; below, the activations are those of ``WeightsOnly``.
    Statistic: alpha.
    """
