"""A plain network whose low-precision layers run on integers where they can; the others are named.

A layer runs on integers where its input has a few levels that are multiples of one step, its weights have
levels with scales for each output channel, kernel row or kernel position, and the product of the two numbers
of bit planes is small. Batch norm before such layers becomes thresholds, as in the packed file, where this
is exact, and layers read them directly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bench.export.folding import CHANGE_NOTHING, foldable, put_thresholds_, smallest_reaching, thresholds_of
from bench.export.modules import Activation, InferenceConv2d, InferenceLinear, Thresholds
from bench.export.plain import inference_layers
from bench.integer.build import library
from bench.integer.kernel import Bits, Product, Window
from bench.integer.layers import Arithmetic, IntegerConv2d, IntegerLinear
from bench.integer.levels import (
    MOST_PAIRS,
    MOST_STEPS,
    Integers,
    Term,
    integers_of,
    largest_sum,
    pairs_of,
    planes_of,
    sums_are_exact,
    weight_terms,
)
from bench.integer.ties import reads_sign_of_zero
from bench.quantizers.deployed import ActivationMap, bits_of
from bench.text import table

LEAST_CHANNELS = 8  # of a group: of fewer, most bits of a word are empty, and float32 is faster
FULL_PRECISION = "its weights are full precision"
_RISING = ("sign", "round", "scaled_round", "steps", "fixed", "table")
_MOST_SUM = 2**27  # so that all parts of a sum fit int32


@dataclass(frozen=True)
class LayerRun:
    """How a convolution or a linear layer of a network runs.

    ``name``          of the module
    ``bits``          of weights and activations; 32 for full precision
    ``arithmetic``    "integers" or "float32"
    ``instructions``  of a layer on integers
    ``exact``         of a layer on integers: whether its results equal float32's bit for bit
    ``reason``        of a layer in float32: why
    """

    name: str
    bits: str
    arithmetic: str
    instructions: str | None = None
    exact: bool | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Plan:
    """What a layer needs to run on integers: its input's levels, rising, and the terms of its weights."""

    values: Tensor
    x: Integers
    terms: list[Term]
    bits: str


def integer_network(plain: fx.GraphModule, instructions: str | None = None) -> fx.GraphModule:
    """Return ``plain``, which is on the CPU, with its low-precision layers on integers where they can be.

    ``plain`` is left as it is. ``instructions``: "avx512", "avx2" or "portable"; None: ``$BENCH_INTEGER``,
    else the best of this machine. Raises ``InputError`` where there is no C compiler, or the processor has
    not the instructions.
    """
    kernels = library(instructions)
    made = copy.deepcopy(plain)
    plans = {name: _plan(made, name, layer) for name, layer in inference_layers(made)}
    for norm, readers in foldable(made).items():
        activation = made.get_submodule(readers[0]).activation
        if all(isinstance(plans[reader], _Plan) for reader in readers):
            map = activation.map  # type: ignore[union-attr]
            found = thresholds_of(made.get_submodule(norm), map)  # type: ignore[arg-type]
            if found is not None:
                put_thresholds_(made, norm, readers, found)
    for name, layer in inference_layers(made):
        plan = plans[name]
        if isinstance(plan, str):
            layer.in_float32_because = plan  # type: ignore[assignment]
        else:
            _replace_(made, name, layer, plan, kernels.instructions)
    made.graph.lint()
    made.recompile()
    made.delete_all_unused_submodules()
    return made.eval()


def layer_runs(network: nn.Module) -> list[LayerRun]:
    """Return how each convolution and linear layer of ``integer_network`` runs, in order."""
    found = []
    for name, module in network.named_modules():
        if isinstance(module, IntegerConv2d | IntegerLinear):
            how = module.arithmetic
            found.append(LayerRun(name, how.bits, "integers", how.instructions, how.exact))
        elif isinstance(module, InferenceConv2d | InferenceLinear):
            why = getattr(module, "in_float32_because", "the network was not asked to run on integers")
            found.append(LayerRun(name, _bits(module, _levels_of(module)), "float32", reason=why))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            found.append(LayerRun(name, "32/32", "float32", reason=FULL_PRECISION))
    return found


def layers_text(network: nn.Module) -> str:
    """Return ``layer_runs`` as a table for people."""
    rows = [
        [
            run.name,
            run.bits,
            run.arithmetic,
            run.reason or f"{run.instructions}, {'bit for bit' if run.exact else 'but for rounding'}",
        ]
        for run in layer_runs(network)
    ]
    return table(["layer", "bits", "runs in", "how"], rows)


def _plan(network: fx.GraphModule, name: str, layer: InferenceConv2d | InferenceLinear) -> _Plan | str:
    """Return what the layer needs to run on integers, or why it stays in float32."""
    calls = [node for node in network.graph.nodes if node.op == "call_module" and node.target == name]
    if len(calls) != 1:
        return "the network calls it more than once"
    levels = layer.levels
    if levels is None:
        return FULL_PRECISION
    values = _levels_of(layer)
    if values is None:
        behind = _thresholds_before(network, calls[0])
        values = None if behind is None else _rising(behind[0].values)
    if values is None:
        return "its input is not quantized to levels that are the same for every image"
    if len(values) - 1 > MOST_STEPS:
        return f"its input has {len(values)} levels; up to {MOST_STEPS + 1} run on integers"
    x = integers_of(values[:, None])
    if x is None:
        return "the levels of its input are not multiples of one step"
    if isinstance(layer, InferenceConv2d):
        if layer.groups > 1 and layer.in_channels // layer.groups < LEAST_CHANNELS:
            return f"its groups have {layer.in_channels // layer.groups} input channels, too few for a word"
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return f"its padding is {layer.padding!r}, {layer.padding_mode}"
    terms = weight_terms(levels)
    if isinstance(terms, str):
        return terms
    pairs = pairs_of(terms, len(planes_of(x.numbers).factors))
    if pairs > MOST_PAIRS:
        return f"it would multiply {pairs} pairs of bit planes; up to {MOST_PAIRS} are worth it"
    if largest_sum(terms, x.numbers) >= _MOST_SUM:
        return "its sums could be too large for 32 bits"
    if not sums_are_exact(terms, x.numbers, float(x.step[0])):
        reader = reads_sign_of_zero(network, calls[0])
        if reader is not None:
            return f"{reader} tells its sums from 0, and float32 rounds sums of 0 to either side"
    return _Plan(values, x, terms, f"{levels.bits}/{bits_of(len(values))}")


def _levels_of(layer: InferenceConv2d | InferenceLinear) -> Tensor | None:
    """Return the levels that the layer's own activation map gives, rising; None where there are none."""
    activation = layer.activation
    if not isinstance(activation, Activation):
        return None
    map = activation.map
    tensors = {name: getattr(activation, name) for name, _ in activation.named_buffers()}
    values = ActivationMap(map.form, map.low, map.high, map.bits, map.half_up, tensors=tensors).values
    return None if values is None else _rising(torch.tensor(values))


def _rising(values: Tensor) -> Tensor:
    """Return different values in rising order; a zero has no sign."""
    return (values + 0.0).unique(sorted=True)


def _bits(layer: InferenceConv2d | InferenceLinear, values: Tensor | None) -> str:
    levels = layer.levels
    w = "32" if levels is None else str(levels.bits)
    return f"{w}/{32 if values is None else bits_of(len(values))}"


def _thresholds_before(network: fx.GraphModule, call: fx.Node) -> tuple[Thresholds, fx.Node] | None:
    """Return the thresholds whose levels the call reads, and their node; what lies between adds no level."""
    node = call.args[0]
    while isinstance(node, fx.Node) and node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, Thresholds):
            return module, node
        harmless = isinstance(module, Activation) and any(
            module.map in maps for maps in CHANGE_NOTHING.values()
        )
        if not (isinstance(module, nn.MaxPool2d) or harmless):
            return None
        node = node.args[0]
    return None


def _replace_(
    network: fx.GraphModule,
    name: str,
    layer: InferenceConv2d | InferenceLinear,
    plan: _Plan,
    instructions: str,
) -> None:
    """Put the layer on integers into the place of ``layer``."""
    call = next(n for n in network.graph.nodes if n.op == "call_module" and n.target == name)
    thresholds, directions, activation = None, None, None
    if isinstance(layer.activation, Activation) and layer.activation.map.form == "identity":
        behind = _thresholds_before(network, call)
        if behind is not None and behind[1] is call.args[0] and len(behind[0].values) == len(plan.values):
            thresholds, directions = behind[0].thresholds.T, behind[0].directions
            call.update_arg(0, behind[1].args[0])
            if not behind[1].users:
                network.graph.erase_node(behind[1])
    else:
        activation = layer.activation
        thresholds = _thresholds_of(activation, plan.values)
    if thresholds is None:  # the levels are computed first, and told apart halfway
        thresholds = ((plan.values[1:].double() + plan.values[:-1].double()) / 2.0).float()[:, None]
    else:
        activation = None
    if isinstance(layer, InferenceConv2d):
        groups, kind = layer.groups, IntegerConv2d
        window = Window(*(tuple(getattr(layer, f)) for f in ("kernel_size", "stride", "padding", "dilation")))
        channels = layer.in_channels // groups
    else:
        groups, kind, window = 1, IntegerLinear, Window()  # type: ignore[assignment]
        channels = layer.in_features
    if directions is not None and bool((directions == 1.0).all()):
        directions = None
    bits = Bits(plan.x.numbers, thresholds, directions, groups, channels)
    step = float(plan.x.step[0])
    product = Product(plan.terms, window, groups, bits.lowest, bits.factors, step)
    how = Arithmetic(plan.bits, instructions, sums_are_exact(plan.terms, plan.x.numbers, step))
    made = kind(layer, bits, product, activation, how)  # type: ignore[arg-type]
    network.set_submodule(name, made)


def _thresholds_of(activation: nn.Module, values: Tensor) -> Tensor | None:
    """Return the least number of each level, (levels - 1, 1), float32; None where the map is not rising."""
    if (
        not isinstance(activation, Activation)
        or activation.map.form not in _RISING
        or activation.magnitude_first
    ):
        return None

    def code(y: Tensor) -> Tensor:
        return (activation(y)[None] >= values[1:].reshape(-1, *[1] * y.dim())).sum(0)

    found = torch.stack([smallest_reaching(code, level, 1) for level in range(1, len(values))])
    return found if _rises(code, found) else None


def _rises(code: Callable[[Tensor], Tensor], thresholds: Tensor) -> bool:
    """Return whether levels are counts of thresholds: at them, beside them, on a grid and far away."""
    inf = torch.tensor(torch.inf)
    finite = thresholds.clamp(-3.0e38, 3.0e38)
    probes = [
        finite,
        torch.nextafter(finite, inf),
        torch.nextafter(finite, -inf),
        torch.tensor([[0.0], [-0.0]]),
    ]
    y = torch.cat(
        [*probes, torch.linspace(-4.0, 4.0, 4001)[:, None], 10.0 ** torch.arange(-30.0, 31.0)[:, None]]
    )
    y = torch.cat([y, -y])
    return torch.equal(code(y), (y[None] >= thresholds[:, None]).sum(0))
