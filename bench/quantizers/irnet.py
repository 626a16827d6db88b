"""IR-Net: standardised binary weights, a derivative that sharpens during training (arXiv 1909.10788)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.quantizers.deployed import two_levels
from bench.quantizers.functional import bipolar, compute_dtype, with_slope
from bench.quantizers.shared import SignActivations

ENTRIES = [
    {
        "name": "irnet",
        "factory": "IRNet",
        "help": "signs of standardised weights times a power of two; derivative of k tanh(t x), t from 0.1 "
        "to 10",
        "title": "Forward and Backward Information Retention for Accurate Binary Neural Networks",
        "arxiv": "1909.10788",
        "w_bits": [1],
        "a_bits": [1, 32],
        "revision": 2,
    }
]


def decaying_sign(x: Tensor, progress: Tensor) -> Tensor:
    """Return sign(x), sign(0) = +1, with the gradient of the error decay estimator; any shape.

    The gradient is k t (1 - tanh(t x)^2) with t = 0.1 * 10^(2 p), k = max(1/t, 1) and p = ``progress``, of
    shape (), from 0 to 1 (eq. 11 and 12): at first about that of the identity, at the end nearly that of
    the sign.
    """
    real = x.detach().to(compute_dtype(x))
    t = 0.1 * 10.0 ** (2.0 * progress)
    k = t.reciprocal().clamp_min(1.0)
    return with_slope(x, bipolar(real), (1.0 - torch.tanh(real * t).square_()).mul_(k * t))


class IRNet(SignActivations):
    """IR-Net (arXiv 1909.10788).

    weight:      Libra-PB: 2^s sign(v), v = (w - mean) / deviation, each of the filter, s = round(log2(mean
                 |v|)), an integer of the filter (eq. 6 to 8). The deviation has n - 1 in its denominator.
                 Gradient: that of ``decaying_sign`` at v, through v's mean and deviation; s is a constant.
    activation:  sign(bound(x)), see ``decaying_sign``; so the gradient is 0 where |x| > 1. At 32 bits the
                 bound
    bound:       clip(x, -1, 1), the hard tanh that stands in front of each binary convolution of the
                 authors' networks

    The progress p is (step / steps of the whole trial); the authors' code, compared formula by formula
    (github.com/htqin/IR-Net, CIFAR-10, commit 831282f), moves t once an epoch and has sign(0) = 0. Its
    VGG-Small lets t start at 0.1, as the paper does, its ResNet-20 at 0.001. A filter of equal weights
    becomes 0, and its deviation counts as 1. The paper's CIFAR ResNets have a shortcut around each
    convolution. Statistic: (mean, deviation, 2^s), the first two with their gradients.
    """

    def statistics(self, w: Tensor) -> Tensor:
        """Return mean, deviation and 2^s of each filter, float32 of shape (3, out, 1, ...)."""
        real = w.to(compute_dtype(w))
        axes = tuple(range(1, w.dim()))
        mean = real.mean(axes, keepdim=True)
        centred = real - mean
        variance = centred.square().sum(axes, keepdim=True) / max(w[0].numel() - 1, 1)
        deviation = (variance + (variance == 0)).sqrt()
        size = (centred / deviation).detach().abs().mean(axes, keepdim=True)
        return torch.stack([mean, deviation, torch.exp2(size.log2().round_())])

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        mean, deviation, scale = self.statistics(w) if statistics is None else statistics
        standard = (w.to(compute_dtype(w)) - mean) / deviation
        return (decaying_sign(standard, self.progress) * scale.detach()).to(w.dtype)

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters: each has its power of two."""
        return w.shape[0]

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return -2^s and 2^s, (2, out, 1, ...)."""
        return two_levels((self.statistics(w) if statistics is None else statistics)[2].detach(), w)

    def sign(self, x: Tensor) -> Tensor:
        return decaying_sign(self.bound(x), self.progress)
