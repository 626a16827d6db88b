"""Counted operations are those of real training steps, whatever a strategy runs in them."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.costs.measure import make_run, synthetic
from bench.costs.operations import operations_by_epoch, training_operations
from tests.configs import make_config
from tests.strategies.toys import FULL

COSINE = {"kind": "cosine", "until": 0.5}
CASES = {
    "plain": {},
    "bireal": {
        "network": {"kind": "resnet18", "block": "post", "shortcut_per": "convolution", "input_size": 32},
        "quantizer": "bireal",
    },
    "micro-batches": {"micro_batches": 2},
    **{
        f"progressive {options}": {"strategy": {"kind": "progressive", "factor": COSINE} | options}
        for options in (
            {"merge": "sum"},
            {"merge": "concat", "width_ratio": 0.5},
            {"merge": "preactivation"},
            {"merge": "sum", "bn_reestimate": 3},
            {"merge": "sum", "kernel": 1, "layer_factors": {"conv2": {"kind": "cosine", "until": 0.8}}},
        )
    },
    **{
        f"{options['kind']} {options.get('scheme', '')}".strip(): {"strategy": options}
        for options in (
            {"kind": "anneal", "factor": COSINE, "bn_reestimate": 1},
            {"kind": "apprentice", "scheme": "A", "teacher": FULL},
            {"kind": "apprentice", "scheme": "C", "teacher": FULL, "start": FULL},
            {"kind": "auxiliary"},
            {"kind": "distillation", "teacher": FULL},
            {"kind": "incremental"},
            {"kind": "mutual", "peer": FULL, "peers": 2},
            {"kind": "rocket", "booster": FULL},
            {"kind": "staged", "stages": ["1/32"], "guided": True, "twin": FULL},
        )
    },
}  # not FitNets and TSQ, whose docstrings say what is not counted as it is


class Counter(TorchDispatchMode):
    """Adds up the floating-point operations of convolutions and matrix products.

    As the suite counts them, with the gradient of the images, which is not computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        aten, name = torch.ops.aten, function.overloadpacket
        if name is aten.convolution:
            self.found += 2 * result.numel() * args[1][0].numel()
        elif name is aten.convolution_backward:
            reads_images, weights = args[1].shape[1] == 3, args[2]
            assert args[10][0] != reads_images and args[10][1]
            self.found += 4 * args[0].numel() * weights[0].numel()
        elif name in (aten.mm, aten.addmm):
            self.found += 2 * result.numel() * args[-1].shape[0]
        return result


@pytest.mark.parametrize("case", CASES)
def test_counted_operations_are_those_of_the_steps(case):
    run = make_run(make_config(batch_size=4, train_size=20, **CASES[case]), synthetic(20), "cpu")
    until = operations_by_epoch(run.config, run.steps_per_epoch, 10)
    counter = Counter()
    for _ in range(run.total_steps):
        with counter:
            run.train_step()
        assert run.train_flops(run.step) == counter.found
        if run.step % run.steps_per_epoch == 0:
            assert until(run.step // run.steps_per_epoch) == counter.found
    assert training_operations(run.config, run.steps_per_epoch, 10) == counter.found
