"""What quantizers called alike do differently, as a table computed from the quantizers themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import registry
from bench.quantizers import Quantizer, make_quantizer

# Two output channels of unlike magnitude, a zero, and a largest weight that is reached once.
WEIGHTS = ((-0.8, 0.0, 0.1, 0.2), (0.4, 1.2, -0.3, 0.6))
PROBES = (-0.5, 0.0, 0.5, 1.0, 1.5)
KINDS = (
    "dorefa",
    "dorefa_released",
    "dorefa_pytorch",
    "dorefa_bitorch",
    "dorefa_channelwise",
    "dorefa_channelwise_released",
    "xnor",
    "bnn",
)
BITS = (1, 2, 3, 4, 8)


def _text(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in (values.flatten() + 0.0).tolist())


def _levels(values: Tensor) -> str:
    found = torch.unique(values + 0.0)
    if len(found) <= 8:
        return _text(found)
    return f"{len(found)} from {_text(found[0])} to {_text(found[-1])}"


def _map_and_gradient(function, values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.clone().requires_grad_()
    result = function(values)
    (gradient,) = torch.autograd.grad(result.sum(), values)
    return result.detach(), gradient


def _weights(quantizer: Quantizer) -> dict[str, str]:
    w = torch.tensor(WEIGHTS)
    q, gradient = _map_and_gradient(quantizer.weight, w)
    scale = quantizer.statistics(w)
    return {
        "levels": _levels(q),
        "zero": _text(q[0, 1]),
        "scale": "-" if scale is None else _text(scale),
        "gradient": f"{_text(gradient[1, 1])}, {_text(gradient[0, 0])}, {_text(gradient[0, 1])}",
    }


def _activations(quantizer: Quantizer) -> dict[str, str]:
    probe = torch.linspace(-2.0, 2.0, 4001)
    values = quantizer.activation(probe)
    at, gradient = _map_and_gradient(quantizer.activation, torch.tensor(PROBES))
    return {
        "activation_levels": _levels(values),
        "activation_threshold": _text(probe[values < values.amax()].amax().mul(100).round() / 100),
        "activation_values": _text(at),
        "activation_gradient": _text(gradient),
    }


def differences() -> list[dict[str, str]]:
    """Return a row for each quantizer that is called DoReFa or XNOR, and each bit width that it takes.

    All are computed on the same 2x4 weights and on the same inputs. Columns:

    ``quantizer``, ``bits``         of weights and of activations alike: 1, 2, 3, 4 and 8
    ``levels``                      the values that the weights take, or their number and ends
    ``zero``                        what a weight of exactly 0 becomes
    ``scale``                       the statistic, a number a layer or a channel; for XNOR-Net's weights alpha
    ``gradient``                    dL/dw for dL/dq = 1 everywhere: at the largest weight, at -0.8 and at 0
    ``activation_levels``           the values that activations take
    ``activation_threshold``        the largest input, to two digits, that does not reach the highest level
    ``activation_values``, ``activation_gradient``   at -1/2, 0, 1/2 (a tie), 1 and 3/2

    "-" where a quantizer has no such thing.
    """
    rows = []
    for kind in KINDS:
        facts = registry.get("quantizers", kind).facts
        for bits in BITS:
            row = {"quantizer": kind, "bits": str(bits)}
            weights, activations = bits in facts["w_bits"], bits in facts["a_bits"]
            if not weights:
                continue
            row |= _weights(make_quantizer(kind, bits, facts["a_bits"][0]))
            if activations:
                row |= _activations(make_quantizer(kind, facts["w_bits"][0], bits))
            names = ("levels", "threshold", "values", "gradient")
            rows.append({**dict.fromkeys((f"activation_{name}" for name in names), "-"), **row})
    return rows
