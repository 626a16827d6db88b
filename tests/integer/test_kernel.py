"""Sums of the kernel against int64 NumPy, on every instruction set that this processor has."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import InputError
from bench.integer.build import INSTRUCTIONS, library
from bench.integer.kernel import Bits, Product, Window
from bench.integer.levels import Term, weight_terms
from bench.quantizers.deployed import Levels

WEIGHTS = ([-1, 1], [-1, 0, 1], [-3, -1, 1, 3], [-2, -1, 0, 1], [0, 1], [-4, -2, -1, 0, 1, 2, 4])
ACTIVATIONS = (
    [0, 1],
    [-1, 1],
    [0, 1, 2, 3],
    [-2, -1, 0, 1],
    [0, 1, 2, 3, 4, 5, 6, 7],
    [-3, 0, 5],
    [-4, -1, 1],
)


def here() -> list[str]:
    """Return the instruction sets of this processor; the portable one is always among them."""
    found = []
    for name in INSTRUCTIONS:
        with contextlib.suppress(InputError):  # this processor has not the instructions
            library(name)
            found.append(name)
    return found


HERE = here()


def convolution(x: np.ndarray, w: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """Return the convolution of integers by its definition: x (B, C, H, W), w (O, C / groups, kh, kw)."""
    (pad_y, pad_x), (kernel_y, kernel_x) = window.padding, window.kernel
    x = np.pad(x, ((0, 0), (0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    rows, columns = window.result((x.shape[2] - 2 * pad_y, x.shape[3] - 2 * pad_x))
    out = np.zeros((len(x), groups, len(w) // groups, rows, columns), np.int64)
    parts = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
    kernels = w.reshape(groups, -1, *w.shape[1:])
    for a in range(kernel_y):
        for b in range(kernel_x):
            y0, x0 = a * window.dilation[0], b * window.dilation[1]
            seen = parts[:, :, :, y0 :: window.stride[0], x0 :: window.stride[1]][..., :rows, :columns]
            out += np.einsum("bgcyx,goc->bgoyx", seen, kernels[..., a, b])
    return out.reshape(len(x), len(w), rows, columns)


@st.composite
def cases(draw):
    small = st.integers(1, 3)
    kernel = draw(small), draw(small)
    window = Window(
        kernel,
        (draw(small), draw(small)),
        (draw(st.integers(0, 3)), draw(st.integers(0, 3))),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )
    least = [(kernel[i] - 1) * window.dilation[i] + 1 for i in range(2)]
    size = tuple(max(1, least[i] - 2 * window.padding[i]) + draw(st.integers(0, 4)) for i in range(2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = draw(st.sampled_from([1, 5, 32, 63, 64, 65, 130]))
    outputs = draw(st.sampled_from([1, 7, 63, 64, 65]))
    images = draw(st.integers(0, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    w, x = draw(st.sampled_from(WEIGHTS)), draw(st.sampled_from(ACTIVATIONS))
    return window, size, groups, channels, outputs, images, seed, w, x


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_sums_are_those_of_int64(case):
    window, size, groups, channels, outputs, images, seed, w_numbers, x_numbers = case
    rng = np.random.default_rng(seed)
    w = rng.choice(w_numbers, (groups * outputs, channels, *window.kernel))
    x = rng.choice(x_numbers, (images, groups * channels, *size))
    table = torch.tensor(w_numbers, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
    codes = torch.from_numpy(np.searchsorted(w_numbers, w).astype(np.uint8))
    wanted = convolution(x, w, window, groups)
    for name in HERE:
        found = run(weight_terms(Levels(codes, table)), window, groups, x_numbers, x, name)
        np.testing.assert_array_equal(found, wanted.astype(np.float32), err_msg=name)


def run(terms: list[Term], window, groups, x_numbers, x, name: str, x_step: float = 1.0) -> np.ndarray:
    """Return the kernel's result, (B, O, H', W') float32, of activations that stand for ``x``."""
    thresholds = torch.tensor([(a + b) / 2 for a, b in pairwise(x_numbers)])[:, None]
    bits = Bits(x_numbers, thresholds, None, groups, x.shape[1] // groups)
    product = Product(terms, window, groups, bits.lowest, bits.factors, x_step)
    rows = torch.from_numpy(x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]).astype(np.float32)).contiguous()
    packed, sums = bits(rows, product.needs_sums, library(name))
    return product(packed, sums, x.shape[2:], library(name)).numpy().transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", HERE)
def test_counts_of_many_words_do_not_overflow_a_byte(name):
    x, w = np.ones((1, 64 * 40, 2, 2), np.int64), np.ones((3, 64 * 40, 2, 2), np.int64)
    levels = Levels(torch.ones(w.shape, dtype=torch.uint8), torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1))
    found = run(weight_terms(levels), Window((2, 2)), 1, [0, 1], x, name)
    assert (found == 4 * 64 * 40).all()


@pytest.mark.parametrize("name", HERE)
def test_one_scale_is_rounded_once(name):
    rng = np.random.default_rng(0)
    codes, x = rng.integers(0, 2, (70, 65, 3, 3)), rng.integers(0, 4, (2, 65, 6, 5))
    scale = rng.uniform(0.01, 2.0, (70, 1, 1, 1)).astype(np.float32)
    table = torch.from_numpy(np.stack([-scale, scale]))
    terms = weight_terms(Levels(torch.from_numpy(codes.astype(np.uint8)), table))
    window = Window((3, 3), (1, 1), (1, 1))
    found = run(terms, window, 1, [0, 1, 2, 3], x, name, x_step=1 / 3)
    sums = convolution(x, 2 * codes - 1, window, 1)
    wanted = sums * (scale.astype(np.float64).reshape(1, -1, 1, 1) * (1 / 3))
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("kind", ["two scales", "rows", "positions", "unscaled levels"])
def test_terms_add_up_in_float64(name, kind):
    rng = np.random.default_rng(1)
    one = rng.uniform(0.1, 2.0, {"rows": (3, 1), "positions": (3, 3)}.get(kind, (1, 1))).astype(np.float32)
    rows = {
        "two scales": [-one, 0 * one, 2 * one + 0.01],
        "unscaled levels": [-one, -1 + 0 * one, 1 + 0 * one, one],
    }
    table = np.stack(rows.get(kind, [-one, 0 * one, one]))[:, None, None]
    codes, x = rng.integers(0, len(table), (9, 70, 3, 3)), rng.choice([-1, 1], (2, 70, 5, 4))
    levels = Levels(torch.from_numpy(codes.astype(np.uint8)), torch.from_numpy(table))
    terms = weight_terms(levels)
    assert len(terms) == {"two scales": 2, "rows": 3, "positions": 9, "unscaled levels": 2}[kind]
    window = Window((3, 3), (2, 1), (1, 2))
    found = run(terms, window, 1, [-1, 1], x, name)
    scaled = []
    weight = levels.weight().double().numpy()
    for a in range(3):  # position by position, so that each float64 sum is of integers times one scale
        for b in range(3):
            for value in np.unique(np.abs(weight[:, :, a, b])):
                signs = np.zeros((9, 70, 3, 3), np.int64)
                signs[:, :, a, b] = np.sign(weight[:, :, a, b]) * (np.abs(weight[:, :, a, b]) == value)
                scaled.append(value * convolution(x, signs, window, 1))
    np.testing.assert_allclose(found, np.sum(scaled, 0), rtol=2.0**-23, atol=1e-12)


@pytest.mark.parametrize("name", HERE)
def test_thresholds_a_channel_directions_and_nan(name):
    rng = np.random.default_rng(2)
    y = rng.normal(size=(4, 70)).astype(np.float32)
    y[0, 0], y[0, 1], y[0, 2] = np.nan, np.inf, -np.inf
    thresholds = np.sort(rng.normal(size=(3, 70)).astype(np.float32), 0)
    thresholds[:, 3], thresholds[:, 4] = -np.inf, np.inf
    y[1] = thresholds[1]  # on a threshold: reached
    directions = rng.choice([-1.0, 1.0], 70).astype(np.float32)
    y[1] *= directions
    bits = Bits([0, 1, 2, 3], torch.from_numpy(thresholds), torch.from_numpy(directions), 2, 35)
    packed, sums = bits(torch.from_numpy(y), True, library(name))
    planes = np.unpackbits(packed.numpy().view(np.uint8), axis=-1, bitorder="little")[..., :35]
    code = (planes * np.array([1, 2])[:, None]).sum(2).reshape(4, 70)
    wanted = ((y * directions)[None] >= thresholds[:, None]).sum(0)
    np.testing.assert_array_equal(code, wanted)
    np.testing.assert_array_equal(sums.numpy(), wanted.reshape(4, 2, 35).sum(2))
    assert code[0, 0] == 0 and code[0, 3] == 3


def test_several_threads_give_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    x, codes = rng.integers(0, 2, (5, 64, 9, 9)), rng.integers(0, 2, (64, 64, 3, 3)).astype(np.uint8)
    table = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1)
    terms = weight_terms(Levels(torch.from_numpy(codes), table))
    window = Window((3, 3), (1, 1), (1, 1))
    alone = run(terms, window, 1, [0, 1], x, "portable")
    monkeypatch.setattr("bench.integer.kernel._LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_array_equal(run(terms, window, 1, [0, 1], x, "portable"), alone)


def test_an_image_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match="2x2 pixels is smaller than the kernel"):
        Window((3, 3)).result((2, 2))
