"""Quantized Neural Networks: k-bit weights and activations, linear or powers of two (arXiv 1609.07061)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import bipolar, compute_dtype, inside, to_levels, with_slope
from bench.quantizers.shared import Bounded, ClippedWeights

ENTRIES = [
    {
        "name": "qnn",
        "factory": "QNN",
        "help": "weights and activations rounded to k bits on [-1, 1], gradient of hard tanh; 1 bit: BNN's "
        "signs",
        "title": "Quantized Neural Networks: Training Neural Networks with Low Precision Weights and "
        "Activations",
        "arxiv": "1609.07061",
        "w_bits": [1, 2, 3, 4, 5, 6, 7, 8],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    },
    {
        "name": "qnn_log",
        "like": "qnn",
        "factory": "LogQNN",
        "help": "qnn with signed powers of two, 1 to 2^(1 - 2^(k-1)), instead of equal steps",
        "w_bits": [1, 2, 3, 4, 5],
        "a_bits": [1, 2, 3, 4, 5, 32],
    },
]


class QNN(ClippedWeights, Bounded):
    """Quantized Neural Networks with equal steps (arXiv 1609.07061, section 5, LinearQuant).

    weight, activation, k > 1 bits:  clip(round(2^(k-1) x), -2^(k-1), 2^(k-1) - 1) / 2^(k-1), round half to
                                     even
    weight, activation, 1 bit:       sign(x), sign(0) = +1, as Binarized Neural Networks'
    gradient:                        that of hard tanh, 1[|x| <= 1]
    bound:                           clip(x, -1, 1)
    after_step_:                     clips the stored weights to [-1, 1]

    The paper prints LinearQuant as a rounding in steps of a power of two, clipped to the ends of a range
    that it leaves open. Here the range is [-1, 1), so that k bits have 2^k levels and the range is hard
    tanh's. Weights of less than 2^-k become 0 at k > 1 bits, so small initial weights are all 0; the
    paper's networks have 1-bit weights beside 2-bit activations. The quantized gradients of the paper's
    later experiments are left out.
    """

    lowest = -1.0

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        return self._windowed(w, self.w_bits)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the 2^k levels of the weights."""
        return w.new_tensor(self._table(self.w_bits)).reshape(-1, *[1] * w.dim())

    def activation_map(self) -> ActivationMap:
        if self.a_bits == 32:
            return self.bound_map()
        return ActivationMap("sign") if self.a_bits == 1 else self._deployed()

    def _deployed(self) -> ActivationMap:
        return ActivationMap("fixed", bits=self.a_bits)

    def _table(self, bits: int) -> list[float]:
        """Return the levels of so many bits, rising."""
        half = 1 << (bits - 1)
        return [-1.0, 1.0] if bits == 1 else [code / half for code in range(-half, half)]

    def activation(self, x: Tensor) -> Tensor:
        return self.bound(x) if self.a_bits == 32 else self._windowed(x, self.a_bits)

    def _windowed(self, x: Tensor, bits: int) -> Tensor:
        real = x.detach().to(compute_dtype(x))
        return with_slope(x, self._levels(real, bits), inside(real, -1.0, 1.0))

    def _levels(self, real: Tensor, bits: int) -> Tensor:
        """Return the levels of real numbers in the compute dtype, without gradient."""
        if bits == 1:
            return bipolar(real)
        half = 1 << (bits - 1)
        return (real * half).round_().clamp_(-half, half - 1).div_(half)


class LogQNN(QNN):
    """Quantized Neural Networks with powers of two (arXiv 1609.07061, section 5, LogQuant).

    weight, activation:  sign(x) 2^e, e = round(log2 |x|) clipped to [1 - 2^(k-1), 0]; sign(0) = +1. So k
                         bits have 2^k levels and none of them is 0.

    Everything else is as in ``QNN``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for bits in {self.w_bits, self.a_bits} - {32}:
            exponents = torch.arange(1 - (1 << (bits - 1)), 1, dtype=torch.float64)
            middles = torch.exp2(exponents[1:] - 0.5).float()
            self.register_buffer(f"thresholds_{bits}", middles, persistent=False)
            self.register_buffer(f"levels_{bits}", torch.exp2(exponents).float(), persistent=False)

    def _deployed(self) -> ActivationMap:
        thresholds, levels = self._both_signs(self.a_bits)
        return ActivationMap("table", tensors={"thresholds": thresholds, "levels": levels})

    def _table(self, bits: int) -> list[float]:
        return self._both_signs(bits)[1].tolist()

    def _both_signs(self, bits: int) -> tuple[Tensor, Tensor]:
        """Return (thresholds, levels) of both signs; |x| at a threshold gets the lower magnitude."""
        thresholds, levels = getattr(self, f"thresholds_{bits}"), getattr(self, f"levels_{bits}")
        above = torch.nextafter(thresholds, torch.full_like(thresholds, torch.inf))
        rising = torch.cat([-thresholds.flip(0), torch.zeros_like(levels[:1]), above])
        return rising, torch.cat([-levels.flip(0), levels])

    def _levels(self, real: Tensor, bits: int) -> Tensor:
        thresholds, levels = getattr(self, f"thresholds_{bits}"), getattr(self, f"levels_{bits}")
        return bipolar(real) * to_levels(real.abs(), thresholds, levels)
