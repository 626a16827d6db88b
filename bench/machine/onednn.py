"""A guard against a fault of oneDNN on CPUs that have AVX2 and no AVX-512."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def guard_convolutions() -> None:
    """Make ``F.conv2d`` avoid the 1x1 convolutions whose gradient damages memory; once a process.

    The gradient of the input of a strided 1x1 convolution with fewer than 8 input channels writes beyond its
    memory (``brgconv_strided:avx2`` of oneDNN in torch 2.14.1, float32, channels last), and the process dies
    sooner or later. Such a convolution reads every s-th pixel, so the guard picks these pixels and convolves
    them with stride 1, in evaluation too: both modes add up alike. Other CPUs and convolutions stay as they
    are.
    """
    original = F.conv2d
    if torch.backends.cpu.get_cpu_capability() != "AVX2" or hasattr(original, "guarded"):
        return

    def conv2d(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        steps = tuple(stride) if isinstance(stride, tuple | list) else (stride, stride)
        if (
            isinstance(input, Tensor)  # no proxy of a network that is traced
            and input.dim() == 4
            and padding in (0, (0, 0), [0, 0], "valid")
            and max(steps) > 1
            and tuple(weight.shape[2:]) == (1, 1)
            and weight.shape[1] < 8
        ):
            return original(input[:, :, :: steps[0], :: steps[-1]], weight, bias, 1, 0, 1, groups)
        return original(input, weight, bias, stride, padding, dilation, groups)

    conv2d.guarded = True  # type: ignore[attr-defined]
    F.conv2d = conv2d  # type: ignore[assignment]
