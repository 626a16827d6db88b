"""Several workers for one trial. Their number changes nothing but the order of summation.

A worker is a process with a device and a rank of its own. The workers train one network on one global batch.
Each worker has its own rows of the batch (``bench.datasets.batch_rows``). Weights, optimizer and schedules
are the same on all workers at every step. The workers exchange three things: gradients, which
``DistributedDataParallel`` averages; the statistics of batch norm (``SharedBatchNorm``) and of quantizers
(``share_statistics``); and, once an epoch, the sums of loss and hits. Random draws are keyed by an image's
position in the global batch. The first worker alone reads and writes records and checkpoints.
"""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.layers.batch_norm import AccurateBatchNorm, ReplacedBatchNorm
from bench.quantizers import Quantizer
from bench.training.evaluate import Accuracy

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The workers of one trial, seen by the worker of rank ``rank`` among ``size``.

    The methods are collective: every worker must call them in the same order. A team of one worker does not
    use ``torch.distributed``. A larger team uses the default process group, which needs a backend for CPU
    tensors (gloo) as well.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Team:
        """Return the team of the process group that this process has joined."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the worker that reads and writes."""
        return self.rank == 0

    @property
    def rank_and_size(self) -> tuple[int, int]:
        """(rank, world size), as the data sets take it."""
        return self.rank, self.size

    def reader(self, device: str) -> str:
        """Return where a file is read to: what the first worker reads travels to the others by the CPU."""
        return device if self.size == 1 else "cpu"

    def from_first(self, work: Callable[[], T]) -> T:
        """Return on every worker what ``work`` returns on the first, or raise its ``InputError``."""
        if self.size == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = work()
            except InputError as error:
                answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def agree(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns on this worker.

        An ``InputError`` on one worker is raised on all workers.
        """
        if self.size == 1:
            return work()
        result, problem = None, None
        try:
            result = work()
        except InputError as error:
            problem = f"worker {self.rank} on {socket.gethostname()}: {error}"
        problems: list[str | None] = [None] * self.size
        dist.all_gather_object(problems, problem)
        found = [text for text in problems if text is not None]
        if found:
            raise InputError(found[0])
        return result  # type: ignore[return-value]

    def check_same(self, **facts: Any) -> None:
        """Raise ``InputError``, naming workers and hosts, unless ``facts`` are the same on all workers."""
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, (socket.gethostname(), facts))
        for key in facts:
            values: dict[Any, str] = {}
            for rank, (host, known) in enumerate(everyone):
                values.setdefault(known[key], f"{known[key]!r} for worker {rank} on {host}")
            if len(values) > 1:
                name = key.replace("_", " ")
                raise InputError(
                    f"the workers of a trial do not see the same {name}: {', '.join(values.values())}"
                )

    def decided(self, *flags: bool) -> tuple[bool, ...]:
        """Return the first worker's flags."""
        if self.size == 1:
            return flags
        answer = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(answer, 0)
        return tuple(bool(flag) for flag in answer.tolist())

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the workers."""
        return x if self.size == 1 else _summed(x)

    def gathered(self, x: Tensor) -> Tensor:
        """Return every worker's ``x``, stacked by rank: (workers, ...), differentiable.

        A team of one worker returns ``x`` itself, without the further dimension.
        """
        if self.size == 1:
            return x
        slots = [x if rank == self.rank else torch.zeros_like(x) for rank in range(self.size)]
        # Only zeros are added to each slot, so every worker gets exactly the same numbers.
        return _summed(torch.stack(slots))

    def own_part(self, gathered: Tensor) -> Tensor:
        """Return this worker's part of what ``gathered`` returned.

        Sums that another number of workers kept go to the first worker; the others get zeros.
        """
        if gathered.dim() == 0:
            return gathered if self.first else torch.zeros_like(gathered)
        if len(gathered) == self.size:
            return gathered[self.rank]
        return gathered.sum(0) if self.first else torch.zeros_like(gathered[0])

    def accuracy(self, found: Accuracy) -> Accuracy:
        """Return the counts of all workers together."""
        return found if self.size == 1 else Accuracy.of(_summed(torch.tensor(found.counts())).tolist())


SOLO = Team()


# A custom operator, so that compiled code treats the sum as one node. Its gradient is the sum of the workers'
# gradients.
@torch.library.custom_op("bench::summed", mutates_args=())
def _summed(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over the workers, the same bits on each."""
    y = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(y)
    return y


@_summed.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


torch.library.register_autograd("bench::summed", lambda context, grad: _summed(grad.contiguous()))


# --- gradients ----------------------------------------------------------------------------------------------


class _Averaged(nn.Module):
    """A forward function and the modules whose parameters it reads, as one module."""

    def __init__(self, forward: Callable[..., Any], modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.modules_read = nn.ModuleList(modules)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(*inputs)


def averaged(forward: Callable[..., Any], modules: Iterable[nn.Module], team: Team) -> Callable[..., Any]:
    """Return ``forward`` such that the gradients of the modules' parameters are averaged over the workers.

    All workers have equally many images, so the mean of the workers' means is the mean over the batch.
    ``find_unused_parameters`` has two effects. A parameter without a gradient on any worker (a branch at
    factor 0) keeps no gradient. And the buckets, which determine the order of summation, have the same layout
    from the first step on, so a resumed trial sums in the same order as a trial that was never stopped.
    """
    if team.size == 1:
        return forward
    with warnings.catch_warnings():
        # PyTorch warns of a new name for broadcast_buffers, which torch 2.11 does not know yet.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            _Averaged(forward, modules),
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )


def keeping_gradients(forward: Callable[..., Any]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which gradients add up without averaging, until a pass outside of it."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else contextlib.nullcontext()


# --- batch norm ---------------------------------------------------------------------------------------------


class SharedBatchNorm(ReplacedBatchNorm):
    """Batch norm of (B, C, ...) with statistics over the global batch, or over groups of ``group`` images.

    Without ``group`` the workers exchange their means and (population) variances, two numbers a channel. The
    combined statistics are ``M = mean_r m_r`` and ``V = mean_r (v_r + (m_r - M)^2)``. The gradient needs one
    sum over the workers, too. With ``group`` every ``group`` images in the order of the batch are normalised
    by their own statistics, and the workers exchange nothing. The running statistics then take the mean over
    the groups (and over the workers: see ``average_statistics``). Variances in the running statistics are
    unbiased, as in ``nn.BatchNorm2d``. With a ``factor`` the output is the factor times batch norm, as in
    ``FactorBatchNorm``. The layer works on any device and backend.
    """

    def __init__(self, like: _BatchNorm, team: Team, group: int | None) -> None:
        super().__init__(like)
        self.team, self.group = team, group

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}, workers={self.team.size}"

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return batch norm of ``x``, times ``factor`` where given; statistics in float32 at least."""
        if not self.training:
            return super().forward(x, factor)
        weight, bias = self.scale_and_shift(factor)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = 1 if self.group is None else -1
        grouped = wide.unflatten(0, (groups, self.group or len(x)))  # (groups, images, C, ...)
        dims = (1, *range(3, grouped.dim()))
        variance, mean = torch.var_mean(grouped, dims, correction=0)
        count = grouped.numel() // mean.numel()
        if self.group is None and self.team.size > 1:
            means, variances = self.team.gathered(torch.stack([mean, variance])).unbind(1)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            count *= self.team.size
        self._track(mean.detach().mean(0), variance.detach().mean(0) * (count / max(count - 1, 1)))
        scale = weight * torch.rsqrt(variance + self.eps)
        shift = bias - mean * scale
        shape = (len(mean), 1, -1, *(1,) * (grouped.dim() - 3))
        return (grouped * scale.view(shape) + shift.view(shape)).flatten(0, 1).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        momentum = self.counted_momentum()
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.mul_(1.0 - momentum).add_(now.to(running.dtype), alpha=momentum)


def batch_norm_for(network: nn.Module, config: TrialConfig, team: Team) -> None:
    """Replace the batch norms of ``network`` by the recipe's, in place; names of parameters and buffers stay.

    Statistics are taken over ``batch_norm_group`` images, or else over the (micro-)batch of all workers. With
    one worker and no group PyTorch's own layers stay, or ``AccurateBatchNorm`` replaces them where the recipe
    asks for it. With ``micro_batches`` = M the running statistics are updated M times a step, each time with
    momentum 1 - (1 - m)^(1/M), so that old values fade as fast as without micro-batches.
    ``bench.launch.data_parallel.check_workers`` checks that workers and groups divide the batch evenly.
    """
    parts, group = config.micro_batches, config.batch_norm_group
    if group == config.batch_size // parts and team.size > 1:
        group = None  # the whole batch
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if not isinstance(module, _BatchNorm):
                continue
            if parts > 1 and module.momentum is not None:
                module.momentum = 1.0 - (1.0 - module.momentum) ** (1.0 / parts)
            if team.size > 1 or group is not None:
                setattr(parent, name, SharedBatchNorm(module, team, group))
            elif config.batch_norm_statistics == "accurate":
                setattr(parent, name, AccurateBatchNorm(module))


def share_statistics(networks: Iterable[nn.Module], team: Team) -> None:
    """Let the quantizers of ``networks`` take their sums over the images of all workers."""
    if team.size == 1:
        return
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, Quantizer):
            module.sum_over_workers = team.total


@torch.no_grad()
def average_statistics(networks: Iterable[nn.Module], team: Team) -> None:
    """Average, in place, the statistics that each worker has of its own images alone.

    These are the running statistics of batch norms with groups, and what quantizers learn of the activations
    without a gradient (``Quantizer.running``).
    """
    if team.size == 1:
        return
    networks = list(networks)
    norms = [
        m for network in networks for m in network.modules() if isinstance(m, SharedBatchNorm) and m.group
    ]
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    quantizers = [m for network in networks for m in network.modules() if isinstance(m, Quantizer)]
    buffers += [getattr(quantizer, name) for quantizer in quantizers for name in quantizer.running]
    if buffers:
        mean = _summed(torch.cat(buffers)) / team.size
        for buffer, part in zip(buffers, mean.split([len(b) for b in buffers]), strict=True):
            buffer.copy_(part)
