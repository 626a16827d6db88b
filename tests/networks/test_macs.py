"""Multiply-accumulates are those of torch's own counter; parameters and bits those of the stored network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from bench.experiments.config import TrialConfig
from bench.networks import Builder, build, costs, describe_layers
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock
from tests.configs import make_config

NETWORKS = ["svhn_convnet", "resnet20", {"kind": "torchvision", "name": "mobilenet_v2"}]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("quantizer", ["dorefa", "xnor"])
def test_macs_are_half_of_torchs_flops(network, quantizer):
    fields = {"dataset": "digits", "epochs": 1, "network": network, "quantizer": quantizer, "bits": "1/1"}
    made = build(TrialConfig.model_validate(fields), num_classes=10, clock=Clock()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(torch.zeros(1, 3, made.input_size, made.input_size))
    assert 2 * costs(made).macs == counter.get_total_flops()


class Quarters(nn.Module):
    """Reads the four quarters of an image as a batch, by a convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x):
        b, c, h, w = x.shape
        y = x.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(4 * b, c, h // 2, w // 2)
        y = self.linear(self.conv(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y.reshape(b, 2, 2, c, h // 2, w // 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


@pytest.mark.parametrize("inner", [Quarters, lambda: weight_norm(nn.Conv2d(4, 4, 3))])
def test_what_is_computed_and_stored_is_counted_once(inner):
    """Parts of the image along the first dimension, and a weight that is computed from two tensors."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    root = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), inner(), nn.Conv2d(4, 4, 3), *head)
    builder = Builder(make_config(width=1.0), Clock())
    made = builder.finish(transform(root, builder, 10, input_size=8)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(torch.zeros(1, 3, 8, 8))
    found = costs(made)
    assert 2 * found.macs == counter.get_total_flops()
    assert found.parameters == sum(p.numel() for p in made.parameters())


def test_a_batch_norm_without_scale_and_shift_stores_two_numbers_a_channel():
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU()]
    layers += [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)]
    builder = Builder(make_config(width=1.0), Clock())
    found = costs(builder.finish(transform(nn.Sequential(*layers), builder, 10, input_size=8)))
    weights, low, norm, linear = 4 * 3 * 9, 6 * 4 * 9, 6, 96 * 10 + 10
    assert found.parameters == weights + low + 2 * norm + linear
    # one bit a low-precision weight and their scale; means and variances of 4 and of 6 channels
    assert found.model_bits == low + 32 * (1 + weights + 2 * 4 + 4 * norm + linear)


def test_levels_that_move_with_the_activations_are_stored_where_full_precision_weights_read_them():
    """LQ-Nets at 2 bits stores two numbers for the levels of a layer's activations."""
    network = {"kind": "alexnet_syq", "input_size": 96, "quantized": ["conv1"]}
    made = make_config(network=network, quantizer="lqnets", bits="2/2", width=0.08)
    rows = {row.name: row for row in describe_layers(build(made, num_classes=10, clock=Clock()))}
    weights = {name: math.prod(rows[name].shape) for name in ("conv1", "conv2", "linear")}
    assert rows["conv2"].bits == 32 * (weights["conv2"] + 2)
    assert rows["linear"].bits == 32 * (weights["linear"] + 10 + 2)
    assert rows["conv1"].bits == 2 * weights["conv1"] + 32 * (2 * rows["conv1"].shape[0] + 2)
