"""PACT: Parameterized Clipping Activation for Quantized Neural Networks (arXiv 1805.06085)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bench.quantizers.deployed import ActivationMap
from bench.quantizers.dorefa import DoReFa
from bench.quantizers.functional import compute_dtype, level_, steps

ENTRIES = [
    {
        "name": "pact",
        "factory": "PACT",
        "help": "activations clipped at a learned alpha and quantized to k bits; weights as DoReFa-Net's",
        "title": "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
        "arxiv": "1805.06085",
        "options": {
            "alpha": {
                "default": 8.0,
                "above": 0.0,
                "help": "what the learned clipping level starts at; batch-normalised inputs seldom exceed 3",
            },
            "decay": {
                "default": 0.0002,
                "min": 0.0,
                "help": "coefficient d of the penalty d alpha^2 / 2 on each clipping level",
            },
        },
        "w_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "a_bits": [1, 2, 3, 4, 5, 6, 7, 8, 32],
        "revision": 2,
    }
]


SMALLEST_ALPHA = 2.0**-10


class _ClipRound(Function):
    @staticmethod
    def forward(ctx, x, alpha, bits):
        alpha = alpha.clamp_min(SMALLEST_ALPHA)
        ctx.save_for_backward(x, alpha)
        y = (x.to(compute_dtype(x)) / alpha).clamp_(0.0, 1.0)
        if bits < 32:
            n = steps(bits)
            y = level_(y.mul_(n).round_(), n)
        return y.mul_(alpha).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, alpha = ctx.saved_tensors
        above = (x >= alpha).to(compute_dtype(x))
        passed = (x >= 0).to(compute_dtype(x)) - above
        return (grad * passed).to(grad.dtype), (grad * above).sum().to(alpha.dtype), None


def clip_round(x: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Return round(n y / alpha) alpha / n, y = clip(x, 0, alpha), n = 2^bits - 1 (eq. 1 and 2); any shape.

    ``alpha`` of shape (), taken as 2^-10 where it is less; at 32 bits y alone. Ties go to even. Gradients
    (eq. 3): dL/dx = dL/dy where 0 <= x < alpha, else 0; dL/dalpha = the sum of dL/dy over x >= alpha. Both
    pass straight through the rounding.
    """
    return _ClipRound.apply(x, alpha, bits)


class PACT(DoReFa):
    """PACT (arXiv 1805.06085): activations with a learned clipping level beside DoReFa-Net's weights.

    activation:  ``clip_round``; levels i alpha / n. alpha is a parameter of shape (), one for each layer
                 that reads activations, the classifier included.
    bound:       clip(x, 0, alpha)
    penalty:     d alpha^2 / 2, that is L2 regularisation of alpha. The default of d is the weight decay of
                 Distiller's recipe for ResNet-20 on CIFAR-10. A recipe with ``weight_decay_on = "all"``
                 decays alpha in addition.
    weight:      DoReFa-Net's, at every bit width

    alpha starts at 8 and d is 0.0002, as in Distiller, the library of Intel
    (examples/quantization/quant_aware_train/preact_resnet20_cifar_pact.yaml: ``act_clip_init_val: 8.0`` and
    ``--wd=0.0002``; without ``act_clip_decay`` its quantizer takes the weight decay for alpha). Whether the
    paper itself has these numbers could not be seen.
    """

    read_by: ClassVar = {"alpha": ("bound", "activation")}

    def __init__(self, *args: Any, alpha: float = 8.0, decay: float = 0.0002, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.decay = decay
        self.alpha = nn.Parameter(torch.full((), alpha))

    def bound_map(self) -> ActivationMap:
        alpha = self.alpha.detach().clamp_min(SMALLEST_ALPHA)
        return ActivationMap("scaled_round", tensors={"scale": alpha})

    def activation_map(self) -> ActivationMap:
        return replace(self.bound_map(), bits=self.a_bits)

    def bound(self, x: Tensor) -> Tensor:
        return clip_round(x, self.alpha, 32)

    def activation(self, x: Tensor) -> Tensor:
        return clip_round(x, self.alpha, self.a_bits)

    def stored_scales(self, w: Tensor) -> int:
        """Return what DoReFa-Net stores for the weights, and 1 for alpha."""
        return super().stored_scales(w) + 1

    @torch.no_grad()
    def add_penalty_(self, *weights: Tensor) -> None:
        """Add d alpha to the gradient of alpha."""
        if self.alpha is not None and self.alpha.grad is not None:
            self.alpha.grad.add_(self.alpha, alpha=self.decay)
