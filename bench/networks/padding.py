"""TensorFlow's padding "SAME", which pads below and right where the padding cannot be even."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding (before, after) of an axis of ``size`` pixels, for ceil(size / stride) outputs.

    If the total is odd, the extra pixel comes after. PyTorch's symmetric padding would shift every window by
    one pixel.
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameMaxPool2d(nn.Module):
    """Max-pooling with padding "SAME" by -infinity: (B, C, H, W) -> (B, C, ceil(H / s), ceil(W / s))."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel, self.stride)
        left, right = same_padding(x.shape[3], self.kernel, self.stride)
        if (top, left) == (bottom, right):
            return F.max_pool2d(x, self.kernel, self.stride, (top, left))
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, self.kernel, self.stride)

    def extra_repr(self) -> str:
        return f"{self.kernel}, {self.stride}"
