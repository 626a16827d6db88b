"""Networks of low-precision layers, one module a family.

    network = build(config, num_classes=10, clock=clock, branch=branch, blend=None)
    initialize(network, config.seed, config.initialization)

A factory gets a ``Builder`` (see ``bench/networks/builder.py``) and connects the layers that it makes. First
convolution and last linear layer are full precision and have no branch; ``describe_layers`` says of every layer what it
is and why.
"""

from __future__ import annotations

from bench import registry
from bench.experiments.config import TrialConfig
from bench.experiments.options import keywords
from bench.layers.branch import Branch
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
    """Return the network that ``config`` names, on the CPU, in PyTorch's own initialisation (see ``initialize``).

    ``branch`` expands it, ``blend`` is that of the strategy ``anneal``; neither changes a parameter's name on the main
    path. ``check_original`` asks that a network which is not the suite's own be checked against its original first
    (``bench.networks.convert.invariant``). Raises ``InputError`` for what cannot be built: unknown branch layers, a
    kernel without a centre, a network that is not its original any more, ...
    """
    options = keywords(config.network)
    builder = Builder(config, clock, branch, blend)
    builder.check_original = check_original
    factory = registry.load("networks", config.network["kind"])
    return builder.finish(factory(builder, num_classes, **options))
