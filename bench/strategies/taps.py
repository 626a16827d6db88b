"""Reading what flows between the layers of a network, and modules that a strategy trains beside it.

A tap stands at the input of a layer that reads activations: a low-precision layer or the classifier. It
gives the main path's tensor before the activation: in a chain what the layer before wrote, batch norm and
pooling included, in a residual network the sum that a block hands on (behind the next batch norm in the
pre-activation order). In a converted network it stands in front of the activation whose values the layer
reads, so that a pooling between both, as in front of the last layer, comes after it. Where a layer reads
something else, a concatenation for instance, the tap gives the layer's input as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import InputError, nearest
from bench.layers.activation_input import ActivationInput
from bench.layers.diagnostics import in_evaluation, watched
from bench.networks import Network
from bench.networks.convert.layers import Tap
from bench.quantizers import Quantizer

Shape = tuple[int, ...]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def readers(network: nn.Module) -> dict[str, ActivationInput]:
    """Return the layers that a tap can stand at, by name, in the order of their modules.

    A low-precision first layer, which reads the images, is none.
    """
    modules = network.named_modules()
    layers = {name: m for name, m in modules if isinstance(m, ActivationInput)}
    return {name: layer for name, layer in layers.items() if not getattr(layer, "reads_images", False)}


@torch.no_grad()
def class_count(network: Network) -> int:
    """Return how many classes the network's logits have; the last layer may be of any kind."""
    with in_evaluation(network):
        return network(network.blank_image()).shape[1]


def block_inputs(network: nn.Module) -> list[str]:
    """Return the names of the layers that read a block's input, in order.

    Where a module of the network holds several layers (a residual block), these are its first one; layers
    that the network holds itself (of a chain, the classifier) are a block each. A layer in an
    ``nn.Sequential`` or a list belongs to the module around it.
    """
    found: dict[str, str] = {}
    for name in readers(network):
        block = name.rpartition(".")[0]
        while block and isinstance(network.get_submodule(block), _CONTAINERS):
            block = block.rpartition(".")[0]
        found.setdefault(block or name, name)
    return list(found.values())


class Reader:
    """A layer that reads activations, and where the tensor before its activation passes: ``place``."""

    def __init__(self, network: nn.Module, layer: ActivationInput) -> None:
        name: str | None = getattr(layer, "tap", None)
        self.layer = layer
        self.place: nn.Module = layer if name is None else network.get_submodule(name)
        self._activation: Tap | None = None  # of a layer without a quantizer, whose input is activated
        if isinstance(self.place, Tap) and type(layer.quantizer) is Quantizer:
            self._activation = self.place

    def bounded(self, y: Tensor) -> Tensor:
        """Return what passes the tap bounded, or as the activation in full precision gives it; any shape."""
        return self.layer.bounded(y) if self._activation is None else self._activation.activated(y)

    def activate(self, y: Tensor, *, again: bool = False) -> Tensor:
        """Return the activations that the layer makes of what passes the tap, or reads of it; any shape.

        ``again``: the layer has just read ``y``, so levels that move with what is read do not move again.
        """
        if self._activation is not None:
            return self._activation.activated(y)
        return self.layer.activate(y, again=again)


class Taps:
    """Keeps what the named layers of ``network`` read in a training step, (B, C, H, W) or (B, C) each.

    ``layers``: names of layers; raises ``InputError`` naming ``where`` for names that the network does not
    have. Nothing is kept in evaluation and without gradients; ``frozen``: of a network that is always so,
    everything is. A step that goes through the network several times keeps what came last.
    """

    def __init__(self, network: Network, layers: Iterable[str], where: str, *, frozen: bool = False) -> None:
        known = readers(network)
        layers = list(layers)
        unknown = [f"'{name}'{nearest(name, known)}" for name in layers if name not in known]
        if unknown:
            raise InputError(
                f"{where}: no layer that reads activations is called {', '.join(unknown)}. "
                f"Layers: {', '.join(known)}."
            )
        self.layers = {name: Reader(network, known[name]) for name in layers}
        self._network = network
        self._frozen = frozen
        self._kept: dict[str, Tensor] = {}
        for name, reader in self.layers.items():
            reader.place.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        kept, frozen = self._kept, self._frozen

        def keep(place: nn.Module, inputs: tuple[Any, ...]) -> None:
            if frozen or (place.training and torch.is_grad_enabled()):
                kept[name] = inputs[0]

        return keep

    def take(self) -> list[Tensor]:
        """Return what the layers read in the forward pass that has just ended, in the order of the names."""
        values = [self._kept[name] for name in self.layers]
        self._kept.clear()
        return values

    def read(self) -> list[tuple[Reader, Tensor]]:
        """Return what ``take`` returns, each tensor with its reader."""
        return list(zip(self.layers.values(), self.take(), strict=True))

    @torch.no_grad()
    def shapes(self) -> list[Shape]:
        """Return the shapes of what the layers read for one image, without the batch: (C, H, W) or (C,)."""
        network, found = self._network, dict[str, Shape]()

        def keep(name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[name] = tuple(inputs[0].shape[1:])

        places = [(name, reader.place) for name, reader in self.layers.items()]
        with in_evaluation(network), watched(places, keep, before=True):
            network(network.blank_image())
        return [found[name] for name in self.layers]


class Helper(nn.Module):
    """A full-precision module that a strategy trains beside the network and that is not deployed.

    The training loop treats it like a further network. ``macs``: multiply-accumulates of one image, which
    count in the cost of a step.
    """

    macs: int = 0

    def after_step_(self) -> None:
        """Do nothing: no weight of a helper is quantized."""

    def add_penalty_(self) -> None:
        """Do nothing: no quantizer has a penalty here."""


def pointwise(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 1x1 convolution without bias and batch norm: (B, in, H, W) -> (B, out, H', W')."""
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def with_positions(x: Tensor) -> Tensor:
    """Return ``x`` as (B, C, H, W); what a linear layer wrote, (B, C), has one position."""
    return x[:, :, None, None] if x.dim() == 2 else x
