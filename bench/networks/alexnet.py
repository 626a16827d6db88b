"""AlexNet in three forms of the low-bit literature.

Each has five convolutions, two hidden linear layers and a classifier. First convolution and classifier are
full precision. Every other convolution and both hidden linear layers are low precision; ``alexnet_syq`` can
leave the weights of some of them in full precision. The convolutions get a branch, a linear layer only where
``layers`` names it.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from bench.errors import InputError, nearest
from bench.networks.builder import Builder, Network
from bench.networks.convnets import ConvNet, Spec
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


_HIDDEN = [4096, 4096]
_same, _valid = partial(SameMaxPool2d, 3, 2), partial(nn.MaxPool2d, 3, 2)


def _tensorpack(builder: Builder, num_classes: int, input_size: int, reads: str) -> Network:
    builder.eps = 1e-4
    builder.multiple = 2  # of the groups
    convs = [Spec(256, 5, 2, _same, 2), Spec(384, 3, 1, _same), Spec(384, 3, 1, None, 2)]
    return ConvNet(
        builder,
        num_classes,
        input_size=input_size,
        front={"conv0": builder.first_conv(builder.channels(96), 12, stride=4)},
        size=(input_size - 12) // 4 + 1,
        convs=[*convs, Spec(256, 3, 1, _valid, 2)],
        hidden=_HIDDEN,
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
    width, size = builder.channels(96), (input_size + 4 - 11) // 4 + 1
    norm = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
    stem = nn.Sequential(norm, nn.ReLU(), nn.MaxPool2d(3, 2), builder.norm(width))
    network = ConvNet(
        builder,
        num_classes,
        input_size=input_size,
        front={"conv0": builder.first_conv(width, 11, stride=4, padding=2), "stem": stem},
        size=(size - 3) // 2 + 1,
        convs=[Spec(256, 5, 2, _valid), Spec(384, 3, 1), Spec(384, 3, 1), Spec(256, 3, 1, _valid)],
        hidden=_HIDDEN,
        pool_first=True,
        reads="relu",
    )
    last = network.get_submodule("bn_fc2")
    assert isinstance(last, nn.BatchNorm1d)
    last.eps = 1e-3
    return network
