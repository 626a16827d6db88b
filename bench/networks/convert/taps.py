"""Where strategies look at what a layer of a converted network reads: before the activation in front of it.

A layer of the suite's own networks activates its input itself, and its classifier averages. In a converted
network an activation and a pooling may stand in front of the layer, so that the layer's input is not the
tensor that the layer before handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from bench.networks.convert.names import function_name
from bench.networks.convert.plan import Plan
from bench.networks.convert.roles import is_self_gated
from bench.networks.convert.trace import Traced

_RESHAPES = ("view", "reshape", "squeeze")


def tapped_activations(plan: Plan) -> dict[fx.Node, fx.Node]:
    """Return for each layer that reads pairs the activation whose values it reads, by node.

    Between both may stand pooling, reshaping and dropout. A layer that reads anything else has none, and so
    has one behind an activation that is its input times a gate, for such a layer bounds its input itself.
    """
    found = {}
    for layer, role in plan.roles.items():
        if role not in ("low", "last") or layer in plan.reads_images:
            continue
        node = layer.all_input_nodes[0]
        while plan.roles.get(node) in ("spatial", "dropout") or function_name(node) in _RESHAPES:
            node = node.all_input_nodes[0]
        if plan.roles.get(node) == "activation" and not is_self_gated(plan.traced, node):
            found[layer] = node
    return found


def activation_of(traced: Traced, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return what a node computes, an activation of one tensor, as a function."""
    module = traced.module(node)
    if module is not None:
        return module

    def activation(x: Tensor) -> Tensor:
        args: Any = fx.map_arg(node.args, lambda _: x)
        kwargs: Any = fx.map_arg(node.kwargs, lambda _: x)
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    return activation
