"""Networks without shortcuts: a full-precision convolution, low-precision layers in a row, a classifier.

``svhn_convnet`` is the network of EXP-Net's SVHN figure (arXiv 1905.11781, and the DoReFa-Net script before
it), ``vgg_small`` that of the low-bit CIFAR literature, ``bnn_convnet`` that of Binarized Neural Networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.errors import InputError
from bench.layers.max_pool import MaxPool2
from bench.networks.builder import Builder, Network, is_bipolar

ENTRIES = [
    {
        "name": "svhn_convnet",
        "help": "EXP-Net's SVHN network: 48C5-MP2-64C3-64C3-MP2-128C3-128C3-128C3-512C5-FC, input 40x40",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "input_size": 40,
        "macs": 41_735_424,
        "options": {
            "activation": {
                "choices": ["clip", "abs"],
                "default": "clip",
                "help": "the quantizer's bounding map alone, or min(1, |x|) before it (released)",
            },
            "dropout": {"default": 0.5, "min": 0, "below": 1, "help": "of the activations that conv6 reads"},
        },
    },
    {
        "name": "vgg_small",
        "help": "VGG-Small of the low-bit CIFAR literature: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-FC, input "
        "32x32",
        "title": "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural Networks",
        "arxiv": "1807.10029",
        "input_size": 32,
        "macs": 607_600_640,
    },
    {
        "name": "bnn_convnet",
        "help": "the ConvNet of BNN: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-2x1024FC-FC, input 32x32; SVHN: "
        "width 0.5",
        "title": "Binarized Neural Networks: Training Neural Networks with Weights and Activations "
        "Constrained to +1 or -1",
        "arxiv": "1602.02830",
        "input_size": 32,
        "macs": 616_966_144,
    },
]


@dataclass(frozen=True)
class Spec:
    """One low-precision convolution of a chain.

    It has the channels before the width multiplier, the kernel, the padding and what makes the pooling that
    follows. ``dropout`` applies to its activated input.
    """

    channels: int
    kernel: int
    padding: int
    pool: Callable[[], nn.Module] | None = None
    groups: int = 1
    dropout: float = 0.0


class ConvNet(Network):
    """``front``, ``convs`` (each with batch norm and pool), ``hidden`` linear layers, the classifier.

    ``front``: the modules in full precision before the first low-precision convolution, by name. One of them
    is "conv0", the first convolution. ``size``: height and width, in pixels, of what ``front`` hands on;
    ``input_size``: those of the images. ``pool_first``: the pool comes before the batch norm. ``reads``: see
    ``Classifier``. A layer applies the activation of the input that it reads.
    """

    def __init__(
        self,
        builder: Builder,
        num_classes: int,
        *,
        input_size: int,
        front: dict[str, nn.Module],
        size: int,
        convs: list[Spec],
        hidden: list[int],
        pool_first: bool = False,
        reads: str = "bounded",
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self._front = list(front)
        for name, module in front.items():
            self.add_module(name, module)
        width, extra = next(front["conv0"].parameters()).shape[0], 0
        self._layers: list[tuple[str, list[str]]] = []
        for i, spec in enumerate(convs, start=1):
            pool = spec.pool() if spec.pool else None
            conv = builder.conv(
                f"conv{i}",
                width,
                builder.channels(spec.channels),
                spec.kernel,
                padding=spec.padding,
                groups=spec.groups,
                extra=extra,
                pool=pool,
                pool_first=pool_first,
                dropout=spec.dropout,
            )
            width, extra = conv.out_channels, conv.extra_out
            size += 2 * spec.padding - spec.kernel + 1
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", builder.norm(width))
            after = [f"bn{i}"]
            if pool is not None:
                size = pool(torch.empty(1, 1, size, size)).shape[-1]
                self.add_module(f"pool{i}", pool)
                after.insert(0 if pool_first else 1, f"pool{i}")
            self._layers.append((f"conv{i}", after))
        features, extra = width * size**2, extra * size**2
        for i, count in enumerate(hidden, start=1):
            linear = builder.linear(f"fc{i}", features, builder.channels(count), extra=extra)
            features, extra = linear.out_features, linear.extra_out
            self.add_module(f"fc{i}", linear)
            self.add_module(f"bn_fc{i}", builder.norm_1d(features))
            self._layers.append((f"fc{i}", [f"bn_fc{i}"]))
        self.linear = builder.classifier(features, num_classes, extra=extra, reads=reads)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to logits (B, classes)."""
        y, side = images, None
        for name in self._front:
            y = getattr(self, name)(y)
        for layer, after in self._layers:
            y, side = getattr(self, layer)(y, side)
            for name in after:
                y = getattr(self, name)(y)
        return self.linear(y, side)


def svhn_convnet(builder: Builder, num_classes: int, *, activation: str, dropout: float) -> Network:
    """Return EXP-Net's SVHN network; the width multiplier scales conv0 to conv6.

    conv0 is 5x5 without padding, has a bias and no batch norm, and a pool follows. conv1 to conv6 are low
    precision without bias; batch norm (eps 1e-4) follows each. A pool follows conv2, and dropout precedes
    conv6. The activation behind conv6 is bounded, not quantized. Raises ``InputError`` for
    ``activation="abs"`` with a quantizer of signs, since every activation would be +1.
    """
    builder.eps = 1e-4
    builder.magnitude_first = activation == "abs"
    if builder.magnitude_first and is_bipolar(builder.quantizer("probe", None)):
        kind = builder.config.quantizer["kind"]
        raise InputError(
            f'network.activation: "abs" turns every activation of quantizer \'{kind}\' into +1; use "clip"'
        )
    convs = [
        Spec(64, 3, 1),
        Spec(64, 3, 1, MaxPool2),
        Spec(128, 3, 0),
        Spec(128, 3, 1),
        Spec(128, 3, 0),
        Spec(512, 5, 0, dropout=dropout),
    ]
    conv0 = builder.first_conv(builder.channels(48), 5, bias=True)
    front = {"conv0": conv0, "pool": MaxPool2()}
    return ConvNet(builder, num_classes, input_size=40, front=front, size=18, convs=convs, hidden=[])


_VGG = [
    Spec(128, 3, 1, MaxPool2),
    Spec(256, 3, 1),
    Spec(256, 3, 1, MaxPool2),
    Spec(512, 3, 1),
    Spec(512, 3, 1, MaxPool2),
]


def _vgg(builder: Builder, num_classes: int, hidden: list[int], *, pool_first: bool = False) -> Network:
    width = builder.channels(128)
    front = {"conv0": builder.first_conv(width, 3, padding=1), "bn0": builder.norm(width)}
    return ConvNet(
        builder,
        num_classes,
        input_size=32,
        front=front,
        size=32,
        convs=_VGG,
        hidden=hidden,
        pool_first=pool_first,
    )


def vgg_small(builder: Builder, num_classes: int) -> Network:
    """Return VGG-Small (VGG-7) as LQ-Nets describes it for CIFAR-10, after HWGQ (1702.00953).

    The width scales every convolution. Each convolution is 3x3, keeps the size and has no bias. Batch norm
    follows, then max-pool 2 after every second convolution, then the activation.
    """
    return _vgg(builder, num_classes, [])


def bnn_convnet(builder: Builder, num_classes: int) -> Network:
    """Return the ConvNet of the BNN paper.

    The order of a block is convolution, max-pool, batch norm (eps 1e-4), activation. The width scales every
    convolution and both hidden linear layers; the paper's SVHN network has ``width = 0.5``. Three things
    differ from the paper: first convolution and last linear layer are full precision, only the classifier has
    a bias, and no batch norm follows the logits.
    """
    builder.eps = 1e-4
    return _vgg(builder, num_classes, [1024, 1024], pool_first=True)
