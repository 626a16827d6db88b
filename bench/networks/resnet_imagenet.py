"""Residual networks for ImageNet (He et al., arXiv 1512.03385): 18, 34 and 50 layers in four stages.

A quantizer stands at the input of each low-precision convolution. The residual stream is never quantized.
First convolution, classifier and the projections of shortcuts are full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from bench.layers.activation_input import Pair
from bench.layers.classifier import Meeting
from bench.networks.builder import Builder
from bench.networks.resnet import Block, PostBlock, PreBlock, ResidualNetwork

OPTIONS = {
    "shortcut": {
        "choices": ["A", "B", "D"],
        "default": "B",
        "help": "where the shape changes: zeros, a full-precision 1x1 convolution, or the same behind "
        "pooling",
    },
    "block": {
        "choices": ["pre", "post", "react"],
        "default": "pre",
        "help": "pre: BN, activation, convolution (DoReFa-Net's); post: convolution, BN, sum, activation; "
        "react: post with a shortcut around each convolution that carries the bounded sum (ReActNet's)",
    },
    "shortcut_per": {
        "choices": ["block", "convolution"],
        "default": "block",
        "help": "one around two convolutions, or one around each (Bi-Real Net, 1808.00278)",
    },
    "input_size": {"default": 224, "min": 32, "max": 1024, "help": "pixels, height and width"},
}
ENTRIES = [
    {
        "name": "resnet18",
        "help": "ResNet-18 for ImageNet, two 3x3 convolutions a block",
        "title": "Deep Residual Learning for Image Recognition",
        "arxiv": "1512.03385",
        "input_size": 224,
        "macs": 1_814_073_344,
        "options": ["shortcut", "block", "shortcut_per", "input_size"],
    },
    {
        "name": "resnet34",
        "like": "resnet18",
        "help": "ResNet-34 for ImageNet, two 3x3 convolutions a block",
        "macs": 3_663_761_408,
    },
    {
        "name": "resnet50",
        "like": "resnet18",
        "help": "ResNet-50 for ImageNet, bottlenecks with the stride at the 3x3 convolution",
        "macs": 4_089_184_256,
        "options": {
            "shortcut": "shared",
            "block": {
                "choices": ["pre", "post"],
                "default": "pre",
                "help": "pre: BN, activation, convolution (DoReFa-Net's); post: convolution, BN, sum, "
                "activation",
            },
            "input_size": "shared",
        },
    },
]


class RealBlock(Block):
    """A block of one convolution in Bi-Real Net's order (1808.00278).

    The order is activation, convolution, batch norm, + shortcut. The shortcut carries the unchanged
    real-valued stream, without a bound. Branch and main path meet behind their batch norms,
    ``BN(LP u) + f BN'(FP u)``, and join the stream. The extra channels of ``concat`` go beside the stream to
    the next convolution, never into the shortcut.
    """

    def __init__(self, builder: Builder, *arguments: Any) -> None:
        super().__init__(builder, *arguments)
        self.meeting = Meeting(builder.merge)

    def forward(self, stream: Tensor, side: Tensor | None) -> Pair:
        """Map (stream (B, C, H, W), side of the block before) to the pair for the next block."""
        ((conv, norm),) = self.layers()
        y, side = conv(stream, side)
        y, side = self.meeting(norm(y), side)
        return y + self.shortcut(stream), side


class ImageNetResNet(ResidualNetwork):
    """conv0 (7x7/2, 64 channels), max-pool 3/2, four stages (64 to 512 channels), average pool, classifier.

    ``depths`` are the numbers of blocks of the stages. ``bottleneck``: a block has convolutions 1x1, 3x3 and
    1x1 with four times the channels, instead of two 3x3. ``shortcut_per`` = "convolution": a block has one
    convolution. The width scales the channels of conv0 and of the stages.

    With the block "pre" no batch norm stands between conv0 and the batch norm of the first block. With "post"
    one stands there, and the pool comes before the activation, with which it commutes. The classifier bounds
    its input and does not quantize it; with "post" and a shortcut per convolution it reads the stream itself.
    The block "react" is "post" with a shortcut around each convolution, which carries the bounded sum. With
    the quantizer ``reactnet`` this is ReActNet's order; its RPReLU also stands before the first block.
    """

    def __init__(
        self,
        builder: Builder,
        num_classes: int,
        *,
        depths: Sequence[int],
        bottleneck: bool = False,
        shortcut: str,
        block: str,
        shortcut_per: str = "block",
        input_size: int,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        builder.merge_at_output = block == "pre"
        single = shortcut_per == "convolution" or block == "react"
        real = single and block == "post"
        kind: type[Block] = PreBlock if block == "pre" else RealBlock if real else PostBlock
        before, extra = builder.channels(64), 0
        self.conv0 = builder.first_conv(before, 7, stride=2, padding=3)
        self.bn0 = None if block == "pre" else builder.norm(before)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks: list[Block] = []
        for stage, depth in enumerate(depths):
            width = builder.channels(64 * 2**stage)
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                convs = [(width, 3, stride), (width, 3, 1)]
                if bottleneck:
                    convs = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
                for part in [[conv] for conv in convs] if single else [convs]:
                    made = kind(builder, f"blocks.{len(blocks)}", before, part, extra, shortcut)
                    before, extra = made.out_channels, made.extra_out
                    blocks.append(made)
        self.blocks = nn.ModuleList(blocks)
        self.bn_last = builder.norm(before) if block == "pre" else None
        reads = "unbounded" if kind is RealBlock else "bounded"
        self.linear = builder.classifier(before, num_classes, extra=extra, average=True, reads=reads)


resnet18 = partial(ImageNetResNet, depths=(2, 2, 2, 2))
resnet34 = partial(ImageNetResNet, depths=(3, 4, 6, 3))
# 1512.03385 has the stride at the first 1x1 convolution, which gives 3.8 instead of 4.1 billion MACs. The
# implementations behind the published accuracies have the stride at the 3x3 convolution.
resnet50 = partial(ImageNetResNet, depths=(3, 4, 6, 3), bottleneck=True)
