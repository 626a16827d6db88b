"""No quantization: the reference that every ratio and gap is measured against."""

from __future__ import annotations

from bench.quantizers.shared import Rectified

ENTRIES = [
    {
        "name": "full_precision",
        "factory": "FullPrecision",
        "help": "32-bit weights and activations; the activation is ReLU",
        "w_bits": [32],
        "a_bits": [32],
    }
]


class FullPrecision(Rectified):
    """weight(w) = w, activation(x) = max(x, 0), gradient(y) = y.

    The activation is ReLU, not the clip(x, 0, 1) that the [0, 1] quantizers leave at 32 bits: the
    maintainer of DoReFa-Net's training script made that choice for its full-precision runs, and a network
    in full precision has no reason to saturate at 1.
    """
