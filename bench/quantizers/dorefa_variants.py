"""DoReFa-Net as public libraries define it, where a library's function is not one of ``dorefa``'s.

``docs/variants.md`` tabulates them beside the original, and names the libraries that were read.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.quantizers.deployed import ActivationMap, level_table
from bench.quantizers.dorefa import DoReFa, DoReFaReleased, tanh_levels
from bench.quantizers.functional import compute_dtype, inside, level_, round_unit, steps, with_slope

ENTRIES = [
    {
        "name": "dorefa_pytorch",
        "factory": "DoReFaPyTorch",
        "help": "dorefa as zzzxxxttt/pytorch_DoReFaNet has it: k-bit weights keep their range, 1-bit A is "
        "1[x > 0]",
        "title": "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth "
        "Gradients",
        "arxiv": "1606.06160",
        "w_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8],
    },
    {
        "name": "dorefa_bitorch",
        "like": "dorefa_pytorch",
        "factory": "DoReFaBITorch",
        "help": "dorefa as BITorch has it: gradients pass unchanged, 1-bit weights have no scale and zero "
        "is -1",
        "w_bits": [1, 2, 3, 4, 5, 6, 7, 8],
        "revision": 2,
    },
]


def _tanh_levels(w: Tensor, n: int, maximum: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (tanh w, m, levels), with 2 round(n (tanh w / (2 m) + 1/2)) / n - 1; of m = 0, 1 divides."""
    t = torch.tanh(w.detach().to(compute_dtype(w)))
    m = t.abs().amax() if maximum is None else maximum.detach()
    divisor = m + (m < 2.0**-126)
    codes = (t / (2.0 * divisor)).add_(0.5).mul_(n).round_().mul_(2.0).sub_(n)
    return t, m, level_(codes, n)


class DoReFaPyTorch(DoReFaReleased):
    """DoReFa-Net of github.com/zzzxxxttt/pytorch_DoReFaNet (utils/quant_dorefa.py, commit 402818b).

    weight, 1 bit:      E sign(w), a weight of exactly 0 stays 0, as ``dorefa_released``; but all-zero
                        weights are 0 here and NaN there
    weight, k bits:     m (2 round_k(tanh(w) / (2 m) + 1/2) - 1), m = max |tanh w|, a constant of the
                        gradient; so the levels reach to +-m instead of +-1. Gradient: 1 - tanh(w)^2.
                        All-zero weights are 0 here and NaN there, too.
    activation, 1 bit:  1 where x > 0, else 0 (the sign of the clipped x); gradient 1[0 <= x <= 1]
    activation:         round_k(clip(x, 0, 1)) as ``dorefa``'s
    """

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        if self.w_bits in (1, 32):
            return super().weight(w, statistics)
        t, m, levels = _tanh_levels(w, steps(self.w_bits), statistics)
        return with_slope(w, levels * m, 1.0 - t.square())

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return -E, 0 and E at 1 bit, m (2 i - n) / n for k bits."""
        values = super().level_values(w, statistics)
        if values is None or self.w_bits == 1:
            return values
        return values * _tanh_levels(w, steps(self.w_bits), statistics)[1]

    def activation_map(self) -> ActivationMap:
        """Return the table of 0 and 1 at 1 bit, round_k(clip(x, 0, 1)) above."""
        if self.a_bits > 1:
            return super().activation_map()
        return replace(level_table(torch.zeros(1), torch.tensor([0.0, 1.0])), contiguous=False)

    def stored_scales(self, w: Tensor) -> int:
        """Return 1: E at 1 bit, m above; 0 at 32 bits."""
        return 0 if self.w_bits == 32 else 1

    def activation(self, x: Tensor) -> Tensor:
        if self.a_bits > 1:
            return super().activation(x)
        real = x.detach().to(compute_dtype(x))
        return with_slope(x, (real > 0).to(real.dtype), inside(real, 0.0, 1.0))


class DoReFaBITorch(DoReFa):
    """DoReFa-Net of github.com/hpi-xnor/bitorch (bitorch/quantizations/dorefa.py, commit d6c14d5).

    weight:      2 round_k(tanh(w) / (2 max |tanh w|) + 1/2) - 1 at every bit width: at 1 bit +-1 without a
                 scale, and a weight of exactly 0 becomes -1. The gradient passes unchanged, also around
                 tanh. All-zero weights are the level of 0, 1/n for k > 1 bits, here and NaN there.
    activation:  round_k(clip(x, 0, 1)); the gradient passes unchanged, outside of [0, 1] as well
    """

    def statistics(self, w: Tensor) -> Tensor:
        """Return max |tanh w|, float32 of shape (), without gradient."""
        return torch.tanh(w.detach().to(compute_dtype(w))).abs().amax()

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        return with_slope(w, _tanh_levels(w, steps(self.w_bits), statistics)[2], 1.0)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        return tanh_levels(w, self.w_bits)

    def stored_scales(self, w: Tensor) -> int:
        """Return 0: the levels are those of [-1, 1]."""
        return 0

    def activation(self, x: Tensor) -> Tensor:
        return with_slope(x, round_unit(x.detach(), self.a_bits), 1.0)
