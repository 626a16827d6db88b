"""What makes a trial diverge, at the end of an epoch: numbers not finite, or a loss that no data gives.

The loss alone does not show it: sign and ternary quantizers map NaN and infinity to finite levels, so a
network whose weights are lost may still have a finite loss. All state that training moves is therefore looked
at, in one fused pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

# -log of the smallest positive float32 (2^-149): beyond it the right class has probability 0 in float32
LARGEST_CROSS_ENTROPY = 149.0 * math.log(2.0)


def largest_loss(loss: str) -> float:
    """Return the largest mean loss of an epoch with which a network still says something of its images.

    ``loss`` is the recipe's. The cross entropy is at most 149 log 2 = 103.28: beyond that the probability of
    the right class is 0 in float32 on the average image, whatever the data (answering without looking costs
    log(classes)). The squared hinge has that of logits of the same size, (1 + 103.28)^2.
    """
    return LARGEST_CROSS_ENTROPY if loss == "cross_entropy" else (1.0 + LARGEST_CROSS_ENTROPY) ** 2


def named_state(
    networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the parameters and buffers of ``networks`` and of the optimizer's moments.

    The key of a network is put before the names of its tensors, "" for the trial's own.
    """
    parameters = {}
    for prefix, network in networks.items():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            full = f"{prefix}.{name}" if prefix else name
            parameters[tensor] = full
            yield full, tensor.detach()
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor):
                yield f"{name} of {parameters.get(parameter, 'a parameter')}", value


@torch.no_grad()
def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of the tensors with NaN or infinity; without any the device is read once."""
    numbers = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
    if not numbers or torch.isfinite(get_total_norm([tensor for _, tensor in numbers], math.inf)):
        return []
    return [name for name, tensor in numbers if not torch.isfinite(tensor).all()]
