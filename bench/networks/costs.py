"""What a network costs, counted from its layers: parameters, multiply-accumulates, bits."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.layers.branch import BranchConv2d, BranchLinear
from bench.layers.classifier import Classifier
from bench.layers.diagnostics import in_evaluation, watched
from bench.layers.low_precision import LowPrecisionLayer
from bench.networks.builder import Network
from bench.quantizers import Quantizer


@dataclass(frozen=True)
class Costs:
    """The costs of one image. The first four are of the deployed network, without branches and extra weights.

    ``parameters``      learned numbers
    ``model_bits``      bits of the stored network: low-precision weights at their bits, all else at 32 bits,
                        with the running mean and variance of batch norms and the scales of 1-bit weights
    ``macs``            multiply-accumulates of convolutions and linear layers
    ``bit_operations``  the sum over these layers of MACs x bits of the weights x bits of the activations that
                        the layer reads (32 x 32 in full precision)
    ``train_flops_per_image``        forward pass, gradients of the input and of the weights: 3 x 2 x MACs,
                                     with the branch on. Every layer counts so, also the first one, which
                                     computes no gradient of the images. Batch norm, activations, quantizers
                                     (XNOR-Net's input scale too) and the optimizer do not count.
    ``train_flops_per_image_plain``  the same with the branch off
    """

    parameters: int
    model_bits: int
    macs: int
    bit_operations: int
    train_flops_per_image: int
    train_flops_per_image_plain: int


@dataclass(frozen=True)
class LayerRow:
    """One layer of the deployed network.

    ``shape`` is that of the weight. ``branch``: whether the layer has a branch in training.
    ``full_precision`` is the reason why the layer is not quantized, None for a quantized layer.
    ``train_macs`` are the multiply-accumulates with branch and extra weights.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    train_macs: int
    w_bits: int
    a_bits: int
    bits: int
    branch: bool
    full_precision: str | None


_KEPT = "left as it is; its multiply-accumulates are not counted"
_NORM = (nn.modules.batchnorm._BatchNorm,)


def describe_layers(network: Network) -> list[LayerRow]:
    """Return a row for each layer that has parameters, in order; the rows add up to ``costs``."""
    outputs = _positions(network)
    rows = []
    inside: set[nn.Module] = set()  # of a branch, or of what a weight is computed from
    for name, module in network.named_modules():
        if isinstance(module, BranchConv2d | BranchLinear):
            inside.update(module.modules())
        if module in inside:
            continue
        if parametrize.is_parametrized(module):
            inside.update(module.parametrizations.modules())  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.Linear):
            rows.append(_weighted(name, module, outputs[name]))
        elif isinstance(module, _NORM):
            rows.append(_norm(name, module))
        elif not isinstance(module, Quantizer) and (own := _own_parameters(module)):
            rows.append(LayerRow(name, type(module).__name__, (), own, 0, 0, 32, 32, 32 * own, False, _KEPT))
    return rows


def _norm(name: str, norm: Any) -> LayerRow:
    """Return the row of a batch norm: mean, variance and, where it has them, scale and shift of a channel."""
    parameters = sum(p.numel() for p in norm.parameters())
    bits = 32 * (parameters + 2 * norm.num_features)
    reason = f"batch norm: {'four' if parameters else 'two'} numbers a channel"
    return LayerRow(name, "batch norm", (norm.num_features,), parameters, 0, 0, 32, 32, bits, False, reason)


def _own_parameters(module: nn.Module) -> int:
    """Return how many parameters a module has itself, those of its quantizer (a learned bound) included."""
    parts = [module, *(child for child in module.children() if isinstance(child, Quantizer))]
    return sum(p.numel() for part in parts for p in part.parameters(recurse=False))


def costs(network: Network, input_size: int | None = None) -> Costs:
    """Return the costs of ``network`` for one image; its branches and its clock stay as they are.

    ``input_size`` is the height and width of the image; by default the network's own.
    """
    if input_size is not None and input_size != network.input_size:
        raise ValueError(f"the network reads images of {network.input_size} pixels, not {input_size}")
    rows = describe_layers(network)
    macs = sum(row.macs for row in rows)
    return Costs(
        parameters=sum(row.parameters for row in rows),
        model_bits=sum(row.bits for row in rows),
        macs=macs,
        bit_operations=sum(row.macs * row.w_bits * row.a_bits for row in rows),
        train_flops_per_image=6 * sum(row.train_macs for row in rows),
        train_flops_per_image_plain=6 * macs,
    )


def _weighted(name: str, layer: Any, positions: int) -> LayerRow:
    """Return the row of a convolution or a linear layer with so many output positions."""
    low = isinstance(layer, LowPrecisionLayer)
    quantizer: Any = layer.quantizer if low or isinstance(layer, Classifier) else None
    # Learned parameters of the input quantizer, for instance PACT's bound, are stored, too.
    learned = 0 if quantizer is None else sum(p.numel() for p in quantizer.parameters())
    weights, stored, bias = layer.weight.numel(), _stored(layer, "weight"), _stored(layer, "bias")
    extra = getattr(layer, "weight_extra", None)
    train_macs = positions * (weights + (0 if extra is None else extra.numel()))
    w_bits, a_bits, scales = 32, 32, learned
    reason = "not made by the builder" if positions else _KEPT
    if low:
        if layer.branch is not None and not layer.one_convolution:
            # The branch computes as many positions as the main path; its pooling comes after.
            train_macs += positions * layer.branch.weight.numel()
        w_bits, a_bits = quantizer.stored_bits, quantizer.a_bits
        scales = quantizer.stored_scales(layer.weight)
        reason = "the quantizer is full_precision at 32/32 bits"
    elif quantizer is not None:
        a_bits = layer.a_bits
        if layer.reads == "quantized":  # LQ-Nets' levels move with the activations and are not learned
            scales = quantizer.stored_input_scales()
    quantized = low and min(w_bits, a_bits) < 32
    return LayerRow(
        name=name,
        type="convolution" if layer.weight.dim() == 4 else "linear",
        shape=tuple(layer.weight.shape),
        parameters=stored + learned + bias,
        macs=positions * weights,
        train_macs=train_macs,
        w_bits=w_bits,
        a_bits=a_bits,
        bits=stored * w_bits + 32 * (scales + bias),
        branch=low and layer.branch is not None,
        full_precision=None if quantized else getattr(layer, "full_precision_reason", reason),
    )


def _stored(layer: Any, name: str) -> int:
    """Return how many learned numbers a tensor of a layer has: its own, or those it is computed from."""
    if parametrize.is_parametrized(layer, name):
        return sum(p.numel() for p in layer.parametrizations[name].parameters())
    tensor = getattr(layer, name)
    return 0 if tensor is None else tensor.numel()


@torch.no_grad()
def _positions(network: Network) -> dict[str, int]:
    """Return the number of output positions of each convolution and linear layer for one image.

    One image goes through the deployed form of the network; mode and clocks are restored.
    """
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = {name: 0 for name, _ in layers}  # 0 for a layer that is never called

    def watch(name: str, layer: Any, _inputs: Any, output: Any) -> None:
        y: Tensor = output[0] if isinstance(output, tuple) else output
        found[name] += y.numel() // layer.weight.shape[0]  # the first dimension may hold parts of the image

    clocks = {m.clock: m.clock.active for m in network.modules() if isinstance(m, LowPrecisionLayer)}
    with contextlib.ExitStack() as restored, in_evaluation(network), watched(layers, watch):
        for clock, active in clocks.items():
            restored.callback(setattr, clock, "active", active)
            clock.active = False
        network(network.blank_image())
    return found
