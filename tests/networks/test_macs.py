"""Multiply-accumulates of the suite are those of torch's own counter of floating-point operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.experiments.config import TrialConfig
from bench.networks import build, costs
from bench.randomness import Clock

NETWORKS = ["svhn_convnet", "resnet20", {"kind": "torchvision", "name": "mobilenet_v2"}]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("quantizer", ["dorefa", "xnor"])
def test_macs_are_half_of_torchs_flops(network, quantizer):
    fields = {"dataset": "digits", "epochs": 1, "network": network, "quantizer": quantizer, "bits": "1/1"}
    made = build(TrialConfig.model_validate(fields), num_classes=10, clock=Clock()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(torch.zeros(1, 3, made.input_size, made.input_size))
    assert 2 * costs(made).macs == counter.get_total_flops()
