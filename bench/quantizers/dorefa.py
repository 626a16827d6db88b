"""DoReFa-Net: low bitwidth weights, activations and gradients (arXiv 1606.06160).

Four variants, named by origin. ``dorefa`` is the paper's text. ``dorefa_released`` maps a zero weight to 0
at 1 bit, as EXP-Net's TensorFlow code does. ``dorefa_channelwise`` takes the 1-bit scale per output channel
instead of per layer, which is what the authors of EXP-Net plot as "XNOR"; ``dorefa_channelwise_released``
maps a zero weight to 0 there as well. ``bench/quantizers/dorefa_variants.py`` has those of public
libraries, ``docs/variants.md`` tabulates all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from bench.quantizers.functional import bipolar, compute_dtype, level_, steps, ternary
from bench.quantizers.shared import UnitActivations

ENTRIES = [
    {
        "name": "dorefa",
        "factory": "DoReFa",
        "help": "1-bit weights E sign(w), k-bit tanh weights, activations on [0, 1], stochastic k-bit "
        "gradients",
        "title": "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth "
        "Gradients",
        "arxiv": "1606.06160",
        "w_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "g_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    },
    {
        "name": "dorefa_released",
        "like": "dorefa",
        "factory": "DoReFaReleased",
        "help": "dorefa as its TensorFlow code has it: at 1 bit a weight of exactly 0 stays 0",
    },
    {
        "name": "dorefa_channelwise",
        "like": "dorefa",
        "factory": "DoReFaChannelwise",
        "help": "dorefa with the 1-bit scale E per output channel; the curves labelled XNOR in EXP-Net's "
        "figure",
        "w_bits": [1, 32],
    },
    {
        "name": "dorefa_channelwise_released",
        "like": "dorefa",
        "factory": "DoReFaChannelwiseReleased",
        "help": "dorefa_channelwise as EXP-Net's TensorFlow code has it: a weight of exactly 0 stays 0",
        "w_bits": [1, 32],
    },
]


def mean_magnitude(w: Tensor, *, per_channel: bool = False) -> Tensor:
    """Return E = mean |w| in float32: of shape (), or (out, 1, ...) per output channel."""
    magnitude = w.detach().to(compute_dtype(w)).abs()
    if per_channel:
        return magnitude.mean(dim=tuple(range(1, w.dim())), keepdim=True)
    return magnitude.mean()


class _ScaledSign(Function):
    @staticmethod
    def forward(ctx, w, scale, zero_to_zero):
        signs = torch.sign(w).to(compute_dtype(w)) if zero_to_zero else bipolar(w)
        return signs.mul_(scale).to(w.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def binary_weight(w: Tensor, scale: Tensor, *, zero_to_zero: bool = False) -> Tensor:
    """Return scale * sign(w), section 2.2 (eq. 7 and 8); the gradient passes straight, dL/dw = dL/dq.

    ``w``: any shape; ``scale``: broadcast to it, a constant of the gradient. sign(0) is +1, or 0 with
    ``zero_to_zero``.
    """
    return _ScaledSign.apply(w, scale, zero_to_zero)


class _TanhRound(Function):
    @staticmethod
    def forward(ctx, w, maximum, n):
        t = torch.tanh(w.to(compute_dtype(w)))
        ctx.own_maximum = maximum is None
        m = t.abs().amax() if maximum is None else maximum.to(t.dtype)
        m = m + (m < 2.0**-126)  # of zeros alone: each is in the middle of the range, whatever the range
        ctx.save_for_backward(t, m)
        codes = torch.div(t, 2.0 * m).add_(0.5).mul_(n).round_().mul_(2.0).sub_(n)
        return level_(codes, n).to(w.dtype)

    @staticmethod
    def backward(ctx, grad):
        t, m = ctx.saved_tensors
        dtype = grad.dtype
        grad = grad.to(t.dtype)
        to_maximum = (grad * t).sum().neg_().div_(m).div_(m)  # q = t / m but for the rounding
        grad = grad / m
        if ctx.own_maximum:
            below = m * (1.0 - torch.finfo(t.dtype).eps / 2)
            at_maximum = ternary(t, below)  # the sign where |t| = m, else 0
            grad += at_maximum.mul_(to_maximum / at_maximum.abs().sum().clamp_min(1.0))
        grad = torch.ops.aten.tanh_backward(grad, t)
        return grad.to(dtype), None if ctx.own_maximum else to_maximum, None


def tanh_weight(w: Tensor, bits: int, maximum: Tensor | None = None) -> Tensor:
    """Return 2 round_k(tanh(w) / (2 m) + 1/2) - 1 with m = max |tanh w|, eq. (9); k = ``bits`` from 1 to 8.

    Levels (2 i - n) / n, i = 0..n, n = 2^k - 1. The gradient passes straight through the rounding, and
    flows through tanh and through the maximum, in equal shares where several weights reach it (as
    TensorFlow and PyTorch define the gradient of a maximum). With ``maximum`` given, of shape (), it is
    used instead and receives its own gradient. All-zero weights count as m = 1.
    """
    return _TanhRound.apply(w, maximum, steps(bits))


def tanh_levels(w: Tensor, bits: int) -> Tensor:
    """Return the table of the levels (2 i - n) / n of ``tanh_weight``, which broadcasts to ``w``."""
    n = steps(bits)
    codes = torch.arange(-n, n + 1, 2, dtype=torch.float32, device=w.device)
    return level_(codes, n).reshape(-1, *[1] * w.dim())


class _RoundGradient(Function):
    @staticmethod
    def forward(ctx, y, n, draws):
        ctx.n, ctx.draws = n, draws
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        return quantize_gradient(grad, ctx.n, ctx.draws.uniform(grad)), None, None


def quantize_gradient(grad: Tensor, n: int, uniform: Tensor) -> Tensor:
    """Return 2 m (round_k(clip(g / (2 m) + 1/2 + N)) - 1/2), eq. (12); m = max |g| of a sample (dimension 0).

    ``uniform``: numbers in [0, 1) of the shape of ``grad``, for the noise N = (uniform - 1/2) / n, n = 2^k
    - 1. The levels are m (2 i - n) / n. A sample whose gradient is all zero keeps it.
    """
    m = grad.to(compute_dtype(grad)).abs()
    m = m.amax(dim=tuple(range(1, grad.dim())), keepdim=True) if grad.dim() > 1 else m
    codes = grad / (2.0 * (m + (m == 0)))
    codes += uniform.sub(0.5).div_(n).add_(0.5)
    codes = codes.clamp_(0.0, 1.0).mul_(n).round_().mul_(2.0).sub_(n)
    return level_(codes, n).mul_(m).to(grad.dtype)


class DoReFa(UnitActivations):
    """DoReFa-Net as its text has it (arXiv 1606.06160).

    weight, 1 bit:   E sign(w), E = mean |w| of the layer; levels +-E; gradient straight through; sign(0) = +1
    weight, k bits:  2 round_k(tanh(w) / (2 max |tanh w|) + 1/2) - 1; see ``tanh_weight`` for its gradient
    activation:      round_k(clip(x, 0, 1)), round half to even; levels i/n; gradient 1[0 <= x <= 1]
    gradient:        ``quantize_gradient``, per sample and stochastic
    bound:           clip(x, 0, 1)

    Statistic: E at 1 bit, max |tanh w| above. E is a constant of the gradient.
    """

    per_channel = False
    zero_to_zero = False

    def statistics(self, w: Tensor) -> Tensor | None:
        """Return E (1 bit, no gradient), max |tanh w| (k bits, differentiable) or None (32 bits)."""
        if self.w_bits == 32:
            return None
        if self.w_bits == 1:
            return self._scale(w, None)
        return torch.tanh(w.to(compute_dtype(w))).abs().amax()

    def _scale(self, w: Tensor, statistics: Tensor | None) -> Tensor:
        """Return E at 1 bit, the given one if any."""
        return mean_magnitude(w, per_channel=self.per_channel) if statistics is None else statistics.detach()

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        if self.w_bits == 32:
            return w
        if self.w_bits > 1:
            return tanh_weight(w, self.w_bits, statistics)
        scale = self._scale(w, statistics)
        return binary_weight(w, scale, zero_to_zero=self.zero_to_zero)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return -E and E at 1 bit (and 0 where a zero weight stays 0), (2 i - n) / n for k bits."""
        if self.w_bits == 32:
            return None
        if self.w_bits > 1:
            return tanh_levels(w, self.w_bits)
        scale = self._scale(w, statistics)
        scale = scale if scale.dim() else scale.reshape([1] * w.dim())
        zeros = self.zero_to_zero and bool((w == 0).any())
        return torch.stack([-scale, torch.zeros_like(scale), scale] if zeros else [-scale, scale])

    def stored_scales(self, w: Tensor) -> int:
        """Return 1 or, per channel, the number of output channels at 1 bit (E); 0 above."""
        return 0 if self.w_bits != 1 else (w.shape[0] if self.per_channel else 1)

    def gradient(self, y: Tensor) -> Tensor:
        return y if self.g_bits == 32 else _RoundGradient.apply(y, steps(self.g_bits), self.stream)


class DoReFaReleased(DoReFa):
    """DoReFa-Net as released in TensorFlow: a weight of exactly 0 stays 0 at 1 bit (levels -E, 0, E)."""

    zero_to_zero = True


class DoReFaChannelwise(DoReFa):
    """``DoReFa`` with E = mean |w| of each output channel at 1 bit: the "XNOR" of EXP-Net's figure.

    The paper's own XNOR-Net has another weight gradient and an input scale: see ``xnor``.
    """

    per_channel = True


class DoReFaChannelwiseReleased(DoReFaChannelwise):
    """``DoReFaChannelwise`` as EXP-Net's TensorFlow code computes: a weight of exactly 0 stays 0."""

    zero_to_zero = True
