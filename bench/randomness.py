"""Counter-based random numbers: a draw is a function of its coordinates, not of the state of a generator.

The coordinates of a draw are ``(seed, purpose, layer or parameter name, step, sample, element)``. The host
hashes the names to one 32-bit key, the device hashes the counters. So a draw is the same number in eager and
compiled code, on any device, in any order, before and after a resume. No checkpoint stores a generator.

The hash is the two-round multiply-xorshift permutation of 32-bit integers that C. Wellons' hash prospector
found (``[16 21f0aaad 15 735a2d97 15]``, bias 0.107). It is computed in int64: both multipliers are below 2^31
and the state is below 2^32, so no product overflows, in C++ or in Triton.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M1 = 0x21F0AAAD
_M2 = 0x735A2D97
_WEYL = 0x61C88647  # 2^32 / golden ratio, negated: below 2^31, keeps hash32(0) from being 0


def _mix(x):
    """Return one round of the hash of ``x``: a Python int or an int64 tensor of values in [0, 2^32)."""
    x = x ^ (x >> 16)
    x = (x * _M1) & _MASK
    x = x ^ (x >> 15)
    x = (x * _M2) & _MASK
    return x ^ (x >> 15)


def combine(key, counter):
    """Return the hash of ``key`` and ``counter``, which must not be exchanged.

    Each is a Python int or an int64 tensor of values in [0, 2^32), and so is the result.
    """
    return _mix((_mix((counter + _WEYL) & _MASK) + key) & _MASK)


def key_of(*parts: int | str) -> int:
    """Return the 32-bit key of names and numbers, for instance ``key_of(seed, "init", "conv1.weight")``.

    Integers are hashed by their value modulo 2^32, strings by the first 32 bits of their SHA-256.
    """
    key = 0
    for part in parts:
        number = (
            int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little")
            if isinstance(part, str)
            else part
        )
        key = combine(key, number & _MASK)
    return key


def bits(key: int | Tensor, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return int64 hash values in [0, 2^32) of ``shape``: the hash of ``key`` and an element's flat index."""
    count = math.prod(shape)
    return combine(key, torch.arange(count, device=device)).reshape(tuple(shape))


def sample_bits(key: int | Tensor, samples: Tensor, shape: Sequence[int]) -> Tensor:
    """Return int64 hash values of shape ``(len(samples), *shape)``.

    ``samples`` is an int64 vector of sample numbers: positions in the global batch, or indices into the data
    set. The values of a sample depend on ``key`` and its own number alone.
    """
    keys = combine(key, samples & _MASK)
    count = math.prod(shape)
    elements = torch.arange(count, device=samples.device)
    return combine(keys[:, None], elements[None, :]).reshape(len(samples), *shape)


def to_uniform(values: Tensor) -> Tensor:
    """Map hash values to float32 in [0, 1): the upper 24 bits over 2^24, exact in float32."""
    return (values >> 8).to(torch.float32) * (1.0 / (1 << 24))


def uniform(key: int | Tensor, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Return float32 uniform numbers in [0, 1) of ``shape``."""
    return to_uniform(bits(key, shape, device))


def truncated_normal(key: int, shape: Sequence[int]) -> Tensor:
    """Return float32 normal numbers, truncated to [-2, 2], on the CPU; before truncation the deviation is 1.

    They are computed by inversion in float64, so machines agree up to the last float32 digit.
    """
    low = 0.5 * math.erfc(math.sqrt(2.0))  # Phi(-2)
    u = low + (1.0 - 2.0 * low) * (bits(key, shape).to(torch.float64) + 0.5) / 4294967296.0
    return torch.special.ndtri(u).clamp_(-2.0, 2.0).to(torch.float32)


def normal(key: int, shape: Sequence[int]) -> Tensor:
    """Return float32 standard normal numbers of ``shape``, on the CPU, by inversion in float64."""
    u = (bits(key, shape).to(torch.float64) + 0.5) / 4294967296.0
    return torch.special.ndtri(u).to(torch.float32)


def permutation(count: int, key: int, device: torch.device | str | None = None) -> Tensor:
    """Return an int64 permutation of ``range(count)``: the numbers sorted (stably) by their hash values."""
    return torch.argsort(bits(key, (count,), device), stable=True)


class Clock:
    """The progress of the training: tensors and flags that the layers read and the training loop sets.

    ``step``    0-d int64 tensor, the global step (draws of stochastic layers depend on it)
    ``factor``  0-d float32 tensor, f(t) of the progressive strategies
    ``active``  ``factor > 0`` as a Python bool: with False the branch is not computed at all
    ``samples`` int64 vector, the positions of this batch's samples in the global batch
    ``seed``    the trial's seed
    ``total_steps``   steps of the whole trial, 0 before the training loop sets it
    ``shares``  layer -> 0-d float32 tensor, the layer's own factor over ``factor``, for layers that have one
    ``layers``  gives each layer's own factor at a step, by name; None: every layer has ``factor``
    ``stage``   the number of the strategy's stage, 0 where it has none
    ``stages``  gives the stage of a step; None: it is always 0

    ``set`` writes the tensors in place, so compiled and captured code reads the new values without being
    traced again.
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.total_steps = 0
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.factor = torch.zeros((), dtype=torch.float32, device=device)
        self.active = False
        self.samples: Tensor | None = None
        self.shares: dict[str, Tensor] = {}
        self.layers: Callable[[int], Mapping[str, float]] | None = None
        self.stage = 0
        self.stages: Callable[[int], int] | None = None

    def set(self, step: int, factor: float) -> None:
        """Set step and factor; where layers have their own factors, ``factor`` is the largest of them."""
        self.step.fill_(step)
        self.set_factor(factor)
        if self.stages is not None:
            self.stage = self.stages(step)
        for layer, own in self.layers(step).items() if self.layers is not None and factor else ():
            self.shares[layer].fill_(own / factor)

    @property
    def progress(self) -> Tensor:
        """The share of the training that is done, step / total_steps: float32 of shape ()."""
        return self.step.to(torch.float32) / max(self.total_steps, 1)

    def give_layers_factors(self, layers: Callable[[int], Mapping[str, float]]) -> None:
        """Give layers factors of their own: ``layers(step)`` maps a layer's name to its factor at a step."""
        self.layers = layers
        self.shares = {layer: torch.ones_like(self.factor) for layer in layers(0)}

    def factor_of(self, layer: str) -> Tensor:
        """Return the factor of one layer, of shape ()."""
        share = self.shares.get(layer)
        return self.factor if share is None else self.factor * share

    def set_factor(self, factor: float) -> None:
        """Set the factor alone (0 for the deployed network)."""
        self.factor.fill_(factor)
        self.active = factor != 0.0


class Draws:
    """The random numbers of one layer for one purpose: one number an element, different at each step.

    ``uniform(x)`` is for activations, whose first dimension is the sample; ``uniform_weights(w)`` is for
    weights.
    """

    def __init__(self, clock: Clock, purpose: str, name: str) -> None:
        self.clock = clock
        self.purpose = purpose
        self.name = name
        self._key = key_of(clock.seed, purpose, name)

    def uniform(self, x: Tensor) -> Tensor:
        """Return float32 numbers in [0, 1) of the shape of ``x``; the first dimension is the sample.

        Where it has several rows a sample, one sample's behind the other's (windows of attention), each row
        has draws of its own.
        """
        samples = self.clock.samples
        if samples is None or len(x) % len(samples):
            samples = torch.arange(len(x), device=x.device)
        elif (each := len(x) // len(samples)) > 1:
            samples = (samples[:, None] * each + torch.arange(each, device=x.device)).flatten()
        key = combine(self._key, self.clock.step)
        return to_uniform(sample_bits(key, samples, x.shape[1:]))

    def uniform_weights(self, w: Tensor) -> Tensor:
        """Return float32 numbers in [0, 1) of the shape of ``w``: one draw for all samples of a step."""
        return uniform(combine(self._key, self.clock.step), w.shape, w.device)
