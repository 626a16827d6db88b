"""XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks (arXiv 1603.05279)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from bench.quantizers.base import Quantizer
from bench.quantizers.deployed import two_levels
from bench.quantizers.dorefa import mean_magnitude
from bench.quantizers.functional import bipolar, compute_dtype, pass_inside
from bench.quantizers.shared import SignActivations

ENTRIES = [
    {
        "name": "xnor",
        "factory": "XNOR",
        "help": "the paper's XNOR-Net: alpha per filter, the input scale K, its own weight gradient; BWN "
        "at 32-bit A",
        "title": "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
        "arxiv": "1603.05279",
        "options": {
            "input_scale": {
                "default": True,
                "help": "multiply each convolution's output by K, the box-filtered magnitude of its input",
            }
        },
        "w_bits": [1],
        "a_bits": [1, 32],
        "revision": 3,
    }
]


class _FilterSign(Function):
    @staticmethod
    def forward(ctx, w, alpha):
        ctx.save_for_backward(w, alpha)
        return bipolar(w).mul_(alpha).to(w.dtype)

    @staticmethod
    def backward(ctx, grad):
        w, alpha = ctx.saved_tensors
        n = w.numel() // w.shape[0]
        inside = pass_inside(grad, w, -1.0, 1.0).to(compute_dtype(w)).mul_(alpha)
        return torch.add(inside, grad, alpha=1.0 / n).to(grad.dtype), None


def filter_weight(w: Tensor, alpha: Tensor) -> Tensor:
    """Return alpha sign(w), eq. (6); ``w`` (out, in, ...), ``alpha`` (out, 1, ...) or (); sign(0) = +1.

    Gradient, section 3.1: dL/dw = dL/dq (1/n + alpha 1[|w| <= 1]) with n the number of weights of a filter.
    (The paper keeps of d alpha / d w the element's own share alone.)
    """
    return _FilterSign.apply(w, alpha)


def box_magnitude(
    x: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
) -> Tensor:
    """Return K: the mean over channels of |x|, averaged over each window (section 3.2); zero padding counts.

    ``x`` (B, C, H, W) -> float32 (B, 1, H', W') of the convolution's output size; (B, F) -> (B, 1), the
    mean magnitude.
    """
    magnitude = x.detach().abs().mean(dim=1, keepdim=True, dtype=compute_dtype(x))
    if x.dim() == 2:
        return magnitude
    return F.avg_pool2d(magnitude, kernel_size, stride, padding)


class FilterSigns(Quantizer):
    """The weights of XNOR-Net: alpha sign(w), alpha = mean |w| of the filter; statistic: alpha."""

    def statistics(self, w: Tensor) -> Tensor:
        """Return alpha, float32 of shape (out, 1, ...)."""
        return mean_magnitude(w, per_channel=True)

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        return filter_weight(w, self.statistics(w) if statistics is None else statistics)

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters: each has its alpha."""
        return w.shape[0]

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -alpha and +alpha, (2, out, 1, ...)."""
        return two_levels(self.statistics(w) if statistics is None else statistics, w)


class XNOR(FilterSigns, SignActivations):
    """XNOR-Net as its paper has it, and its Binary-Weight-Network at 32-bit activations (arXiv 1603.05279).

    weight:       alpha sign(w), alpha = mean |w| of the filter; levels +-alpha; gradient in
                  ``filter_weight``
    activation:   sign(x), gradient 1[|x| <= 1]; at 32 bits ReLU, as the paper's Binary-Weight-Networks have
                  it
    input_scale:  K = box-filtered channel mean of |x|, which multiplies the convolution's output (1-bit
                  activations; off with ``input_scale=False``, as in the authors' released code). x is the
                  batch-normalised tensor before its sign, not bounded.
    bound:        clip(x, -1, 1); ReLU at 32 bits

    The paper gives no gradient through K: it is a constant here. Its blocks are BN, sign, convolution,
    pool. Nothing is done to the stored weights; the authors' code (github.com/allenai/XNOR-Net, util.lua,
    commit 8a96d94) also centres and clips them, and multiplies the weights' gradient by n (1 - 1/in), which
    the paper does not mention. Statistic: alpha.
    """

    relu_at_32 = True
    input_scale = staticmethod(box_magnitude)  # of the layer's input before its sign

    def __init__(self, *args, input_scale: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scales_input = input_scale and self.a_bits == 1
