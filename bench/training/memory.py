"""Activation checkpointing (1604.06174): inputs of a network's parts are kept, the rest computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bench.layers.low_precision import low_precision_modules
from bench.networks.convert.transformed import TransformedNetwork
from bench.quantizers import Quantizer


def recompute_activations(network: nn.Module) -> None:
    """Make ``network`` keep only the inputs of its parts for the backward pass, in place.

    A part is an element of a ``ModuleList`` (the blocks of a residual network), elsewhere and in a converted
    network a low-precision layer with its branch. What is computed again is the same bit for bit: draws are
    functions of step and sample, batch norm normalises by the same statistics without adding them to the
    running ones a second time, and a quantizer whose levels move with the activations (LQ-Nets) has those of
    the first time.
    """
    parts: list[nn.Module] = []
    inside: set[nn.Module] = set()
    # a converted network calls its layers one by one, never the module that holds them
    holders = () if isinstance(network, TransformedNetwork) else network.modules()
    lists = [element for module in holders if isinstance(module, nn.ModuleList) for element in module]
    for part in (*lists, *(layer for _, layer in low_precision_modules(network))):
        if part not in inside:
            parts.append(part)
            inside.update(part.modules())
    for part in parts:
        part.forward = _Recomputed(part)  # type: ignore[method-assign]  # names of parameters stay


class _Recomputed:
    """The forward pass of a module that keeps nothing but its inputs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        forward = type(self.module).forward
        if not torch.is_grad_enabled():
            return forward(self.module, *inputs)
        return checkpoint(
            forward,
            self.module,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing draws from a generator
            context_fn=lambda: (contextlib.nullcontext(), self._as_now()),
        )

    def _as_now(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the buffers that a forward pass moves are what they are now."""
        moved = [(module, name) for module in self.module.modules() for name in _moved_buffers(module)]
        return _with_values([(module, name, getattr(module, name).clone()) for module, name in moved])


def _moved_buffers(module: nn.Module) -> list[str]:
    """Return the names of the buffers that a forward pass of ``module`` moves in training."""
    if isinstance(module, Quantizer):
        return list(module.running)
    return list(dict(module.named_buffers(recurse=False))) if isinstance(module, _BatchNorm) else []


@contextlib.contextmanager
def _with_values(values: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Let buffers be these tensors, which may change and are forgotten, within the context."""
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, buffer in before:
            setattr(module, name, buffer)
