"""Batch norm whose statistics are accurate on a CPU, too.

PyTorch's CPU kernel for channels-last tensors adds up all positions of all images of a channel in float32. So
the rounding error of mean and variance grows with the number of positions. For 128 images of 18 x 18 pixels
the outputs are wrong by up to 1e-4; PyTorch's contiguous kernel, which adds up in float64, is wrong by 1e-6.
An error of 1e-4 changes the sign of some 1-bit activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalized(Function):
    """(x, weight, bias) -> (y, mean, variance over n); sums in an image are float32, over images float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, channels, height, width = x.shape
        count = images * height * width
        rows = x.permute(0, 2, 3, 1).reshape(images, height * width, channels)  # a view of channels last
        mean = (rows.sum(1).double().sum(0) / count).float()
        variance = (rows - mean).square_().sum(1).double().sum(0) / count
        inverse = (variance + eps).rsqrt().float()
        scale = weight * inverse
        shift = bias - mean * scale
        y = torch.addcmul(shift[None, :, None, None], x, scale[None, :, None, None])
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        variance = variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        return to_x, to_weight, to_bias, None


class FactorBatchNorm(_BatchNorm):
    """f times batch norm of (B, C, ...): the factor multiplies scale and shift, not the data."""

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return batch norm of ``x``, times ``factor`` of shape () where given."""
        momentum = self.counted_momentum() if self.training else 0.0
        weight, bias = self.scale_and_shift(factor)
        return F.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.training, momentum, self.eps
        )

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def counted_momentum(self) -> float:
        """Count a training step and return its momentum; without one, statistics are a cumulative average."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def scale_and_shift(self, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scale and shift, times ``factor`` of shape () where given."""
        return (self.weight, self.bias) if factor is None else (self.weight * factor, self.bias * factor)


class ReplacedBatchNorm(FactorBatchNorm):
    """A batch norm that takes the place of ``like``, with the same parameters and buffers."""

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        for name, child in like.named_children():  # only a norm that holds its activation has children
            self.add_module(name, child)


class AccurateBatchNorm(ReplacedBatchNorm):
    """Batch norm whose sums over images are float64; with a ``factor`` the output is the factor times it.

    The layer differs from PyTorch's batch norm only in training on channels-last float32 batches (B, C, H, W)
    on the CPU.
    """

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return batch norm of ``x`` (B, C, ...), times ``factor`` of shape () where given."""
        if not self.training or not _is_summed_in_float32(x):
            return super().forward(x, factor)
        weight, bias = self.scale_and_shift(factor)
        momentum = self.counted_momentum()
        y, mean, variance = _Normalized.apply(x, weight, bias, self.eps)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            unbiased = variance * (count / max(count - 1, 1))
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(unbiased, momentum)  # type: ignore[union-attr]
        return y


def _is_summed_in_float32(x: Tensor) -> bool:
    """Return whether PyTorch's batch norm of ``x`` would add up in float32."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
    )
