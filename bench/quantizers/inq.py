"""The levels of Incremental Network Quantization: powers of two and zero (arXiv 1702.03044)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.functional import compute_dtype, with_slope
from bench.quantizers.shared import WeightsOnly

ENTRIES = [
    {
        "name": "inq",
        "factory": "INQ",
        "help": "weights 0 and powers of two, the highest by max |w| (frozen by parts: strategy incremental)",
        "title": "Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights",
        "arxiv": "1702.03044",
        "w_bits": [2, 3, 4, 5, 6, 7, 8],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    }
]


class INQ(WeightsOnly):
    """Incremental Network Quantization (arXiv 1702.03044), its levels alone.

    weight:  0 or a power of two with the sign of w. With s = max |w| of the layer the powers are 2^n2 to
             2^n1, n1 = floor(log2(4 s / 3)) (eq. 2), n2 = n1 + 1 - 2^(k-2) for k bits, one of which stands
             for 0 (section 2.1: k = 5 gives eight powers). |w| becomes the power b where (a + b) / 2 <= |w|
             < 3 b / 2, a the level below b (eq. 4). The gradient passes straight; n1 is a constant of it.

    With the strategy ``incremental`` this is the paper's method; alone it is trained like every other
    quantizer. All weights zero: every level that occurs is 0. The activations of the paper are full
    precision; see ``WeightsOnly``. Statistic: 2^n1.
    """

    below: Tensor
    absolute_levels = True  # powers of two: the highest one may move, the others keep their values

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the powers over the highest one: made here, since an exponential on a GPU need not be exact
        below = [2.0**-i for i in reversed(range(1 << (self.w_bits - 2)))]
        self.register_buffer("below", torch.tensor(below), persistent=False)

    def statistics(self, w: Tensor) -> Tensor:
        """Return the highest power 2^n1, of shape (), without gradient: exact, by the digits of max |w|."""
        largest = w.detach().to(compute_dtype(w)).abs().amax()
        mantissa, exponent = torch.frexp(largest)  # 4 s / 3 reaches the next power where the mantissa is 3/4
        return torch.ldexp(torch.where(mantissa >= 0.75, 1.0, 0.5).to(largest.dtype), exponent)

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        powers = self._powers(self.statistics(w) if statistics is None else statistics)
        magnitude = w.detach().to(powers.dtype).abs().contiguous()
        thresholds = torch.cat([powers[:1] * 0.5, powers[1:] * 0.75])
        levels = torch.cat([torch.zeros_like(powers[:1]), powers])
        return with_slope(
            w, levels[torch.bucketize(magnitude, thresholds, right=True)] * w.detach().sign(), 1.0
        )

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the negative powers, 0 and the positive ones."""
        powers = self._powers(self.statistics(w) if statistics is None else statistics)
        return torch.cat([-powers.flip(0), torch.zeros_like(powers[:1]), powers]).reshape(-1, *[1] * w.dim())

    def stored_scales(self, w: Tensor) -> int:
        """Return 1: the highest power of the layer."""
        return 1

    def _powers(self, highest: Tensor) -> Tensor:
        """Return 2^n2 to 2^n1, rising, of shape (2^(k-2),)."""
        return highest.detach() * self.below
