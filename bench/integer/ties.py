"""Sums of exactly 0 whose sign the network reads: integers have them, float32 rounds them to either side.

Products of +a and -a often cancel. Added up in float32 they leave the rounding errors of the partial sums,
whose sign depends on the order. Where nothing shifts the sum before a sign or a threshold at 0, half the
activations there would differ between both arithmetics. Batch norm and a bias shift it.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from bench.export.modules import Activation, InferenceClassifier, InferenceConv2d, InferenceLinear, Thresholds

_BESIDE = 1e-30  # far below the rounding of every shift
_TABLES = ("thresholds", "levels", "values")  # of levels; every other tensor has a value a channel


def reads_sign_of_zero(network: fx.GraphModule, call: fx.Node) -> str | None:
    """Return the module that tells both sides of a sum of 0 of the layer ``call`` apart; None for none.

    A sum with other tensors shifts nothing for sure: what a shortcut carries may be 0 as well.
    """
    layer = network.get_submodule(str(call.target))
    live = layer.weight.flatten(1).any(1)  # type: ignore[operator, union-attr]
    if layer.bias is not None:
        live = live & (layer.bias == 0.0)  # type: ignore[operator]
    if not bool(live.any()):
        return None
    seen, ahead = set[fx.Node](), list(call.users)
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, InferenceConv2d | InferenceLinear | InferenceClassifier):
            activation = module.activation
            if isinstance(activation, Activation) and activation.map.quantizes and _differs(activation):
                return str(node.target)
        elif isinstance(module, Thresholds):
            if _differs(module):
                return str(node.target)
        elif isinstance(module, Activation | nn.modules.batchnorm._BatchNorm | FrozenBatchNorm2d):
            if _differs(module):
                ahead += node.users
        elif not isinstance(module, nn.Conv2d | nn.Linear):
            ahead += node.users
    return None


@torch.no_grad()
def _differs(module: nn.Module) -> bool:
    """Return whether a map of single numbers, with values a channel, differs between both sides of 0."""
    named = [*module.named_buffers(), *module.named_parameters()]
    sizes = [len(tensor) for name, tensor in named if tensor.dim() and name.rpartition(".")[2] not in _TABLES]
    channels = max([1, *sizes])
    flat = isinstance(module, nn.BatchNorm1d)
    x: Tensor = torch.full((1, channels) if flat else (1, channels, 1, 1), _BESIDE)
    return not torch.equal(module(x), module(-x))
