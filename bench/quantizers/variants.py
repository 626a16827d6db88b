"""What quantizers called alike do differently, as a table computed from the quantizers themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.base import Quantizer

# Two output channels of unlike magnitude, a zero, and a largest weight that is reached once.
_WEIGHTS = ((-0.8, 0.0, 0.1, 0.2), (0.4, 1.2, -0.3, 0.6))
_KINDS = ("dorefa", "dorefa_released", "dorefa_channelwise", "xnor", "bnn")


def _text(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _levels(values: Tensor) -> str:
    return _text(torch.unique(values + 0.0))


def _weight_and_gradient(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    w = torch.tensor(_WEIGHTS, requires_grad=True)
    q = quantizer.weight(w)
    (gradient,) = torch.autograd.grad(q.sum(), w)
    return q.detach(), gradient


def differences() -> list[dict[str, str]]:
    """Return one row a quantizer that is, or is called, DoReFa or XNOR, computed on the same 2x4 weights.

    Columns: ``quantizer``; ``levels_1`` and ``levels_2``, the values that weights take at 1 and 2 bits; ``zero``, what
    a zero weight becomes at 1 bit; ``scale``, the statistic at 1 bit (a value a layer or a channel); ``gradient_1``
    and ``gradient_2``, dL/dw at the largest weight for dL/dq = 1 everywhere; ``activation_levels`` and
    ``activation_threshold`` at 1 bit. "-" where a quantizer has no such thing.
    """
    from bench import registry
    from bench.quantizers import make_quantizer

    rows = []
    for kind in _KINDS:
        one = make_quantizer(kind, 1, 1)
        q, gradient = _weight_and_gradient(one)
        scale = one.statistics(torch.tensor(_WEIGHTS))
        probe = torch.linspace(-2.0, 2.0, 4097)
        activation = one.activation(probe)
        row = {
            "quantizer": kind,
            "levels_1": _levels(q),
            "levels_2": "-",
            "zero": _text(q[0, 1]),
            "scale": "-" if scale is None else _text(scale),
            "gradient_1": _text(gradient[1, 1]),
            "gradient_2": "-",
            "activation_levels": _levels(activation),
            "activation_threshold": _text(
                probe[activation < activation.amax()].amax().mul(100).round() / 100 + 0.0
            ),
        }
        if 2 in registry.get("quantizers", kind).facts["w_bits"]:
            q, gradient = _weight_and_gradient(make_quantizer(kind, 2, 2))
            row |= {"levels_2": _levels(q), "gradient_2": _text(gradient[1, 1])}
        rows.append(row)
    return rows
