"""The modules that are refused before they are traced: the message names the layer and the remedy."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune
from torchvision.ops import StochasticDepth

from bench.errors import InputError

_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# what the hooks of torch.nn.utils are called -> how to do without them
_REMOVALS = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(layer)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(layer)",
}


def check_modules(root: nn.Module, who: str) -> None:
    """Raise ``InputError`` for layers and parameters that no trial can train as they are.

    These are sizes that are still unknown, other types than float32, hooks, batch norm without running
    statistics, layers that draw random numbers of their own, and a parameter that two layers share.
    """
    for name, module in root.named_modules():
        path = name or "the network itself"
        problem = (
            _tensor_problem(module) or _hook_problem(module) or _norm_problem(module) or _draw_problem(module)
        )
        if problem:
            raise InputError(f"network: {who}: {path} ({type(module).__name__}) {problem}")
    _check_shared(root, who)


def _tensor_problem(module: nn.Module) -> str:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None:
            continue
        if is_lazy(tensor):
            return f"does not know the shape of its {name} yet; call the network once, or give the sizes"
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"has {name} of {kind}; the suite trains float32 weights: return the network .float()"
    return ""


def _hook_problem(module: nn.Module) -> str:
    found: list[Any] = [hook for kind in _HOOKS for hook in getattr(module, kind, {}).values()]
    if not found:
        return ""
    kind = type(found[0]).__name__
    if kind == "function":
        kind = found[0].__name__
    advice = _REMOVALS.get(kind)
    if advice is None and any(isinstance(h, prune.BasePruningMethod) for h in found):
        advice = 'torch.nn.utils.prune.remove(layer, "weight")'
    action = f"remove it with {advice}" if advice else "compute in forward what it does"
    return f"has a hook ({kind}), which the transformed network would not call; {action}"


def _norm_problem(module: nn.Module) -> str:
    if isinstance(module, nn.SyncBatchNorm):
        return "is for several processes; use nn.BatchNorm2d: the suite shares its statistics itself"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return (
            "has no running statistics (track_running_stats is False): an image's logits would depend on "
            "the other images of its batch"
        )
    return ""


def _draw_problem(module: nn.Module) -> str:
    if isinstance(module, nn.Dropout | StochasticDepth):
        return ""
    draws = isinstance(module, _DRAWING) and getattr(module, "p", 1.0) > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        draws = isinstance(module.dropout, float) and module.dropout > 0
    if draws:
        return "draws random numbers of its own: no trial could be repeated; use nn.Dropout or leave it out"
    return ""


def _check_shared(root: nn.Module, who: str) -> None:
    modules = dict(root.named_modules(remove_duplicate=False))
    names: dict[int, str] = {}  # also of two parameters that lie in the same memory
    for name, parameter in root.named_parameters(remove_duplicate=False):
        first = names.setdefault(parameter.data_ptr() or id(parameter), name)
        if modules[name.rpartition(".")[0]] is not modules[first.rpartition(".")[0]]:
            raise InputError(f"network: {who}: {first} and {name} are one parameter; each needs its own")
