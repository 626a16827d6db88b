"""ReActNet's sign and PReLU with learned shifts (arXiv 2003.03488)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.quantizers.bireal import BiReal, approximate_sign
from bench.quantizers.deployed import ActivationMap
from bench.quantizers.functional import channelwise, compute_dtype

ENTRIES = [
    {
        "name": "reactnet",
        "factory": "ReActNet",
        "help": "Bi-Real's weights; RSign behind RPReLU, whose shifts and slope are learned for each channel",
        "title": "ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions",
        "arxiv": "2003.03488",
        "options": {"slope": {"default": 0.25, "help": "what the learned slopes of RPReLU start at"}},
        "w_bits": [1],
        "a_bits": [1],
        "revision": 3,
    }
]


class ReActNet(BiReal):
    """ReActNet's activations beside Bi-Real's weights (arXiv 2003.03488).

    bound:       RPReLU (eq. 4): z + b with z = x + a where x + a > 0, else s (x + a). a (``shift_in``), s
                 (``slope``) and b (``shift_out``) are parameters, one for each channel of the input.
    activation:  RSign (eq. 3) of RPReLU: sign(bound(x) + t), t (``threshold``) one for each channel; the
                 gradient of the sign is that of ``bireal.approximate_sign``
    weight:      Bi-Real's

    The formulas are those of the authors' PyTorch code, compared line by line
    (github.com/liuzechun/ReActNet, resnet/2_step2/birealnet.py, commit 341f5ef), sign(0) aside: all shifts
    are added, all start at 0, slopes at 0.25. In the authors' network RPReLU stands behind each sum and the
    shortcut carries its output, while RSign stands in front of the convolution: that is ``resnet18`` with
    ``block = "react"``. In a chain of layers without shortcuts the two follow each other. The
    distributional loss of the paper is a strategy's matter, and so are its two steps, first binary
    activations beside full-precision weights, then both: ``staged`` with ``stages = ["32/1"]``.
    """

    shift_in: nn.Parameter
    slope: nn.Parameter
    shift_out: nn.Parameter
    threshold: nn.Parameter
    read_by: ClassVar = {
        **dict.fromkeys(("shift_in", "slope", "shift_out"), ("bound", "activation")),
        "threshold": ("activation",),
    }

    def __init__(self, *args: Any, slope: float = 0.25, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial_slope = slope
        self.create_input_parameters(1)

    def create_input_parameters(self, channels: int, device: Any = None) -> None:
        """Create shifts, slopes and thresholds of shape (channels,), at their initial values."""
        starts = {"shift_in": 0.0, "slope": self.initial_slope, "shift_out": 0.0, "threshold": 0.0}
        for name, value in starts.items():
            setattr(self, name, nn.Parameter(torch.full((channels,), value, device=device)))

    def _rprelu(self, x: Tensor) -> Tensor:
        z = x.to(compute_dtype(x)) + channelwise(self.shift_in, x)
        bent = torch.where(z > 0, z, z * channelwise(self.slope, x))
        return bent + channelwise(self.shift_out, x)

    def bound_map(self) -> ActivationMap:
        learned = {"shift_in": self.shift_in, "slope": self.slope, "shift_out": self.shift_out}
        return ActivationMap("rprelu", tensors={name: tensor.detach() for name, tensor in learned.items()})

    def activation_map(self) -> ActivationMap:
        tensors = {**self.bound_map().tensors, "threshold": self.threshold.detach()}
        return ActivationMap("rsign", tensors=tensors)

    def bound(self, x: Tensor) -> Tensor:
        """Return RPReLU(x), (B, channels, ...), or any shape where one set of parameters serves the layer."""
        return self._rprelu(x).to(x.dtype)

    def activation(self, x: Tensor) -> Tensor:
        return approximate_sign(self._rprelu(x) + channelwise(self.threshold, x)).to(x.dtype)

    def stored_scales(self, w: Tensor) -> int:
        """Return the number of filters and of the activations' parameters."""
        return w.shape[0] + sum(parameter.numel() for parameter in self.parameters())
