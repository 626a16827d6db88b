"""Diagnostics of the layers of a network on one batch: for a record, without an effect on training."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.layers.activation_input import Quantizing
from bench.layers.classifier import Classifier, Meeting
from bench.layers.low_precision import LowPrecisionLayer


@contextlib.contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Keep ``network`` in evaluation mode within the context; each module's own mode is restored after it."""
    modules = list(network.modules())
    for layer in [module for module in modules if isinstance(module, Quantizing)]:
        modules += [module for interim in layer.interims for module in interim.modules()]
    modes = [(module, module.training) for module in modules]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def watched(
    modules: Iterable[tuple[str, nn.Module]], watch: Callable[..., None], *, before: bool = False
) -> Iterator[None]:
    """Call ``watch(name, module, inputs, output)`` behind each call of ``modules`` within the context.

    With ``before`` it is ``watch(name, module, inputs)`` before each call.
    """
    with contextlib.ExitStack() as hooks:
        for name, module in modules:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            hooks.enter_context(register(functools.partial(watch, name)))
        yield


@torch.no_grad()
def layer_diagnostics(
    network: nn.Module, images: Tensor, *, detailed: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the diagnostics of each low-precision layer, by its name.

    ``branch_ratio``: the norm of f times the branch's output over the norm of the main path, at the place
    where the two meet; None without an active branch. ``one_level``: whether all activations that the layer
    reads on the main path have the same value, so that they say nothing about the image. With ``detailed``
    also ``saturation``, the share of the layer's inputs that the bounding map changes, and
    ``activation_error``, the norm of q(x) - bound(x) over the norm of bound(x). ``images``: (B, 3, S, S). The
    network is in evaluation mode meanwhile: no running statistic and no draw changes.
    """
    found = _Diagnosis(detailed)
    kinds = (LowPrecisionLayer, Classifier, Meeting)
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    with in_evaluation(network), watched(layers, found.watch):
        network(images)
    ratios = {**found.at_output, **found.at_meeting}
    return {
        name: {
            "branch_ratio": _finite(ratios.get(name)),
            "one_level": bool(one_level),
            **{key: _finite(value) for key, value in found.details.get(name, {}).items()},
        }
        for name, one_level in found.one_level.items()
    }


class _Diagnosis:
    """Collects norms and levels while a batch goes through the network.

    Where a branch meets the main path, its output is recognised as the tensor that its layer returned. If
    that tensor was pooled or joined with others in between, the ratio at the layer's own output is used
    instead.
    """

    def __init__(self, detailed: bool) -> None:
        self.detailed = detailed
        self.details: dict[str, dict[str, Tensor]] = {}
        self.at_meeting: dict[str, Tensor] = {}
        self.at_output: dict[str, Tensor] = {}
        self.one_level: dict[str, Tensor] = {}
        # id of a returned tensor -> (name of its layer, the tensor, whose reference keeps the id valid)
        self._handed_on: dict[int, tuple[str, Tensor]] = {}

    def watch(
        self, name: str, layer: LowPrecisionLayer | Classifier | Meeting, inputs: tuple[Any, ...], output: Any
    ) -> None:
        """Look at a call of ``layer``."""
        y, side = (*inputs, None)[:2]
        if isinstance(layer, Meeting):
            if side is not None and output[1] is None:
                self.at_meeting[self._handed_on[id(side)][0]] = _ratio(side, y)
            return
        low = layer.activate(y)
        if side is not None and id(side) in self._handed_on:
            self.at_meeting[self._handed_on[id(side)][0]] = _ratio(side, low)
        if isinstance(layer, LowPrecisionLayer):
            self.one_level[name] = low.amax() == low.amin()
            self._look_at_branch(name, layer, y, side, output)
            if self.detailed:
                bounded, read = layer.bounded(y), y.abs() if layer.magnitude_first else y
                self.details[name] = {
                    "saturation": (bounded != read).double().mean(),
                    "activation_error": _ratio(low - bounded, bounded),
                }

    def _look_at_branch(
        self, name: str, layer: LowPrecisionLayer, y: Tensor, side: Tensor | None, output: tuple[Tensor, Any]
    ) -> None:
        if output[1] is not None:
            self._handed_on[id(output[1])] = (name, output[1])
            self.at_output[name] = _ratio(output[1], output[0])
        elif layer.branch is not None and layer.clock.active:  # the branch was merged inside the layer
            branch_output = layer.branch(layer.prepare(y, side), layer.clock.factor_of(layer.name))
            main = output[0] + branch_output if layer.merge == "difference" else output[0] - branch_output
            self.at_meeting[name] = _ratio(branch_output, main)


def _ratio(branch: Tensor, main: Tensor) -> Tensor:
    return branch.float().norm() / main.float().norm()


def _finite(value: Tensor | None) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None
