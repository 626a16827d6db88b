"""The graph of operations of anybody's module, or a message that says why there is none.

The graph is one of ``torch.fx``. Layers of ``torch.nn`` are its nodes; ``forward`` of every other module is
followed into. The graph holds in training and in evaluation (``bench.networks.convert.modes``), draws random
numbers only through layers whose draws can be counter-based, and changes no tensor in place.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d, StochasticDepth

from bench.errors import InputError
from bench.networks.convert import modes
from bench.networks.convert.check_modules import check_modules
from bench.networks.convert.names import function_name, owner_name
from bench.text import clean

_RANDOM_NAMES = set(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout rrelu
    gumbel_softmax fractional_max_pool2d fractional_max_pool3d stochastic_depth drop_block2d bernoulli rand
    rand_like randn randn_like randint randint_like randperm normal multinomial poisson uniform exponential
    cauchy log_normal geometric random
    """.split()
)
_INPUT_LATER = {"where", "searchsorted", "polygamma"}  # whose argument input is not the first
_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}


@dataclass(frozen=True)
class Traced:
    """A module, its graph, its modules by path, and the shape of each node's output for one image."""

    root: nn.Module
    graph: fx.Graph
    modules: dict[str, nn.Module]
    shapes: dict[fx.Node, tuple[int, ...]]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that a node calls, None where the node calls no layer."""
        return self.modules[str(node.target)] if node.op == "call_module" else None


def trace(root: nn.Module, input_size: int, num_classes: int, who: str) -> Traced:
    """Return the graph of ``root``: images (B, 3, S, S), S = ``input_size``, to logits (B, classes).

    ``who`` names the network in messages. Batch norms and dropouts that ``forward`` computes by functions
    become layers of ``root``; plain tensors that ``forward`` reads become buffers of ``root``. Raises
    ``InputError``, naming the place, for control flow that depends on the images, operations that differ
    between training and evaluation, random numbers from PyTorch's generator, a parameter with two names,
    batch statistics in evaluation, and a network that does not read such images or return such logits.
    """
    check_modules(root, who)
    _check_arguments(root, who)
    training, evaluation = _graph(root, True, who), _graph(root, False, who)
    modes.unify(root, training, evaluation, who)
    modules = dict(root.named_modules())
    _check_random(training, modules, who)
    _check_writes(training, who)
    _keep_constants(root, training)
    _out_of_place(training, modules, who)
    return Traced(root, training, modules, _shapes(root, training, input_size, num_classes, who))


# -- tracing -------------------------------------------------------------------------------------------------


class _Known(fx.proxy.ParameterProxy):
    """The stand-in of a parameter or a buffer, whose shape ``forward`` may ask for."""

    def __init__(self, tracer: fx.Tracer, node: fx.Node, name: str, tensor: Tensor) -> None:
        fx.Proxy.__init__(self, node, tracer)
        self.name, self.param = name, tensor  # type: ignore[assignment]


class _Tracer(fx.Tracer):
    """Follows every module but the layers of ``torch.nn``; parameters and buffers are nodes of the graph."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.path = ""  # of the module whose ``forward`` runs, the innermost where one raised
        self.names = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the stand-in of a parameter or a buffer, so that its value is no constant of the graph."""
        name = self.names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr",
                name,
                (),
                {},
                proxy_factory_fn=lambda node: _Known(self, node, name, attr_val),  # type: ignore
            )
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.modules.batchnorm._BatchNorm):  # a subclass that only sets options is a leaf too
            return type(m).forward is nn.modules.batchnorm._BatchNorm.forward
        return isinstance(m, StochasticDepth | FrozenBatchNorm2d) or super().is_leaf_module(
            m, module_qualified_name
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        outer = self.path
        self.path = self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = outer
        return result

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Give ``forward`` the images alone: further arguments keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]


def _check_arguments(root: nn.Module, who: str) -> None:
    """Raise where ``forward`` needs more than the images."""
    try:
        signature = inspect.signature(root.forward)
    except (TypeError, ValueError):  # of C++
        return
    try:
        signature.bind("images")
    except TypeError as error:
        raise InputError(
            f"network: forward of {who} takes {clean(signature, 200)}, but the suite calls forward(images): "
            f"{clean(error, 200)}. Give every further argument a default"
        ) from None


def _graph(root: nn.Module, training: bool, who: str) -> fx.Graph:
    root.train(training)
    tracer = _Tracer(root)
    try:
        with _nothing_lost():
            return _by_position(tracer.trace(root))
    except Exception as error:  # whatever the code does with the stand-ins of its tensors
        where = f"{tracer.path} of {who}" if tracer.path else who
        raise InputError(
            f"network: {where} cannot be followed by torch.fx: {type(error).__name__}: {clean(error, 300)}. "
            "Its forward must not depend on the values of its tensors, nor use autograd functions or C++ of "
            "its own"
        ) from error


@contextlib.contextmanager
def _nothing_lost() -> Iterator[None]:
    """Make autograd functions and autocast raise: a graph would lose backward and precision in silence."""
    apply, enter = torch.autograd.Function.__dict__["apply"], torch.autocast.__enter__

    def refuse(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{cls.__name__} is an autograd function")

    def refuse_precision(context: Any) -> Any:
        if context._enabled:
            raise TypeError('autocast in forward; leave it out: precision = "bf16" is a field of the recipe')
        return enter(context)

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[assignment]
    torch.autocast.__enter__ = refuse_precision  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def _by_position(graph: fx.Graph) -> fx.Graph:
    """Let every function have its tensors as the first argument, where they are given by name; in place."""
    for node in graph.nodes:
        name = next((key for key in ("input", "tensors") if key in node.kwargs), None)
        if node.op == "call_function" and not node.args and name and function_name(node) not in _INPUT_LATER:
            kwargs = dict(node.kwargs)
            node.args = (kwargs.pop(name),)
            node.kwargs = kwargs
    return graph


# -- checks of the graph -------------------------------------------------------------------------------------


def _check_random(graph: fx.Graph, modules: dict[str, nn.Module], who: str) -> None:
    for node in graph.nodes:
        name = function_name(node)
        if node.op == "call_module":
            inner = [m for m in modules[node.target].modules() if m is not modules[node.target]]
            if any(isinstance(m, nn.Dropout) and m.p > 0 for m in inner):
                raise InputError(
                    f"network: {who}: {node.target} ({type(modules[node.target]).__name__}) has dropout "
                    "within, whose random numbers are its own; set it to 0"
                )
        elif node.op in ("call_function", "call_method") and name.rstrip("_") in _RANDOM_NAMES:
            raise InputError(
                f"network: {who}: {name} in {owner_name(node)} draws random numbers of its own, so that a "
                "trial could not be repeated; dropout is supported as the layer nn.Dropout"
            )
        elif name == "scaled_dot_product_attention" and node.kwargs.get("dropout_p", 0.0):
            raise InputError(
                f"network: {who}: {name} in {owner_name(node)} draws dropout of its own; set dropout_p to 0"
            )


def _check_writes(graph: fx.Graph, who: str) -> None:
    """Raise for operations that change a parameter, a buffer or a constant in place."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        name = function_name(node)
        in_place = (name.endswith("_") and not name.endswith("__")) or node.target in _IN_PLACE
        first = node.args[0] if node.args else None
        if not (in_place or node.target is operator.setitem or bool(node.kwargs.get("inplace"))):
            continue
        while isinstance(first, fx.Node) and function_name(first) in ("getitem", "view", "data", "getattr"):
            first = first.args[0]  # type: ignore[assignment]
        if isinstance(first, fx.Node) and first.op == "get_attr":
            raise InputError(
                f"network: {who}: {name} in {owner_name(node)} changes the tensor {first.target} in forward; "
                "only the running statistics of batch norm may change there"
            )


def _keep_constants(root: nn.Module, graph: fx.Graph) -> None:
    """Make every plain tensor that the graph reads a buffer, which moves with the network; none is stored."""
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, own = str(node.target).rpartition(".")
        owner = root.get_submodule(path)
        tensor = getattr(owner, own)
        if isinstance(tensor, Tensor) and own not in {**owner._parameters, **owner._buffers}:
            delattr(owner, own)
            owner.register_buffer(own, tensor.detach(), persistent=False)


# -- rewriting in-place operations ---------------------------------------------------------------------------


def _out_of_place(graph: fx.Graph, modules: dict[str, nn.Module], who: str) -> None:
    """Turn what changes a tensor in place into what returns a new one, which all later readers then read.

    Raises ``InputError`` for an operation that PyTorch has in place alone (``copy_``, ``zero_``).
    """
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
            if not callable(getattr(Tensor, node.target[:-1], None)):
                raise InputError(
                    f"network: {who}: {node.target} in {owner_name(node)} changes a tensor in place, and "
                    "PyTorch has no form of it that returns the result; write forward without it"
                )
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


# -- shapes --------------------------------------------------------------------------------------------------


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
            f"network: {who} does not read images of {input_size} pixels: {clean(reason[0], 300)}; see "
            "input_size"
        ) from error
    if not isinstance(output, Tensor) or tuple(output.shape) != (1, num_classes):
        kind = type(output).__name__.removeprefix("immutable_")  # as torch.fx calls lists and dictionaries
        got = tuple(output.shape) if isinstance(output, Tensor) else kind
        advice = "" if isinstance(output, Tensor) else "; let forward return the tensor of logits alone"
        raise InputError(
            f"network: {who} returns {got} for one image, not {num_classes} logits, (1, "
            f"{num_classes}){advice}"
        )
    root.train()
    nodes = zip(graph.nodes, shapes.module.graph.nodes, strict=True)  # type: ignore[arg-type, union-attr]
    return {node: shapes.found[copied] for node, copied in nodes if copied in shapes.found}


def calls(graph: fx.Graph) -> Counter[str]:
    """Return how often each module is called."""
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
