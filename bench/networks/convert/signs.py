"""Which values of a traced network are never negative, whatever the images and the weights are.

A quantizer that keeps the sign of activations alone (BNN, XNOR-Net) turns such values into a constant. The
layer that reads them would see +1 everywhere, and could not tell one image from another by them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from bench.networks.convert.names import function_name
from bench.networks.convert.roles import argument, clamp_bounds
from bench.networks.convert.trace import Traced
from bench.quantizers import Quantizer

_LAYERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
_FUNCTIONS = set(
    "relu relu6 sigmoid hardsigmoid softmax softplus abs exp square sqrt zeros_like ones_like".split()
)
_KEPT_ROLES = ("spatial", "move", "dropout", "cat", "add")  # not negative where all that they read is not
_KEPT = set("add mul multiply truediv div sqrt where detach float double half to clone".split())


def keeps_signs_alone(probe: Quantizer) -> bool:
    """Return whether a quantizer maps all positive activations to one value, and learns no threshold."""
    if probe.a_bits == 32 or any(True for _ in probe.parameters()):
        return False
    with torch.no_grad():
        return len(torch.unique(probe.activation(torch.linspace(0.0, 4.0, 64).view(1, 1, 8, 8)))) == 1


def never_negative(
    traced: Traced, roles: Mapping[fx.Node, str], bounded: Collection[fx.Node]
) -> set[fx.Node]:
    """Return the nodes whose values are never negative.

    ``roles`` of the nodes; ``bounded``: the activations that the quantizer's bounding map replaces.
    """
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node not in bounded and (
            _is_never_negative(traced, node) or _keeps_from_negative(traced, node, roles.get(node, ""), found)
        ):
            found.add(node)
    return found


def _is_never_negative(traced: Traced, node: fx.Node) -> bool:
    """Return whether the values of a node are not negative whatever the node reads."""
    module = traced.module(node)
    if module is not None:
        return isinstance(module, _LAYERS) or (isinstance(module, nn.Hardtanh) and module.min_val >= 0)
    if node.op not in ("call_function", "call_method"):
        return False
    name = function_name(node)
    if name == "hardtanh":
        return _at_least_zero(argument(node, 1, "min_val", -1.0))
    if name == "pow":
        exponent = argument(node, 1, "exponent", None)
        return isinstance(exponent, int | float) and exponent % 2 == 0
    if name in ("mul", "multiply"):
        return len(node.args) == 2 and node.args[0] is node.args[1]
    bounds = clamp_bounds(node)
    return name in _FUNCTIONS or (bounds is not None and _at_least_zero(bounds[0]))


def _keeps_from_negative(traced: Traced, node: fx.Node, role: str, found: set[fx.Node]) -> bool:
    """Return whether a node keeps values that are not negative, and reads none but such."""
    module, name = traced.module(node), function_name(node)
    mode = getattr(module, "mode", None) if module is not None else node.kwargs.get("mode")
    if mode == "bicubic":  # overshoots
        return False
    if name in ("maximum", "max") and len(node.all_input_nodes) == 2:
        return any(source in found for source in node.all_input_nodes)
    function = node.op in ("call_function", "call_method")
    if role not in _KEPT_ROLES and not (function and (name in _KEPT or name == "maximum")):
        return False
    sources = node.all_input_nodes[1:] if name == "where" else node.all_input_nodes
    numbers = [] if role in _KEPT_ROLES else [value for value in node.args if isinstance(value, int | float)]
    return bool(sources) and all(s in found for s in sources) and all(_at_least_zero(n) for n in numbers)


def _at_least_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value >= 0
