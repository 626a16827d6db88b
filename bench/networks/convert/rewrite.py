"""Any network as a low-precision network with branches: torchvision's, timm's, or the user's module.

    network = transform(module, builder, num_classes, input_size=224)

``bench.networks.convert.trace`` turns the module into a graph. ``bench.networks.convert.plan`` decides, with
a reason, which convolutions and linear layers become low precision. This module rewrites the graph.
Parameters keep their names.

- A low-precision layer bounds and quantizes its input, as in the networks of this package. An activation
  function such as ReLU becomes the quantizer's bounding map where a low-precision layer or the last layer
  reads the activation's values. The low-precision layer reads the values before that map, other readers (a
  shortcut, an average, the last layer) the bounded ones.
- Formulas (``y * relu6(y + 3) / 6``), gates (squeeze and excitation) and activations that are their input
  times a gate (SiLU, GELU, Hardswish) stay. A layer that reads no bounding map bounds its input itself.
- The output of a branch, called the side, follows the main path to the layers that read it. It passes batch
  norms and activations unchanged; poolings, sums, concatenations and dropout do to it what they do to the
  main path. With ``sum`` and ``difference`` the side joins the main path behind the next activation; where
  the path forks before one (a pre-activation stream, a linear bottleneck), the side joins at the
  convolution's output. (Within a pre-activation block the suite's own networks join at each output.)
- With ``concat`` a shortcut that forks off carries the main channels alone. A layer whose extra channels
  reach no layer that could read them is refused by its name.
- First convolution, last layer, depthwise convolutions and projections of shortcuts are full precision unless
  the options ask otherwise.
- With the quantizer ``full_precision`` the network is the original, activations included.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import cast

from torch import fx, nn
from torchvision.ops import StochasticDepth

from bench.errors import InputError
from bench.layers.branch import BranchConv2d, BranchLinear
from bench.layers.dropout import Dropout
from bench.networks.builder import Builder
from bench.networks.convert.layers import (
    Bound,
    ConvertedConv2d,
    ConvertedLinear,
    CountedStochasticDepth,
    Tap,
    carried,
    concatenated_sides,
    side_through,
    side_through_function,
    sum_of_sides,
)
from bench.networks.convert.plan import LAYERS, Choices, Plan, make_plan
from bench.networks.convert.roles import commutes_with_bounds
from bench.networks.convert.taps import activation_of, tapped_activations
from bench.networks.convert.trace import Traced, trace
from bench.networks.convert.transformed import TransformedNetwork, has_module, remove_unused
from bench.quantizers import Quantizer
from bench.randomness import Draws
from bench.text import first_few

Layer = ConvertedConv2d | ConvertedLinear


def transform(
    root: nn.Module,
    builder: Builder,
    num_classes: int,
    *,
    input_size: int,
    choices: Choices | None = None,
    who: str = "",
) -> TransformedNetwork:
    """Return ``root`` as a low-precision network, which takes over the layers of ``root``.

    Args:
        root: Maps images (B, 3, S, S) to logits (B, ``num_classes``).
        builder: Has quantizer, bits, clock, branch and blend.
        num_classes: The length of the logits of an image.
        input_size: S.
        choices: What else becomes low precision.
        who: The name of the network in messages.

    Raises:
        InputError: Something cannot be transformed (see ``trace`` and ``plan``; the message names the layer),
            a branch has no place, or nothing would become low precision.
    """
    who = who or type(root).__name__
    before = root.state_dict(keep_vars=True)
    traced = trace(root, input_size, num_classes, who)
    plan = make_plan(
        traced, builder.config.quantizer["kind"], choices or Choices(), builder.quantizer("probe", None)
    )
    if not plan.low:
        raise InputError(f"network: nothing of {who} can become low precision: {_reasons(plan)}")
    rewriter = _Rewriter(traced, plan, builder)
    graph = rewriter.rewrite()
    remove_unused(root, graph)
    network = TransformedNetwork(root, graph, input_size, plan.decisions)
    names: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)  # of a layer with two names the first, as in named_parameters
    network.original_keys = {name: names.get(id(tensor)) for name, tensor in before.items()}
    return network


def _reasons(plan: Plan) -> str:
    by_reason: dict[str, list[str]] = {}
    for row in plan.decisions:
        if row.kind in (*LAYERS, "function"):
            by_reason.setdefault(row.reason, []).append(row.name)
    rows = [f"{first_few(names)}: {reason}" for reason, names in by_reason.items()]
    return "; ".join(rows) or "it has no nn.Conv2d and no nn.Linear"


@dataclass
class _Value:
    """What a node of the old graph has become: the main path, and the side where there is one.

    ``channels``: how many along dimension 1 (``concat``); ``sources``: the layers whose branches it comes
    from; ``activated``: the next activation lies behind, so that for sum and difference it may be joined.
    """

    main: fx.Node
    side: fx.Node | None = None
    channels: int = 0
    sources: frozenset[str] = frozenset()
    activated: bool = False
    joined: fx.Node | None = None


class _Rewriter:
    """Writes the new graph, node by node, and makes the new layers as it comes to them."""

    def __init__(self, traced: Traced, plan: Plan, builder: Builder) -> None:
        self.traced, self.plan, self.builder = traced, plan, builder
        self.root = traced.root
        self.graph = fx.Graph()
        self.values: dict[fx.Node, _Value] = {}
        self.unbounded: dict[fx.Node, fx.Node | None] = {}  # what ``_before_bounds`` has found
        self.tapped = tapped_activations(plan)
        self.taps: dict[fx.Node, str] = {}  # of activations, the names
        self.merge = builder.merge
        self.concat = self.merge == "concat"
        self.plain = builder.config.quantizer["kind"] == "full_precision"
        self.offered: dict[str, str] = {}  # layers with extra channels -> who could not read them
        self.read: set[str] = set()
        self.bounds: dict[str, str] = {}  # layers, "" for functions -> the bounding map in their place
        calls = [node for node in traced.graph.nodes if node.op == "call_module"]
        self.kept = {node.target for node in calls if node not in plan.bounded}  # in some of their calls
        self.draws: dict[fx.Node, Draws] = {}  # of the dropouts that layers have taken over

    def rewrite(self) -> fx.Graph:
        """Return the new graph; raises ``InputError`` for extra channels that nobody reads."""
        for node in self.traced.graph.nodes:
            self.values[node] = self._value(node)
        unread = [name for name in self.offered if name not in self.read]
        if unread:
            others = [name for name in self.builder.eligible if name in self.offered and name in self.read]
            reasons = [f"{name} ({self.offered[name] or 'nothing reads them'})" for name in unread]
            advice = f" Those that can, for strategy.layers: {', '.join(others)}." if others else ""
            raise InputError(
                'strategy.merge: "concat": extra channels reach no layer that reads them: '
                f"{first_few(reasons, 5, '; ')}.{advice}"
            )
        self._erase_unread_bounds()
        self.graph.lint()
        return self.graph

    def _value(self, node: fx.Node) -> _Value:
        role = self.plan.roles.get(node, "")
        if role in ("low", "last"):
            return self._layer(node)
        if role == "dropout":
            return self._dropout(node)
        sources = [self.values[n] for n in node.all_input_nodes]
        if role == "activation":
            return self._activation(node, sources[0])
        if not any(value.side is not None for value in sources):
            return self._other(node)
        if role == "norm":
            return self._side_unchanged(node, sources[0])
        if role == "spatial" or (role == "move" and not self.concat):
            return self._side_along(node)
        if role == "add":
            return self._add(node)
        if role == "cat":
            return self._cat(node)
        return self._other(node)

    # -- the side --------------------------------------------------------------------------------------------

    def _other(self, node: fx.Node) -> _Value:
        """Copy a node, whose inputs are joined first (``concat``: are the main channels)."""
        for source in node.all_input_nodes:
            if self.concat:
                reader = node.target if node.op == "call_module" else node.name
                for name in self.values[source].sources:
                    self.offered[name] = self.offered[name] or f"they would reach {reader}"
        return _Value(self.graph.node_copy(node, self._joined))

    def _joined(self, node: fx.Node) -> fx.Node:
        value = self.values[node]
        if value.side is None or self.concat:
            return value.main
        if value.joined is None:
            arguments = (value.main, value.side, self.merge == "difference")
            value.joined = self.graph.call_function(carried, arguments)
        return value.joined

    def _main(self, node: fx.Node) -> fx.Node:
        return self.values[node].main

    def _activation(self, node: fx.Node, source: _Value) -> _Value:
        """Make an activation, with a place in front of it where strategies can tap what layers read."""
        readers = [str(layer.target) for layer, activation in self.tapped.items() if activation is node]
        tap = Tap()
        if readers:
            name = self.taps[node] = self._free_name(f"{readers[0]}_tap")
            self.root.set_submodule(name, tap)
            source.main = self.graph.call_module(name, (source.main,))
        value = self._side_unchanged(node, source)
        value.activated = True
        if node in self.plan.bounded:
            tap.lead_to(self.root.get_submodule(str(value.main.target)))
        else:
            tap.lead_to(activation_of(self.traced, node))
        return value

    def _free_name(self, name: str) -> str:
        """Return ``name``, with a number behind it where there is a module of that name."""
        names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
        return next(other for other in names if not has_module(self.root, other))

    def _side_unchanged(self, node: fx.Node, source: _Value) -> _Value:
        made = self._bound(node) if node in self.plan.bounded else self.graph.node_copy(node, self._main)
        return _Value(made, source.side, source.channels, source.sources, source.activated)

    def _bound(self, node: fx.Node) -> fx.Node:
        """Replace an activation by the bounding map; each place has its own where the map has parameters."""
        key = str(node.target) if node.op == "call_module" else ""
        name = self.bounds.get(key)
        if name is None or any(True for _ in self.root.get_submodule(name).parameters()):
            takes_place = name is None and key and key not in self.kept
            name = self.bounds[key] = key if takes_place else self._free_name(key or "bounding")
            self.root.set_submodule(name, self._make_bound(name, node))
        return self.graph.call_module(name, (self._main(node.all_input_nodes[0]),))

    def _make_bound(self, name: str, node: fx.Node) -> Bound:
        shape = self.traced.shapes.get(node, ())
        channels = shape[1] if len(shape) == 4 else None
        return Bound(self.builder.quantizer(name, None, channels), self.builder.clock)

    def _before_bounds(self, node: fx.Node) -> fx.Node | None:
        """Return the main path of ``node`` without the bounding maps in front, None where there is none.

        There is one where only max-pooling, moves and concatenation stand between the maps and ``node``: the
        bounded result is the same in either order. A layer behind an average reads bounded values.
        """
        if node not in self.unbounded:
            self.unbounded[node] = self._find_before_bounds(node)
        return self.unbounded[node]

    def _find_before_bounds(self, node: fx.Node) -> fx.Node | None:
        if node in self.plan.bounded:
            return self._main(node.all_input_nodes[0])
        if node in self.plan.moved:
            return self._before_bounds(node.all_input_nodes[0])
        if self.plan.roles.get(node) != "cat" and not commutes_with_bounds(self.traced, node):
            return None
        if all(self._before_bounds(source) is None for source in node.all_input_nodes):
            return None
        return self.graph.node_copy(node, lambda n: self._before_bounds(n) or self._main(n))

    def _erase_unread_bounds(self) -> None:
        """Remove the bounding maps, and what followed them, that layers have passed by and nothing reads."""
        for node in reversed(self.traced.graph.nodes):
            if self.unbounded.get(node) and node not in self.plan.moved and not self._main(node).users:
                self.graph.erase_node(self._main(node))

    def _side_along(self, node: fx.Node) -> _Value:
        """Copy a node, and apply its operation to the side as well."""
        source = self.values[node.all_input_nodes[0]]
        arguments = fx.map_arg(
            node.args, lambda n: self.values[n].side if n is node.all_input_nodes[0] else self._main(n)
        )
        kwargs = fx.map_arg(node.kwargs, self._main)
        main = self.graph.node_copy(node, self._main)
        side_arguments = tuple(arguments[1:]) if isinstance(arguments, tuple | list) else ()
        if node.op == "call_module":
            module = self.graph.get_attr(str(node.target))
            side = self.graph.call_function(side_through, (source.side, module))
        else:
            along = side_through_function(node.target)
            side = self.graph.call_function(along, (source.side, *side_arguments), kwargs)
        before, after = (self.traced.shapes.get(n) for n in (node.all_input_nodes[0], node))
        channels = source.channels
        if before and after and len(before) == 4 and len(after) == 2:  # flattened
            channels = channels * after[1] // before[1]
        return _Value(main, side, channels, source.sources, source.activated)

    def _add(self, node: fx.Node) -> _Value:
        """Copy a sum; the sides of terms that no other operation reads go on beside the sum.

        A side that has passed its activation already joins its term instead.
        """
        terms = [n for n in node.args if isinstance(n, fx.Node)]
        shapes = {self.traced.shapes.get(n) for n in terms}
        passing = [
            self.values[n]
            for n in terms
            if self.values[n].side is not None
            and len(n.users) == 1
            and (self.concat or not self.values[n].activated)
            and len(shapes) == 1
        ]
        alone = {id(value) for value in passing}
        main = self.graph.node_copy(
            node, lambda n: self._main(n) if id(self.values[n]) in alone else self._joined(n)
        )
        return self._together(main, passing, False)

    def _cat(self, node: fx.Node) -> _Value:
        """Concatenate the sides of the terms as well."""
        terms = [self.values[n] for n in cast("list[fx.Node]", node.args[0])]
        main = self.graph.node_copy(node, self._main)
        passing = [value for value in terms if value.side is not None]
        if self.concat:
            return self._together(main, passing, any(value.activated for value in terms))
        sides = [value.side for value in terms]
        side = self.graph.call_function(concatenated_sides, (sides, [value.main for value in terms]))
        sources = frozenset().union(*(value.sources for value in passing))
        return _Value(main, side, 0, sources, True)

    def _together(self, main: fx.Node, passing: list[_Value], activated: bool) -> _Value:
        if not passing:
            return _Value(main)
        side = passing[0].side
        if len(passing) > 1:
            sides = [value.side for value in passing]
            join = (concatenated_sides, (sides, None)) if self.concat else (sum_of_sides, (sides,))
            side = self.graph.call_function(*join)
        sources = frozenset().union(*(value.sources for value in passing))
        return _Value(main, side, sum(value.channels for value in passing), sources, activated)

    def _dropout(self, node: fx.Node) -> _Value:
        """Move dropout into the layers that read it, behind their quantizer, or count its draws."""
        source = self.values[node.all_input_nodes[0]]
        module = self.traced.module(node)
        assert isinstance(module, nn.Dropout | StochasticDepth)
        name = str(node.target)
        if node in self.plan.moved:
            return source
        if isinstance(self.root.get_submodule(name), Dropout):  # called before: each call draws its own
            name = node.target = self._free_name(name)
            self.traced.modules[name] = module
        kind = CountedStochasticDepth if isinstance(module, StochasticDepth) else Dropout
        self.root.set_submodule(name, kind(module.p, Draws(self.builder.clock, "dropout", name)))
        passes = kind is CountedStochasticDepth and source.side is not None
        return self._side_along(node) if passes else self._other(node)

    # -- layers ----------------------------------------------------------------------------------------------

    def _layer(self, node: fx.Node) -> _Value:
        """Make a layer that reads and writes pairs."""
        name, old = str(node.target), self.traced.module(node)
        source = self.values[node.all_input_nodes[0]]
        extra, side = source.channels if self.concat else 0, source.side
        last = self.plan.roles[node] == "last"
        if isinstance(old, nn.Conv2d):
            layer: Layer = ConvertedConv2d(old, self.plan.paddings[node])
            if self.concat and side is not None and extra % old.groups:
                extra, side = 0, None  # cannot be dealt out among its groups
                for unread in source.sources:
                    self.offered[unread] = f"they would reach {name}, a convolution of {old.groups} groups"
        else:
            assert isinstance(old, nn.Linear)
            layer = ConvertedLinear(old)
        if side is not None:
            self.read |= source.sources
        self._set_up(layer, name, extra, last, self.plan.dropouts.get(node), node in self.plan.reads_images)
        layer.tap = self.taps.get(self.tapped.get(node))  # type: ignore[arg-type]
        has_branch = not last and self._branch(layer, name, extra, node)
        self.root.set_submodule(name, layer)
        bounds = not (last or layer.reads_images)
        read = (self._before_bounds(node.all_input_nodes[0]) if bounds else None) or source.main
        arguments = (read,) if side is None else (read, side)
        pair = self.graph.call_module(name, arguments)
        main = self.graph.call_function(operator.getitem, (pair, 0))
        if not has_branch or self.merge == "preactivation" or layer.merge_here:
            return _Value(main)
        if self.concat:
            self.offered.setdefault(name, "")
        return _Value(
            main, self.graph.call_function(operator.getitem, (pair, 1)), layer.extra_out, frozenset([name])
        )

    def _set_up(
        self, layer: Layer, name: str, extra: int, last: bool, dropout: fx.Node | None, reads_images: bool
    ) -> None:
        def quantizer(stream: str, shape: tuple[int, ...]) -> Quantizer:
            if last or self.plain:
                return Quantizer()
            if reads_images:
                return _weights_alone(self.builder, stream, shape)
            return self.builder.quantizer(stream, shape, channels if stream == name else None)

        channels = layer.in_channels if isinstance(layer, nn.Conv2d) else None
        module = self.traced.module(dropout) if dropout else None
        p = module.p if isinstance(module, nn.Dropout) else 0.0
        self.builder.set_up(layer, name, quantizer, extra=extra, dropout=p, blended=not last)
        if layer.dropout is not None and dropout is not None:  # layers that read one dropout draw alike
            layer.dropout.draws = self.draws.setdefault(dropout, layer.dropout.draws)
        layer.reads_images = reads_images
        if reads_images:
            layer.quantizer.keep_()
        if last:
            layer.full_precision_reason = self.plan.reason(name)  # type: ignore[assignment]

    def _branch(self, layer: Layer, name: str, extra: int, node: fx.Node) -> bool:
        """Give a layer its branch where it gets one, and return whether it does."""

        def make(width: int, eps: float | None) -> BranchConv2d | BranchLinear:
            if isinstance(layer, ConvertedLinear):
                return BranchLinear(layer.in_features + extra, width, eps)
            rows, columns = (self.builder.branch_kernel(name, size) for size in layer.kernel_size)
            if width % layer.groups:
                raise InputError(
                    f"strategy.width_ratio: {width} channels of {name}'s branch are not a multiple of its "
                    f"{layer.groups} groups"
                )
            return BranchConv2d(layer, layer.in_channels + extra, width, (rows, columns), eps)

        if not self.builder.add_branch(layer, make, by_default=isinstance(layer, ConvertedConv2d)):
            return False
        layer.merge_here = self.merge in ("sum", "difference") and not self.plan.meets_later(node)
        return True


def _weights_alone(builder: Builder, stream: str, shape: tuple[int, ...]) -> Quantizer:
    """Return a quantizer of weights and gradients, for the layer that reads the images."""
    try:
        return builder.quantizer(stream, shape, a_bits=32)
    except InputError as error:
        raise InputError(
            f'network.first: "low" quantizes weights alone, since images are no activations: {error}'
        ) from None
