"""Training and evaluation as one graph: only where a layer can tell the modes apart may they differ.

``torch.fx`` follows ``forward`` in one mode and writes ``self.training`` down as the constant that it is
there. A batch norm that calls ``F.batch_norm(..., self.training, ...)`` would so normalise by the batch's
statistics for good. Both modes are therefore traced and compared, node by node. A function whose only
difference is its flag of the mode becomes the layer of ``torch.nn`` that asks for the mode each time:
``F.batch_norm`` and ``F.instance_norm`` with running statistics. Every other difference is refused by name.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.errors import InputError
from bench.networks.convert.names import function_name, owner, owner_name
from bench.text import clean


class _Signature(NamedTuple):
    """The arguments of a function that depends on the mode, in order, and which one is the mode's flag."""

    names: tuple[str, ...]
    flag: str
    defaults: Mapping[str, Any]


def _signature(function: Callable[..., Any], flag: str = "training") -> _Signature:
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return _Signature(tuple(parameters), flag, defaults)


_TORCH_DROPOUT = _Signature(("input", "p", "train"), "train", {})
_TORCH_NORM = ("input", "weight", "bias", "running_mean", "running_var")
_TORCH_NUMBERS = ("momentum", "eps", "cudnn_enabled")
_DROPOUTS: dict[Any, _Signature] = {
    **{f: _signature(f) for f in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)},
    **{f: _signature(f) for f in (F.alpha_dropout, F.feature_alpha_dropout)},
    **dict.fromkeys(
        (torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
        _TORCH_DROPOUT,
    ),
}
_BATCH_NORMS: dict[Any, _Signature] = {
    F.batch_norm: _signature(F.batch_norm),
    torch.batch_norm: _Signature((*_TORCH_NORM, "training", *_TORCH_NUMBERS), "training", {}),
}
_INSTANCE_NORMS: dict[Any, _Signature] = {
    F.instance_norm: _signature(F.instance_norm, "use_input_stats"),
    torch.instance_norm: _Signature(
        (*_TORCH_NORM, "use_input_stats", *_TORCH_NUMBERS), "use_input_stats", {}
    ),
}
_OF_THE_MODE: dict[Any, _Signature] = {
    **_DROPOUTS,
    **_BATCH_NORMS,
    **_INSTANCE_NORMS,
    F.rrelu: _signature(F.rrelu),
}
_ROLES = ("weight", "bias", "running_mean", "running_var")


def unify(root: nn.Module, training: fx.Graph, evaluation: fx.Graph, who: str) -> None:
    """Make ``training`` the graph of both modes, in place; ``root`` gets the new layers, tensors stay.

    Raises ``InputError``, naming the operation and its place, where the modes differ otherwise, where
    evaluation would use the statistics of the batch, and where a norm is no layer of ``torch.nn`` exactly.
    """
    for graph in (training, evaluation):
        _drop_counting(graph)
    flags = _compare_modes(root, training, evaluation, who)
    depends = _on_images(training)
    norms: dict[str, str] = {}
    for node in list(training.nodes):
        if node.op != "call_function" or node.target not in _OF_THE_MODE:
            continue
        arguments, modes = _arguments(node), flags[node]
        if node.target in _DROPOUTS:
            if arguments["p"] == 0 or modes == (False, False):  # it never drops anything
                node.replace_all_uses_with(arguments["input"])
                training.erase_node(node)
        elif node.target is not F.rrelu and node in depends:
            _replace_norm(root, training, node, arguments, modes, norms, who)


# -- comparing the modes -------------------------------------------------------------------------------------


def _drop_counting(graph: fx.Graph) -> None:
    """Remove ``num_batches_tracked.add_(1)``, since layers count by themselves, and unread tensors."""
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        counts = isinstance(first, fx.Node) and str(first.target).endswith("num_batches_tracked")
        if counts and function_name(node) in ("add_", "iadd", "add") and not node.users:
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _compare_modes(
    root: nn.Module, training: fx.Graph, evaluation: fx.Graph, who: str
) -> dict[fx.Node, tuple[bool, bool]]:
    """Return the flags (training, evaluation) of each function of the mode; raise for other differences."""
    flags: dict[fx.Node, tuple[bool, bool]] = {}
    pairs: dict[fx.Node, fx.Node] = {}
    mine, others = ([n for n in graph.nodes if n.op != "get_attr"] for graph in (training, evaluation))
    for node, other in itertools.zip_longest(mine, others):
        if node is None:
            raise InputError(
                f"network: {who}: {_described(root, other)} is computed in evaluation, but not in training"
            )
        if other is None or not _same(root, node, other, pairs, flags):
            raise InputError(
                f"network: {who}: {_described(root, node)} is not the same in training and in evaluation; "
                "such a network cannot become low precision (auxiliary heads: switch them off)"
            )
        pairs[node] = other
    return flags


def _described(root: nn.Module, node: fx.Node) -> str:
    kind = type(root.get_submodule(owner(node))).__name__
    what = node.target if node.op == "call_module" else function_name(node)
    return f"{what} in {owner_name(node)} ({kind})"


def _same(
    root: nn.Module,
    node: fx.Node,
    other: fx.Node,
    pairs: dict[fx.Node, fx.Node],
    flags: dict[fx.Node, tuple[bool, bool]],
) -> bool:
    """Return whether two nodes do the same but for the flag of the mode, which is noted."""
    if node.op != other.op or node.target != other.target:
        return False
    if node.op == "placeholder":
        return True
    if node.op != "call_function" or node.target not in _OF_THE_MODE:
        for each in (node, other):
            if _drops_nothing(each):
                each.kwargs = {**each.kwargs, "training": False}
        return _equal(root, (node.args, node.kwargs), (other.args, other.kwargs), pairs)
    mine, theirs = _arguments(node), _arguments(other)
    flag = _OF_THE_MODE[node.target].flag
    modes = (mine.pop(flag, None), theirs.pop(flag, None))
    if not all(isinstance(mode, bool) for mode in modes) or not _equal(root, mine, theirs, pairs):
        return False
    flags[node] = (bool(modes[0]), bool(modes[1]))
    return True


def _drops_nothing(node: fx.Node) -> bool:
    """Return whether the mode of a function only switches a dropout of probability 0 (attention)."""
    rates = [value for name, value in node.kwargs.items() if "dropout" in name]
    return isinstance(node.kwargs.get("training"), bool) and bool(rates) and all(rate == 0 for rate in rates)


def _equal(root: nn.Module, mine: Any, theirs: Any, pairs: dict[fx.Node, fx.Node]) -> bool:
    """Return whether two nodes have equal arguments: structures, numbers, paired nodes, equal tensors."""
    if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node):
        if mine.op == theirs.op == "get_attr":
            return mine.target == theirs.target or _equal_constants(
                root, str(mine.target), str(theirs.target)
            )
        return pairs.get(mine) is theirs
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return mine.keys() == theirs.keys() and all(_equal(root, mine[k], theirs[k], pairs) for k in mine)
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(
            _equal(root, a, b, pairs) for a, b in zip(mine, theirs, strict=True)
        )
    if isinstance(mine, slice) and isinstance(theirs, slice):
        parts = ("start", "stop", "step")
        return all(_equal(root, getattr(mine, part), getattr(theirs, part), pairs) for part in parts)
    if isinstance(mine, bool) is not isinstance(theirs, bool):
        return False
    return bool(mine == theirs)


def _equal_constants(root: nn.Module, mine: str, theirs: str) -> bool:
    """Return whether two tensors that ``forward`` made while it was followed are the same."""
    if not (mine.startswith("_tensor_constant") and theirs.startswith("_tensor_constant")):
        return False
    a, b = getattr(root, mine), getattr(root, theirs)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a function of the mode by name, defaults included."""
    names, _, defaults = _OF_THE_MODE[node.target]
    found = {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    found.pop("inplace", None)
    found.pop("cudnn_enabled", None)
    return found


def _on_images(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose value depends on the images."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


# -- functions that become layers ----------------------------------------------------------------------------


def _replace_norm(
    root: nn.Module,
    graph: fx.Graph,
    node: fx.Node,
    arguments: dict[str, Any],
    modes: tuple[bool, bool],
    norms: dict[str, str],
    who: str,
) -> None:
    """Replace a functional norm with running statistics by a layer; ``norms``: the layers made so far."""
    batch = node.target in _BATCH_NORMS
    tracked = arguments["running_mean"] is not None and arguments["running_var"] is not None
    if modes == (False, False) or (not batch and not tracked):
        return  # a constant map, or statistics of each image alone: the function says all
    what = _described(root, node)
    if modes[1]:
        reason = (
            "uses the statistics of the batch in evaluation" if batch else "ignores its running statistics"
        )
        extra = ", and rewrites the running ones" if tracked else ""
        raise InputError(
            f"network: {who}: {what} {reason}{extra}: an image's logits would depend on its batch. Pass "
            f"{_OF_THE_MODE[node.target].flag}=self.training and the running statistics, or use the layer "
            "of torch.nn"
        )
    tensors = {role: arguments[role] for role in _ROLES}
    numbers = {key: arguments[key] for key in ("momentum", "eps")}
    problem = _not_exact(root, tensors, numbers)
    if problem or not tracked:
        raise InputError(
            f"network: {who}: {what} cannot become a layer of torch.nn exactly: "
            f"{problem or 'it has no running statistics'}"
        )
    key = str(tensors["running_mean"].target)
    made = norms.get(key)
    if made is None:
        made = norms[key] = _make_norm(root, node, batch, tensors, numbers)
    _call_layer(graph, node, made, arguments["input"])


def _not_exact(root: nn.Module, tensors: dict[str, Any], numbers: dict[str, Any]) -> str:
    """Return why a norm of these tensors is no layer of torch.nn, "" where it is one."""
    for role, node in tensors.items():
        if node is None:
            continue
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return f"its {role} is computed, not a tensor of the module"
        path, _, own = str(node.target).rpartition(".")
        kinds = root.get_submodule(path)
        if own not in (kinds._buffers if role.startswith("running") else kinds._parameters):
            kind = "buffer" if role.startswith("running") else "parameter"
            return f"its {role} ({clean(node.target)}) is no {kind}"
    if (tensors["weight"] is None) is not (tensors["bias"] is None):
        return "it has a weight without a bias, or a bias without a weight"
    wrong = [key for key, value in numbers.items() if not isinstance(value, int | float)]
    return f"its {wrong[0]} is no number" if wrong else ""


def _make_norm(
    root: nn.Module, node: fx.Node, batch: bool, tensors: dict[str, Any], numbers: dict[str, Any]
) -> str:
    """Put a layer of torch.nn with the given tensors into ``root`` and return its path.

    Where the module of the norm holds these tensors under torch.nn's names and nothing else, the layer takes
    its place and its children; elsewhere the layer becomes a child of the module, and the tensors move into
    the layer.
    """
    path = owner(node)
    old = root.get_submodule(path)
    values: dict[str, Tensor | None] = {
        role: None if tensor is None else operator.attrgetter(str(tensor.target))(root)
        for role, tensor in tensors.items()
    }
    mean = values["running_mean"]
    assert mean is not None
    numbers = {"eps": float(numbers["eps"]), "momentum": float(numbers["momentum"])}
    kind = BatchNormOfAnyShape if batch else InstanceNormOfAnyShape
    layer = kind(len(mean), affine=values["weight"] is not None, track_running_stats=True, **numbers)
    for role, value in values.items():
        setattr(layer, role, value)
    layer.train(old.training)
    own = {name for name, value in (*old._parameters.items(), *old._buffers.items()) if value is not None}
    wanted = {role: path and f"{path}.{role}" for role, value in tensors.items() if value is not None} == {
        role: str(value.target) for role, value in tensors.items() if value is not None
    }
    if path and wanted and own <= {*_ROLES, "num_batches_tracked"}:
        if isinstance(old._buffers.get("num_batches_tracked"), Tensor):
            layer.num_batches_tracked = old._buffers["num_batches_tracked"]
        for name, child in old.named_children():
            layer.add_module(name, child)
        root.set_submodule(path, layer)
        return path
    for tensor in tensors.values():
        if tensor is not None:
            holder, _, name = str(tensor.target).rpartition(".")
            delattr(root.get_submodule(holder), name)
    return _put_beside(root, node, "batch_norm" if batch else "instance_norm", layer)


class BatchNormOfAnyShape(nn.BatchNorm2d):
    """Batch norm of (B, C, ...), as ``F.batch_norm`` has it, whatever the number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class InstanceNormOfAnyShape(nn.InstanceNorm2d):
    """Instance norm of (B, C, ...), as ``F.instance_norm`` has it, whatever the number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``input`` (B, C, ...) to the same shape."""
        return self._apply_instance_norm(input)


def _put_beside(root: nn.Module, node: fx.Node, name: str, layer: nn.Module) -> str:
    """Add ``layer`` to the module in whose ``forward`` a node stands and return its path."""
    path = owner(node)
    module, count, own = root.get_submodule(path), 1, name
    while hasattr(module, own):
        count += 1
        own = f"{name}_{count}"
    module.add_module(own, layer)
    return f"{path}.{own}" if path else own


def _call_layer(graph: fx.Graph, node: fx.Node, path: str, images: fx.Node) -> None:
    with graph.inserting_before(node):
        new = graph.call_module(path, (images,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    for unread in list(graph.nodes):
        if unread.op == "get_attr" and not unread.users:
            graph.erase_node(unread)
