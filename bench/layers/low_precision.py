"""Low-precision layers, and their expansion by a full-precision branch that is faded out and removed.

Source of the expansion: *Progressive Learning of Low-Precision Networks* (arXiv 1905.11781), its figure and released
code.

Layers hand each other a pair ``(y, rest)``: ``y`` is the main path before its activation, ``rest`` what the branch of
the layer before left over, already multiplied by the factor f, or None. A layer applies its activation quantizer to
``y``, joins ``rest`` to the result without quantizing it again, and convolves with quantized weights:

    sum             x = q(y) + rest              rest = f BN'(FP x) of the layer before
    difference      x = q(y) - rest
    concat          x = [q(y), rest]             channels side by side, ``weight_extra`` reads the extra ones
    preactivation   x = q(y)                     LP x + f FP x leaves the layer as its main output

The activation quantizer stands at the input of the layer that reads it, not at the output of the one that wrote it: in
a chain that is the same arithmetic, in a residual network it is where the method wants it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.quantizers import Quantizer
from bench.randomness import Clock, Draws

MERGES = ("sum", "difference", "concat", "preactivation")

Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Branch:
    """The full-precision branch of a progressive strategy.

    ``merge``        one of ``MERGES``: where the outputs of branch and main path meet
    ``kernel``       the branch's kernel is at most this large, and sees the centre of the main kernel's window; None: the
                     main path's size
    ``width_ratio``  channels of the branch over those of the main path; other than 1 with ``concat`` alone
    ``batch_norm``   the branch has its own batch norm (never with ``preactivation``)
    ``layers``       names of the layers that get a branch; None: every low-precision convolution
    ``statistics``   ``concat``: "main", main and extra weights each have their scale; "joint", one over both (released)
    """

    merge: str
    kernel: int | None = None
    width_ratio: float = 1.0
    batch_norm: bool = True
    layers: tuple[str, ...] | None = None
    statistics: str = "main"


class Dropout(nn.Module):
    """Dropout (1207.0580) with counter-based draws: while training, x / (1 - p) with probability 1 - p, else 0."""

    def __init__(self, p: float, draws: Draws) -> None:
        super().__init__()
        self.p = p
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (batch, ...) to the same shape; a channel's draws do not depend on how many channels follow it."""
        if not self.training or self.p == 0.0:
            return x
        keep = (self.draws.uniform(x) >= self.p).to(x.dtype)
        return x * keep.mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class FactorBatchNorm(nn.modules.batchnorm._BatchNorm):
    """f times batch norm of (B, C) or (B, C, H, W): the factor goes into scale and shift, which costs no pass."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``factor * BN(x)``; ``factor`` of shape ()."""
        momentum = self.momentum
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a cumulative average, while statistics are re-estimated
                momentum = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight * factor,
            self.bias * factor,
            self.training,
            momentum if momentum is not None else 0.0,
            self.eps,
        )


class BranchConv2d(nn.Conv2d):
    """The ancillary convolution: ``f * pool(BN'(FP x))``, without an activation, of the main layer's output size.

    ``pool_first``: pool before the batch norm, where the main path does. f is at least 0, so it commutes with pooling.
    """

    def __init__(
        self,
        main: nn.Conv2d,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm_eps: float | None,
        pool: nn.Module | None,
        pool_first: bool,
    ) -> None:
        margin = (main.kernel_size[0] - kernel) // 2
        padding = int(main.padding[0]) - margin
        super().__init__(
            in_channels, out_channels, kernel, main.stride[0], max(padding, 0), groups=main.groups, bias=False
        )
        self.margin = margin
        self.crop = max(-padding, 0)
        self.norm = None if norm_eps is None else FactorBatchNorm(out_channels, eps=norm_eps)
        self.pool = pool
        self.pool_first = pool_first

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in, H, W) to f times the branch, (B, out, H', W')."""
        if self.crop:
            x = x[:, :, self.crop : -self.crop, self.crop : -self.crop]
        if self.norm is None:
            y = F.conv2d(x, self.weight * factor, None, self.stride, self.padding, groups=self.groups)
            return y if self.pool is None else self.pool(y)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)
        if self.pool is not None and self.pool_first:
            return self.norm(self.pool(y), factor)
        y = self.norm(y, factor)
        return y if self.pool is None else self.pool(y)

    def centred(self) -> Tensor:
        """Return the kernel in the size of the main one, zeros around it."""
        return F.pad(self.weight, [self.margin] * 4) if self.margin else self.weight


class BranchLinear(nn.Linear):
    """The ancillary linear layer: ``f * BN'(FP x)``."""

    def __init__(self, in_features: int, out_features: int, norm_eps: float | None) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.norm = None if norm_eps is None else FactorBatchNorm(out_features, eps=norm_eps)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``x`` (B, in) to f times the branch, (B, out)."""
        if self.norm is None:
            return F.linear(x, self.weight * factor)
        return self.norm(F.linear(x, self.weight), factor)

    def centred(self) -> Tensor:
        """Return the kernel."""
        return self.weight


class _Reader(nn.Module):
    """What every layer that reads a pair ``(y, rest)`` has: the bounding map of ``y``, and how ``rest`` joins it."""

    quantizer: Quantizer
    clock: Clock
    merge: str | None
    fold: bool
    weight_extra: nn.Parameter | None

    def _read(
        self, quantizer: Quantizer, clock: Clock, merge: str | None, blend: str | None, fold: bool
    ) -> None:
        self.quantizer = quantizer
        self.clock = clock
        self.merge = merge
        self.blend_activations = blend in ("both", "activations")
        self.fold = fold

    def bounded(self, y: Tensor) -> Tensor:
        """Return the bounding map of ``y``, min(1, |y|) before it where the network folds."""
        return self.quantizer.bound(_folded(y) if self.fold else y)

    def activate(self, y: Tensor) -> Tensor:
        """Return the low-precision activations of ``y``, any shape; blended with the bounded ones where asked."""
        if self.fold:
            y = _folded(y)
        x = self.quantizer.activation(y)
        if self.blend_activations and self.clock.active:
            x = x + self.clock.factor * (self.quantizer.bound(y) - x)
        return x

    def join(self, x: Tensor, rest: Tensor | None) -> Tensor:
        """Join what the branch before left over to the activated input."""
        if rest is None:
            return x
        if self.merge == "concat":
            return torch.cat([x, rest], 1)
        return x - rest if self.merge == "difference" else x + rest


def _folded(y: Tensor) -> Tensor:
    return torch.clamp(torch.abs(y), max=1.0)


class LowPrecisionLayer(_Reader):
    """What convolution and linear layer have in common; see the module's text and ``setup``.

    The stored weights are full precision and quantized once a forward pass. With ``concat`` the weights for the extra
    input channels are a tensor ``weight_extra`` with its own quantizer, so nothing of the main path jumps at removal.
    """

    weight: nn.Parameter
    branch: BranchConv2d | BranchLinear | None
    quantizer_extra: Quantizer | None
    fixed_statistics: Tensor | None
    dropout: Dropout | None

    def setup(
        self,
        *,
        name: str,
        quantizer: Quantizer,
        clock: Clock,
        merge: str | None,
        joint: bool,
        blend: str | None,
        fold: bool,
        merge_here: bool,
        dropout: Dropout | None,
    ) -> None:
        """Take what is not the shape.

        ``merge`` of the network's branches, None without; ``joint``: one statistic over main and extra weights;
        ``blend``: None, "both", "weights" or "activations" move from full to low precision as f falls;
        ``fold``: min(1, |y|) before the bounding map; ``merge_here``: sum and difference meet at this layer's output.
        """
        self._read(quantizer, clock, merge, blend, fold)
        self.name = name
        self.joint = joint
        self.blend_weights = blend in ("both", "weights")
        self.merge_here = merge_here
        self.dropout = dropout
        self.branch = None
        self.extra_out = 0  # channels that its branch appends to the next layer's input
        self.quantizer_extra = None
        self.register_parameter("weight_extra", None)
        self.register_buffer("fixed_statistics", None)
        # the gradient quantizer and the input scale are the low-precision convolution's alone: then there are two
        self.one_convolution = (
            merge == "preactivation" and quantizer.g_bits == 32 and not quantizer.scales_input
        )

    def accept_extra(self, channels: int, quantizer: Quantizer | None) -> None:
        """Read ``channels`` extra input channels (in each group); ``quantizer``: theirs, None with joint statistics."""
        shape = (self.weight.shape[0], channels, *self.weight.shape[2:])
        self.weight_extra = nn.Parameter(torch.zeros(shape))
        self.quantizer_extra = quantizer

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution or the product of the prepared input with a weight."""
        raise NotImplementedError

    def input_scale(self, y: Tensor) -> Tensor:
        """Return K, computed from the main path's bounded input alone, so that it does not jump at removal."""
        raise NotImplementedError

    def prepare(self, y: Tensor, rest: Tensor | None) -> Tensor:
        """Return what the convolution (and its branch) reads."""
        x = self.join(self.activate(y), rest)
        return x if self.dropout is None else self.dropout(x)

    def carried(self, y: Tensor, rest: Tensor | None) -> Tensor:
        """Return what a shortcut around this layer carries: bounded, not quantized, without the channels of concat."""
        x = self.bounded(y)
        return x if self.merge == "concat" else self.join(x, rest)

    def low_precision_weight(self, with_extra: bool) -> Tensor:
        """Return the quantized main weights, followed along the inputs by the extra ones where asked."""
        weight, extra, quantizer = self.weight, self.weight_extra, self.quantizer
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
        return low

    def joint_statistics(self) -> Tensor | None:
        """Return the statistic over main and extra weights; the extra ones are constants of its gradient."""
        assert self.weight_extra is not None
        return self.quantizer.statistics(torch.cat([self.weight, self.weight_extra.detach()], 1))

    def forward(self, y: Tensor, rest: Tensor | None = None) -> Pair:
        """Map the pair ``(y, rest)`` to the main output and f times the branch's output (None where there is none)."""
        clock = self.clock
        branch = self.branch if clock.active else None
        x = self.prepare(y, rest)
        weight = self.low_precision_weight(with_extra=rest is not None and self.merge == "concat")
        if branch is not None and self.one_convolution:
            return self.operate(x, weight + clock.factor * branch.centred()), None
        main = self.quantizer.gradient(self.operate(x, weight))
        if self.quantizer.scales_input:
            main = main * self.input_scale(y)
        if branch is None:
            return main, None
        side = branch(x, clock.factor)
        if self.merge == "preactivation" or (self.merge_here and self.merge == "sum"):
            return main + side, None
        if self.merge_here and self.merge == "difference":
            return main - side, None
        return main, side

    def _scaled(self, scale: Tensor, like: Tensor) -> Tensor:
        if self.blend_activations and self.clock.active:  # at f = 1 nothing of the activation is approximated
            scale = scale + self.clock.factor * (1.0 - scale)
        return scale.to(like.dtype)

    def after_step_(self) -> None:
        """Do what the quantizer does to the stored weights after an update."""
        if type(self.quantizer).after_step_ is Quantizer.after_step_:
            return
        self.quantizer.after_step_(self.weight)
        if self.weight_extra is not None:
            self.quantizer.after_step_(self.weight_extra)

    def strip_(self) -> None:
        """Remove branch and extra weights; a joint statistic stays as the constant ``fixed_statistics``."""
        if self.weight_extra is not None and self.joint:
            statistics = self.joint_statistics()
            self.fixed_statistics = None if statistics is None else statistics.detach().clone()
        self.branch = self.weight_extra = self.quantizer_extra = self.merge = None
        self.one_convolution = False
        self.extra_out = 0


class LowPrecisionConv2d(LowPrecisionLayer, nn.Conv2d):  # type: ignore[misc]
    """A convolution without bias, of quantized weights and quantized input: (B, in, H, W) -> (B, out, H', W').

    With groups, the extra channels of ``concat`` are dealt out among them like the main ones, and the input scale is
    that of each group's own channels.
    """

    def join(self, x: Tensor, rest: Tensor | None) -> Tensor:
        if rest is None or self.merge != "concat" or self.groups == 1:
            return super().join(x, rest)
        return torch.cat([part.unflatten(1, (self.groups, -1)) for part in (x, rest)], 2).flatten(1, 2)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups)

    def input_scale(self, y: Tensor) -> Tensor:
        real = self.bounded(y.detach())
        if self.groups > 1:
            real = real.unflatten(1, (self.groups, -1)).flatten(0, 1)
        scale = self.quantizer.input_scale(real, self.kernel_size, self.stride, self.padding)  # type: ignore[operator]
        if self.groups > 1:
            scale = scale.unflatten(0, (-1, self.groups)).flatten(1, 2)
            scale = scale.repeat_interleave(self.out_channels // self.groups, 1)
        return self._scaled(scale, y)


class LowPrecisionLinear(LowPrecisionLayer, nn.Linear):  # type: ignore[misc]
    """A linear layer without bias, of quantized weights and input: (B, ...), flattened to (B, in) -> (B, out)."""

    def prepare(self, y: Tensor, rest: Tensor | None) -> Tensor:
        return super().prepare(y, rest).flatten(1)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def input_scale(self, y: Tensor) -> Tensor:
        real = self.bounded(y.detach()).flatten(1)
        return self._scaled(self.quantizer.input_scale(real, 1), y)  # type: ignore[operator]


class Classifier(_Reader, nn.Linear):
    """The last layer: full-precision weights; logits (B, classes).

    ``reads``: its input is "bounded" alone, "quantized" as that of a low-precision layer, goes through "relu", or is
    "unbounded", as it comes.
    ``average``: the mean over positions instead of flattening. Behind a layer with a ``concat`` branch it reads that
    branch's features with ``weight_extra``, in full precision.
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        quantizer: Quantizer,
        clock: Clock,
        merge: str | None,
        blend: str | None,
        fold: bool,
        extra: int,
        average: bool,
        reads: str = "bounded",
    ) -> None:
        super().__init__(in_features, classes)
        self._read(quantizer, clock, merge, blend, fold)
        self.average = average
        self.reads = reads
        self.register_parameter("weight_extra", nn.Parameter(torch.zeros(classes, extra)) if extra else None)

    @property
    def a_bits(self) -> int:
        """Bits of the activations that it reads."""
        return self.quantizer.a_bits if self.reads == "quantized" else 32

    def activate(self, y: Tensor) -> Tensor:
        """Return what it reads of the main path, any shape."""
        if self.reads == "quantized":
            return super().activate(y)
        if self.reads == "unbounded":
            return y
        return torch.relu(y) if self.reads == "relu" else self.bounded(y)

    def forward(self, y: Tensor, rest: Tensor | None = None) -> Tensor:
        """Map the pair ``(y, rest)``, (B, C, H, W) or (B, C) each, to logits."""
        x = self.join(self.activate(y), rest)
        x = x.mean((2, 3)) if self.average else x.flatten(1)
        weight = self.weight
        if rest is not None and self.weight_extra is not None:
            weight = torch.cat([weight, self.weight_extra], 1)
        return F.linear(x, weight, self.bias)

    def strip_(self) -> None:
        """Remove the extra weights."""
        self.weight_extra = None
        self.merge = None


class Meeting(nn.Module):
    """Where a branch meets the main path outside a layer: behind the batch norm of both."""

    def __init__(self, merge: str | None) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, y: Tensor, rest: Tensor | None) -> Pair:
        """Join ``rest`` to ``y`` for sum and difference; hand both on for concat."""
        if rest is None or self.merge == "concat":
            return y, rest
        return (y - rest if self.merge == "difference" else y + rest), None


def low_precision_modules(network: nn.Module) -> list[tuple[str, LowPrecisionLayer]]:
    """Return (name, layer) of every layer that a quantizer serves, ``full_precision`` included, in order."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, LowPrecisionLayer)]


def strip(network: nn.Module) -> nn.Module:
    """Return a deep copy without branches and extra weights: the low-precision network that would ship.

    Its state dict has the keys of the network built plain (with joint statistics also ``<layer>.fixed_statistics``),
    and in evaluation it equals ``network`` at f = 0 bit for bit. It keeps the clock of ``network``.
    """
    clocks = {id(layer.clock): layer.clock for _, layer in low_precision_modules(network)}
    memo: dict[int, Any] = {**clocks}
    stripped = copy.deepcopy(network, memo)
    for module in stripped.modules():
        if isinstance(module, LowPrecisionLayer | Classifier):
            module.strip_()
    return stripped


@torch.no_grad()
def observe(network: nn.Module, images: Tensor) -> dict[str, dict[str, Any]]:
    """Return, for each low-precision layer by name, what happens in it on one batch at the clock's factor.

    ``branch_ratio``: the norm of f times the branch's output over the norm of the main path's where they meet
    (activated, or the convolution's own output where the merge stands there); None without an active branch.
    ``one_level``: whether all activations that it reads on the main path are one value, which says nothing of the image.
    ``images`` (B, 3, S, S). In evaluation mode throughout: no statistics and no draws are touched.
    """
    ratios: dict[str, Tensor] = {}
    levels: dict[str, Tensor] = {}
    at_output: dict[str, Tensor] = {}  # for branches whose output was pooled or joined with others on the way
    sides: dict[
        int, tuple[str, Tensor]
    ] = {}  # id of a branch's output -> (its layer, the output, kept alive)

    def ratio(branch: Tensor, main: Tensor) -> Tensor:
        return branch.float().norm() / main.float().norm()

    def watch(name: str, layer: LowPrecisionLayer | Classifier | Meeting):
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            y, rest = (*inputs, None)[:2]
            if isinstance(layer, Meeting):
                if rest is not None and output[1] is None:
                    ratios[sides[id(rest)][0]] = ratio(rest, y)
                return
            low = layer.activate(y)
            if rest is not None and id(rest) in sides:
                ratios[sides[id(rest)][0]] = ratio(rest, low)
            if isinstance(layer, Classifier):
                return
            levels[name] = low.amax() == low.amin()
            if output[1] is not None:
                sides[id(output[1])] = (name, output[1])
                at_output[name] = ratio(output[1], output[0])
            elif layer.branch is not None and layer.clock.active:  # merged in the layer
                x = layer.prepare(y, rest)
                side = layer.branch(x, layer.clock.factor)
                main = output[0] + side if layer.merge == "difference" else output[0] - side
                ratios[name] = ratio(side, main)

        return hook

    layers = [
        (n, m) for n, m in network.named_modules() if isinstance(m, LowPrecisionLayer | Classifier | Meeting)
    ]
    handles = [layer.register_forward_hook(watch(name, layer)) for name, layer in layers]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        network(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return {
        name: {"branch_ratio": _finite(ratios.get(name, at_output.get(name))), "one_level": bool(one_level)}
        for name, one_level in levels.items()
    }


def _finite(value: Tensor | None) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None
