"""A training step recorded once and replayed.

CUDA graphs, one for each stage of a trial (branch on, branch off).

A small network's step is hundreds of kernels that each take less time than launching them. A CUDA graph
launches them all at once, at the price that nothing in it may depend on the host: the batch's indices, step,
factor and learning rate are tensors that are written before each replay, and what a Python condition decides
(whether there is a branch) makes another graph.

Recording runs the step a few times first, as CUDA wants it. Those runs move weights and moments, so
everything that a step writes is copied before and put back behind: recording leaves no trace, at whatever
step it happens. On a device without graphs the same is done but the recording itself, and a replay calls the
step; so everything else is tested on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor, nn

WARM_UPS = 3  # runs before a recording: libraries choose algorithms and allocate workspaces in the first ones


class Written:
    """Copies of all that a training step writes; ``put_back`` writes them into the very same tensors."""

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
        """Undo every step since.

        Moments that did not exist become zeros, which a first step does not tell from none.
        """
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
    """The step of a trial in the stage it is in, recorded when that stage begins and replayed until it ends.

    ``work(*inputs)`` is the whole step, from what identifies its batch to the update; it may depend on the
    host through its stage alone. ``written()`` copies what it writes.
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
        """Record the step as it is in ``stage``, which the caller has set up.

        Weights and moments stay what they were.

        Raises ``RuntimeError``, as CUDA does, where something in the step cannot be recorded.
        """
        self.forget()  # the stage that is over gives its memory back
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        before = self.written()
        try:
            self.replay = self._graph() if inputs[0].is_cuda else self._call()
            self.stage = stage
        finally:
            before.put_back()

    def forget(self) -> None:
        """Drop the recording: the tensors that it writes have been, or will be, replaced."""
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
