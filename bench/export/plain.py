"""The plain network: what is left of a trained network when everything of training is gone.

The network is traced at factor 0 (``torch.fx``), so the result is a module whose children are the layers that
ship and whose ``forward`` connects them. The code of the architecture is no part of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from bench.errors import InputError
from bench.export.modules import Activation, InferenceClassifier, InferenceConv2d, InferenceLinear, InputScale
from bench.layers.classifier import Classifier
from bench.layers.dropout import Dropout
from bench.layers.low_precision import LowPrecisionLayer, low_precision_modules, strip
from bench.layers.max_pool import MaxPool2
from bench.networks.builder import Network
from bench.networks.convert.layers import Bound, CountedStochasticDepth
from bench.networks.padding import SameMaxPool2d
from bench.quantizers.deployed import ActivationMap

_OWN = (InferenceConv2d, InferenceLinear, InferenceClassifier, Activation, SameMaxPool2d, FrozenBatchNorm2d)
# Values on which the deployed form of an activation map is compared with the quantizer's own.
_PROBE = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, -1e-30, 3.0, -3.0]


def plain_network(network: Network) -> fx.GraphModule:
    """Return the plain network of a trained one, in evaluation mode, on the same device.

    ``network`` is left as it is. The logits are those of ``network`` at factor 0, bit for bit. Parameters are
    called as in ``network`` and need no gradient; ``input_size`` is the size of the images in pixels. Raises
    ``InputError`` for a quantizer whose deployed form is not declared.
    """
    stripped = strip(network).eval()
    for name, layer in low_precision_modules(stripped):
        stripped.set_submodule(name, _layer(layer, name))
    for name, module in list(stripped.named_modules()):
        if (made := _other(module, name)) is not None:
            stripped.set_submodule(name, made)
    tracer = _Tracer()
    graph = tracer.trace(stripped)
    _remove_helpers(stripped, {node.target for node in graph.nodes})
    plain = fx.GraphModule(stripped, graph, class_name=type(network).__name__)
    plain.delete_all_unused_submodules()
    plain.input_size = network.input_size  # type: ignore[assignment]
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    return plain.eval()


def inference_layers(plain: nn.Module) -> list[tuple[str, InferenceConv2d | InferenceLinear]]:
    """Return (name, layer) of the layers of a plain network that were low-precision layers, in order."""
    return [(n, m) for n, m in plain.named_modules() if isinstance(m, InferenceConv2d | InferenceLinear)]


class _Tracer(fx.Tracer):
    """Follows the architecture's code; a low-precision layer hands on (output, None): there is no side."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            return True
        return isinstance(m, _OWN) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(m, Dropout | CountedStochasticDepth | nn.Dropout | nn.Identity):
            return args[0]  # the identity in evaluation
        if isinstance(m, InferenceConv2d | InferenceLinear):
            return super().call_module(m, forward, args[:1], {}), None
        if isinstance(m, InferenceClassifier):
            return super().call_module(m, forward, args[:1], {})
        return super().call_module(m, forward, args, kwargs)


def _layer(layer: LowPrecisionLayer, name: str) -> InferenceConv2d | InferenceLinear:
    """Return the deployed form of a low-precision layer."""
    quantizer, statistics = layer.quantizer, layer.fixed_statistics
    weight = layer.low_precision_weight(with_extra=False)
    try:
        levels = quantizer.weight_levels(layer.weight, statistics)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    if levels is None and not torch.equal(weight, layer.weight):
        raise InputError(f"{name}: the quantizer {type(quantizer).__name__} declares no level_values")
    raw = getattr(layer, "reads_images", False)
    activation = Activation(ActivationMap("identity")) if raw else _activation(layer, name, bound=False)
    bound = Activation(ActivationMap("identity")) if raw else _activation(layer, name, bound=True)
    read = Activation(ActivationMap("identity"), activation.magnitude_first)
    scale = InputScale(read, layer) if quantizer.scales_input else None  # type: ignore[arg-type]
    kind = InferenceConv2d if isinstance(layer, nn.Conv2d) else InferenceLinear
    made = kind(layer, activation, scale)  # type: ignore[arg-type]
    made.take(weight if levels is None else levels.weight(), levels, layer.bias)  # type: ignore[arg-type]
    made.bound = bound
    # what a shortcut around the layer carries, while traced
    made.carried = lambda y, side: bound(y)  # type: ignore[assignment]
    return made


def _activation(layer: Any, name: str, *, bound: bool) -> Activation:
    """Return the deployed form of a layer's activation map, or of its bounding map alone."""
    quantizer = layer.quantizer
    made = Activation(
        quantizer.bound_map() if bound else quantizer.activation_map(),
        getattr(layer, "magnitude_first", False),
    )
    own = layer.bounded if bound else layer.activate
    channels = max([1, *(tensor.numel() for tensor in made.buffers())])
    grid = torch.cat([torch.linspace(-2.0, 2.0, 4097), torch.tensor(_PROBE)])
    probe = grid.to(layer.weight.device)[:, None].expand(-1, channels)
    image = (
        torch.linspace(-2.0, 2.0, 30 * (channels if channels > 1 else 4))
        .reshape(2, -1, 3, 5)
        .to(probe.device)
    )
    image = image.contiguous(memory_format=torch.channels_last)
    same_memory = made(image).stride() == own(image).stride()  # sums behind depend on it in their last digit
    if not torch.equal(made(probe), own(probe)) or not same_memory:
        method = "bound_map" if bound else "activation_map"
        raise InputError(
            f"{name}: {method} of the quantizer {type(quantizer).__name__} is not what its activations "
            "compute; "
            "the network cannot be exported"
        )
    return made


def _other(module: nn.Module, name: str) -> nn.Module | None:
    """Return the deployed form of a module that is no low-precision layer; None where it stays."""
    if isinstance(module, Classifier):
        if module.reads in ("unbounded", "relu"):
            activation = Activation(ActivationMap("relu" if module.reads == "relu" else "identity"))
        else:
            activation = _activation(module, name, bound=module.reads == "bounded")
        return InferenceClassifier(module, activation, module.average)
    if isinstance(module, Bound):
        return Activation(module.quantizer.bound_map())
    return nn.MaxPool2d(2) if isinstance(module, MaxPool2) else None


def _remove_helpers(network: nn.Module, called: set[Any]) -> None:
    """Remove what the layers needed while they were traced, and no node of the graph calls."""
    for name, layer in inference_layers(network):
        del layer.carried
        if f"{name}.bound" not in called:
            del layer.bound


def latent_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the full-precision weights that training updates, by the name of their layer."""
    return {name: copy.copy(layer.weight.detach()) for name, layer in low_precision_modules(network)}
