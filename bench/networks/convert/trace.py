"""A module of anybody's as a graph of operations, or a message that says why it cannot be one.

The graph is that of ``torch.fx``: layers of ``torch.nn`` are its leaves, everything else is followed into. It is the same
in training and in evaluation, draws no random numbers but through layers that can be replaced by counter-based ones, and
changes no tensor in place.
"""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth

from bench.errors import InputError
from bench.text import clean

_RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_RANDOM_NAMES = {
    *(
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "feature_dropout",
    ),
    *(
        "rrelu",
        "gumbel_softmax",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "stochastic_depth",
        "drop_block2d",
    ),
    *(
        "bernoulli",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "normal",
    ),
    *("multinomial", "poisson", "uniform", "exponential", "cauchy", "log_normal", "geometric", "random"),
}
_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}


@dataclass(frozen=True)
class Traced:
    """A module, its graph, its modules by path, and for each node of the graph the shape of its output for one image."""

    root: nn.Module
    graph: fx.Graph
    modules: dict[str, nn.Module]
    shapes: dict[fx.Node, tuple[int, ...]]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that a node calls, None where it calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def place(node: fx.Node) -> str:
    """Return the path of the module in whose ``forward`` a node stands, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else str(key) for key, entry in stack.items()]
    return paths[-1] if paths and paths[-1] else "the network itself"


def function_name(node: fx.Node) -> str:
    """Return the name of what a node calls: ``relu``, ``add``, ``view``; the class's name for a module."""
    return str(getattr(node.target, "__name__", node.target))


def trace(root: nn.Module, input_size: int, num_classes: int, who: str) -> Traced:
    """Return the graph of ``root``, images (B, 3, S, S) -> logits (B, classes), S = ``input_size``.

    ``who`` names the network in messages. Raises ``InputError``, naming the place, for control flow that depends on the
    images, other operations in evaluation than in training, random numbers from PyTorch's generator, a parameter with
    two names, and a network that does not read such images or return such logits.
    """
    modules = dict(root.named_modules())
    _check_modules(root, modules, who)
    graph = _graph(root, True, who)
    _check_random(graph, modules, who)
    _check_modes(graph, _graph(root, False, who), root, who)
    _out_of_place(graph, modules)
    return Traced(root, graph, modules, _shapes(root, graph, input_size, num_classes, who))


def _graph(root: nn.Module, training: bool, who: str) -> fx.Graph:
    root.train(training)
    try:
        with _no_autograd_functions():
            return _Tracer().trace(root)
    except Exception as error:  # whatever the code does with the stand-ins of its tensors
        raise InputError(
            f"network: {who} cannot be followed by torch.fx: {type(error).__name__}: {clean(error, 300)}. Its forward "
            "must not depend on the values of its tensors, nor use autograd functions or C++ of its own"
        ) from error


@contextlib.contextmanager
def _no_autograd_functions() -> Iterator[None]:
    """Make autograd functions raise: traced, they would lose their backward in silence."""
    apply = torch.autograd.Function.__dict__["apply"]

    def refuse(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{cls.__name__} is an autograd function")

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]


def _check_modules(root: nn.Module, modules: dict[str, nn.Module], who: str) -> None:
    for name, module in modules.items():
        if isinstance(module, nn.Dropout | StochasticDepth):
            continue
        p = getattr(module, "dropout", 0.0)  # of recurrent layers and attention
        draws = isinstance(module, _RANDOM_MODULES) and getattr(module, "p", 1.0) > 0
        if draws or (
            isinstance(module, nn.RNNBase | nn.MultiheadAttention) and isinstance(p, float) and p > 0
        ):
            raise InputError(
                f"network: {who}: {name} ({type(module).__name__}) draws random numbers of its own, so that a trial "
                "could not be repeated; use nn.Dropout or leave it out"
            )
    names: dict[int, str] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        if (
            id(parameter) in names
            and modules[name.rpartition(".")[0]] is not modules[names[id(parameter)].rpartition(".")[0]]
        ):
            raise InputError(
                f"network: {who}: {names[id(parameter)]} and {name} are one parameter; each needs its own"
            )
        names.setdefault(id(parameter), name)


def _check_random(graph: fx.Graph, modules: dict[str, nn.Module], who: str) -> None:
    for node in graph.nodes:
        name = function_name(node)
        if node.op == "call_module":
            inner = [m for m in modules[node.target].modules() if m is not modules[node.target]]
            if any(isinstance(m, nn.Dropout) and m.p > 0 for m in inner):
                raise InputError(
                    f"network: {who}: {node.target} ({type(modules[node.target]).__name__}) has dropout within, whose "
                    "random numbers are its own; set it to 0"
                )
        elif node.op in ("call_function", "call_method") and name.rstrip("_") in _RANDOM_NAMES:
            if "dropout" in name and _off(node):
                continue
            raise InputError(
                f"network: {who}: {name} in {place(node)} draws random numbers of its own, so that a trial could not be "
                "repeated; dropout is supported as the layer nn.Dropout"
            )


def _off(node: fx.Node) -> bool:
    p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return bool(p == 0 or training is False)


def _check_modes(training: fx.Graph, evaluation: fx.Graph, root: nn.Module, who: str) -> None:
    """Raise where the two graphs differ, in operations or in the tensors that ``forward`` makes."""
    others = iter(evaluation.nodes)
    for node in training.nodes:
        other = next(others, None)
        same = other is not None and (node.op, node.name, str(node.args)) == (
            other.op,
            other.name,
            str(other.args),
        )
        made = node.op == "get_attr" and "_tensor_constant" in str(node.target)
        if same and not made and str(node.target) != str(other.target if other else ""):
            same = False
        if same and made:
            a, b = (getattr(root, str(n.target)) for n in (node, other) if n is not None)
            same = torch.equal(a, b)
        if not same and not (
            node.op == "call_function" and "dropout" in function_name(node) and other is not None
        ):
            raise InputError(
                f"network: {who}: {node.op} {function_name(node)} in {place(node)} is not the same in training and in "
                "evaluation; such a network cannot become low precision (auxiliary heads: switch them off)"
            )
    if next(others, None) is not None:
        raise InputError(f"network: {who} does more in evaluation than in training")


def _out_of_place(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Turn what changes a tensor in place into what returns a new one, which all later readers then read."""
    for node in list(graph.nodes):
        changes = False
        if node.op == "call_module":
            changes = bool(getattr(modules[node.target], "inplace", False))
        elif node.op == "call_function":
            changes = node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))
            name = function_name(node)
            if name.endswith("_") and not name.startswith("_"):
                plain = getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)
                if plain is not None:
                    node.target, changes = plain, True
            node.target = _IN_PLACE.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target, changes = node.target[:-1], True
        if changes and node.args and isinstance(node.args[0], fx.Node):
            changed, later = node.args[0], False
            for user in list(graph.nodes):
                if later and changed in user.all_input_nodes:
                    user.replace_input_with(changed, node)
                later = later or user is node
    for module in modules.values():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        return result


@torch.no_grad()
def _shapes(
    root: nn.Module, graph: fx.Graph, input_size: int, num_classes: int, who: str
) -> dict[fx.Node, Any]:
    root.eval()
    shapes = _Shapes(fx.GraphModule(root, graph))
    try:
        output = shapes.run(torch.zeros(1, 3, input_size, input_size))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"network: {who} does not read images of {input_size} pixels: {clean(reason[0], 300)}; see input_size"
        ) from error
    if not isinstance(output, Tensor) or tuple(output.shape) != (1, num_classes):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"network: {who} returns {got} for one image, not {num_classes} logits, (1, {num_classes})"
        )
    root.train()
    nodes = zip(graph.nodes, shapes.module.graph.nodes, strict=True)  # type: ignore[arg-type, union-attr]
    return {node: shapes.found[copied] for node, copied in nodes if copied in shapes.found}


def calls(graph: fx.Graph) -> Counter[str]:
    """Return how often each module is called."""
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
