"""INQ's powers of two at the boundaries between levels, which must be exact."""

from __future__ import annotations

import math

import pytest
import torch

from bench.quantizers import make_quantizer


def quantized(values, bits):
    return make_quantizer("inq", bits).weight(torch.tensor([values])).tolist()[0]


def test_five_bits_have_eight_powers_and_ties_go_up():
    found = quantized([1.0, 0.75, math.nextafter(0.75, 0) - 1e-7, 0.375, -0.3, 2**-8, 2**-9, -(2**-7)], 5)
    assert found == [1.0, 1.0, 0.5, 0.5, -0.25, 2**-7, 0.0, -(2**-7)]
    assert quantized([1.0, 0.5, 0.49], 2) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("exponent", [-100, -3, 0, 7])
def test_the_highest_power_changes_at_three_quarters_exactly(exponent):
    limit = torch.tensor(0.75 * 2.0**exponent)
    below = torch.nextafter(limit, torch.tensor(0.0))
    highest = [make_quantizer("inq", 4).statistics(x[None]).item() for x in (limit, below)]
    assert highest == [2.0**exponent, 2.0 ** (exponent - 1)]


def test_quantized_weights_are_fixed_points():
    weight = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    quantizer = make_quantizer("inq", 4)
    assert torch.equal(quantizer.weight(quantizer.weight(weight)), quantizer.weight(weight))


def test_every_power_is_exact():
    weight = torch.tensor([[1.7e3, -3.0]])
    values = make_quantizer("inq", 8).level_values(weight).flatten()
    mantissa, _ = torch.frexp(values[values > 0])
    assert len(values) == 129 and (mantissa == 0.5).all()
