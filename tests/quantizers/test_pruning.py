"""CLIP-Q and TSQ beyond the conformance checks: both set weights or activations to 0 on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.quantizers import make_quantizer
from bench.quantizers.tsq import sparse_step
from tests.conformance.checks import values
from tests.quantizers import quantizer_oracles as oracle


def clipq(weights, bits=2, clip=0.5):
    return make_quantizer("clipq", bits, clip=clip).weight(torch.tensor([weights])).flatten().tolist()


def test_clipq_by_hand():
    """Half of each sign is clipped; of [-3, -2] one mean, of [3, 7] a mean below and one above 5."""
    w = [-1.0, -1.5, -2.0, -3.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 6.0, 7.0]
    assert clipq(w) == [0.0, 0.0, -2.5, -2.5, 0.0, 0.0, 0.0, 0.0, 0.0, 3.5, 3.5, 6.5, 6.5]
    assert clipq([-x for x in w]) == [-x for x in clipq(w)], "the longer side has the odd interval"


def test_a_clipped_weight_returns_once_it_has_grown():
    w = torch.nn.Parameter(torch.tensor([[0.1, 0.2, 1.0, 2.0]]))
    quantizer = make_quantizer("clipq", 2)
    low = quantizer.weight(w)
    assert low.tolist() == [[0.0, 0.0, 1.0, 2.0]]
    (-5.0 * low[0, 0]).backward()
    torch.optim.SGD([w], lr=1.0).step()
    assert quantizer.weight(w)[0, 0] > 0 and quantizer.weight(w)[0, 2] == 0


@pytest.mark.parametrize("weights", [[1.0, 2.0, 5.0], [-1.0, -2.0], [0.0, 0.0], [3.0]])
def test_clipq_of_weights_of_one_sign(weights):
    found = np.array(clipq(weights, clip=0.0))
    assert (np.sign(found) == np.sign(weights)).all()
    assert found.sum() == pytest.approx(sum(weights)), "means keep the sum"


@pytest.mark.parametrize("clip", [0.0, 0.3, 0.9])
def test_clipq_sets_the_share_to_zero(clip):
    w = values((1, 2_000))
    zeros = np.array(clipq(w[0].tolist(), 3, clip)) == 0
    assert zeros.mean() == pytest.approx(clip, abs=1e-3)
    assert np.abs(w[0][zeros]).max(initial=0) < 3 * np.abs(w[0][~zeros]).max()


def test_tsq_by_hand():
    """(3 + 2)^2 / 2 = 12.5 is more than 3^2 and (3 + 2 + 1 / 2)^2 / 3 = 10.1; alone 4 is best left alone."""
    w = torch.tensor([[3.0, -2.0, 0.5, 0.0], [4.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    want = [[2.5, -2.5, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert make_quantizer("tsq", 2).weight(w).tolist() == want


def test_alternating_least_squares_do_not_better_the_ternary_weights():
    w = values((20, 30))
    best = ((w - make_quantizer("tsq", 2).weight(torch.tensor(w).float()).double().numpy()) ** 2).sum(1)
    for start in (0.2, 0.7, 1.5):
        a = start * np.abs(w).max(1, keepdims=True)
        for _ in range(50):
            t = np.sign(w) * (np.abs(w) > a / 2)
            a = (w * t).sum(1, keepdims=True) / np.maximum((t * t).sum(1, keepdims=True), 1)
        assert (((w - a * t) ** 2).sum(1) >= best - 1e-5).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_sparse_step_has_the_least_squared_error(bits):
    threshold, step = sparse_step(bits, 0.75)
    assert step == oracle.SPARSE_STEPS[bits]
    x = np.linspace(threshold, 9, 200_001)

    def error(step):
        q = step * np.clip(np.rint(x / step), 1, 2**bits - 1)
        return ((q - x) ** 2 * np.exp(-x * x / 2)).sum()

    assert error(step) < min(error(step * 0.999), error(step * 1.001))


def test_half_sparsity_is_hwgq():
    x = torch.tensor(values(500)).float()
    one, other = make_quantizer("tsq", 2, 2, sparsity=0.5), make_quantizer("hwgq", 1, 2)
    torch.testing.assert_close(one.activation(x), other.activation(x), rtol=1e-5, atol=0)


def test_tsq_sets_three_quarters_of_a_normal_variable_to_zero():
    x = torch.tensor(values(20_000)).float()
    assert (make_quantizer("tsq", 2, 2).activation(x) == 0).float().mean() == pytest.approx(0.75, abs=0.02)
