"""Quantizers: the maps of weights, activations and gradients to low precision, one module a paper.

    q = make_quantizer("dorefa", w_bits=1, a_bits=2)     # an nn.Module
    q.weight(w)         # low-precision weights, differentiable as the paper says
    q.activation(x)     # bounded, low-precision activations
    q.gradient(y)       # identity; its gradient is quantized where g_bits < 32
    q.after_step_(w)    # what the method does to the stored weights after an update

See ``bench.quantizers.base.Quantizer`` for the whole interface, and each module for formulas and sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import registry
from bench.errors import InputError
from bench.experiments.options import complete, keywords
from bench.quantizers.base import FullPrecisionWeights, Interim, Quantizer

__all__ = ["FullPrecisionWeights", "Interim", "Quantizer", "make_quantizer"]


def make_quantizer(
    kind: str,
    w_bits: int = 32,
    a_bits: int = 32,
    g_bits: int = 32,
    weight_shape: Sequence[int] | None = None,
    channels: int | None = None,
    **options: Any,
) -> Quantizer:
    """Return the quantizer called ``kind``; see ``bench list quantizers`` for names, bits and options.

    Args:
        kind: The name.
        w_bits: Bits of the weights; 32: full precision.
        a_bits: Bits of the activations.
        g_bits: Bits of the gradients.
        weight_shape: The shape of the weights that it will serve; learned scales are then created at once.
        channels: Of the activations: learned parameters of the activations are one a channel; None: one a
            layer.
        **options: The quantizer's.

    Raises:
        InputError: A name, bit width or option does not exist.
    """
    entry = registry.get("quantizers", kind, "quantizer")
    chosen = complete("quantizers", {"kind": kind, **options}, "quantizer")
    for name, bits in (("w_bits", w_bits), ("a_bits", a_bits), ("g_bits", g_bits)):
        allowed = entry.facts.get(name, [32])
        if bits not in allowed:
            raise InputError(f"{name}: {bits!r}, but quantizer '{kind}' takes {', '.join(map(str, allowed))}")
    quantizer = registry.load("quantizers", kind)(w_bits, a_bits, g_bits, **keywords(chosen))
    if weight_shape is not None:
        quantizer.create_scales(weight_shape)
    if channels is not None:
        quantizer.create_input_parameters(channels)
    return quantizer
