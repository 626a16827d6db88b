"""A network's factory is given a builder: the builder makes the layers, the factory connects them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import InputError, nearest
from bench.experiments.config import TrialConfig
from bench.experiments.options import keywords
from bench.layers.activation_input import Quantizing
from bench.layers.branch import MERGES, Branch, BranchConv2d, BranchLinear
from bench.layers.classifier import Classifier
from bench.layers.dropout import Dropout
from bench.layers.low_precision import (
    LowPrecisionConv2d,
    LowPrecisionLayer,
    LowPrecisionLinear,
    low_precision_modules,
)
from bench.quantizers import FullPrecisionWeights, Quantizer, make_quantizer
from bench.randomness import Clock, Draws


class Network(nn.Module):
    """The base class of every network: images (B, 3, S, S) -> logits (B, classes); S = ``input_size``."""

    input_size: int

    def blank_image(self) -> Tensor:
        """Return a black image as the network reads it, (1, 3, S, S) in the dtype of its parameters."""
        weight = next(self.parameters())
        return weight.new_zeros(1, 3, self.input_size, self.input_size)

    def low_precision_layers(self) -> list[tuple[str, LowPrecisionLayer]]:
        """Return (name, layer) of every layer with weights or activations of fewer than 32 bits, in order."""
        return [
            (name, layer)
            for name, layer in low_precision_modules(self)
            if layer.quantizer.w_bits < 32 or layer.quantizer.a_bits < 32
        ]

    def after_step_(self) -> None:
        """Do what the quantizers do to their stored weights after an update of the optimizer."""
        for module in self.modules():
            if isinstance(module, LowPrecisionLayer):
                module.after_step_()

    def add_penalty_(self) -> None:
        """Add the gradients of the quantizers' penalties, between the backward pass and the update."""
        for module in self.modules():
            if isinstance(module, Quantizing):
                module.add_penalty_()


class Builder:
    """Makes the layers of one network.

    A low-precision layer gets its quantizer and its branch. A full-precision layer gets the reason why it is
    not quantized. Raises ``InputError`` for an impossible branch.

    Attributes:
        clock: gives the layers step and factor.
        branch: the branch of every low-precision convolution, or None.
        blend: what is blended from full to low precision: None, "both", "weights", "activations" or
            "signs".
        eps: epsilon of every batch norm.
        magnitude_first: whether min(1, |y|) comes before the bounding maps.
        merge_at_output: whether sum and difference meet at the output of the convolution, not after the
            activation.
        multiple: all channel counts, those of branches too, are multiples of this number (for grouped
            convolutions).
        full_precision_weights: names of layers whose weights are not quantized; their activations are.
    """

    def __init__(
        self, config: TrialConfig, clock: Clock, branch: Branch | None = None, blend: str | None = None
    ) -> None:
        self.config = config
        self.clock = clock
        self.branch = branch
        self.blend = blend
        self.eps = 1e-5
        self.magnitude_first = False
        self.merge_at_output = False
        self.multiple = 1
        self.full_precision_weights: frozenset[str] = frozenset()
        self.check_original = False  # for a network that is not the suite's own: see networks.adoption
        self.eligible: list[str] = []
        self._kernels: list[int] = []  # of the convolutions that got a branch
        if branch is not None:
            _check(branch)
        if blend not in (None, "both", "weights", "activations", "signs"):
            raise InputError(
                f"strategy.what: {blend!r} is not one of 'both', 'weights', 'activations', 'signs'"
            )

    # -- sizes and quantizers --------------------------------------------------------------------------------

    def channels(self, count: int) -> int:
        """Return ``count`` times the width, rounded to a multiple of ``multiple``, at least ``multiple``."""
        return self._rounded(count * self.config.width)

    def _rounded(self, count: float) -> int:
        return self.multiple * max(1, round(count / self.multiple))

    def quantizer(
        self,
        name: str,
        weight_shape: tuple[int, ...] | None,
        channels: int | None = None,
        a_bits: int | None = None,
    ) -> Quantizer:
        """Return a quantizer for one weight tensor (or for activations alone) with random draws of its own.

        ``channels``: the channels of its activations, where the layer's input has a dimension of channels.
        ``a_bits``: bits of its activations, by default those of the trial.
        """
        options = keywords(self.config.quantizer) | {"channels": channels}
        kept = name.removesuffix(".extra") in self.full_precision_weights
        shape, kind = None if kept else weight_shape, self.config.quantizer["kind"]
        w, a, g = self.config.bit_widths
        quantizer = make_quantizer(kind, w, a_bits or a, g, weight_shape=shape, **options)
        quantizer.draws = Draws(self.clock, "quantizer", name)
        return FullPrecisionWeights(quantizer) if kept else quantizer

    @property
    def merge(self) -> str | None:
        """How branches and main path are joined; None without branches."""
        return None if self.branch is None else self.branch.merge

    # -- full precision --------------------------------------------------------------------------------------

    def first_conv(
        self, channels: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = False
    ) -> nn.Conv2d:
        """Return the first convolution, which reads RGB images: in full precision, without a branch."""
        conv = nn.Conv2d(3, channels, kernel, stride, padding, bias=bias)
        return _full_precision(conv, "the first convolution")

    def projection(
        self, in_channels: int, out_channels: int, stride: int, *, pooled: bool = False
    ) -> nn.Sequential:
        """Return the 1x1 convolution and batch norm of a shortcut (option B of 1512.03385).

        With ``pooled`` average pooling precedes the convolution, instead of a stride that skips three of four
        pixels (1808.00278, 1812.01187).
        """
        pools = pooled and stride > 1
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=1 if pools else stride, bias=False)
        layers = [_full_precision(conv, "reads the residual stream"), self.norm(out_channels)]
        if pools:
            layers.insert(0, nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        return nn.Sequential(*layers)

    def classifier(
        self, in_features: int, classes: int, *, extra: int = 0, average: bool = False, reads: str = "bounded"
    ) -> Classifier:
        """Return the last linear layer.

        Args:
            in_features: Features of the main path.
            classes: The length of the logits of an image.
            extra: Features of the previous layer's branch, which the layer reads as well.
            average: See ``Classifier``.
            reads: See ``Classifier``.
        """
        layer = Classifier(
            in_features,
            classes,
            quantizer=self.quantizer("classifier", None, in_features if average else None),
            clock=self.clock,
            merge=self.merge,
            blend=self.blend,
            magnitude_first=self.magnitude_first,
            extra=extra,
            average=average,
            reads=reads,
        )
        return _full_precision(layer, "the last linear layer")

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """Return batch norm of (B, C, H, W), whose running averages decay by 0.9 (momentum 0.1)."""
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=0.1)

    def norm_1d(self, channels: int) -> nn.BatchNorm1d:
        """Return batch norm of (B, C)."""
        return nn.BatchNorm1d(channels, eps=self.eps, momentum=0.1)

    # -- low precision ---------------------------------------------------------------------------------------

    def conv(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        padding: int = 0,
        stride: int = 1,
        groups: int = 1,
        extra: int = 0,
        pool: nn.Module | None = None,
        pool_first: bool = False,
        dropout: float = 0.0,
    ) -> LowPrecisionConv2d:
        """Return the low-precision convolution that will be the module ``name`` of the network.

        Args:
            name: The module in the network.
            in_channels: Of the main path.
            out_channels: Of the main path.
            kernel: Height and width.
            padding: On every side.
            stride: In both directions.
            groups: Of the main path and of the branch.
            extra: ``extra_out`` of the layer whose ``side`` the convolution reads.
            pool: The pooling of the main path behind the convolution, which the branch repeats.
            pool_first: Whether it comes before the batch norm.
            dropout: The probability of dropout of the activated input.
        """
        layer = LowPrecisionConv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        if self.merge == "preactivation" or self.merge_at_output:
            pool = None  # branch and main path are joined before the pooling

        def quantizer(stream: str, shape: tuple[int, ...]) -> Quantizer:
            return self.quantizer(stream, shape, in_channels if stream == name else None)

        def branch(width: int, eps: float | None) -> BranchConv2d:
            size = self.branch_kernel(name, kernel)
            return BranchConv2d(layer, in_channels + extra, width, (size, size), eps, pool, pool_first)

        self.set_up(layer, name, quantizer, extra=extra, dropout=dropout)
        self.add_branch(layer, branch, by_default=True)
        return layer

    def linear(self, name: str, in_features: int, out_features: int, *, extra: int = 0) -> LowPrecisionLinear:
        """Return the low-precision linear layer ``name``, with a branch only where ``layers`` names it.

        ``extra`` is the number of extra features in its flattened input.
        """
        layer = LowPrecisionLinear(in_features, out_features, bias=False)
        self.set_up(layer, name, self.quantizer, extra=extra)
        self.add_branch(
            layer, lambda width, eps: BranchLinear(in_features + extra, width, eps), by_default=False
        )
        return layer

    def set_up(
        self,
        layer: LowPrecisionLayer,
        name: str,
        quantizer: Callable[[str, tuple[int, ...]], Quantizer],
        *,
        extra: int = 0,
        dropout: float = 0.0,
        blended: bool = True,
    ) -> None:
        """Give a layer, which has its weights, all but its branch.

        Args:
            layer: The layer; its weights have their shape.
            name: The layer's name in the network.
            quantizer: Returns the quantizer of a stream of random draws for weights of a shape.
            extra: Channels of the branch that the layer reads (``concat``).
            dropout: The probability of dropout of the activated input.
            blended: Whether the builder's ``blend`` is the layer's.
        """
        joint = self.branch is not None and self.branch.statistics == "joint"
        shape = tuple(layer.weight.shape)
        layer.setup(
            name=name,
            quantizer=quantizer(name, shape),
            clock=self.clock,
            merge=self.merge,
            joint=joint,
            blend=self.blend if blended else None,
            magnitude_first=self.magnitude_first,
            merge_here=self.merge_at_output,
            dropout=Dropout(dropout, Draws(self.clock, "dropout", name)) if dropout else None,
        )
        if extra:
            extra //= getattr(layer, "groups", 1)
            shape = (shape[0], extra, *shape[2:])
            layer.accept_extra(extra, None if joint else quantizer(f"{name}.extra", shape))

    def add_branch(
        self,
        layer: LowPrecisionLayer,
        make: Callable[[int, float | None], BranchConv2d | BranchLinear],
        *,
        by_default: bool,
    ) -> bool:
        """Give a layer its branch where it gets one; return whether it does.

        ``make(width, eps)`` returns a branch of so many outputs with that epsilon of its batch norm, None
        without one. ``by_default``: whether a layer gets a branch where the strategy names no layers.
        """
        self.eligible.append(layer.name)
        branch = self.branch
        if branch is None or not (by_default if branch.layers is None else layer.name in branch.layers):
            return False
        width = self._rounded(layer.weight.shape[0] * branch.width_ratio)
        normalised = branch.batch_norm and self.merge != "preactivation"
        layer.branch = make(width, self.eps if normalised else None)
        layer.branch.relu = branch.relu
        layer.extra_out = width if self.merge == "concat" else 0
        return True

    def branch_kernel(self, name: str, kernel: int) -> int:
        """Return the size of the kernel of a branch; raises ``InputError`` where it has no centre."""
        assert self.branch is not None
        size = kernel if self.branch.kernel is None else min(kernel, self.branch.kernel)
        if (kernel - size) % 2:
            raise InputError(
                f"strategy.kernel: {size} has no place at the centre of the {kernel}x{kernel} kernel of "
                f"{name}; use {'an odd' if kernel % 2 else 'an even'} size"
            )
        self._kernels.append(kernel)
        return size

    def finish(self, network: Network) -> Network:
        """Return the finished ``network``; raises ``InputError`` where ``layers`` names absent layers."""
        for name, layer in low_precision_modules(network):
            if layer.name != name:
                raise ValueError(f"the layer made as '{layer.name}' is the module '{name}'")
        branch = self.branch
        if branch is not None:
            unknown = [name for name in branch.layers or () if name not in self.eligible]
            if unknown:
                problems = [f"'{name}'{nearest(name, self.eligible)}" for name in unknown]
                raise InputError(
                    f"strategy.layers: the network {self.config.network['kind']} has no low-precision layer "
                    f"called {', '.join(problems)}. Its layers: {', '.join(self.eligible)}."
                )
            if branch.kernel is not None and self._kernels and branch.kernel > max(self._kernels):
                raise InputError(
                    f"strategy.kernel: {branch.kernel} is larger than every kernel of "
                    f"{self.config.network['kind']} that gets a branch (at most {max(self._kernels)})"
                )
        return network


def _check(branch: Branch) -> None:
    """Raise ``InputError`` for a branch whose options contradict each other."""
    if branch.merge not in MERGES:
        raise InputError(
            f"strategy.merge: {branch.merge!r} is not one of "
            f"{', '.join(MERGES)}.{nearest(branch.merge, MERGES)}"
        )
    if branch.merge != "concat" and branch.width_ratio != 1.0:
        raise InputError(
            f'strategy.width_ratio: {branch.width_ratio} needs merge = "concat", not "{branch.merge}"'
        )
    if branch.merge != "concat" and branch.statistics == "joint":
        raise InputError(f'strategy.statistics: "joint" needs merge = "concat", not "{branch.merge}"')
    if branch.kernel is not None and branch.kernel < 1:
        raise InputError(f"strategy.kernel: {branch.kernel} must be at least 1")
    if branch.layers is not None and not branch.layers:
        raise InputError(
            "strategy.layers: no layer is named, so there is no branch; leave it out for every convolution"
        )


def _full_precision(layer: Any, reason: str) -> Any:
    layer.full_precision_reason = reason
    return layer


def is_bipolar(quantizer: Quantizer) -> bool:
    """Return whether the bounded activations are negative for negative inputs: signs, not [0, 1]."""
    return bool(quantizer.bound(torch.tensor([-1.0])).item() < 0)
