"""The calls of ``popcount.c``: bit planes of activations, and convolutions of them with packed weights."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.integer.build import Library
from bench.integer.levels import Term, planes_of

BLOCK = 64  # outputs of a block, channels of a word; as in popcount.c
_LEAST_WORK = 1 << 18  # words times blocks that are worth a further thread


@dataclass(frozen=True)
class Window:
    """How a convolution moves: each (rows, columns); a linear layer has the window of one pixel."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def result(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of an image's result (rows, columns); raises ``ValueError`` where there is none."""
        found = [
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i]
            + 1
            for i in range(2)
        ]
        if min(found) < 1:
            raise ValueError(f"an image of {size[0]}x{size[1]} pixels is smaller than the kernel")
        return found[0], found[1]


class _Layer(ctypes.Structure):
    """``Layer`` of popcount.c; addresses are numbers."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "height width groups x_planes words kernel_height kernel_width stride_y stride_x pad_y pad_x "
            "dilation_y dilation_x result_height result_width outputs blocks terms w_planes zero "
            "x_factors w_factors spans lowest scales weight_sums weights"
        ).split()
    ]


class Bits(nn.Module):
    """Activations to bit planes: float32 (pixels, groups x channels) -> bits, and sums of a pixel's bits.

    ``thresholds`` (steps, channels of all groups, or 1) rise; ``directions`` (the same channels) is -1 where
    -y is compared with them. Level ``i`` is reached with threshold i - 1; ``numbers`` are the integers of the
    levels. A NaN reaches no threshold.
    """

    thresholds: Tensor
    directions: Tensor
    toggles: Tensor
    factors: Tensor

    def __init__(
        self,
        numbers: Sequence[int],
        thresholds: Tensor,
        directions: Tensor | None,
        groups: int,
        channels: int,
    ) -> None:
        super().__init__()
        planes = planes_of(numbers)
        self.groups, self.channels = groups, channels
        self.planes = len(planes.factors)
        self.words = -(-channels // BLOCK)
        assert planes.codes[0] == 0, "levels rise"  # so all bits are 0 at the lowest level
        changes = [one ^ other for one, other in itertools.pairwise(planes.codes)]
        self.lowest = planes.lowest
        self.register_buffer("thresholds", self._spread(thresholds, torch.inf), persistent=False)
        self.register_buffer(
            "directions",
            None if directions is None else self._spread(directions[None], 1.0),
            persistent=False,
        )
        self.register_buffer("toggles", torch.tensor(changes, dtype=torch.uint8), persistent=False)
        self.register_buffer("factors", torch.tensor(planes.factors, dtype=torch.int32), persistent=False)

    def _spread(self, values: Tensor, filler: float) -> Tensor:
        """Return values a channel in the order of the words, with ``filler`` where a word has no channel."""
        features = self.groups * self.channels
        whole = values.repeat_interleave(features // values.shape[1], 1).reshape(
            -1, self.groups, self.channels
        )
        made = whole.new_full((len(whole), self.groups, self.words * BLOCK), filler)
        made[:, :, : self.channels] = whole
        return made.contiguous()

    def forward(self, rows: Tensor, with_sums: bool, kernels: Library) -> tuple[Tensor, Tensor | None]:
        """Return (bits, sums or None) of contiguous float32 rows, one a pixel."""
        pixels = len(rows)
        bits = torch.empty((pixels, self.groups, self.planes, self.words), dtype=torch.int64)
        sums = torch.empty((pixels, self.groups), dtype=torch.int32) if with_sums else None
        directions = None if self.directions is None else self.directions.data_ptr()

        def part(first: int, end: int) -> None:
            kernels.functions.pack(
                rows[first:].data_ptr(),
                end - first,
                self.groups,
                self.channels,
                self.planes,
                self.thresholds.data_ptr(),
                len(self.thresholds),
                self.toggles.data_ptr(),
                directions,
                self.factors.data_ptr(),
                bits[first:].data_ptr(),
                None if sums is None else sums[first:].data_ptr(),
            )

        _in_parts(part, pixels, self.words * self.groups * len(self.thresholds))
        return bits, sums


class Product(nn.Module):
    """Packed weights, and their convolution with bit planes of activations; all sums are exact.

    ``terms`` have integers of shape (out, in of a group, positions); ``x_step`` is the step of the
    activations, ``x_lowest`` the integer of their lowest level, ``x_factors`` those of their planes.
    """

    x_factors: Tensor
    w_factors: Tensor
    lowest: Tensor

    def __init__(
        self,
        terms: Sequence[Term],
        window: Window,
        groups: int,
        x_lowest: int,
        x_factors: Tensor,
        x_step: float,
    ) -> None:
        super().__init__()
        outputs, channels, positions = terms[0].bits.shape[1:]
        self.window, self.groups, self.x_lowest = window, groups, x_lowest
        self.outputs, self.words = outputs // groups, -(-channels // BLOCK)
        self.blocks = -(-self.outputs // BLOCK)
        planes: list[Tensor] = []
        firsts: dict[int, int] = {}
        spans: list[list[int]] = []
        factors: list[int] = []
        for term in terms:
            if id(term.bits) not in firsts:
                firsts[id(term.bits)] = len(factors)
                planes.extend(term.bits)
                factors.extend(term.factors)
            first = firsts[id(term.bits)]
            spans.append([*term.positions, first, first + len(term.factors)])
        self.needs_sums = any(term.lowest for term in terms)
        made = {
            "x_factors": x_factors,
            "w_factors": torch.tensor(factors, dtype=torch.int32),
            "spans": torch.tensor(spans, dtype=torch.int32),
            "lowest": torch.tensor([term.lowest for term in terms], dtype=torch.int32),
            "scales": self._blocked(torch.stack([term.scale for term in terms]) * x_step),
            "weight_sums": self._sums(terms) if x_lowest else torch.zeros(1, dtype=torch.int32),
            "weights": self._packed(torch.stack(planes)),
        }
        for name, tensor in made.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)
        self.work = len(x_factors) * len(planes) * positions * self.words * self.blocks * groups

    def _blocked(self, values: Tensor) -> Tensor:
        """Return (..., out) as (..., groups, blocks, 64), with 0 behind the last output of a group."""
        split = values.unflatten(-1, (self.groups, self.outputs))
        made = split.new_zeros((*split.shape[:-1], self.blocks * BLOCK))
        made[..., : self.outputs] = split
        return made.unflatten(-1, (self.blocks, BLOCK))

    def _packed(self, planes: Tensor) -> Tensor:
        """Return bits (planes, out, in, positions) as (groups, blocks, planes, positions, words, 64)."""
        channels, positions = planes.shape[2:]
        wide = planes.new_zeros((*planes.shape[:2], self.words * BLOCK, positions))
        wide[:, :, :channels] = planes
        lanes = self._blocked(wide.permute(0, 3, 2, 1))  # planes, positions, channels, groups, blocks, 64
        places = lanes.unflatten(2, (self.words, BLOCK)).permute(4, 5, 0, 1, 2, 6, 3)
        weights = torch.tensor([1 << i if i < 63 else -(1 << 63) for i in range(BLOCK)], dtype=torch.int64)
        return (places * weights).sum(-1)

    def _sums(self, terms: Sequence[Term]) -> Tensor:
        """Return the sums of a term's weights, as ``weight_sums`` of popcount.c."""
        each = torch.stack([term.numbers().sum(1).T for term in terms])  # terms, positions, out
        every = torch.cat([each, each.sum(1, keepdim=True)], 1)
        return self._blocked(every).permute(2, 3, 0, 1, 4).to(torch.int32)

    def _layer(self, size: tuple[int, int]) -> _Layer:
        names = ("x_factors", "w_factors", "spans", "lowest", "scales", "weight_sums", "weights")
        window = self.window
        return _Layer(
            *size,
            self.groups,
            len(self.x_factors),
            self.words,
            *window.kernel,
            *window.stride,
            *window.padding,
            *window.dilation,
            *window.result(size),
            self.outputs,
            self.blocks,
            len(self.lowest),
            len(self.w_factors),
            self.x_lowest,
            *(getattr(self, name).data_ptr() for name in names),
        )

    def forward(self, bits: Tensor, sums: Tensor | None, size: tuple[int, int], kernels: Library) -> Tensor:
        """Return the result of images of ``size`` pixels: float32 (images, rows, columns, out)."""
        layer = self._layer(size)
        rows, columns = window_size = self.window.result(size)
        images = len(bits) // (size[0] * size[1])
        out = torch.empty((images, *window_size, self.groups * self.outputs))
        address = None if sums is None else sums.data_ptr()

        def part(first: int, end: int) -> None:
            kernels.functions.convolve(
                ctypes.addressof(layer), bits.data_ptr(), address, out.data_ptr(), first, end
            )

        _in_parts(part, images * rows, columns * self.work)
        return out


_pools: dict[int, ThreadPoolExecutor] = {}  # by process: a fork has none of its parent's threads


def _in_parts(part: Callable[[int, int], None], count: int, work: int) -> None:
    """Call ``part(first, end)`` for ranges of 0 to ``count``, on as many threads as PyTorch uses.

    ``work`` is that of one of them, in words; small amounts stay on this thread.
    """
    threads = min(torch.get_num_threads(), count, count * work // _LEAST_WORK)
    if threads < 2:
        if count:
            part(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    if os.getpid() not in _pools:
        _pools.clear()
        _pools[os.getpid()] = ThreadPoolExecutor(thread_name_prefix="bench-integer")
    others = [_pools[os.getpid()].submit(part, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    part(bounds[0], bounds[1])
    for other in others:
        other.result()
