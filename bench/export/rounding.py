"""Where another program's rounding can move an activation to the next level.

Sums of floats come out otherwise in another order. Logits then differ in their last digits, unless an activation
lies on a threshold but for rounding: then its level changes, and the logits differ visibly. PyTorch's own
float64 arithmetic changes the same activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.export.modules import Activation

NEAR = 5e-6  # of the step between two levels: the rounding of float32 sums of a few thousand terms


@torch.no_grad()
def threshold_distance(plain: nn.Module, images: Tensor) -> Tensor:
    """Return how near the nearest activation of each image comes to a threshold, float32 (B,), in steps.

    Activations of +1 and -1 have the step 1 about 0. Infinite for a network that quantizes no activation.
    """
    nearest = torch.full((len(images),), torch.inf)

    def watch(activation: Activation) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
            nearest.copy_(torch.minimum(nearest, _distance(activation, inputs[0]).flatten(1).amin(1).cpu()))

        return hook

    activations = [m for m in plain.modules() if isinstance(m, Activation) and m.map.values is not None]
    handles = [activation.register_forward_hook(watch(activation)) for activation in activations]
    try:
        plain(images)
    finally:
        for handle in handles:
            handle.remove()
    return nearest


def _distance(activation: Activation, x: Tensor) -> Tensor:
    if activation.magnitude_first:
        x = x.abs()
    if activation.map.form == "sign":
        return x.abs()
    n = (1 << activation.map.bits) - 1
    y = x * n
    threshold = (y.floor() + 0.5).clamp(0.5, n - 0.5)
    return (y - threshold).abs()
