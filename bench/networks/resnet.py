"""Residual networks for CIFAR (He et al., arXiv 1512.03385): 6n+2 layers, stages of 16, 32 and 64 channels.

A quantizer stands at the input of each low-precision convolution. The residual stream is never quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from bench.layers.activation_input import Pair
from bench.layers.low_precision import LowPrecisionConv2d
from bench.networks.builder import Builder, Network

OPTIONS = {
    "shortcut": {
        "choices": ["A", "B"],
        "default": "A",
        "help": "where channels grow: zeros for the new ones, or a full-precision 1x1 convolution",
    },
    "block": {
        "choices": ["pre", "post"],
        "default": "pre",
        "help": "pre: BN, activation, convolution (DoReFa-Net's); post: convolution, BN, sum, activation",
    },
}
ENTRIES = [
    {
        "name": "resnet20",
        "help": "ResNet-20 for CIFAR, input 32x32",
        "title": "Deep Residual Learning for Image Recognition",
        "arxiv": "1512.03385",
        "input_size": 32,
        "macs": 40_551_040,
        "options": ["shortcut", "block"],
    },
    {
        "name": "resnet32",
        "like": "resnet20",
        "help": "ResNet-32 for CIFAR, input 32x32",
        "macs": 68_862_592,
    },
    {
        "name": "resnet44",
        "like": "resnet20",
        "help": "ResNet-44 for CIFAR, input 32x32",
        "macs": 97_174_144,
    },
    {
        "name": "resnet56",
        "like": "resnet20",
        "help": "ResNet-56 for CIFAR, input 32x32",
        "macs": 125_485_696,
    },
]


class PaddedShortcut(nn.Module):
    """Option A of 1512.03385: every second pixel, zeros for new channels; without them the identity."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + new, H / stride, W / stride)."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class Block(nn.Module):
    """Convolutions ``conv1``, ... with batch norms ``bn1``, ... and a shortcut around them.

    ``convs`` lists (output channels, kernel, stride); padding keeps the size. ``shortcut`` is "A", zeros for
    the new channels; "B", a full-precision 1x1 convolution; or "D", average pooling by the stride and then a
    full-precision 1x1 convolution.
    """

    def __init__(
        self,
        builder: Builder,
        name: str,
        in_channels: int,
        convs: Sequence[tuple[int, int, int]],
        extra: int,
        shortcut: str,
    ) -> None:
        super().__init__()
        before, stride, norms = in_channels, 1, []
        self.depth = len(convs)
        for i, (after, kernel, step) in enumerate(convs, start=1):
            conv = builder.conv(
                f"{name}.conv{i}", before, after, kernel, padding=kernel // 2, stride=step, extra=extra
            )
            self.add_module(f"conv{i}", conv)
            norms.append(self.norm_channels(before, after))
            before, extra, stride = after, conv.extra_out, stride * step
        self.out_channels, self.extra_out = before, extra
        if shortcut == "A" or (stride == 1 and before == in_channels):
            self.shortcut: nn.Module = PaddedShortcut(before - in_channels, stride)
        else:
            self.shortcut = builder.projection(in_channels, before, stride, pooled=shortcut == "D")
        for i, channels in enumerate(norms, start=1):
            self.add_module(f"bn{i}", builder.norm(channels))

    def layers(self) -> list[tuple[LowPrecisionConv2d, nn.Module]]:
        """Return each convolution and its batch norm."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.depth + 1)]

    @staticmethod
    def norm_channels(before: int, after: int) -> int:
        """Return the channels of the batch norm of a convolution from ``before`` to ``after`` channels."""
        return after


class PreBlock(Block):
    """DoReFa-Net's order (and 1603.05027's): batch norm, activation, convolution; the sum is the stream.

    Branch and main path meet at the output of each convolution and join the stream. The extra channels of
    ``concat`` go beside the stream to the next convolution, never into the shortcut.
    """

    @staticmethod
    def norm_channels(before: int, after: int) -> int:
        return before

    def forward(self, stream: Tensor, side: Tensor | None) -> Pair:
        """Map (stream (B, C, H, W), side of the block before) to the pair for the next block."""
        y = stream
        for conv, norm in self.layers():
            y, side = conv(norm(y), side)
        return y + self.shortcut(stream), side


class PostBlock(Block):
    """The order of 1512.03385: convolution, batch norm, + shortcut, activation.

    The block returns the sum before its activation. Branch and main path meet after the activation. The
    shortcut carries the bounded tensor, not the quantized one. With ``sum`` and ``difference`` the branch is
    joined to it; with ``concat`` it has the main channels alone.
    """

    def forward(self, y: Tensor, side: Tensor | None) -> Pair:
        """Map (sum before its activation, side of the block before) to the pair for the next block."""
        layers = self.layers()
        stream = layers[0][0].carried(y, side)
        for conv, norm in layers:
            y, side = conv(y, side)
            y = norm(y)
        return y + self.shortcut(stream), side


class ResidualNetwork(Network):
    """conv0, ``bn0`` where there is one, ``pool`` where there is one, ``blocks``, ``bn_last``, classifier."""

    conv0: nn.Conv2d
    bn0: nn.Module | None
    pool: nn.Module | None
    blocks: nn.ModuleList
    bn_last: nn.Module | None
    linear: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to logits (B, classes)."""
        y, side = self.conv0(images), None
        for layer in (self.bn0, self.pool):
            y = y if layer is None else layer(y)
        for block in self.blocks:
            y, side = block(y, side)
        return self.linear(y if self.bn_last is None else self.bn_last(y), side)


class ResNet(ResidualNetwork):
    """conv0 (3x3, 16 channels), three stages of ``depth`` blocks, average pooling, classifier.

    The width scales the channels of conv0 and of the stages. The classifier bounds its input and does not
    quantize it.
    """

    input_size = 32

    def __init__(self, builder: Builder, num_classes: int, *, depth: int, shortcut: str, block: str) -> None:
        super().__init__()
        builder.merge_at_output = block == "pre"
        kind = PreBlock if block == "pre" else PostBlock
        widths = [builder.channels(count) for count in (16, 32, 64)]
        before, extra = widths[0], 0
        self.conv0 = builder.first_conv(before, 3, padding=1)
        blocks: list[Block] = []
        for stage, after in enumerate(widths):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                convs = [(after, 3, stride), (after, 3, 1)]
                made = kind(builder, f"blocks.{len(blocks)}", before, convs, extra, shortcut)
                before, extra = after, made.extra_out
                blocks.append(made)
        self.blocks = nn.ModuleList(blocks)
        self.bn0 = builder.norm(widths[0]) if block == "post" else None
        self.pool = None
        self.bn_last = builder.norm(before) if block == "pre" else None
        self.linear = builder.classifier(before, num_classes, extra=extra, average=True)


# 3, 5, 7 and 9 blocks a stage
resnet20, resnet32, resnet44, resnet56 = (partial(ResNet, depth=depth) for depth in (3, 5, 7, 9))
