"""Initialisation of networks: a function of (seed, parameter name), equal with and without a branch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.layers.low_precision import low_precision_modules
from bench.randomness import key_of, normal, truncated_normal, uniform

# The standard deviation of a standard normal number truncated at two deviations:
# sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = 0.8796.
_TRUNCATED_DEVIATION = math.sqrt(
    1.0 - 4.0 * math.exp(-2.0) / math.sqrt(2.0 * math.pi) / math.erf(math.sqrt(2.0))
)


def kernel(scheme: str, key: int, shape: tuple[int, ...], inputs: int | None = None) -> Tensor:
    """Return an initial kernel of ``shape`` (out, in, kh, kw) or (out, in), float32 on the CPU.

    ``inputs`` replaces the number of input channels in the fan-in of he_truncated_exact.

    he_truncated_exact   normal truncated at two deviations; the deviation after truncation is
                         sqrt(2 / fan_in) (1502.01852, gain 2). The released scripts draw so: their
                         sqrt(1.3 * 2 / fan_in) before truncation leaves 1.0029 sqrt(2 / fan_in).
    he_truncated_normal  normal of standard deviation sqrt(2 / fan_in) before the truncation at two
                         deviations. The weights' own deviation is 0.88 of that. The records of the first
                         experiments have this scheme.
    he_normal            normal of standard deviation sqrt(2 / fan_in), not truncated
    glorot_uniform       uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)
    """
    receptive = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * receptive, shape[0] * receptive
    if scheme == "he_truncated_exact":
        fan_in = (shape[1] if inputs is None else inputs) * receptive
        return truncated_normal(key, shape) * (math.sqrt(2.0 / fan_in) / _TRUNCATED_DEVIATION)
    if scheme == "he_truncated_normal":
        return truncated_normal(key, shape) * math.sqrt(2.0 / fan_in)
    if scheme == "he_normal":
        return normal(key, shape) * math.sqrt(2.0 / fan_in)
    if scheme == "glorot_uniform":
        return (uniform(key, shape) * 2.0 - 1.0) * math.sqrt(6.0 / (fan_in + fan_out))
    raise ValueError(f"no initialisation is called {scheme!r}")


@torch.no_grad()
def initialize(network: nn.Module, seed: int, scheme: str) -> None:
    """Initialise ``network`` in place; a tensor depends on the seed and its name alone, on every device.

    Kernels are drawn as ``scheme`` says, each tensor by its own fans (``weight_extra`` and branches too).
    Biases are 0. Batch norms have scale 1, shift 0, mean 0 and variance 1. Learned scales start as their
    quantizer says. What needs no gradient (a fixed filter) stays as the network's code made it. With joint
    statistics (the released concat), weights for main and extra inputs are one tensor in the release, so
    he_truncated_exact counts both in the fan-in.
    """
    joint = any(layer.joint for _, layer in low_precision_modules(network))
    for prefix, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if all(parameter.requires_grad for parameter in module.parameters()):
                module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if name == "bias":
                    parameter.zero_()
                else:
                    key = key_of(seed, "init", f"{prefix}.{name}")
                    parameter.copy_(
                        kernel(scheme, key, tuple(parameter.shape), _inputs(module) if joint else None)
                    )
    start_scales_(network)


def _inputs(module: nn.Module) -> int | None:
    """Return the number of input channels of main and extra weights together; None without extra weights."""
    weight: Any = module.weight
    extra: Any = getattr(module, "weight_extra", None)
    return None if extra is None else weight.shape[1] + extra.shape[1]


def start_scales_(network: nn.Module) -> None:
    """Let each quantizer compute its learned scales from the initial weights, in place.

    Call this function again after other weights were loaded as a start.
    """
    for _, layer in low_precision_modules(network):
        layer.quantizer.start_(layer.weight)
        if layer.weight_extra is not None and layer.quantizer_extra is not None:
            layer.quantizer_extra.start_(layer.weight_extra)
