"""Optimizers of the recipes, and TensorFlow's reading of Adam's epsilon."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bench.experiments.config import TrialConfig


def decayed_parameters(modules: Iterable[nn.Module], where: str) -> set[int]:
    """Return the ids of the parameters that weight decay applies to.

    ``where`` is the recipe's ``weight_decay_on``: "all" parameters; "kernels" of convolutions and linear
    layers; "linear": kernels of linear layers; "classifier": the kernel of each network's last linear layer.
    """
    chosen: list[nn.Parameter] = []
    for module in modules:
        layers = list(module.modules())
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if where == "all":
            chosen += module.parameters()
        elif where == "classifier":
            chosen += _kernels(linear[-1:])
        elif where == "linear":
            chosen += _kernels(linear)
        else:
            chosen += _kernels([layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)])
    return {id(parameter) for parameter in chosen}


def _kernels(layers: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [
        p
        for layer in layers
        for name, p in layer.named_parameters(recurse=False)
        if name.startswith("weight")
    ]


class FusedSGD(torch.optim.SGD):
    """SGD whose parameters may get their first gradients at different steps.

    PyTorch's fused kernel takes momentum of every parameter or of none. A learned scale that a stage of full
    precision leaves alone has none yet where the others have some: its momentum begins at 0, which gives the
    step of a first momentum exactly.
    """

    def _init_group(self, group: Any, params: Any, grads: Any, momentum_buffer_list: Any) -> Any:
        has_sparse = super()._init_group(group, params, grads, momentum_buffer_list)
        if any(momentum is not None for momentum in momentum_buffer_list):
            for i, momentum in enumerate(momentum_buffer_list):
                if momentum is None:
                    momentum_buffer_list[i] = torch.zeros_like(grads[i])
        return has_sparse


def make_optimizer(
    config: TrialConfig, modules: list[nn.Module], captured_on: torch.device | None = None
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over every trainable parameter of ``modules``, fused into one kernel.

    Weight decay is coupled (added to the gradient), as the recipes mean it. A parameter without a gradient (a
    branch at factor 0) is skipped, together with its decay and its moments. ``captured_on``: the learning
    rate is a tensor on that device, which a recorded step reads: float32 on a GPU, whose kernel wants that,
    float64 on the CPU.
    """
    decayed = decayed_parameters(modules, config.weight_decay_on)
    unique = dict.fromkeys(p for module in modules for p in module.parameters())  # networks may share some
    parameters = [p for p in unique if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate: float | torch.Tensor = 0.0
    if captured_on is not None:
        rate = torch.zeros(
            (), dtype=torch.float32 if captured_on.type == "cuda" else torch.float64, device=captured_on
        )
    if config.optimizer == "sgd":
        return FusedSGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    betas, capturable = (config.beta1, config.beta2), captured_on is not None
    return torch.optim.Adam(
        groups, lr=rate, betas=betas, eps=config.epsilon, fused=True, capturable=capturable
    )


def adam_epsilon(config: TrialConfig, step: int) -> float:
    """Return PyTorch's epsilon that equals the recipe's at global ``step`` (from 0).

    TensorFlow adds epsilon before the bias correction of the second moment: its step is that of PyTorch with
    ``epsilon / sqrt(1 - beta2^(step + 1))``, 31.6 times larger at the first step and 1.03 times at step
    2,800.
    """
    if config.epsilon_mode == "pytorch":
        return config.epsilon
    return config.epsilon / (1.0 - config.beta2 ** (step + 1)) ** 0.5


def set_step(optimizer: torch.optim.Optimizer, config: TrialConfig, step: int, learning_rate: float) -> None:
    """Set the learning rate (and Adam's epsilon) of global ``step``."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
        if config.optimizer == "adam":
            group["eps"] = adam_epsilon(config, step)
