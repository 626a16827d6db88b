"""Formulas and gates in a traced network.

A formula is an activation function that is written out. A gate is a layer that scales features.

    y * relu6(y + 3) / 6            the ReLU6 is a part of a formula (hard-swish by hand)
    y * sigmoid(fc(pool(y)))        the linear layer is a part of a gate (squeeze and excitation)

Replacing an activation within a formula would change what the formula computes, so formulas stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from bench.networks.convert.names import function_name, reachable
from bench.networks.convert.roles import has_weights, multiplies, saturates
from bench.networks.convert.trace import Traced

_PASSED = ("spatial", "norm", "dropout", "cat", "move")


def reaches(node: fx.Node, roles: Mapping[fx.Node, str], traced: Traced) -> bool:
    """Return whether an activation's values reach a low-precision layer, or the last one, unchanged.

    They may pass pooling, norm, dropout, concatenation and residual sums, but no arithmetic.
    """

    def onwards(user: fx.Node) -> Iterable[fx.Node]:
        role = roles.get(user, "")
        return user.users if role in _PASSED or (role == "add" and is_residual(user, traced)) else ()

    return any(roles.get(user) in ("low", "last") for user in reachable(node.users, onwards))


def is_residual(total: fx.Node, traced: Traced) -> bool:
    """Return whether a sum joins two paths that differ by a layer with weights.

    A sum whose terms come from the same layers is a part of a formula, as in ``relu(y) + 0.1 * tanh(y)`` or
    ``y + y``.
    """
    layers = [_nearest_layers(term, traced) for term in total.all_input_nodes]
    return len(layers) == 2 and layers[0] != layers[1]


def _nearest_layers(node: fx.Node, traced: Traced) -> set[fx.Node]:
    def is_layer(source: fx.Node) -> bool:
        return source.op == "placeholder" or has_weights(traced, source)

    behind = reachable([node], lambda source: () if is_layer(source) else source.all_input_nodes)
    return {source for source in behind if is_layer(source)}


def is_gate(layer: fx.Node, traced: Traced) -> bool:
    """Return whether the output of a layer serves to scale features that do not come from the layer.

    On every way from the layer lies a product with such features, and before that a function with a bounded
    range.
    """
    after = set(reachable(layer.users, lambda node: node.users))
    pending = [(user, False) for user in layer.users]
    seen: set[tuple[fx.Node, bool]] = set()
    while pending:
        node, bounded = pending.pop()
        if (node, bounded) in seen:
            continue
        seen.add((node, bounded))
        if function_name(node) in ("size", "getattr", "dim"):  # reads the shape alone
            continue
        if multiplies(node) and any(
            source not in after and source is not layer and _has_images(source)
            for source in node.all_input_nodes
        ):
            if not bounded:
                return False
            continue
        if node.op == "output" or not node.users:
            return False
        weighted = isinstance(traced.module(node), nn.Module) and has_weights(traced, node)
        pending += [(user, (bounded and not weighted) or saturates(traced, node)) for user in node.users]
    return bool(layer.users)


def _has_images(node: fx.Node) -> bool:
    return any(source.op == "placeholder" for source in reachable([node], lambda n: n.all_input_nodes))
