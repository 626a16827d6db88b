"""What LQ-Nets, weighted-entropy quantization and Tang's networks promise beyond the conformance checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.quantizers import make_quantizer
from bench.quantizers.lqnets import RIDGE
from bench.quantizers.weq import LOGARITHMIC
from tests.conformance.checks import run, values
from tests.quantizers import quantizer_oracles as oracle

CONV = (4, 5, 3, 3)


def fit(digits, x, basis):
    """The ridge solution in float64: (B'B + d I) v = B'x + d basis."""
    gram = digits.T @ digits + RIDGE * np.eye(len(basis))
    return np.linalg.solve(gram, digits.T @ x + RIDGE * basis)


def digits_of(x, basis, low):
    """The code of the nearest level for each x."""
    codes = np.array(
        [[1.0 if n >> i & 1 else low for i in range(len(basis))] for n in range(2 ** len(basis))]
    )
    return codes[np.abs(x[:, None] - codes @ basis).argmin(axis=1)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_step_moves_the_basis_of_each_filter_towards_its_fit(bits):
    w = values(CONV, scale=0.2)
    q = make_quantizer("lqnets", bits, 2, weight_shape=CONV, moving=0.75)
    q.start_(torch.tensor(w).float())
    deviation = np.sqrt((w**2).mean())
    start = deviation * 0.6745 / 2 ** (bits - 1) * 2.0 ** np.arange(bits)
    np.testing.assert_allclose(q.weight_basis.numpy(), np.tile(start, (4, 1)), rtol=1e-6)
    before = torch.tensor(w).float()
    q.after_step_(before)
    assert (before.numpy() == np.float32(w)).all(), "the weights stay"
    for i, filter in enumerate(w.reshape(4, -1)):
        want = 0.75 * start + 0.25 * fit(digits_of(filter, start, -1.0), filter, start)
        np.testing.assert_allclose(q.weight_basis[i].numpy(), want, rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_training_batch_moves_the_basis_of_the_activations(bits):
    x = values((3, 400))
    q = make_quantizer("lqnets", 1, bits)
    start = q.input_basis.double().numpy()
    y = q.activation(torch.tensor(x).float())
    flat = np.maximum(x, 0).ravel()
    want = 0.9 * start + 0.1 * fit(digits_of(flat, start, 0.0), flat, start)
    np.testing.assert_allclose(q.input_basis.numpy(), want, rtol=1e-4)
    q.eval()
    moved = q.input_basis.clone()
    again = q.activation(torch.tensor(x).float())
    assert torch.equal(q.input_basis, moved) and not torch.equal(again, y)


def test_a_basis_that_fits_exactly_is_kept_and_dead_activations_leave_it_finite():
    q = make_quantizer("lqnets", 2, 2, weight_shape=(1, 400))
    q.weight_basis.copy_(torch.tensor([[0.25, 0.75]]))
    w = torch.tensor([[-1.0, -0.5, 0.5, 1.0] * 100])
    assert torch.equal(q.weight(w), w)
    q.after_step_(w)
    torch.testing.assert_close(q.weight_basis, torch.tensor([[0.25, 0.75]]))
    for x in (torch.zeros(5, 3), -torch.ones(5, 3), torch.full((5, 3), 0.3)):
        for _ in range(5):
            q.activation(x)
        assert torch.isfinite(q.input_basis).all()


def test_the_basis_moves_in_compiled_code_as_well():
    x = torch.tensor(values((2, 50))).float()
    eager, compiled = (make_quantizer("lqnets", 2, 2) for _ in range(2))
    torch._dynamo.reset()
    function = torch.compile(compiled.activation, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(function(x), eager.activation(x))
        torch.testing.assert_close(compiled.input_basis, eager.input_basis)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_the_logarithmic_levels_have_the_greatest_weighted_entropy(bits):
    """Of a rectified standard normal variable: half the mass at 0, importance of an activation its value."""
    x = np.linspace(0, 6, 20_001)[1:]
    mass = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])

    def entropy(top, distance):
        exponents = top - distance * np.arange(2**bits - 1)[::-1]
        places = np.searchsorted(2.0 ** ((exponents - distance / 2) / 16), x)
        share = np.bincount(places, mass, 2**bits)
        sums = np.bincount(places, mass * x, 2**bits)
        share[0] += 0.5
        used = share > 0
        return -(sums[used] * np.log(share[used])).sum()

    top, distance = LOGARITHMIC[bits]
    best = entropy(top, distance)
    around = [(t, d) for t in range(top - 8, top + 9) for d in ([16] if bits == 1 else range(1, 20))]
    assert max(entropy(*place) for place in around) <= best + 1e-5


def test_more_sweeps_raise_the_weighted_entropy():
    w = values((1, 300))
    scores = []
    for sweeps in (0, 1, 4):
        q = make_quantizer("weq", 3, 2, sweeps=sweeps)
        codes = q.weight(torch.tensor(w).float()).abs().double().numpy().ravel()
        order = np.argsort(np.abs(w).ravel())
        cuts = [0, *(np.flatnonzero(np.diff(codes[order])) + 1), 300]
        scores.append(oracle.entropy_of(np.sort(w.ravel() ** 2), cuts))
    assert scores[0] < scores[1] <= scores[2]


def test_fewer_weights_than_clusters():
    q = make_quantizer("weq", 4, 2)
    w = torch.tensor([[0.5, -1.0, 0.0]], requires_grad=True)
    y = q.weight(w)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.equal(w.grad, torch.ones_like(w))


def test_tangs_penalty_pushes_weights_to_both_ends():
    q = make_quantizer("tang", 1, 1, bipolar=0.25)
    w, extra = (torch.tensor(v, requires_grad=True) for v in ([0.5, -0.25], [1.0]))
    q.add_penalty_(w)
    assert w.grad is None
    w.grad, extra.grad = torch.ones(2), torch.ones(1)
    q.add_penalty_(w, extra)
    assert w.grad.tolist() == [1 - 0.25, 1 + 0.125] and extra.grad.tolist() == [0.5]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_binarizations_are_scaled_for_each_sample(count):
    x = values((3, 2, 4, 4))
    q = make_quantizer("tang", 1, count)
    y, _ = run(q.activation, x, np.ones_like(x))
    for i in range(3):
        want, *_, near = oracle.residual_signs(x[i], x[i], count, 0.25)
        np.testing.assert_allclose(y[i][near > 1e-5], want[near > 1e-5], rtol=1e-5, atol=1e-6)
    errors = [
        np.square(x - run(make_quantizer("tang", 1, c, slope=1.0).activation, x, x)[0]).mean()
        for c in (2, 3, 4)
    ]
    assert errors[0] > errors[1] > errors[2], "each binarization leaves less"
