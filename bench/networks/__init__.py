"""Networks of low-precision layers, one module a family.

    network = build(config, num_classes=10, clock=clock, branch=branch, blend=None)
    initialize(network, config.seed, config.initialization)

A factory gets a ``Builder`` (see ``bench/networks/builder.py``) and connects the layers that the builder
makes. The first convolution and the last linear layer are full precision and have no branch.
``describe_layers`` says for every layer whether it is quantized, and why not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import registry
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.options import keywords
from bench.layers.branch import Branch
from bench.layers.diagnostics import in_evaluation, watched
from bench.networks.builder import Builder, Network
from bench.networks.costs import Costs, LayerRow, costs, describe_layers
from bench.networks.initialization import initialize
from bench.randomness import Clock

__all__ = ["Builder", "Costs", "LayerRow", "Network", "build", "costs", "describe_layers", "initialize"]


def build(
    config: TrialConfig,
    *,
    num_classes: int,
    clock: Clock,
    branch: Branch | None = None,
    blend: str | None = None,
    check_original: bool = False,
) -> Network:
    """Return the network that ``config`` names, on the CPU, before ``initialize``.

    Branch and blend do not change the name of a parameter on the main path.

    Args:
        config: The trial's.
        num_classes: The length of the logits of an image.
        clock: Tells the layers the step and the factor.
        branch: The branch of a progressive strategy.
        blend: What the strategy ``anneal`` moves from full to low precision.
        check_original: Whether a network that is not the suite's own is first compared with its original
            (``bench.networks.convert.invariant``).

    Raises:
        InputError: The network cannot be built: unknown branch layers, a kernel without a centre, a
            transformed network that differs from its original, ...
    """
    options = keywords(config.network)
    builder = Builder(config, clock, branch, blend)
    builder.check_original = check_original
    factory = registry.load("networks", config.network["kind"])
    network = builder.finish(factory(builder, num_classes, **options))
    if config.batch_size // config.micro_batches == 1 or config.batch_norm_group == 1:
        _check_single_image(network)
    return network


@torch.no_grad()
def _check_single_image(network: Network) -> None:
    """Raise where an image gives a batch norm a single value a channel, which has no variance."""
    few: list[str] = []

    def watch(name: str, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            few.append(name)

    norms = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with in_evaluation(network), watched(norms, watch, before=True):
        network(network.blank_image())
    if few:
        raise InputError(
            f"batch_size: the statistics of batch norm {few[0]} would be of one image, one value a channel, "
            "which has no variance; take at least 2 images (batch_size, batch_norm_group, or fewer "
            "micro_batches)"
        )
