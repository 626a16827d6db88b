"""Formulas and gates in a traced network: activation functions that are written out, and layers that scale
features.

    y * relu6(y + 3) / 6            the ReLU6 is a part of a formula (hard-swish by hand)
    y * sigmoid(fc(pool(y)))        the linear layer is a part of a gate (squeeze and excitation)

Replacing an activation within a formula would change what the formula computes, so formulas stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from bench.networks.convert.names import function_name
from bench.networks.convert.roles import has_weights, multiplies, saturates
from bench.networks.convert.trace import Traced

_PASSED = ("spatial", "norm", "dropout", "cat", "move")


def reaches(node: fx.Node, roles: Mapping[fx.Node, str], traced: Traced) -> bool:
    """Return whether the values of an activation come to a low-precision layer, or to the last one, as they
    are.

    They may pass pooling, norm, dropout, concatenation and residual sums, but no arithmetic.
    """
    pending, seen = list(node.users), {node}
    while pending:
        user = pending.pop()
        if user in seen:
            continue
        seen.add(user)
        role = roles.get(user, "")
        if role in ("low", "last"):
            return True
        if role in _PASSED or (role == "add" and is_residual(user, traced)):
            pending += user.users
    return False


def is_residual(total: fx.Node, traced: Traced) -> bool:
    """Return whether a sum joins two paths that differ by a layer with weights.

    A sum whose terms come from the same layers is a part of a formula, as in ``relu(y) + 0.1 * tanh(y)`` or
    ``y + y``.
    """
    layers = [_nearest_layers(term, traced) for term in total.all_input_nodes]
    return len(layers) == 2 and layers[0] != layers[1]


def _nearest_layers(node: fx.Node, traced: Traced) -> set[fx.Node]:
    found, pending, seen = set(), [node], set()
    while pending:
        source = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "placeholder" or has_weights(traced, source):
            found.add(source)
        else:
            pending += source.all_input_nodes
    return found


def is_gate(layer: fx.Node, traced: Traced) -> bool:
    """Return whether the output of a layer serves to scale features that do not come from the layer.

    On every way from the layer lies a product with such features, and before that a function with a bounded
    range.
    """
    after = _descendants(layer)
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


def _descendants(node: fx.Node) -> set[fx.Node]:
    found, pending = set(), list(node.users)
    while pending:
        user = pending.pop()
        if user not in found:
            found.add(user)
            pending += user.users
    return found


def _has_images(node: fx.Node) -> bool:
    pending, seen = [node], set()
    while pending:
        source = pending.pop()
        if source.op == "placeholder":
            return True
        if source not in seen:
            seen.add(source)
            pending += source.all_input_nodes
    return False
