"""Networks trained for a few steps on real digits, for the tests of the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from bench import datasets
from bench.experiments import permission
from bench.experiments.config import TrialConfig
from bench.networks import Network
from bench.randomness import Clock
from bench.training import setup
from tests.configs import make_config

FACTOR = {"kind": "linear", "until": 0.5}
STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    **{
        merge: {"kind": "progressive", "merge": merge, "factor": FACTOR}
        for merge in ("sum", "difference", "concat", "preactivation")
    },
    "joint": {"kind": "progressive", "merge": "concat", "statistics": "joint", "factor": FACTOR},
}


def trained(merge: str = "plain", steps: int = 2, **changes: Any) -> tuple[Network, Tensor, TrialConfig]:
    """Return (network at f = 0 in evaluation mode, a batch of test images, the configuration)."""
    config = make_config(strategy=STRATEGIES[merge], **changes)
    config = config.model_copy(update={"network": permission.sealed(config.network)})
    clock = Clock(config.seed)
    data = setup.make_batches(config, datasets.load(config.dataset, Path()), clock)
    run = setup.make_run(config, data, clock, weights={})
    for _ in range(steps):
        run.train_step()
    clock.set_factor(0.0)
    return run.network.eval(), next(iter(data.test_batches(32)))[0], config
