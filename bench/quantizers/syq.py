"""SYQ: Learning Symmetric Quantization for Efficient Deep Neural Networks (CVPR 2018, arXiv 1807.00301)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bench.quantizers.functional import bipolar, compute_dtype, ternary
from bench.quantizers.shared import UnitActivations

OPTIONS = {
    "granularity": {
        "default": "pixel",
        "choices": ["pixel", "row", "layer"],
        "help": "what shares a scale: a position of the kernel, a row of it, the layer (linear layers: "
        "always)",
    },
    "eta": {
        "type": "float",
        "default": None,
        "min": 0.0,
        "below": 1.0,
        "help": "threshold as a part of max |w|; by default 0 for binary, 0.05 for ternary",
    },
    "scale": {
        "default": 1.0,
        "above": 0.0,
        "only_with": {"scale_from_weights": [False]},
        "help": "what the learned scales start at (released: 1.0 ImageNet; 0.2 and 0.1 SVHN)",
    },
    "scale_from_weights": {
        "default": False,
        "help": "the scales start at mean |w| of their group instead, in the weights that training starts "
        "from",
    },
}
ENTRIES = [
    {
        "name": "syq",
        "factory": "SYQ",
        "help": "binary (W 1) or ternary (W 2) weights times a learned scale per kernel position, row or "
        "layer",
        "title": "SYQ: Learning Symmetric Quantization for Efficient Deep Neural Networks",
        "arxiv": "1807.00301",
        "options": ["granularity", "eta", "scale", "scale_from_weights"],
        "w_bits": [1, 2],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
    },
    {
        "name": "syq_released",
        "like": "syq",
        "factory": "SYQReleased",
        "help": "syq as its released TensorFlow code has it: a weight of exactly 0 stays 0",
    },
    {
        "name": "syq_four_levels",
        "like": "syq",
        "factory": "SYQFourLevels",
        "help": "EXP-Net's commented-out 2/x call: +-s above the threshold, +-1 without a scale below",
        "options": {
            "granularity": "shared",
            "eta": {"default": 0.05, "min": 0.0, "below": 1.0, "help": "threshold as a part of max |w|"},
            "scale": "shared",
            "scale_from_weights": "shared",
        },
        "w_bits": [2],
    },
]


def scale_shape(weight_shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Return the shape of the learned scales, broadcast to (out, in, kh, kw) or (out, in)."""
    if len(weight_shape) != 4 or granularity == "layer":
        return (1,) * len(weight_shape)
    _, _, rows, columns = weight_shape
    return (1, 1, rows, columns if granularity == "pixel" else 1)


class _Symmetric(Function):
    @staticmethod
    def forward(ctx, w, scale, threshold, below, zero_to_zero):
        if below == "scaled":  # eta = 0: only exact zeros are not above the threshold
            ctx.save_for_backward(w, scale)
            return _signs(w, zero_to_zero).mul_(scale).to(w.dtype)
        codes = ternary(w, threshold)
        ctx.save_for_backward(codes, scale)
        if below == "zero":
            return (codes * scale).to(w.dtype)
        return _signs(w, zero_to_zero).mul_(_factor(codes, scale)).to(w.dtype)

    @staticmethod
    def backward(ctx, grad):
        saved, scale = ctx.saved_tensors
        codes = torch.sign(saved)
        to_scale = (grad * codes).sum_to_size(scale.shape)
        return (grad * _factor(codes, scale)).to(grad.dtype), to_scale, None, None, None


def _signs(w: Tensor, zero_to_zero: bool) -> Tensor:
    """Return sign(w) in the compute dtype; sign(0) is 0 with ``zero_to_zero`` and +1 without."""
    return torch.sign(w).to(compute_dtype(w)) if zero_to_zero else bipolar(w)


def _factor(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the scale where a code is +-1 and 1 where it is 0."""
    above = codes.abs()
    return (above * scale).add_(above.neg_().add_(1.0))


def symmetric_weight(
    w: Tensor, scale: Tensor, threshold: Tensor, *, below: str, zero_to_zero: bool = False
) -> Tensor:
    """Return scale * sign(w) where |w| > threshold, and below the threshold what ``below`` says.

    The gradients are the same for each ``below``. dL/dw is scale dL/dq where |w| > threshold, and dL/dq
    elsewhere, the zeroed weights included. dL/dscale is the sum over its group of dL/dq sign(w) where |w| >
    threshold. The threshold is a constant.

    Args:
        w: Weights of any shape.
        scale: Is broadcast to ``w``.
        threshold: Of shape ().
        below: "zero" (ternary), "scaled" (binary with eta = 0), or "unscaled" (binary with eta > 0: sign(w)
            without the scale, a quirk of the release).
        zero_to_zero: Whether sign(0) is 0, else +1.
    """
    return _Symmetric.apply(w, scale, threshold, below, zero_to_zero)


class SYQ(UnitActivations):
    """SYQ as released (CVPR 2018, arXiv 1807.00301).

    weight, 1 bit:   s sign(w); levels +-s; sign(0) = +1; eta = 0 unless asked for
    weight, 2 bits:  s sign(w) where |w| > eta max |w|, else 0; eta = 0.05 unless asked otherwise
    activation:      floor(n clip(x, 0, 1) + 1/2) / n, round half up, n = 2^k - 1; gradient 1[0 <= x <= 1]
    bound:           clip(x, 0, 1)

    s is learned (``scale``, a parameter): one for each kernel position shared by all channels (``pixel``),
    one for each row of the kernel, or one for the layer. Linear layers have one. s starts at the option
    ``scale``, or with ``scale_from_weights`` at the mean |w| of the group. The gradients are those of
    ``symmetric_weight``. At eta = 0 a weight of exactly 0 is not above the threshold, so it takes no part
    in the gradient of s, as in the release. Statistic: max |w|.
    """

    zero_to_zero = False
    half_up = True

    def __init__(
        self,
        *args: Any,
        granularity: str = "pixel",
        eta: float | None = None,
        scale: float = 1.0,
        scale_from_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.granularity = granularity
        self.scale_from_weights = scale_from_weights
        self.eta = (0.05 if self.w_bits == 2 else 0.0) if eta is None else eta
        self.initial_scale = scale
        self.below = "zero" if self.w_bits == 2 else ("unscaled" if self.eta > 0 else "scaled")
        self.scale: nn.Parameter | None = None

    def create_scales(self, weight_shape: Sequence[int], device: Any = None) -> None:
        """Create ``scale`` for weights of this shape, at its initial value."""
        shape = scale_shape(weight_shape, self.granularity)
        self.scale = nn.Parameter(torch.full(shape, self.initial_scale, device=device))

    def start_(self, w: Tensor) -> None:
        """With ``scale_from_weights``, set each scale to the mean |w| of its group."""
        if self.scale_from_weights:
            assert self.scale is not None
            count = w.numel() // self.scale.numel()
            mean = w.detach().to(compute_dtype(w)).abs().sum_to_size(self.scale.shape) / count
            with torch.no_grad():
                self.scale.copy_(mean)

    def statistics(self, w: Tensor) -> Tensor:
        """Return max |w|, float32 of shape (), without gradient."""
        return w.detach().to(compute_dtype(w)).abs().amax()

    def _given(self, w: Tensor, statistics: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (scale, threshold)."""
        if self.scale is None:
            self.create_scales(w.shape, w.device)
        assert self.scale is not None
        maximum = self.statistics(w) if statistics is None else statistics.detach()
        return self.scale, maximum * self.eta

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        scale, threshold = self._given(w, statistics)
        return symmetric_weight(w, scale, threshold, below=self.below, zero_to_zero=self.zero_to_zero)

    @property
    def stored_bits(self) -> int:
        """Bits of a stored weight: 2 for the levels +-s and +-1 of binary weights with a threshold."""
        return 2 if self.below == "unscaled" else self.w_bits

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -s and s, with 0 where weights are zeroed, with -1 and 1 where they stay unscaled."""
        scale = self._given(w, statistics)[0].detach()
        one, zero = torch.ones_like(scale), torch.zeros_like(scale)
        rows = [-scale, scale]
        if self.below == "unscaled":
            rows = [-scale, -one, one, scale]
        if self.below == "zero" or (self.zero_to_zero and bool((w == 0).any())):
            rows.insert(len(rows) // 2, zero)
        return torch.stack(rows)


class SYQReleased(SYQ):
    """SYQ as its TensorFlow code computes.

    weight:      a weight of exactly 0 stays 0 in binary weights as well
    activation:  as ``SYQ``, but rectified first, so that the gradient at x = 0 is 0
    bound:       clip(max(x, 0), 0, 1)

    One difference to the release remains: a ternary weight that equals the threshold in its last digit is 0
    here, and +-1 without a scale there.
    """

    zero_to_zero = True

    def bound(self, x: Tensor) -> Tensor:
        return super().bound(torch.relu(x))

    def activation(self, x: Tensor) -> Tensor:
        return super().activation(torch.relu(x))


class SYQFourLevels(SYQReleased):
    """The 2/x call that EXP-Net's SVHN file holds in a comment: "ternary" SYQ by the function's defaults.

    weight:  s sign(w) where |w| > eta max |w|, else sign(w) without the scale, so that the levels are +-s
             and +-1; sign(0) = 0. The gradients are those of ``symmetric_weight``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.below = "unscaled"
