"""AlexNet in three forms of the low-bit literature.

Each has five convolutions, two hidden linear layers and a classifier. First convolution and classifier are
full precision. Every other convolution and both hidden linear layers are low precision; ``alexnet_syq`` can
leave the weights of some of them in full precision. The convolutions get a branch, a linear layer only where
``layers`` names it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bench.errors import InputError, nearest
from bench.networks.builder import Builder, Network
from bench.networks.padding import SameMaxPool2d

OPTIONS = {"input_size": {"default": 224, "min": 44, "max": 1024, "help": "pixels; fc1 follows"}}
ENTRIES = [
    {
        "name": "alexnet_syq",
        "help": "the released ImageNet script's AlexNet: 96C12/4-256C5-384C3-384C3-256C3-2x4096FC-FC, "
        "batch norm, groups",
        "title": "SYQ: Learning Symmetric Quantization for Efficient Deep Neural Networks",
        "arxiv": "1807.00301",
        "input_size": 224,
        "macs": 1_937_082_368,
        "options": {
            "input_size": "shared",
            "quantized": {
                "type": "names",
                "default": None,
                "help": "layers with quantized weights; null: conv1 to conv4, fc1, fc2; the release runs "
                "conv1, conv3, conv4",
            },
        },
    },
    {
        "name": "alexnet_dorefa",
        "help": "DoReFa-Net's AlexNet as tensorpack has it: alexnet_syq, but what the classifier reads is "
        "not quantized",
        "title": "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth "
        "Gradients",
        "arxiv": "1606.06160",
        "input_size": 224,
        "macs": 1_937_082_368,
        "options": {"input_size": "shared"},
    },
    {
        "name": "alexnet_xnor",
        "help": "XNOR-Net's AlexNet, blocks of BN, activation, convolution, pool: "
        "96C11/4-256C5-384C3-384C3-256C3-2x4096FC-FC",
        "title": "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "arxiv": "1603.05279",
        "input_size": 224,
        "macs": 1_135_256_096,
        "options": {"input_size": {"default": 224, "min": 63, "max": 1024, "help": "pixels; fc1 follows"}},
    },
]


@dataclass(frozen=True)
class Spec:
    """One low-precision convolution, padded to keep the size of its input.

    It has the channels before the width multiplier, the kernel, the groups, and whether a 3x3 max-pool of
    stride 2 follows (``same``: with TensorFlow's padding, which rounds sizes up).
    """

    channels: int
    kernel: int
    groups: int = 1
    pool: str | None = None

    def make_pool(self) -> nn.Module | None:
        """Return the pooling module."""
        return {None: None, "same": SameMaxPool2d(3, 2), "valid": nn.MaxPool2d(3, 2)}[self.pool]

    def size(self, size: int) -> int:
        """Return the height of the pooled output for an input of ``size``."""
        return {None: size, "same": -(-size // 2), "valid": (size - 3) // 2 + 1}[self.pool]


class AlexNet(Network):
    """conv0 (stride 4), then ``convs`` (each with batch norm and pool), fc1, fc2, classifier.

    ``stem``: conv0 is followed by batch norm, ReLU, a 3x3 max-pool of stride 2 and a batch norm, all in full
    precision. ``pool_first``: the pool comes before the batch norm. ``last_eps``: epsilon of the batch norm
    behind fc2. ``reads``: see ``Classifier``. A layer applies the activation of the input that it reads.
    """

    def __init__(
        self,
        builder: Builder,
        num_classes: int,
        *,
        input_size: int,
        kernel: int,
        padding: int,
        convs: list[Spec],
        stem: bool = False,
        pool_first: bool = False,
        last_eps: float,
        reads: str,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.pool_first = pool_first
        width, extra = builder.channels(96), 0
        size = (input_size + 2 * padding - kernel) // 4 + 1
        self.conv0 = builder.first_conv(width, kernel, stride=4, padding=padding)
        self.stem: nn.Module = nn.Identity()
        if stem:
            size = (size - 3) // 2 + 1
            first = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
            self.stem = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(3, 2), builder.norm(width))
        self._convs: list[tuple[str, str, str | None]] = []
        for i, spec in enumerate(convs, start=1):
            pool = spec.make_pool()
            conv = builder.conv(
                f"conv{i}",
                width,
                builder.channels(spec.channels),
                spec.kernel,
                padding=spec.kernel // 2,
                groups=spec.groups,
                extra=extra,
                pool=pool,
                pool_first=pool_first,
            )
            width, extra, size = conv.out_channels, conv.extra_out, spec.size(size)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", builder.norm(width))
            if pool is not None:
                self.add_module(f"pool{i}", pool)
            self._convs.append((f"conv{i}", f"bn{i}", f"pool{i}" if pool is not None else None))
        hidden = builder.channels(4096)
        self.fc1 = builder.linear("fc1", width * size**2, hidden, extra=extra * size**2)
        self.bn_fc1 = builder.norm_1d(hidden)
        self.fc2 = builder.linear("fc2", hidden, hidden, extra=self.fc1.extra_out)
        self.bn_fc2 = nn.BatchNorm1d(hidden, eps=last_eps, momentum=0.1)
        self.linear = builder.classifier(hidden, num_classes, extra=self.fc2.extra_out, reads=reads)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to logits (B, classes)."""
        y = self.stem(self.conv0(images))
        side = None
        for conv, norm, pool in self._convs:
            y, side = getattr(self, conv)(y, side)
            if pool is None:
                y = getattr(self, norm)(y)
            elif self.pool_first:
                y = getattr(self, norm)(getattr(self, pool)(y))
            else:
                y = getattr(self, pool)(getattr(self, norm)(y))
        y, side = self.fc1(y, side)
        y, side = self.fc2(self.bn_fc1(y), side)
        return self.linear(self.bn_fc2(y), side)


_GROUPED = [Spec(256, 5, 2, "same"), Spec(384, 3, 1, "same"), Spec(384, 3, 2), Spec(256, 3, 2, "valid")]


def _tensorpack(builder: Builder, num_classes: int, input_size: int, reads: str) -> Network:
    builder.eps = 1e-4
    builder.multiple = 2  # of the groups
    return AlexNet(
        builder,
        num_classes,
        input_size=input_size,
        kernel=12,
        padding=0,
        convs=_GROUPED,
        last_eps=builder.eps,
        reads=reads,
    )


_LOW_PRECISION = ("conv1", "conv2", "conv3", "conv4", "fc1", "fc2")


def alexnet_syq(
    builder: Builder, num_classes: int, *, input_size: int, quantized: list[str] | None = None
) -> Network:
    """Return the AlexNet of the released ImageNet script.

    The width scales everything but the classes; channel counts are even. conv0 is 12x12/4 without padding,
    bias or batch norm, and has an activation. conv1 to conv4 have no bias and two groups (conv2: one), batch
    norm (eps 1e-4), a pool (not conv3) and an activation. fc1 and fc2 have batch norm and an activation, so
    the classifier reads quantized activations. The pools behind conv1 and conv2 have TensorFlow's padding:
    54 -> 27 at the right and bottom alone, 27 -> 14 on all sides. The pool behind conv4 has no padding. There
    is no dropout.

    ``quantized`` names the layers whose weights are quantized; None means all six. The unchanged released
    scripts quantize conv1, conv3 and conv4, because their replacement of the variable getter reaches grouped
    convolutions only. A layer whose weights are not quantized still reads quantized activations. Raises
    ``InputError`` for unknown names.
    """
    if quantized is not None:
        unknown = [
            f"'{name}'{nearest(name, _LOW_PRECISION)}" for name in quantized if name not in _LOW_PRECISION
        ]
        if unknown:
            raise InputError(
                f"network.quantized: alexnet_syq has no such layer: {', '.join(unknown)}. Layers: "
                f"{', '.join(_LOW_PRECISION)}."
            )
        builder.full_precision_weights = frozenset(_LOW_PRECISION) - frozenset(quantized)
    return _tensorpack(builder, num_classes, input_size, "quantized")


def alexnet_dorefa(builder: Builder, num_classes: int, *, input_size: int) -> Network:
    """Return the AlexNet of DoReFa-Net's authors for tensorpack, from which ``alexnet_syq`` was derived.

    Here the classifier reads bounded activations, in ``alexnet_syq`` quantized ones. With 32-bit activations
    the authors use ReLU; here the quantizer's bounding map is used.
    """
    return _tensorpack(builder, num_classes, input_size, "bounded")


def alexnet_xnor(builder: Builder, num_classes: int, *, input_size: int) -> Network:
    """Return XNOR-Net's AlexNet without groups.

    The order of a block is batch norm (eps 1e-4), activation, convolution, pool. conv0 is 11x11/4, padded by
    2. Batch norm (eps 1e-5), ReLU and max-pool 3/2 follow. Pools 3/2 without padding follow conv1 and conv4:
    55 -> 27 -> 13 -> 6. Batch norm (eps 1e-3) and ReLU come before the classifier. ``bn1`` stands behind
    conv1, before the activation of conv2. The authors' convolutions have biases, but a batch norm follows
    each and subtracts any constant, so there are no biases here. There is no dropout, as in the authors'
    network with binary activations.
    """
    builder.eps = 1e-4
    return AlexNet(
        builder,
        num_classes,
        input_size=input_size,
        kernel=11,
        padding=2,
        convs=[Spec(256, 5, 1, "valid"), Spec(384, 3), Spec(384, 3), Spec(256, 3, 1, "valid")],
        stem=True,
        pool_first=True,
        last_eps=1e-3,
        reads="relu",
    )
