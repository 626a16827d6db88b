"""Batch norm and the activation behind it as thresholds of batch norm's input, where this is exact.

In evaluation both are monotone in each channel, rounding included, so a quantized activation of batch norm is
a count of thresholds. They are found by bisection over the float32 numbers with the functions themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from bench.export.modules import Activation, InferenceConv2d, InferenceLinear, Thresholds
from bench.quantizers.deployed import ActivationMap

MOST_LEVELS = 4  # with more of them the thresholds take more room than batch norm's four numbers a channel
_LARGEST = 0x7F7FFFFF  # the bits of the largest finite float32
# Bounding maps, by the form that quantizes behind them, that change neither its result nor its levels.
CHANGE_NOTHING = {
    "round": {ActivationMap("relu"), ActivationMap("clip", 0.0, 1.0)},
    "sign": {ActivationMap("clip", -1.0, 1.0)},
}


def foldable(plain: fx.GraphModule) -> dict[str, list[str]]:
    """Return the batch norms that thresholds can replace, each with the layers that read it, by name.

    A batch norm is replaced where nothing but low-precision layers reads it, directly, behind a max-pooling
    (which commutes with a monotone map) or behind a bounding map (which changes no level), and all of them
    quantize it alike, to at most ``MOST_LEVELS`` levels.
    """
    modules = dict(plain.named_modules())
    found: dict[str, list[str]] = {}
    calls = [str(node.target) for node in plain.graph.nodes if node.op == "call_module"]
    for node in plain.graph.nodes:
        if node.op != "call_module" or not isinstance(
            modules[str(node.target)], nn.BatchNorm1d | nn.BatchNorm2d
        ):
            continue
        readers = _readers(node, modules)
        if not readers or calls.count(str(node.target)) > 1 or any(calls.count(r) > 1 for r in readers):
            continue
        layers = [modules[name] for name in readers]
        if not all(isinstance(m, InferenceConv2d | InferenceLinear) and _counts(m) for m in layers):
            continue
        maps = {m.activation.map for m in layers}  # type: ignore[union-attr]
        if len(maps) == 1 and _between(node, modules) <= CHANGE_NOTHING[maps.pop().form]:
            found[str(node.target)] = readers
    return found


def fold_(plain: fx.GraphModule) -> dict[str, list[str]]:
    """Replace every batch norm of ``foldable`` in place, where its kernels agree; return those replaced."""
    folded = {}
    for name, readers in foldable(plain).items():
        norm, layer = plain.get_submodule(name), plain.get_submodule(readers[0])
        made = thresholds_of(norm, layer.activation.map)  # type: ignore[arg-type, union-attr]
        if made is not None:
            put_thresholds_(plain, name, readers, made)
            folded[name] = readers
    return folded


def put_thresholds_(plain: fx.GraphModule, name: str, readers: list[str], made: Thresholds) -> None:
    """Put ``made`` in the place of the batch norm ``name``; ``readers`` then read its output as it is.

    timm's batch norms hold the activation behind them, which the graph calls by its own name: it stays there.
    """
    for child, module in plain.get_submodule(name).named_children():
        made.add_module(child, module)
    plain.set_submodule(name, made)
    for reader in readers:
        plain.get_submodule(reader).activation = Activation(ActivationMap("identity"))


@torch.no_grad()
def thresholds_of(norm: nn.Module, map: ActivationMap) -> Thresholds | None:
    """Return ``norm`` and ``map`` as thresholds; None where kernels of batch norm differ in the last digit.

    PyTorch's kernels for other memory layouts and sizes may round otherwise. The thresholds hold for a
    contiguous and a channels-last tensor, or there are none.
    """
    activation = Activation(map)
    values = torch.tensor(map.values)
    channels: int = norm.num_features  # type: ignore[assignment]
    ones = torch.ones(channels)
    weight: Tensor | None = norm.weight  # type: ignore[assignment]
    directions = ones if weight is None else torch.where(weight.cpu() < 0, -1.0, 1.0)

    def code(y: Tensor) -> Tensor:
        """Return the codes of ``y`` (n, C) as a batch of the rank that ``norm`` reads."""
        y = y * directions
        y = y[:, :, None, None] if isinstance(norm, nn.BatchNorm2d) else y
        found = activation(norm(y))
        return (found[None] >= values[1:].reshape(-1, *[1] * found.dim())).sum(0).flatten(1)

    thresholds = torch.stack([smallest_reaching(code, level, channels) for level in range(1, len(values))], 1)
    made = Thresholds(thresholds, directions, values)
    return made if _agrees(made, norm, activation) else None


def _counts(layer: InferenceConv2d | InferenceLinear) -> bool:
    """Return whether the layer reads nothing of its input but a few monotone levels."""
    activation = layer.activation
    if not isinstance(activation, Activation) or activation.map.form not in CHANGE_NOTHING:
        return False
    values = activation.map.values
    return (
        values is not None
        and len(values) <= MOST_LEVELS
        and layer.input_scale is None
        and not hasattr(layer, "bound")
        and not activation.magnitude_first
    )


def _readers(node: fx.Node, modules: dict[str, nn.Module]) -> list[str]:
    """Return the modules that read ``node``, through max-poolings; nothing where something else reads it."""
    found: list[str] = []
    for user in node.users:
        if user.op != "call_module":
            return []
        if isinstance(modules[str(user.target)], nn.MaxPool2d | Activation):
            behind = _readers(user, modules)
            if not behind:
                return []
            found += behind
        else:
            found.append(str(user.target))
    return found


def _between(node: fx.Node, modules: dict[str, nn.Module]) -> set[ActivationMap | None]:
    """Return the bounding maps between ``node`` and the layers that read it; None for one of magnitudes."""
    found: set[ActivationMap | None] = set()
    for user in node.users:
        module = modules[str(user.target)]
        if isinstance(module, Activation):
            found.add(None if module.magnitude_first else module.map)
        if isinstance(module, Activation | nn.MaxPool2d):
            found |= _between(user, modules)
    return found


def _number(keys: Tensor) -> Tensor:
    """Return the float32 number of a key; keys (int64) order the numbers, 0 and -0 have the key 0."""
    magnitude = keys.abs().to(torch.int32).view(torch.float32)
    return torch.where(keys < 0, -magnitude, magnitude)


def smallest_reaching(code: Callable[[Tensor], Tensor], level: int, channels: int) -> Tensor:
    """Return a channel's smallest float32 y whose code is at least ``level``; -inf or inf where none is."""
    low = torch.full((channels,), -_LARGEST, dtype=torch.int64)
    high = torch.full((channels,), _LARGEST, dtype=torch.int64)
    always = code(_number(low)[None])[0] >= level
    never = code(_number(high)[None])[0] < level
    while bool((high - low > 1).any()):  # low is below the threshold, high is not
        middle = (low + high) // 2
        reached = code(_number(middle)[None])[0] >= level
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    found = _number(high)
    return torch.where(always, -torch.inf, torch.where(never, torch.inf, found))


def _agrees(made: Thresholds, norm: nn.Module, activation: Activation) -> bool:
    """Return whether the thresholds hold at themselves and beside them, in the kernels of several layouts."""
    finite = made.thresholds.clamp(-3.0e38, 3.0e38).T * made.directions
    beside = [torch.nextafter(finite, torch.tensor(to)) for to in (-torch.inf, torch.inf)]
    y = torch.cat([finite, *beside])
    if not isinstance(norm, nn.BatchNorm2d):
        return torch.equal(made(y), activation(norm(y)))
    grid = y[:, :, None, None].expand(-1, -1, 5, 7).contiguous()
    layouts = (grid, grid.to(memory_format=torch.channels_last), y[:, :, None, None])
    return all(torch.equal(made(one), activation(norm(one))) for one in layouts)
