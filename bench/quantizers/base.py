"""What every quantizer is: a module of four maps, the identity unless a paper says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.quantizers.deployed import ActivationMap, Levels, codes_of
from bench.randomness import Clock, Draws

# What stochastic maps draw from before their layer gives them a stream of their own.
_FIXED_DRAWS = Draws(Clock(0), "quantizer", "unnamed")


class Quantizer(nn.Module):
    """The base class; a quantizer serves one weight tensor and the activations that meet it.

    ``w_bits``, ``a_bits``, ``g_bits``: 1 to 8, or 32 for full precision. Quantizers with learned scales
    create them in ``create_scales``, else at the first call of ``weight`` (eager only, and before the
    optimizer is made). ``draws``:
    the random numbers of stochastic maps, set by the layer; None: one fixed stream, the same each step.
    ``running``: names of the buffers, vectors, that training moves with the activations; workers average
    them. That is the move of one worker only where the move is linear in means over images; any other one
    takes its sums over images through ``sum_over_workers``, None for one worker. ``parts``: in how many parts
    a step takes its batch, one after the other (micro-batches). ``scales_input``: True where the
    convolution's output is to be multiplied by ``input_scale`` of its input. ``read_by``: the learned
    parameters of the activations, each with the maps that read it, of "bound" and "activation".
    ``absolute_levels``: whether a level is the same one where its value is; else where its place from 0 is,
    since the values move with a scale.
    """

    scales_input = False
    running: tuple[str, ...] = ()
    read_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    absolute_levels = False
    parts = 1

    def __init__(self, w_bits: int = 32, a_bits: int = 32, g_bits: int = 32) -> None:
        super().__init__()
        self.w_bits, self.a_bits, self.g_bits = w_bits, a_bits, g_bits
        self.draws: Draws | None = None
        self.sum_over_workers: Callable[[Tensor], Tensor] | None = None

    def create_scales(self, weight_shape: Sequence[int], device: Any = None) -> None:
        """Create the learned scales for weights (out, in, kh, kw) or (out, in); there are none by default."""

    def create_input_parameters(self, channels: int, device: Any = None) -> None:
        """Create learned parameters of the activations for that many channels; none by default.

        A quantizer with parameters a channel has one set for all channels until this is called. One value a
        layer needs no call: it is created with the quantizer.
        """

    def keep_(self, *maps: str) -> None:
        """Drop the learned parameters of the activations that none of ``maps`` reads; see ``read_by``."""
        for name, readers in self.read_by.items():
            if not set(readers) & set(maps):
                setattr(self, name, None)

    def start_(self, w: Tensor) -> None:
        """Set the learned scales in place from the weights that training starts from; nothing by default."""

    def statistics(self, w: Tensor) -> Tensor | None:
        """Return what ``weight`` measures of ``w`` (mean |w|, max |w|, ...), in float32, or None.

        A layer whose main and extra weights share a scale measures both together and hands the result to
        ``weight``.
        """
        return None

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the low-precision weights, same shape and dtype; ``statistics`` replaces that of ``w``."""
        return w

    @property
    def stored_bits(self) -> int:
        """Bits of a stored weight: ``w_bits`` unless the method has more levels than they tell apart."""
        return self.w_bits

    def stored_scales(self, w: Tensor) -> int:
        """Return how many float32 scales the deployed network stores for ``w``: the learned parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def stored_input_scales(self) -> int:
        """Return how many float32 numbers ``activation`` needs, of a quantizer that serves no weights."""
        moved = sum(getattr(self, name).numel() for name in self.running)
        return sum(parameter.numel() for parameter in self.parameters()) + moved

    def bound(self, x: Tensor) -> Tensor:
        """Return the bounding map of activations alone, which ``activation`` is at 32 bits; any shape."""
        return x

    def activation(self, x: Tensor) -> Tensor:
        """Return the low-precision activations, the bounding map included; any shape."""
        return self.bound(x)

    def reread(self, x: Tensor) -> Tensor:
        """Return ``activation(x)`` once more in the same step: levels that move with the activations stay."""
        return self.activation(x)

    def gradient(self, y: Tensor) -> Tensor:
        """Return a convolution's output ``y``, whose gradient is quantized where ``g_bits`` < 32."""
        return y

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return the values that the elements of ``weight(w, statistics)`` take, None for full precision.

        ``w`` float32. Shape (levels, ...): each row broadcasts to the shape of ``w``. See ``Levels``.
        """
        return None

    @torch.no_grad()
    def weight_levels(self, w: Tensor, statistics: Tensor | None = None) -> Levels | None:
        """Return the quantized weights as codes and values, None for full precision.

        ``weight_levels(w).weight()`` equals ``weight(w)`` in each bit of each number; zeros of either sign
        are equal. Raises ``ValueError`` where ``weight`` returns a value that ``level_values`` does not
        name.
        """
        w = w.detach().float()
        values = self.level_values(w, statistics)
        if values is None:
            return None
        return Levels(codes_of(self.weight(w, statistics), values), values)

    def bound_map(self) -> ActivationMap:
        """Return the deployed form of ``bound``."""
        return ActivationMap("identity")

    def activation_map(self) -> ActivationMap:
        """Return the deployed form of ``activation`` in evaluation."""
        return self.bound_map()

    def after_step_(self, w: Tensor) -> None:
        """Do in place what the method does to the stored weights after an update; nothing by default."""

    def add_penalty_(self, *weights: Tensor) -> None:
        """Add the gradient of the method's penalty, a term of the loss, to the gradients; nothing by default.

        Called once a step, between the backward pass and the update. ``weights`` are the stored ones that
        the quantizer serves: none where the layer's weights are full precision. A tensor without a gradient
        is left alone.
        """

    @property
    def progress(self) -> Tensor:
        """The share of the training that is done: float32 of shape (), 0 without a stream."""
        return self.stream.clock.progress

    @property
    def stream(self) -> Draws:
        """The random numbers in use."""
        return _FIXED_DRAWS if self.draws is None else self.draws

    def extra_repr(self) -> str:
        return f"w_bits={self.w_bits}, a_bits={self.a_bits}, g_bits={self.g_bits}"


class _Wrapped(Quantizer):
    """The activations and gradients of another quantizer, ``quantizer``."""

    def __init__(self, quantizer: Quantizer, w_bits: int, a_bits: int) -> None:
        super().__init__(w_bits, a_bits, quantizer.g_bits)
        self.quantizer = quantizer
        self.scales_input = quantizer.scales_input and a_bits < 32

    def keep_(self, *maps: str) -> None:
        self.quantizer.keep_(*maps)

    def bound(self, x: Tensor) -> Tensor:
        return self.quantizer.bound(x)

    def activation(self, x: Tensor) -> Tensor:
        return self.quantizer.activation(x)

    def reread(self, x: Tensor) -> Tensor:
        return self.quantizer.reread(x)

    def gradient(self, y: Tensor) -> Tensor:
        return self.quantizer.gradient(y)

    def input_scale(self, *arguments: Any) -> Tensor:
        """Return the other quantizer's input scale, where it has one (``scales_input``)."""
        return self.quantizer.input_scale(*arguments)  # type: ignore[operator]


class FullPrecisionWeights(_Wrapped):
    """Activations and gradients of another quantizer beside full-precision weights.

    For a layer that a method leaves out: the activations that the layer reads have ``quantizer``'s levels,
    the weights stay as stored. ``quantizer`` must have no learned scales.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__(quantizer, 32, quantizer.a_bits)

    def stored_scales(self, w: Tensor) -> int:
        """Return the numbers of the activations: the weights have no scale."""
        return self.quantizer.stored_input_scales()

    def bound_map(self) -> ActivationMap:
        return self.quantizer.bound_map()

    def activation_map(self) -> ActivationMap:
        return self.quantizer.activation_map()

    def add_penalty_(self, *weights: Tensor) -> None:
        self.quantizer.add_penalty_()


class Interim(_Wrapped):
    """A quantizer at other bit widths for a stage of training.

    32 bits of weights are the stored weights, 32 bits of activations the bounded ones without an input
    scale, also where ``quantizer`` itself has no such bit width. At all other widths the maps are those of
    ``quantizer``, whose learned scales are shared.
    """

    def statistics(self, w: Tensor) -> Tensor | None:
        return self.quantizer.statistics(w)

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        return w if self.w_bits == 32 else self.quantizer.weight(w, statistics)

    def activation(self, x: Tensor) -> Tensor:
        return self.bound(x) if self.a_bits == 32 else super().activation(x)

    def reread(self, x: Tensor) -> Tensor:
        return self.bound(x) if self.a_bits == 32 else super().reread(x)
