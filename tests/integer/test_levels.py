"""Tables of levels as integers, and weights as terms, against the numbers that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.integer.levels import (
    integers_of,
    largest_sum,
    pairs_of,
    planes_of,
    sums_are_exact,
    weight_terms,
)
from bench.quantizers.deployed import Levels

E = np.float32(0.0371)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([-1.0, 1.0], (-1, 1)),
        ([-E, E], (-1, 1)),
        ([0.0, 1 / 3, 2 / 3, 1.0], (0, 1, 2, 3)),
        ([-1.0, -1 / 3, 1 / 3, 1.0], (-3, -1, 1, 3)),
        ([-2 * E, -E, 0.0, E], (-2, -1, 0, 1)),
        ([-0.5, -0.25, 0.0, 0.25, 0.5], (-2, -1, 0, 1, 2)),
        ([k / 15 for k in range(16)], tuple(range(16))),
        ([k / 255 for k in range(256)], tuple(range(256))),
        ([0.0, 0.0], (0, 0)),
        ([-E, 0.0, 1.3 * E * 1.000001], None),
        ([0.0, 1 / 3 + 1e-6, 2 / 3, 1.0], None),
        ([-1.0, float("inf")], None),
    ],
)
def test_integers(values, numbers):
    found = integers_of(torch.tensor(values, dtype=torch.float32)[:, None])
    assert (found and found.numbers) == numbers
    if numbers is not None:
        off = np.abs(np.array(numbers) * float(found.step) - np.float32(values).astype(np.float64))
        assert (off <= 2.0**-23 * np.abs(values)).all()


def test_a_step_a_channel_and_a_channel_of_zeros():
    steps = torch.tensor([0.5, 0.0, 0.37])
    found = integers_of(torch.stack([-steps, steps]))
    assert found.numbers == (-1, 1) and found.step.tolist() == steps.double().tolist()


@pytest.mark.parametrize(
    "numbers", [(-1, 1), (0, 1, 2, 3), (-3, -1, 1, 3), (-4, -2, -1, 0, 1, 2, 4), (5,), (0, 0)]
)
def test_planes_give_the_numbers_back(numbers):
    planes = planes_of(numbers)
    bits = [[code >> j & 1 for j in range(len(planes.factors))] for code in planes.codes]
    assert (
        tuple(planes.lowest + sum(f * b for f, b in zip(planes.factors, row, strict=True)) for row in bits)
        == numbers
    )


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (6, 1, 1, 1), (1, 1, 3, 1), (1, 1, 2, 2), (6, 1, 3, 2), (1, 1, 1, 2)]
)
@pytest.mark.parametrize("below", ["ternary", "two scales", "unscaled", "binary"])
def test_terms_are_the_weights(shape, below):
    rng = np.random.default_rng(0)
    s = torch.from_numpy(rng.uniform(0.1, 2.0, shape).astype(np.float32))
    kinds = {"ternary": [-s, 0 * s, s], "two scales": [-s, 0 * s, 1.7 * s + 0.1], "binary": [-s, s]}
    table = torch.stack(kinds.get(below, [-s, 0 * s - 1, 0 * s + 1, s]))
    codes = torch.from_numpy(rng.integers(0, len(table), (6, 5, 3, 2)).astype(np.uint8))
    if shape[2:] == (2, 2):
        codes = codes[:, :, :2]
    levels = Levels(codes, table)
    terms = weight_terms(levels)
    total = sum(term.scale[:, None, None] * term.numbers() for term in terms)
    wanted = levels.weight().double().flatten(2)
    assert bool(((total - wanted).abs() <= 2.0**-23 * wanted.abs()).all())
    planes = {"ternary": 2, "two scales": 2, "unscaled": 4, "binary": 1}[below]
    assert pairs_of(terms, 3) == 3 * planes


def test_a_scale_for_each_input_channel_has_no_terms():
    levels = Levels(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.rand(2, 1, 3, 1, 1))
    assert weight_terms(levels) == "its weights have a scale for each input channel"


@pytest.mark.parametrize(
    ("scale", "numbers", "step", "exact"),
    [
        (1.0, [-1, 1], 1.0, True),
        (0.25, [0, 1], 0.5, True),
        (0.3, [0, 1], 1.0, False),
        (1.0, [0, 1, 2], 1 / 3, False),
    ],
)
def test_where_float32_rounds_nothing(scale, numbers, step, exact):
    table = torch.tensor([-scale, scale]).reshape(2, 1, 1, 1, 1)
    terms = weight_terms(Levels(torch.zeros(3, 50, 3, 3, dtype=torch.uint8), table))
    assert sums_are_exact(terms, numbers, step) == exact
    assert largest_sum(terms, numbers) == 450 * max(map(abs, numbers))


def test_sums_beyond_the_numbers_that_float32_has_are_not_exact():
    table = torch.tensor([-255.0, 255.0, 254.0]).reshape(3, 1, 1, 1, 1)
    terms = weight_terms(Levels(torch.zeros(1, 2**14, 2, 2, dtype=torch.uint8), table))
    assert largest_sum(terms, [0, 1]) == 255 * 2**16 < 2**24 and not sums_are_exact(terms, [0, 2], 1.0)
