"""Which layers of a traced network become low precision, and why; each operation's role for a branch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx, nn
from torch.nn.utils import parametrize
from torchvision.ops import SqueezeExcitation

from bench.errors import InputError
from bench.networks.convert.formulas import is_gate, reaches
from bench.networks.convert.names import function_name, owner_name, reachable
from bench.networks.convert.roles import WEIGHTED, has_weights, is_self_gated, role_of
from bench.networks.convert.signs import keeps_signs_alone, never_negative
from bench.networks.convert.trace import Traced, calls
from bench.quantizers import Quantizer
from bench.text import first_few

LAYERS = ("convolution", "depthwise convolution", "grouped convolution", "linear")
LOW, FULL, REPLACED, KEPT, REMOVED = "low precision", "full precision", "replaced", "left as is", "removed"

_GATES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax)
_GATE_FUNCTIONS = {"sigmoid", "hardsigmoid", "softmax"}
_ARITHMETIC = {"mul", "truediv", "div", "sub", "add", "pow", "multiply", "rsub", "neg", "square"}


@dataclass(frozen=True)
class Choices:
    """What becomes low precision beyond the default, each "full" or "low"."""

    first: str = "full"
    last: str = "full"
    depthwise: str = "full"
    projection: str = "full"


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer or operation: a line of the table of ``bench show --layers``."""

    name: str
    kind: str
    decision: str
    reason: str


@dataclass
class Plan:
    """The decisions, and what the rewriting needs of them.

    ``roles``: "low" and "last" (layers that read pairs), "activation", "norm", "spatial" (each channel by
    itself), "move" (no arithmetic), "add", "cat", "dropout"; ``bounded``: activations that become the
    bounding map; ``paddings`` of convolutions in pixels; ``moved``: dropouts that go into layers,
    ``dropouts``: the one of each layer; ``reads_images``: the low-precision layers that do.
    """

    traced: Traced
    roles: dict[fx.Node, str] = field(default_factory=dict)
    low: list[str] = field(default_factory=list)
    bounded: set[fx.Node] = field(default_factory=set)
    paddings: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)
    moved: set[fx.Node] = field(default_factory=set)
    dropouts: dict[fx.Node, fx.Node] = field(default_factory=dict)
    reads_images: set[fx.Node] = field(default_factory=set)
    decisions: list[Decision] = field(default_factory=list)

    def reason(self, name: str) -> str:
        """Return the reason given for a layer."""
        return next((row.reason for row in self.decisions if row.name == name), "")

    def meets_later(self, node: fx.Node) -> bool:
        """Return whether a layer's branch meets the main path later than at the layer's output.

        It does where the output comes to an activation, or to layers that read pairs, before the path forks
        and before any other operation reads the output.
        """
        while True:
            users = list(node.users)
            roles = [self.roles.get(user, "") for user in users]
            if users and all(role in ("activation", "low", "last") for role in roles):
                return True
            if len(users) != 1 or roles[0] not in ("norm", "spatial", "add", "dropout"):
                return False
            node = users[0]


def make_plan(traced: Traced, kind: str, choices: Choices, probe: Quantizer) -> Plan:
    """Return the plan for a traced network; ``InputError`` for layers whose quantized input is constant."""
    plan = Plan(traced)
    for node in traced.graph.nodes:
        role = role_of(traced, node)
        if role:
            plan.roles[node] = role
    _decide_layers(plan, choices, probe)
    _find_replaced_activations(plan, kind)
    _check_signs(plan, kind, probe)
    _find_moved_dropouts(plan)
    _complete_decisions(plan, kind)
    return plan


# -- convolutions and linear layers --------------------------------------------------------------------------


def _decide_layers(plan: Plan, choices: Choices, probe: Quantizer) -> None:
    traced = plan.traced
    nodes = [n for n in traced.graph.nodes if type(traced.module(n)) in (nn.Conv2d, nn.Linear)]
    members = {n for n in traced.graph.nodes if has_weights(traced, n)}  # of any kind, functions too
    behind, ahead = (_on_the_way(members, nodes, forward=forward) for forward in (False, True))
    counted = calls(traced.graph)
    seen: set[str] = set()
    for node in nodes:
        name, layer = str(node.target), cast("nn.Conv2d | nn.Linear", traced.module(node))
        if name in seen:
            continue
        seen.add(name)
        reason, role = _obstacle(plan, node, layer, counted[name], probe), "low"
        if not reason and not behind[node] and choices.first == "full" and isinstance(layer, nn.Conv2d):
            reason = "the first convolution"
        elif not reason and not ahead[node] and choices.last == "full":
            role = "last"
            reason = f"the last {'linear layer' if isinstance(layer, nn.Linear) else 'convolution'}"
        elif not reason and _is_depthwise(layer) and choices.depthwise == "full":
            reason = "depthwise: one filter a channel, few weights"
        elif not reason and choices.projection == "full" and _is_projection(plan, node):
            reason = "reads the residual stream"
        decision = FULL if reason else LOW
        if not reason or role == "last":
            plan.roles[node] = role
            plan.paddings[node] = _padding(layer) or (0, 0)
        if not reason:
            plan.low.append(name)
            if not behind[node] and isinstance(layer, nn.Conv2d):
                plan.reads_images.add(node)
                reason = "weights alone: it reads the images"
            elif not _is_activated(plan, node.args[0]):
                reason = "bounds its input itself: no activation stands before it"
        else:
            layer.full_precision_reason = reason  # type: ignore[assignment]
        plan.decisions.append(Decision(name, _kind(layer), decision, reason))


def _is_activated(plan: Plan, node: Any) -> bool:
    """Return whether a layer reads activations, directly or behind pooling, dropout, concatenation."""
    role = plan.roles.get(node)
    if role in ("spatial", "dropout", "move"):
        return _is_activated(plan, node.all_input_nodes[0])
    if role == "cat":
        return all(_is_activated(plan, term) for term in node.all_input_nodes)
    return role == "activation"


def _on_the_way(members: set[fx.Node], nodes: list[fx.Node], *, forward: bool) -> dict[fx.Node, bool]:
    """Return for each node whether one of ``members`` lies behind (or ahead of) it."""
    known: dict[fx.Node, bool] = {}
    order = list(nodes[0].graph.nodes) if nodes else []
    for node in reversed(order) if forward else order:
        near = node.users if forward else node.all_input_nodes
        known[node] = any(other in members or known.get(other, False) for other in near)
    return {node: known[node] for node in nodes}


def _kind(layer: nn.Conv2d | nn.Linear) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    if _is_depthwise(layer):
        return "depthwise convolution"
    return "grouped convolution" if layer.groups > 1 else "convolution"


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels


def _padding(layer: nn.Conv2d | nn.Linear) -> tuple[int, int] | None:
    """Return a convolution's padding in pixels, None where it is not the same on both sides."""
    if isinstance(layer, nn.Linear) or layer.padding == "valid":
        return (0, 0)
    if layer.padding == "same":
        whole = [(size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return None if any(pixels % 2 for pixels in whole) else (whole[0] // 2, whole[1] // 2)
    return (int(layer.padding[0]), int(layer.padding[1]))


def _obstacle(plan: Plan, node: fx.Node, layer: nn.Conv2d | nn.Linear, count: int, probe: Quantizer) -> str:
    """Return why a layer cannot become low precision, "" where it can."""
    traced = plan.traced
    if count > 1:
        return f"called {count} times: a low-precision layer has one place"
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return "called with other arguments than its input"
    if isinstance(layer, nn.Linear) and len(traced.shapes.get(node.args[0], ())) != 2:
        return "applied at every position"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            return f"padded by {layer.padding_mode!r}, not zeros"
        if _padding(layer) is None:
            return "padded more on one side"
        if probe.scales_input and max(layer.dilation) > 1:
            return "dilated, for which the quantizer's input scale is not defined"
        if probe.scales_input and any(
            2 * pixels > size for pixels, size in zip(_padding(layer) or (), layer.kernel_size, strict=True)
        ):
            return "padded by more than half its kernel, for which the quantizer's input scale is not defined"
    parent = str(node.target).rpartition(".")[0]
    if isinstance(traced.modules.get(parent), SqueezeExcitation):
        return "squeeze and excitation: a gate"
    if len(node.users) == 1:
        (user,) = node.users
        module = traced.module(user)
        if isinstance(module, _GATES) or (module is None and function_name(user) in _GATE_FUNCTIONS):
            return "a gate: its output goes into a sigmoid"
    if is_gate(node, traced):
        return "a gate: its output scales other features"
    return ""


def _is_projection(plan: Plan, node: fx.Node) -> bool:
    """Return whether a 1x1 convolution is a shortcut: a sum joins it to a longer path from its input."""
    layer = plan.traced.module(node)
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1):
        return False
    end = node
    while len(end.users) == 1 and plan.roles.get(next(iter(end.users))) == "norm":
        end = next(iter(end.users))
    source = node.all_input_nodes[0]
    while plan.roles.get(source) == "spatial":  # pooling before the projection
        source = source.all_input_nodes[0]
    for total in end.users:
        if plan.roles.get(total) == "add":
            others = [n for n in total.all_input_nodes if n is not end]
            if any(_depth(plan.traced, source, other, node) > 1 for other in others):
                return True
    return False


def _depth(traced: Traced, source: fx.Node, target: fx.Node, without: fx.Node) -> int:
    """Return the most layers with weights on a way from ``source`` to ``target``, -1 without a way.

    Ways through ``without`` do not count.
    """
    depth: dict[fx.Node, int] = {source: 0}
    passed = False
    for node in traced.graph.nodes:
        if node is source:
            passed = True
        elif passed and node is not without:
            before = [depth[n] for n in node.all_input_nodes if n in depth]
            if before:
                depth[node] = max(before) + isinstance(traced.module(node), nn.Conv2d | nn.Linear)
    return depth.get(target, -1)


# -- activations, dropout ------------------------------------------------------------------------------------


def _find_replaced_activations(plan: Plan, kind: str) -> None:
    """Find the activations to replace: a low-precision layer or the last one reads their values.

    Activations that are a product of their input and a gate (SiLU, Hardswish) stay, whether they are one
    layer or written out as a formula: the layers that read them bound their input.
    """
    if kind == "full_precision":
        return
    for node in [n for n, role in plan.roles.items() if role == "activation"]:
        if not is_self_gated(plan.traced, node) and reaches(node, plan.roles, plan.traced):
            plan.bounded.add(node)


def _check_signs(plan: Plan, kind: str, probe: Quantizer) -> None:
    """Raise for low-precision layers whose input is never negative, where the quantizer keeps signs alone."""
    if kind == "full_precision" or not keeps_signs_alone(probe):
        return
    values = never_negative(plan.traced, plan.roles, plan.bounded)
    wrong = [
        str(node.target)
        for node, role in plan.roles.items()
        if role == "low" and node not in plan.reads_images and node.all_input_nodes[0] in values
    ]
    if wrong:
        raise InputError(
            f"network: what {first_few(wrong)} would read is never negative (an activation, then a gate or a "
            f"formula), and '{kind}' keeps the sign of activations alone: every value would be +1. Take a "
            "quantizer with more levels, or let a norm stand before the layer"
        )


def _find_moved_dropouts(plan: Plan) -> None:
    """Find the dropouts that go into the layers behind them, directly or behind a flattening."""

    def flattens(user: fx.Node) -> bool:
        module = plan.traced.module(user)
        return (function_name(user) if module is None else type(module).__name__).lower() == "flatten"

    for node in [n for n, role in plan.roles.items() if role == "dropout"]:
        module = plan.traced.module(node)
        if not isinstance(module, nn.Dropout):
            continue
        behind = reachable(node.users, lambda user: user.users if flattens(user) else ())
        readers = [user for user in behind if not flattens(user)]
        fit = bool(readers) and all(plan.roles.get(reader) in ("low", "last") for reader in readers)
        if module.p == 0 or (fit and not any(reader in plan.dropouts for reader in readers)):
            plan.moved.add(node)
            plan.dropouts.update(dict.fromkeys(readers, node) if module.p else {})


# -- the table -----------------------------------------------------------------------------------------------


def _complete_decisions(plan: Plan, kind: str) -> None:
    """Complete the decisions: everything that is named, in the order of the graph."""
    traced, rows = plan.traced, {row.name: row for row in plan.decisions}
    ordered: dict[str, Decision] = {}

    def note(node: fx.Node, row: Decision) -> None:
        if ordered.setdefault(row.name, row) != row:  # another call of the layer has another decision
            name = f"{row.name} ({node.name})"
            ordered[name] = replace(row, name=name)

    for node in traced.graph.nodes:
        module, name = traced.module(node), str(node.target)
        role = plan.roles.get(node)
        if module is None:
            name = f"{function_name(node)} in {owner_name(node)} ({node.name})"
            if role == "activation":
                ordered[name] = _activation_row(plan, node, name, function_name(node), kind)
            elif node.op == "call_function" and function_name(node) in WEIGHTED:
                ordered[name] = Decision(
                    name, "function", KEPT, "a function with weights of its own; use a layer of torch.nn"
                )
        elif name in rows:
            ordered.setdefault(name, rows[name])
        elif role == "activation":
            note(node, _activation_row(plan, node, name, type(module).__name__, kind))
        elif role == "dropout":
            inside = node in plan.moved and getattr(module, "p", 0.0) > 0
            reason = (
                "inside the layer that reads it, behind its quantizer" if inside else "counter-based draws"
            )
            note(node, Decision(name, type(module).__name__, REPLACED, reason))
        elif role != "norm" and any(True for _ in module.parameters()):
            reason = f"{type(module).__name__}: only nn.Conv2d and nn.Linear become low precision"
            if parametrize.is_parametrized(module):
                reason += "; take torch.nn.utils.parametrize.remove_parametrizations"
            ordered.setdefault(name, Decision(name, type(module).__name__, KEPT, reason))
    called = calls(traced.graph)
    read = {str(n.target).rpartition(".")[0] for n in traced.graph.nodes if n.op == "get_attr"}
    for name, module in traced.modules.items():
        inside = any(name == path or name.startswith(f"{path}.") for path in called)
        if name and not inside and name not in read and any(True for _ in module.parameters(recurse=False)):
            ordered[name] = Decision(name, type(module).__name__, REMOVED, "forward does not call it")
    plan.decisions = list(ordered.values())
    if kind == "full_precision":
        reason = "the quantizer is full_precision"
        plan.decisions = [
            replace(r, decision=FULL, reason=reason) if r.decision == LOW else r for r in plan.decisions
        ]


def _activation_row(plan: Plan, node: fx.Node, name: str, kind: str, quantizer: str) -> Decision:
    if node in plan.bounded:
        return Decision(
            name, kind, REPLACED, f"the bounding map of '{quantizer}'; the layers that read it quantize"
        )
    if quantizer == "full_precision":
        return Decision(name, kind, KEPT, "the network is in full precision")
    if is_self_gated(plan.traced, node):
        return Decision(name, kind, KEPT, "its input times a gate: the layers that read it bound their input")
    if any(function_name(user) in _ARITHMETIC for user in node.users):
        return Decision(name, kind, KEPT, "part of a formula or a gate: layers behind it bound their input")
    return Decision(name, kind, KEPT, "no low-precision layer reads it")
