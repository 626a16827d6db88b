"""A training step as a CUDA graph: recorded once for each stage of a trial (branch on, branch off), replayed.

A step of a small network consists of hundreds of kernels, and each takes less time than its launch. A CUDA
graph launches them all at once. Nothing in a graph may depend on the host. So the indices of the batch, the
step, the factor and the learning rate are tensors that are written before each replay. A Python condition
(whether there is a branch) needs a graph for each outcome.

CUDA requires that the step runs a few times before it is recorded. These runs change weights and moments.
So everything that a step writes is copied before the recording and restored after it: a recording at any step
leaves no trace. On a device without graphs everything but the recording itself is done, and a replay calls
the step. So tests on a CPU cover the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor, nn

WARM_UPS = 3  # runs before a recording: in the first ones libraries choose algorithms and take workspaces


class Written:
    """Copies of all tensors that a training step writes; ``put_back`` restores the same tensors."""

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer, sums: Iterable[Tensor]
    ) -> None:
        self.optimizer = optimizer
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        tensors += [*sums, *_moments(optimizer)]
        with torch.no_grad():
            self.copies = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo every step since the copies were made; moments that did not exist become zeros."""
        known = {id(tensor) for tensor, _ in self.copies}
        for tensor in _moments(self.optimizer):
            if id(tensor) not in known:
                tensor.zero_()
        for tensor, copy in self.copies:
            tensor.copy_(copy)
        self.optimizer.zero_grad(set_to_none=True)


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]


class Recording:
    """The step of a trial in its present stage: recorded when the stage begins, replayed until it ends.

    ``work(*inputs)`` is the whole step, from the tensors that identify the batch to the update. The stage is
    all that it may depend on beside tensors. ``written()`` copies what the step writes.
    """

    def __init__(self, work: Callable[..., None], written: Callable[[], Written]) -> None:
        self.work, self.written = work, written
        self.stage: Hashable = None
        self.inputs: tuple[Tensor, ...] = ()
        self.replay: Callable[[], None] | None = None

    def step(self, inputs: tuple[Tensor, ...], stage: Hashable) -> None:
        """Do the step on ``inputs``: tensors whose shapes, dtypes and devices are the same at every step."""
        if self.replay is None or stage != self.stage:
            self.record(inputs, stage)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        assert self.replay is not None
        self.replay()

    def record(self, inputs: tuple[Tensor, ...], stage: Hashable) -> None:
        """Record the step in ``stage``, leaving no trace; ``RuntimeError`` where something cannot be."""
        self.forget()  # frees the memory of the stage that is over
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        before = self.written()
        try:
            self.replay = self._graph() if inputs[0].is_cuda else self._call()
            self.stage = stage
        finally:
            before.put_back()

    def forget(self) -> None:
        """Drop the recording, because the tensors that it writes are replaced."""
        self.replay = self.stage = None

    def _call(self) -> Callable[[], None]:
        for _ in range(WARM_UPS):
            self.work(*self.inputs)
        return lambda: self.work(*self.inputs)

    def _graph(self) -> Callable[[], None]:
        device = self.inputs[0].device
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.work(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.work(*self.inputs)
        return graph.replay
