"""Max-pooling 2x2 with the numbers of ``nn.MaxPool2d(2)``, faster on a CPU.

On a CPU PyTorch's kernel writes int64 indices, which evaluation never reads. Compiled code stores these
indices (and bools) one at a time, which takes half of the compiled step of a small network. So this module
computes the maximum in three vectorised passes in evaluation. In compiled training it keeps the position of
the largest element as a float, computed without a comparison, since a compiler would store a comparison as a
bool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


def _quarters(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the upper left, upper right, lower left and lower right elements, (B, C, H//2, W//2) each."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    upper, lower = x[:, :, 0:height:2], x[:, :, 1:height:2]
    return upper[..., 0:width:2], upper[..., 1:width:2], lower[..., 0:width:2], lower[..., 1:width:2]


def largest(x: Tensor) -> Tensor:
    """Return the largest of 2x2 windows, (B, C, H, W) -> (B, C, H//2, W//2), in the same memory format."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    # Whole rows come first: their inner loops are the longest.
    rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class _Largest(Function):
    @staticmethod
    def forward(ctx, x):
        first, second, third, fourth = _quarters(x)
        y = torch.maximum(torch.maximum(first, second), torch.maximum(third, fourth))
        # The position, 0 to 3, of the first largest element of the window, row by row. Each sign is 0 or 1.
        place = (y - first).sign() * (1.0 + (y - second).sign() * (1.0 + (y - third).sign()))
        ctx.save_for_backward(place)
        ctx.size = x.shape[2:]
        return y

    @staticmethod
    def backward(ctx, grad):
        (place,) = ctx.saved_tensors
        count, channels, rows, columns = place.shape
        spread = (count, rows, 1, columns, 1, channels)
        numbers = torch.arange(4, dtype=place.dtype, device=place.device).view(1, 1, 2, 1, 2, 1)
        here = (1.0 - (place.permute(0, 2, 3, 1).reshape(spread) - numbers).abs()).clamp_min(0.0)
        whole = grad.permute(0, 2, 3, 1).reshape(spread) * here
        whole = whole.reshape(count, 2 * rows, 2 * columns, channels)
        # Equal to permute(0, 3, 1, 2), but a compiler stores this tensor as it lies, without transposing it.
        whole = whole.as_strided(
            (count, channels, 2 * rows, 2 * columns),
            (4 * rows * columns * channels, 1, 2 * columns * channels, channels),
        )
        height, width = ctx.size
        odd = height % 2 or width % 2
        return F.pad(whole, [0, width - 2 * columns, 0, height - 2 * rows]) if odd else whole


class MaxPool2(nn.MaxPool2d):
    """``nn.MaxPool2d(2)``: (B, C, H, W) -> (B, C, H//2, W//2).

    Where several elements of a window are largest, the gradient goes to the first one.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.compiler.is_compiling():
            return _Largest.apply(x)
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            return largest(x)
        return super().forward(x)
