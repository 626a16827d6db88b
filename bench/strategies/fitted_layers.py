"""What a fit of low-precision weights needs of a network: rows that a layer reads, and what lies behind it.

A *row* is what a filter reads at one position of one image: the elements under the kernel of a convolution,
the whole input of a linear layer. The same positions are drawn for all passes through the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from bench.errors import InputError
from bench.layers.activation_input import ActivationInput
from bench.layers.classifier import Classifier
from bench.layers.diagnostics import watched
from bench.layers.low_precision import LowPrecisionConv2d, LowPrecisionLayer
from bench.networks import Network
from bench.networks.convert.layers import Bound
from bench.quantizers.deployed import ActivationMap
from bench.randomness import key_of, sample_bits

_BATCH = 128  # images of a pass
_PASSED = ("max_pool2d", "flatten", "view", "reshape")  # functions of a converted network
_CHUNK = 16  # images at a time: the elements under every kernel of a batch take much room


class _Call(NamedTuple):
    """One call of a module that reads a tensor, or of a function, which has no module."""

    module: nn.Module | None
    read: Tensor
    wrote: Any


class Survey:
    """One pass through a network as it stands: the order of its layers, their responses, what follows them.

    order      layers by name, in the order in which they are run
    responses  by name, what the layer gives at the drawn positions: (rows, out), in the dtype of the layer
    behind     by name, the batch norm and the map of the activation that read the layer's output, directly
               or behind max-pooling and flattening; None and the identity where anything else does

    About ``rows`` rows are drawn: of each of ``images`` (N, 3, S, S) the same number, by seed and layer.
    Raises ``InputError`` for a layer that is not run exactly once.
    """

    def __init__(
        self, network: Network, layers: Mapping[str, LowPrecisionLayer], images: Tensor, rows: int, seed: int
    ) -> None:
        self.network, self.images, self._seed = network, images, seed
        self._each = -(-rows // len(images))
        self._positions: dict[str, Tensor] = {}
        found: dict[str, list[Tensor]] = {name: [] for name in layers}

        def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
            found[name].append(_drawn(output[0], self._of_batch(name, found[name], output[0])))

        calls = _calls(network, images[:1])
        with watched(layers.items(), keep):
            self._run()
        batches = -(-len(images) // _BATCH)
        for name, parts in found.items():
            if len(parts) != batches:
                raise InputError(f"strategy: two_step: the layer {name} is not run once for each image")
        self.order = {name: layers[name] for name in self._positions}
        self.responses = {name: torch.cat(parts) for name, parts in found.items()}
        self.behind = {name: _follow(calls, layer) for name, layer in layers.items()}

    def rows_of(self, name: str) -> list[Tensor]:
        """Return what the filters of a layer now read at its positions: (rows, m) for each group of filters.

        The layers before it act as they stand now; m counts the weights of a filter.
        """
        layer, found = self.order[name], list[Tensor]()

        def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, LowPrecisionLayer)
            x = layer.prepare(inputs[0], inputs[1] if len(inputs) > 1 else None)
            found.append(_elements(layer, x, self._of_batch(name, found, x)))

        with layer.register_forward_pre_hook(keep):
            self._run()
        return list(torch.cat(found).chunk(getattr(layer, "groups", 1), 1))

    def _run(self) -> None:
        for start in range(0, len(self.images), _BATCH):
            self.network(self.images[start : start + _BATCH])

    def _of_batch(self, name: str, before: list[Tensor], output: Tensor) -> Tensor:
        """Return the positions of a batch's images, (B, k), after the batches ``before``; the first draws."""
        if name not in self._positions:
            places = output[0, 0].numel()
            images = torch.arange(len(self.images), device=output.device)
            draws = sample_bits(key_of(self._seed, "two_step", name), images, (places,))
            self._positions[name] = draws.argsort(dim=1, stable=True)[:, : self._each]
        start = len(before) * _BATCH
        return self._positions[name][start : start + len(output)]


def _drawn(x: Tensor, positions: Tensor) -> Tensor:
    """Return ``x``, (B, C, H, W), (B, C, places) or (B, C), at ``positions`` (B, k): (B k, C)."""
    x = x[:, :, None] if x.dim() == 2 else x.flatten(2)
    return x.gather(2, positions[:, None].expand(-1, x.shape[1], -1)).transpose(1, 2).flatten(0, 1)


def _elements(layer: LowPrecisionLayer, x: Tensor, positions: Tensor) -> Tensor:
    """Return the elements of ``x`` under the kernel at ``positions`` (B, k): (B k, in kh kw)."""
    if not isinstance(layer, LowPrecisionConv2d):
        return _drawn(x, positions)
    window = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
    parts = zip(x.split(_CHUNK), positions.split(_CHUNK), strict=True)
    return torch.cat([_drawn(F.unfold(one, **window), places) for one, places in parts])


class _Functions(TorchFunctionMode):
    """Keeps the calls of functions that an activation may stand behind, in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in _PASSED and args and result is not args[0]:
            self.calls.append(_Call(None, args[0], result))
        return result


def _calls(network: nn.Module, image: Tensor) -> list[_Call]:
    """Return the calls of all that stands between a layer and the next activation, of one image."""
    calls: list[_Call] = []

    def keep(_name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append(_Call(module, inputs[0], output))

    kinds = (nn.MaxPool2d, _BatchNorm, ActivationInput, Bound)
    modules = [(n, m) for n, m in network.named_modules() if isinstance(m, kinds)]
    with watched(modules, keep), _Functions() as functions:
        network(image)
    known = {(id(call.read), id(call.wrote)) for call in calls}  # a module of pooling calls the function
    return calls + [call for call in functions.calls if (id(call.read), id(call.wrote)) not in known]


def _follow(calls: list[_Call], layer: LowPrecisionLayer) -> tuple[_BatchNorm | None, ActivationMap]:
    """Return the batch norm and the activation that read what ``layer`` gives."""
    norm: _BatchNorm | None = None
    wrote = next(call.wrote[0] for call in calls if call.module is layer)
    while True:
        readers = [call for call in calls if call.read is wrote]
        # beside layers that quantize, a shortcut may read what a bounding map makes of the same values
        readers = [call for call in readers if not isinstance(call.module, Bound)] or readers
        maps = [_map_of(call.module) for call in readers if isinstance(call.module, ActivationInput | Bound)]
        if maps and len(maps) == len(readers) and len(set(maps)) == 1:
            return norm, maps[0]
        if len(readers) != 1 or maps:
            return None, ActivationMap("identity")
        if isinstance(readers[0].module, _BatchNorm):
            if norm is not None:
                return None, ActivationMap("identity")
            norm = readers[0].module
        wrote = readers[0].wrote


def _map_of(reader: ActivationInput | Bound) -> ActivationMap:
    """Return the map of the activations that a layer, or what stands behind a bounding map, reads."""
    if isinstance(reader, Bound):
        return reader.quantizer.bound_map()
    if isinstance(reader, Classifier) and reader.reads != "quantized":
        forms = {"relu": ActivationMap("relu"), "unbounded": ActivationMap("identity")}
        return forms.get(reader.reads) or reader.quantizer.bound_map()
    return reader.quantizer.activation_map()


def affine_of(norm: _BatchNorm | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset of a batch norm in evaluation, float64 (channels,); 1 and 0 for none.

    ``like``: a tensor (channels, ...) on the device.
    """
    if norm is None:
        one = torch.ones(len(like), dtype=torch.float64, device=like.device)
        return one, 0.0 * one
    assert norm.running_mean is not None and norm.running_var is not None
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * norm.weight.double()
    offset = -slope * norm.running_mean.double()
    return slope, offset if norm.bias is None else offset + norm.bias.double()
