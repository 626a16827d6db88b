"""LSQ: Learned Step Size Quantization (arXiv 1902.08153)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import compute_dtype
from bench.quantizers.shared import Rectified

ENTRIES = [
    {
        "name": "lsq",
        "factory": "LSQ",
        "help": "weights and activations rounded to multiples of learned step sizes, one for each layer "
        "and for its input",
        "title": "Learned Step Size Quantization",
        "arxiv": "1902.08153",
        "options": {
            "activation_mean": {
                "default": 0.4,
                "above": 0.0,
                "help": "mean of the rectified activations that their step size starts from",
            }
        },
        "w_bits": [2, 3, 4, 5, 6, 7, 8, 32],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "revision": 2,
    }
]

SMALLEST_STEP = 2.0**-20


class _LearnedStep(Function):
    @staticmethod
    def forward(ctx, v, step, low, high, slowed):
        step = step.clamp_min(SMALLEST_STEP)
        ctx.save_for_backward(v, step)
        ctx.low, ctx.high, ctx.slowed = low, high, slowed
        return (v.to(compute_dtype(v)) / step).clamp_(low, high).round_().mul_(step).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        v, step = ctx.saved_tensors
        scaled = v.to(compute_dtype(v)) / step
        kept = ((scaled > ctx.low) & (scaled < ctx.high)).to(scaled.dtype)
        clipped = scaled.clamp(ctx.low, ctx.high)
        slope = torch.round(clipped) - clipped * kept  # at the ends the level, inside the rounding's error
        to_step = (grad * slope).sum().mul_(ctx.slowed).to(step.dtype)
        return (grad * kept).to(grad.dtype), to_step, None, None, None


def learned_step(v: Tensor, step: Tensor, low: int, high: int, count: int) -> Tensor:
    """Return round(clip(v / s, low, high)) s (eq. 1 and 2); ties go to even.

    Gradients: dL/dv = dL/dq where low < v/s < high, else 0 (eq. 5). dL/ds is g times the sum of dL/dq r, with
    r = round(v/s) - v/s inside, low where v/s <= low and high where v/s >= high (eq. 3), and g = 1 /
    sqrt(count high) (section 2.2).

    Args:
        v: Weights or activations of any shape.
        step: s, of shape (). Less than 2^-20 is taken as 2^-20, so that its gradient can raise it again.
        low: The lowest level, in steps.
        high: The highest level, in steps.
        count: The number of weights, or of one sample's activations, that share the step.
    """
    return _LearnedStep.apply(v, step, low, high, 1.0 / math.sqrt(count * high))


class LSQ(Rectified):
    """LSQ (arXiv 1902.08153).

    weight:      ``learned_step`` with codes from -2^(k-1) to 2^(k-1) - 1; the step ``weight_step`` starts at
                 2 mean |w| / sqrt(2^(k-1) - 1). One bit would have no positive code, so k is 2 or more.
    activation:  ``learned_step`` with codes from 0 to 2^k - 1; the step ``input_step`` starts at
                 2 m / sqrt(2^k - 1), m = ``activation_mean``
    bound:       ReLU

    The paper takes m from the first batch. Here m is an option, so that a trial's start depends on no
    batch. Its default is about the mean of a rectified standard normal variable, 1 / sqrt(2 pi), since
    batch norm stands before most inputs. The number of activations in g is that of one sample. Both steps
    are parameters of shape (). The paper trains with SGD, from trained full-precision weights, and has 8 bits
    in the first and the last layer; Adam divides a gradient by its own size, so there g changes nothing.
    """

    read_by: ClassVar = {"input_step": ("activation",)}

    def __init__(self, *args: Any, activation_mean: float = 0.4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_step: nn.Parameter | None = None
        self.input_step: nn.Parameter | None = None
        if self.a_bits < 32:
            step = 2.0 * activation_mean / math.sqrt(2**self.a_bits - 1)
            self.input_step = nn.Parameter(torch.full((), step))

    def create_scales(self, weight_shape: Sequence[int], device: Any = None) -> None:
        """Create ``weight_step``, 1 until ``start_`` sets it."""
        if self.w_bits < 32:
            self.weight_step = nn.Parameter(torch.ones((), device=device))

    @torch.no_grad()
    def start_(self, w: Tensor) -> None:
        """Set the step of the weights to 2 mean |w| / sqrt(2^(k-1) - 1)."""
        if self.weight_step is not None:
            mean = w.detach().to(compute_dtype(w)).abs().mean()
            self.weight_step.copy_(2.0 * mean / math.sqrt(2 ** (self.w_bits - 1) - 1))

    def _codes_and_step(self, w: Tensor) -> tuple[int, nn.Parameter]:
        """Return 2^(k-1), the number of negative codes, and the step of the weights."""
        if self.weight_step is None:
            self.create_scales(w.shape, w.device)
        assert self.weight_step is not None
        return 2 ** (self.w_bits - 1), self.weight_step

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        if self.w_bits == 32:
            return w
        half, step = self._codes_and_step(w)
        return learned_step(w, step, -half, half - 1, w.numel())

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return the multiples of the step from -2^(k-1) to 2^(k-1) - 1; None at 32 bits."""
        if self.w_bits == 32:
            return None
        half, step = self._codes_and_step(w)
        codes = torch.arange(-half, half, dtype=torch.float32, device=w.device)
        return (codes * step.detach().clamp_min(SMALLEST_STEP)).reshape(-1, *[1] * w.dim())

    def activation_map(self) -> ActivationMap:
        """Return the multiples of the step of the input; max(x, 0) at 32 bits."""
        if self.input_step is None:
            return self.bound_map()
        step = self.input_step.detach().clamp_min(SMALLEST_STEP)
        return ActivationMap("steps", 0.0, 2.0**self.a_bits - 1, self.a_bits, tensors={"scale": step})

    def activation(self, x: Tensor) -> Tensor:
        if self.input_step is None:
            return self.bound(x)
        count = x[0].numel() if x.dim() > 1 else 1
        return learned_step(x, self.input_step, 0, 2**self.a_bits - 1, count)
