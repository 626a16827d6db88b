"""The layers of a deployed network. They compute what the trained layers compute in evaluation, bit for bit.

Nothing of training is in them: weights are stored as they are multiplied, and activations are quantized by
standard operations that every exporter knows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.quantizers.deployed import ActivationMap, Levels, look_up
from bench.quantizers.functional import channelwise

_LARGEST = 2.0**106  # of what is binarized several times, so that means of magnitudes are finite


class Activation(nn.Module):
    """An activation map of the deployed network, float32; see ``ActivationMap`` for the forms.

    ``magnitude_first``: the map reads min(1, \\|x\\|). Learned numbers are buffers.
    """

    scale: Tensor
    shift_in: Tensor
    slope: Tensor
    shift_out: Tensor
    threshold: Tensor
    thresholds: Tensor
    levels: Tensor

    def __init__(self, map: ActivationMap, magnitude_first: bool = False) -> None:
        super().__init__()
        self.map = replace(map, tensors={})
        self.magnitude_first = magnitude_first
        for name, tensor in map.tensors.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations of ``x``, same shape: any shape, (B, channels, ...) for values a channel."""
        if self.magnitude_first:
            x = torch.clamp(torch.abs(x), max=1.0)
        map = self.map
        match map.form:
            case "relu":
                return torch.relu(x)
            case "clip":
                return torch.clamp(x, map.low, map.high)
            case "sign":
                return torch.where(x >= 0.0, 1.0, -1.0)
            case "round":
                return self._rounded(torch.clamp(x, 0.0, 1.0))
            case "scaled_round":
                x = torch.clamp(x / self.scale, 0.0, 1.0)
                return (x if map.bits == 32 else self._rounded(x)) * self.scale
            case "steps":
                return torch.round(torch.clamp(x / self.scale, map.low, map.high)) * self.scale
            case "fixed":
                half = 1 << (map.bits - 1)
                return torch.clamp(torch.round(x * half), -half, half - 1) / half
            case "table":
                x = x.contiguous() if map.contiguous else x
                found = self.levels[0].expand_as(x)
                for i in range(len(self.thresholds)):
                    found = torch.where(x >= self.thresholds[i], self.levels[i + 1], found)
                return found
            case "prelu":
                return self._prelu(x)
            case "residual":
                return self._residual(self._prelu(x))
            case "rprelu":
                return self._rprelu(x)
            case "rsign":
                return torch.where(self.before_sign(x) >= 0.0, 1.0, -1.0)
            case _:
                return x

    def _rounded(self, x: Tensor) -> Tensor:
        n = (1 << self.map.bits) - 1
        x = x * n
        return (torch.floor(x + 0.5) if self.map.half_up else torch.round(x)) / n

    def before_sign(self, x: Tensor) -> Tensor:
        """Return the number whose sign "rsign" takes."""
        return self._rprelu(x) + channelwise(self.threshold, x)

    def _rprelu(self, x: Tensor) -> Tensor:
        return self._prelu(x + channelwise(self.shift_in, x)) + channelwise(self.shift_out, x)

    def _prelu(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * channelwise(self.slope, x))

    def _residual(self, z: Tensor) -> Tensor:
        if self.map.bits == 1:
            return torch.where(z >= 0.0, 1.0, -1.0)
        left, total = torch.clamp(z, -_LARGEST, _LARGEST), torch.zeros_like(z)
        axes = tuple(range(1, z.dim()))
        for _ in range(self.map.bits):
            part = left.abs().mean(axes, keepdim=True) * torch.where(left >= 0.0, 1.0, -1.0)
            left, total = left - part, total + part
        return total

    def extra_repr(self) -> str:
        return f"{self.map}, magnitude_first={self.magnitude_first}"


class Thresholds(nn.Module):
    """Batch norm and the activation behind it in one: y (B, C, ...) -> the same shape.

    Code = the number of thresholds that y reaches; ``values[code]`` is the activation. ``thresholds``
    (C, levels - 1), rising along a channel; ``directions`` (C,) is -1 where batch norm has a negative scale,
    so that -y is compared, and 1 elsewhere.
    """

    thresholds: Tensor
    directions: Tensor
    values: Tensor

    def __init__(self, thresholds: Tensor, directions: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("directions", directions)
        self.register_buffer("values", values)

    def forward(self, y: Tensor) -> Tensor:
        """Return the activations of batch norm's input ``y``."""
        shape = (1, -1, *[1] * (y.dim() - 2))
        y = y * self.directions.reshape(shape)
        found = torch.full_like(y, self.values[0].item())
        for i in range(self.thresholds.shape[1]):
            found = torch.where(y >= self.thresholds[:, i].reshape(shape), self.values[i + 1], found)
        return found


class InputScale(nn.Module):
    """XNOR-Net's K (1603.05279, section 3.2): the box-filtered channel mean of the input's magnitude.

    (B, C, H, W) -> (B, 1, H', W'), or (B, out, H', W') with groups; (B, F) -> (B, 1).
    ``read``: the identity, or min(1, \\|x\\|) where the layer takes the magnitude first.
    """

    def __init__(self, read: Activation, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.read = read
        self.window = None
        self.groups, self.repeats = 1, 1
        if isinstance(layer, nn.Conv2d):
            self.window = (layer.kernel_size, layer.stride, layer.padding)
            self.groups, self.repeats = layer.groups, layer.out_channels // layer.groups

    def forward(self, y: Tensor) -> Tensor:
        """Return K of a layer's input ``y`` before its sign."""
        x = self.read(y)
        if self.window is None:
            return x.flatten(1).abs().mean(dim=1, keepdim=True)
        if self.groups > 1:
            x = x.unflatten(1, (self.groups, -1)).flatten(0, 1)
        scale = F.avg_pool2d(x.abs().mean(dim=1, keepdim=True), *self.window)  # type: ignore[arg-type]
        if self.groups > 1:
            scale = scale.unflatten(0, (-1, self.groups)).flatten(1, 2)
            scale = scale.repeat_interleave(self.repeats, 1)
        return scale


class _Quantized(nn.Module):
    """Weights of a deployed layer, with their levels where they have any.

    ``weight`` is what is multiplied, float32. ``codes`` (uint8, its shape) and ``values`` (levels, n; n
    values a level, of the shape ``values_shape``) are its levels; they are in no state dict.
    """

    weight: nn.Parameter
    codes: Tensor | None
    values: Tensor | None
    values_shape: tuple[int, ...] = ()

    def take(self, weight: Tensor, levels: Levels | None, bias: Tensor | None) -> None:
        """Set weight, levels and bias."""
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.register_buffer("codes", None if levels is None else levels.codes, persistent=False)
        self.register_buffer("values", None if levels is None else levels.values.flatten(1), persistent=False)
        self.values_shape = () if levels is None else tuple(levels.values.shape[1:])
        bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.bias = bias

    @property
    def levels(self) -> Levels | None:
        """The levels of the weights, None for full precision."""
        if self.codes is None or self.values is None:
            return None
        return Levels(self.codes, self.values.reshape(-1, *self.values_shape))

    @torch.no_grad()
    def take_levels_(self, levels: Levels) -> None:
        """Replace the weights by those that ``levels`` stand for; the memory layout stays."""
        assert self.codes is not None
        self.codes.copy_(levels.codes)
        self.values, self.values_shape = levels.values.flatten(1), tuple(levels.values.shape[1:])
        self.weight.copy_(look_up(levels.codes, levels.values))


class InferenceConv2d(_Quantized, nn.Conv2d):  # type: ignore[misc]
    """A low-precision convolution that ships: (B, in, H, W) -> (B, out, H', W').

    ``activation`` quantizes the input; the weights have their levels; ``input_scale``, where XNOR-Net has
    one, multiplies the output; the full-precision bias is added last.
    """

    def __init__(self, like: nn.Conv2d, activation: nn.Module, input_scale: nn.Module | None) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # type: ignore[arg-type]
            like.stride,  # type: ignore[arg-type]
            like.padding,  # type: ignore[arg-type]
            like.dilation,  # type: ignore[arg-type]
            like.groups,
            bias=False,
            device="meta",
        )
        self.activation = activation
        self.input_scale = input_scale

    def forward(self, y: Tensor) -> Tensor:
        """Return the layer's output of its real-valued input ``y``."""
        x = self.activation(y)
        out = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        if self.input_scale is not None:
            out = out * self.input_scale(y)
        return out if self.bias is None else out + self.bias.reshape(-1, 1, 1)


class InferenceLinear(_Quantized, nn.Linear):  # type: ignore[misc]
    """A low-precision linear layer that ships: (B, ...), flattened to (B, in) -> (B, out)."""

    def __init__(self, like: nn.Linear, activation: nn.Module, input_scale: nn.Module | None) -> None:
        super().__init__(like.in_features, like.out_features, bias=False, device="meta")
        self.activation = activation
        self.input_scale = input_scale

    def forward(self, y: Tensor) -> Tensor:
        """Return the layer's output of its real-valued input ``y``."""
        out = F.linear(self.activation(y).flatten(1), self.weight)
        if self.input_scale is not None:
            out = out * self.input_scale(y)
        return out if self.bias is None else out + self.bias


class InferenceClassifier(nn.Linear):
    """The last layer that ships, full-precision weights: (B, C, H, W) or (B, C) -> logits (B, classes)."""

    def __init__(self, like: nn.Linear, activation: nn.Module, average: bool) -> None:
        super().__init__(like.in_features, like.out_features, device="meta")
        self.weight = nn.Parameter(like.weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(like.bias.detach().clone(), requires_grad=False)
        self.activation = activation
        self.average = average

    def forward(self, y: Tensor) -> Tensor:
        """Return the logits of the features ``y``."""
        x = self.activation(y)
        return F.linear(x.mean((2, 3)) if self.average else x.flatten(1), self.weight, self.bias)
