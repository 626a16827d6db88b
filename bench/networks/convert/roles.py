"""The role of an operation: what it does to the values that pass through it; "" where no matter.

"activation"  an activation function, element by element
"norm"        a normalisation, which leaves the meaning of every channel
"spatial"     each channel by itself: pooling, upsampling, flattening
"move"        moves numbers without arithmetic
"add"         the sum of two tensors
"cat"         the concatenation of channels
"dropout"     dropout or stochastic depth
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from bench.networks.convert.names import function_name
from bench.networks.convert.trace import Traced

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, FrozenBatchNorm2d)
_NORM_FUNCTIONS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "local_response_norm"}
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.Mish, nn.GELU),
    *(nn.Hardswish, nn.Softplus, nn.Tanh),
)
_ACTIVATION_FUNCTIONS = set(
    "relu relu6 hardtanh leaky_relu elu celu selu silu mish gelu hardswish softplus tanh".split()
)
# the product of the input with a gate: no bounding map has this shape
_SELF_GATED = (nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish)
_SELF_GATED_FUNCTIONS = {"silu", "mish", "gelu", "hardswish"}
_SATURATING = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Tanh, nn.Hardtanh, nn.ReLU6)
_SATURATING_FUNCTIONS = set("sigmoid hardsigmoid softmax tanh hardtanh relu6 clamp clip".split())
# (lowest, highest) of ReLU, ReLU6, the unit interval and hard tanh, where they are written as clamp
_CLAMPED_ACTIVATIONS = ((0, None), (0, 1), (0, 6), (-1, 1))
_SPATIAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample),
    *(nn.ZeroPad2d, nn.Identity, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
)
_SPATIAL_FUNCTIONS = set(
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d interpolate contiguous".split()
)
# A bounding map never falls and maps 0 to 0. A learned one may leave that as it trains: its layers then act
# behind these operations, as in the networks of this package.
_COMMUTING = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Identity, nn.Flatten)
_COMMUTING_FUNCTIONS = {"max_pool2d", "adaptive_max_pool2d", "contiguous", "flatten"}
_MOVES = set("view reshape transpose permute chunk split getitem unflatten squeeze flip".split())
WEIGHTED = set(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear".split()
)


def role_of(traced: Traced, node: fx.Node) -> str:
    """Return the role of a node by what it calls alone."""
    module, name = traced.module(node), function_name(node)
    if module is not None:
        if isinstance(module, nn.Dropout | StochasticDepth):
            return "dropout"
        flat = type(module) is nn.Flatten and module.start_dim == 1
        table = ((_NORMS, "norm"), (_ACTIVATIONS, "activation"), (_SPATIAL, "spatial"))
        return "spatial" if flat else next((role for types, role in table if isinstance(module, types)), "")
    if node.op not in ("call_function", "call_method"):
        return ""
    if name in _ACTIVATION_FUNCTIONS or clamp_bounds(node) in _CLAMPED_ACTIVATIONS:
        return "activation"
    if name in _NORM_FUNCTIONS:
        return "norm"
    if name in _SPATIAL_FUNCTIONS or (name == "flatten" and argument(node, 1, "start_dim", 0) == 1):
        return "spatial"
    if name == "mean" and sorted(d % 4 for d in _dims(argument(node, 1, "dim", ()))) == [2, 3]:
        return "spatial"
    if name == "add" and len([n for n in node.args if isinstance(n, fx.Node)]) == 2 and not node.kwargs:
        return "add"
    if name in ("cat", "concat") and argument(node, 1, "dim", 0) in (1, -3) and _has_channels(traced, node):
        return "cat"
    return "move" if name in _MOVES else ""


def is_self_gated(traced: Traced, node: fx.Node) -> bool:
    """Return whether an activation is its input times a gate: SiLU, Mish, GELU, Hardswish."""
    module = traced.module(node)
    if module is not None:
        return isinstance(module, _SELF_GATED)
    return function_name(node) in _SELF_GATED_FUNCTIONS


def saturates(traced: Traced, node: fx.Node) -> bool:
    """Return whether a node is a function with a bounded range: sigmoid, tanh, ReLU6, clamp."""
    module = traced.module(node)
    if module is not None:
        return isinstance(module, _SATURATING)
    return node.op in ("call_function", "call_method") and function_name(node) in _SATURATING_FUNCTIONS


def commutes_with_bounds(traced: Traced, node: fx.Node) -> bool:
    """Return whether an operation gives the same before a bounding map as behind it.

    Max-pooling does, and so does what moves numbers or pads with 0.
    """
    module = traced.module(node)
    if module is not None:
        return isinstance(module, _COMMUTING)
    role = role_of(traced, node)
    return role == "move" or (role == "spatial" and function_name(node) in _COMMUTING_FUNCTIONS)


def multiplies(node: fx.Node) -> bool:
    """Return whether a node is the product, element by element, of two tensors."""
    return function_name(node) in ("mul", "multiply") and len(node.all_input_nodes) == 2


def has_weights(traced: Traced, node: fx.Node) -> bool:
    """Return whether a node is a layer with weights, or a function that is one; norms are none."""
    module = traced.module(node)
    if module is None:
        return function_name(node) in WEIGHTED
    return not isinstance(module, _NORMS) and any(True for _ in module.parameters())


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument of a node, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def clamp_bounds(node: fx.Node) -> tuple[float | None, float | None] | None:
    """Return the (lowest, highest) value that a clamp lets pass, each None where there is no such bound.

    Return None for other nodes, and for bounds that are no numbers.
    """
    name = function_name(node)
    if node.op not in ("call_function", "call_method") or name not in ("clamp", "clip", "clamp_min"):
        return None
    bounds = (argument(node, 1, "min", None), argument(node, 2, "max", None))
    return bounds if all(bound is None or isinstance(bound, int | float) for bound in bounds) else None


def _dims(value: Any) -> list[int]:
    found = list(value) if isinstance(value, list | tuple) else [value]
    return [d for d in found if isinstance(d, int)]


def _has_channels(traced: Traced, node: fx.Node) -> bool:
    return len(traced.shapes.get(node, ())) == 4 and isinstance(node.args[0], list | tuple)
