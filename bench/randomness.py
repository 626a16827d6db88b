"""Counter-based random numbers: every draw is a function of its coordinates, none of a generator's state.

A draw is named by ``(seed, purpose, layer or parameter name, step, sample, element)``. The names are folded
into one 32-bit key on the host, the counters are hashed on the device, so the same number comes out eager and
compiled, on any device, in any order, before and after a resume. No checkpoint has to store a generator.

The hash is the two-round multiply-xorshift permutation of 32-bit integers found by C. Wellons' hash
prospector (``[16 21f0aaad 15 735a2d97 15]``, bias 0.107), computed in int64: both multipliers are below 2^31
and the state below 2^32, so no product overflows, in C++ or in Triton.
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
    """One round of the hash.

    The same arithmetic for Python integers and int64 tensors, values in [0, 2^32).
    """
    x = x ^ (x >> 16)
    x = (x * _M1) & _MASK
    x = x ^ (x >> 15)
    x = (x * _M2) & _MASK
    return x ^ (x >> 15)


def combine(key, counter):
    """Hash ``counter`` into ``key``; each a Python int or an int64 tensor of values in [0, 2^32).

    Not symmetric.
    """
    return _mix((_mix((counter + _WEYL) & _MASK) + key) & _MASK)


def fold(*parts: int | str) -> int:
    """Return the 32-bit key of names and numbers, for instance of ``fold(seed, "init", "conv1.weight")``.

    Integers are folded by their value modulo 2^32, strings by the first 32 bits of their SHA-256.
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
    """Return int64 hash values in [0, 2^32) of ``shape``, one for each element's flat index under ``key``."""
    count = math.prod(shape)
    return combine(key, torch.arange(count, device=device)).reshape(tuple(shape))


def sample_bits(key: int | Tensor, samples: Tensor, shape: Sequence[int]) -> Tensor:
    """Return int64 hash values of shape ``(len(samples), *shape)``.

    The draw of a sample depends on its own number alone.

    ``samples`` is an int64 vector of sample numbers (a position in the global batch, or an index into the
    data set).
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
    """Return float32 normal numbers of unit standard deviation before truncation to [-2, 2], on the CPU.

    By inversion in float64, so that the same numbers come out on every machine up to the last float32 digit.
    """
    low = 0.5 * math.erfc(math.sqrt(2.0))  # Phi(-2)
    u = low + (1.0 - 2.0 * low) * (bits(key, shape).to(torch.float64) + 0.5) / 4294967296.0
    return torch.special.ndtri(u).clamp_(-2.0, 2.0).to(torch.float32)


def normal(key: int, shape: Sequence[int]) -> Tensor:
    """Return float32 standard normal numbers of ``shape``, on the CPU, by inversion in float64."""
    u = (bits(key, shape).to(torch.float64) + 0.5) / 4294967296.0
    return torch.special.ndtri(u).to(torch.float32)


def permutation(count: int, key: int, device: torch.device | str | None = None) -> Tensor:
    """Return an int64 permutation of ``range(count)``: the stable order of the elements' hash values."""
    return torch.argsort(bits(key, (count,), device), stable=True)


class Clock:
    """Where training stands: the tensors and flags that layers read, owned by the training loop.

    ``step``    0-d int64 tensor, the global step (draws of stochastic layers depend on it)
    ``factor``  0-d float32 tensor, f(t) of the progressive strategies
    ``active``  ``factor > 0`` as a Python bool: False removes the branch from the computation altogether
    ``samples`` int64 vector, the positions of this batch's samples in the global batch
    ``seed``    the trial's seed
    ``total_steps``   steps of the whole trial, 0 before the training loop says so
    ``shares``  layer -> 0-d float32 tensor, the layer's own factor over ``factor``, for layers that have one
    ``layers``  gives each layer's own factor at a step, by name; None: every layer has ``factor``
    ``stage``   the number of the strategy's stage, 0 where it has none
    ``stages``  gives the stage of a step; None: it is always 0

    ``set`` writes in place, so that compiled and captured code sees the new values without being traced
    again.
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
        """Move to ``step`` with the given factor; the largest one where layers have factors of their own."""
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
        """Let the layers named by ``layers(step)`` have factors of their own: name -> factor at that step."""
        self.layers = layers
        self.shares = {layer: torch.ones_like(self.factor) for layer in layers(0)}

    def factor_of(self, layer: str) -> Tensor:
        """Return the factor of one layer, of shape ()."""
        share = self.shares.get(layer)
        return self.factor if share is None else self.factor * share

    def set_factor(self, factor: float) -> None:
        """Change the factor alone (0 for the deployed network)."""
        self.factor.fill_(factor)
        self.active = factor != 0.0


class Draws:
    """The random numbers of one layer for one purpose: one number an element, new each step.

    ``uniform(x)`` is for activations, whose first dimension is the sample; ``uniform_weights(w)`` is for
    weights.
    """

    def __init__(self, clock: Clock, purpose: str, name: str) -> None:
        self.clock = clock
        self.purpose = purpose
        self.name = name
        self._key = fold(clock.seed, purpose, name)

    def uniform(self, x: Tensor) -> Tensor:
        """Return float32 numbers in [0, 1) of the shape of ``x``; the first dimension is the sample."""
        samples = self.clock.samples
        if samples is None or len(samples) != len(x):
            samples = torch.arange(len(x), device=x.device)
        key = combine(self._key, self.clock.step)
        return to_uniform(sample_bits(key, samples, x.shape[1:]))

    def uniform_weights(self, w: Tensor) -> Tensor:
        """Return float32 numbers in [0, 1) of the shape of ``w``: one draw for all samples of a step."""
        return uniform(combine(self._key, self.clock.step), w.shape, w.device)
