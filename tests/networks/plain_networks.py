"""Networks of the suite, written in plain PyTorch as their papers' users would write them.

``chain`` is VGG-Small, ``post`` and ``pre`` are ResNet-20 in both orders: 2 to 8 channels, images of 32
pixels. Layers are called as in the suite, so that weights of one name begin alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# kind -> the fields of the suite's network of the same size
SUITE = {
    "chain": {"network": "vgg_small", "width": 1 / 64},
    "post": {"network": {"kind": "resnet20", "block": "post", "shortcut": "B"}, "width": 0.125},
    "pre": {"network": {"kind": "resnet20", "block": "pre", "shortcut": "B"}, "width": 0.125},
}


class Chain(nn.Module):
    """VGG-Small, full precision, in plain PyTorch."""

    def __init__(self, widths):
        super().__init__()
        self.pools = (1, 3, 5)
        before = 3
        for i, width in enumerate(widths):
            self.add_module(f"conv{i}", nn.Conv2d(before, width, 3, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            before = width
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(before * 16, 10)

    def forward(self, x):
        for i in range(6):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i in self.pools:
                x = F.max_pool2d(x, 2)
            x = self.relu(x) if i % 2 else F.relu(x)
        return self.linear(torch.flatten(x, 1))


class PlainBlock(nn.Module):
    def __init__(self, before, after, stride, pre):
        super().__init__()
        self.pre = pre
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(before if pre else after)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = None
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        around = x if self.shortcut is None else self.shortcut(x)
        if self.pre:
            return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))) + around
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        y += around
        return torch.relu(y)


class PlainResNet(nn.Module):
    """ResNet-20 for CIFAR, 2 to 8 channels, in plain PyTorch."""

    def __init__(self, pre):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.bn0 = nn.Identity() if pre else nn.BatchNorm2d(2)
        sizes = [(2, 2, 1)] * 3 + [(2, 4, 2)] + [(4, 4, 1)] * 2 + [(4, 8, 2)] + [(8, 8, 1)] * 2
        self.blocks = nn.ModuleList(PlainBlock(*size, pre) for size in sizes)
        self.bn_last = nn.BatchNorm2d(8) if pre else nn.Identity()
        self.last_relu = nn.ReLU() if pre else nn.Identity()
        self.relu = nn.Identity() if pre else nn.ReLU()
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.bn0(self.conv0(x)))
        for block in self.blocks:
            x = block(x)
        return self.linear(self.last_relu(self.bn_last(x)).mean((2, 3)))


def chain(num_classes: int) -> nn.Module:
    return Chain([2, 2, 4, 4, 8, 8])


def post(num_classes: int) -> nn.Module:
    return PlainResNet(False)


def pre(num_classes: int) -> nn.Module:
    return PlainResNet(True)
