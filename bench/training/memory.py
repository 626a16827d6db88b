"""Activation checkpointing (1604.06174): inputs of a network's parts are kept, the rest computed again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from bench.layers.low_precision import low_precision_modules


def recompute_activations(network: nn.Module) -> None:
    """Make ``network`` keep only the inputs of its parts for the backward pass, in place.

    A part is an element of a ``ModuleList`` (the blocks of a residual network), elsewhere a low-precision
    layer with its branch. What is computed again is the same bit for bit: draws are functions of step and
    sample, and batch norm normalises by the same statistics without adding them to the running ones a second
    time.
    """
    parts: list[nn.Module] = []
    inside: set[nn.Module] = set()
    lists = [
        element for module in network.modules() if isinstance(module, nn.ModuleList) for element in module
    ]
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
            context_fn=lambda: (contextlib.nullcontext(), self._statistics_kept()),
        )

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        norms = [module for module in self.module.modules() if isinstance(module, _BatchNorm)]
        kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())  # updated and forgotten
        try:
            yield
        finally:
            for norm, buffers in kept:
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer)
