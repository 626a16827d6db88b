"""Low-precision layers: quantized weights, quantized input, and a full-precision branch beside them.

Source of the branch: *Progressive Learning of Low-Precision Networks* (arXiv 1905.11781), its figure and
released code.

A layer hands the next one a pair ``(y, side)``. ``y`` is the main path before its activation. ``side`` is f
times the output of the layer's branch, or None without an active branch. A layer applies its activation
quantizer q to ``y``, joins ``side`` to the result without quantizing ``side``, and convolves the sum with
quantized weights. The strategy's ``merge`` says how they are joined:

    sum             x = q(y) + side              side = f BN'(FP x) of the layer before
    difference      x = q(y) - side
    concat          x = [q(y), side]             channels in a row, ``weight_extra`` reads the extra ones
    preactivation   x = q(y)                     LP x + f FP x leaves the layer as its main output

The activation quantizer stands at the input of the layer that reads ``y``, not at the output of the layer
that wrote it. In a network without shortcuts both places give the same arithmetic; in a residual network the
method places the quantizer at the input.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.layers.activation_input import ActivationInput, Pair, Quantizing
from bench.layers.branch import BranchConv2d, BranchLinear
from bench.layers.classifier import Classifier
from bench.layers.dropout import Dropout
from bench.layers.partition import Partition
from bench.machine.onednn import guard_convolutions
from bench.quantizers import Quantizer
from bench.quantizers.deployed import Levels
from bench.randomness import Clock

guard_convolutions()


class LowPrecisionLayer(ActivationInput):
    """The common part of the low-precision convolution and linear layer; see the module's text and ``setup``.

    The stored weights are full precision and are quantized once in each forward pass. With ``concat`` the
    weights of the extra input channels are a tensor of their own, ``weight_extra``, with a quantizer of its
    own. So the main path does not jump when the branch is removed.
    """

    weight: nn.Parameter
    branch: BranchConv2d | BranchLinear | None
    quantizer_extra: Quantizer | None
    fixed_statistics: Tensor | None
    dropout: Dropout | None
    partition: Partition | None  # the frozen weights, for a strategy that quantizes weights in parts

    def setup(
        self,
        *,
        name: str,
        quantizer: Quantizer,
        clock: Clock,
        merge: str | None,
        joint: bool,
        blend: str | None,
        magnitude_first: bool,
        merge_here: bool,
        dropout: Dropout | None,
    ) -> None:
        """Give the layer everything beyond the shape of its weights.

        Args:
            name: The layer's name in the network.
            quantizer: The maps of its weights, its input and its gradient.
            clock: Tells the layer the step and the factor f.
            merge: How the network's branches merge, one of ``MERGES``; None without branches.
            joint: Whether one statistic is taken over main and extra weights.
            blend: What moves from full to low precision as f falls: "both", "weights", "activations" or
                "signs" (the weights, from a clipped line to the sign); None: nothing.
            magnitude_first: Whether min(1, |y|) comes before the bounding map.
            merge_here: Whether sum and difference meet at this layer's output.
            dropout: The dropout of the activated input.
        """
        self.set_up_input(quantizer, clock, merge, blend, magnitude_first)
        self.name = name
        self.joint = joint
        self.blend_weights = blend in ("both", "weights")
        self.blend_signs = blend == "signs"
        self.merge_here = merge_here
        self.dropout = dropout
        self.branch = None
        self.extra_out = 0  # channels that its branch appends to the next layer's input
        self.quantizer_extra = None
        self.partition = None
        self.register_parameter("weight_extra", None)
        self.register_buffer("fixed_statistics", None)
        # A gradient quantizer and an input scale act on the low-precision convolution alone. With either of
        # them the branch needs a convolution of its own.
        self.one_convolution = (
            merge == "preactivation" and quantizer.g_bits == 32 and not quantizer.scales_input
        )

    def accept_extra(self, channels: int, quantizer: Quantizer | None) -> None:
        """Make weights for ``channels`` extra input channels in each group.

        ``quantizer`` is that of the extra weights, None where main and extra weights have joint statistics.
        """
        shape = (self.weight.shape[0], channels, *self.weight.shape[2:])
        self.weight_extra = nn.Parameter(torch.zeros(shape))
        self.quantizer_extra = quantizer
        if quantizer is not None:
            quantizer.keep_()  # it reads no activations

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution or the product of the prepared input with a weight."""
        raise NotImplementedError

    def input_scale(self, y: Tensor) -> Tensor:
        """Return XNOR-Net's input scale K of the main path alone, so that K does not jump at removal."""
        raise NotImplementedError

    def prepare(self, y: Tensor, side: Tensor | None) -> Tensor:
        """Return the input of the convolution and of its branch, from the pair ``(y, side)``."""
        x = self.join(self.activate(y), side)
        return x if self.dropout is None else self.dropout(x)

    def carried(self, y: Tensor, side: Tensor | None) -> Tensor:
        """Return what a shortcut around this layer carries: the bounded input, not quantized.

        Sum and difference join ``side`` to it. The extra channels of concat are left out.
        """
        x = self.bounded(y)
        return x if self.merge == "concat" else self.join(x, side)

    def low_precision_weight(self, with_extra: bool) -> Tensor:
        """Return the quantized main weights; ``with_extra`` appends the extra weights."""
        weight, extra, quantizer = self.weight, self.weight_extra, self.acting
        if self.partition is not None and self.clock.active:
            return self.partition.mixed(weight, quantizer.weight(weight.detach(), self.fixed_statistics))
        if extra is None:
            low = quantizer.weight(weight, self.fixed_statistics)
        elif not self.joint:
            low = quantizer.weight(weight)
            if with_extra:
                assert self.quantizer_extra is not None
                low = torch.cat([low, self.quantizer_extra.weight(extra)], 1)
        elif with_extra:
            low = quantizer.weight(torch.cat([weight, extra], 1))
        else:
            low = quantizer.weight(weight, self.joint_statistics())
        if self.blend_weights and self.clock.active:
            low = low + self.clock.factor * (weight - low)
        if self.blend_signs and self.clock.active:
            reached = (weight.detach().abs() / self.clock.factor).clamp(max=1.0)
            low = low - (low * (1.0 - reached)).detach()
        return low

    def joint_statistics(self) -> Tensor | None:
        """Return the statistic over main and extra weights; the extra ones are constants to its gradient."""
        assert self.weight_extra is not None
        return self.quantizer.statistics(torch.cat([self.weight, self.weight_extra.detach()], 1))

    def weight_levels(self) -> Levels | None:
        """Return codes and values of the quantized main weights, None in full precision."""
        joint = self.weight_extra is not None and self.joint
        return self.quantizer.weight_levels(
            self.weight, self.joint_statistics() if joint else self.fixed_statistics
        )

    def forward(self, y: Tensor, side: Tensor | None = None) -> Pair:
        """Map the pair ``(y, side)`` to (main output, f times the branch's output or None)."""
        clock = self.clock
        branch = self.branch if clock.active else None
        x = self.prepare(y, side)
        weight = self.low_precision_weight(with_extra=side is not None and self.merge == "concat")
        if branch is not None and self.one_convolution:
            return self.operate(x, weight + clock.factor_of(self.name) * branch.centred()), None
        main = self.acting.gradient(self.operate(x, weight))
        if self.acting.scales_input:
            main = main * self.input_scale(y)
        if branch is None:
            return main, None
        branch_output = branch(x, clock.factor_of(self.name))
        if self.merge == "preactivation" or (self.merge_here and self.merge == "sum"):
            return main + branch_output, None
        if self.merge_here and self.merge == "difference":
            return main - branch_output, None
        return main, branch_output

    def _scaled(self, scale: Tensor, like: Tensor) -> Tensor:
        if self.blend_activations and self.clock.active:  # at f = 1 the activations are not approximated
            scale = scale + self.clock.factor * (1.0 - scale)
        return scale.to(like.dtype)

    def after_step_(self) -> None:
        """Let the quantizer change the stored weights after an update, then restore the frozen weights."""
        if self.partition is not None:
            self.partition.restore_(self.weight)
        if type(self.quantizer).after_step_ is Quantizer.after_step_:
            return
        self.quantizer.after_step_(self.weight)
        if self.weight_extra is not None:
            (self.quantizer_extra or self.quantizer).after_step_(self.weight_extra)

    def add_penalty_(self) -> None:
        """Add the gradients of the quantizer's penalty, of the extra weights as well."""
        if self.weight_extra is None:
            self.quantizer.add_penalty_(self.weight)
        elif self.quantizer_extra is None:
            self.quantizer.add_penalty_(self.weight, self.weight_extra)
        else:
            self.quantizer.add_penalty_(self.weight)
            self.quantizer_extra.add_penalty_(self.weight_extra)

    def strip_(self) -> None:
        """Remove the branch, the extra weights and all other parts of the strategy.

        A joint statistic stays as the constant ``fixed_statistics``.
        """
        if self.weight_extra is not None and self.joint:
            statistics = self.joint_statistics()
            self.fixed_statistics = None if statistics is None else statistics.detach().clone()
        self.branch = self.weight_extra = self.quantizer_extra = self.merge = self.partition = None
        self.one_convolution = False
        self.extra_out = 0


class LowPrecisionConv2d(LowPrecisionLayer, nn.Conv2d):  # type: ignore[misc]
    """A convolution without bias of quantized weights and quantized input: (B, in, H, W) -> (B, out, H', W').

    With groups, the extra channels of ``concat`` are divided among the groups like the main channels. Each
    group has the input scale of its own channels.
    """

    def join(self, x: Tensor, side: Tensor | None) -> Tensor:
        if side is None or self.merge != "concat" or self.groups == 1:
            return super().join(x, side)
        return torch.cat([part.unflatten(1, (self.groups, -1)) for part in (x, side)], 2).flatten(1, 2)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def input_scale(self, y: Tensor) -> Tensor:
        real = self.real(y.detach())
        if self.groups > 1:
            real = real.unflatten(1, (self.groups, -1)).flatten(0, 1)
        window = (self.kernel_size, self.stride, self.padding)
        scale = self.quantizer.input_scale(real, *window)  # type: ignore[operator]
        if self.groups > 1:
            scale = scale.unflatten(0, (-1, self.groups)).flatten(1, 2)
            scale = scale.repeat_interleave(self.out_channels // self.groups, 1)
        return self._scaled(scale, y)


class LowPrecisionLinear(LowPrecisionLayer, nn.Linear):  # type: ignore[misc]
    """A linear layer without bias of quantized weights and quantized input.

    The input (B, ...) is flattened to (B, in); the output is (B, out).
    """

    def prepare(self, y: Tensor, side: Tensor | None) -> Tensor:
        return super().prepare(y, side).flatten(1)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def input_scale(self, y: Tensor) -> Tensor:
        real = self.real(y.detach()).flatten(1)
        return self._scaled(self.quantizer.input_scale(real, 1), y)  # type: ignore[operator]


def low_precision_modules(network: nn.Module) -> list[tuple[str, LowPrecisionLayer]]:
    """Return (name, layer) of every layer that has a quantizer (``full_precision`` included), in order."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, LowPrecisionLayer)]


def strip(network: nn.Module) -> nn.Module:
    """Return a deep copy without branches and extra weights: the low-precision network that ships.

    Its state dict has the keys of the same network built without a strategy; with joint statistics also
    ``<layer>.fixed_statistics``. In evaluation it equals ``network`` at f = 0 bit for bit. Both networks have
    the same clock.
    """
    clocks = {id(layer.clock): layer.clock for _, layer in low_precision_modules(network)}
    memo: dict[int, Any] = {**clocks}
    stripped = copy.deepcopy(network, memo)
    for module in stripped.modules():
        if isinstance(module, Quantizing):
            module.interims = ()
        if isinstance(module, LowPrecisionLayer | Classifier):
            module.strip_()
    return stripped
