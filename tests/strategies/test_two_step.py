"""Two-Step Quantization: the parts of a layer's fit by hand and by brute force, and the fit of a network."""

from __future__ import annotations

import copy
import itertools
import logging
import re

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.quantizers import make_quantizer
from bench.quantizers.deployed import ActivationMap
from bench.strategies import make_strategy
from bench.strategies.fitted_layers import Survey, affine_of
from bench.strategies.layer_fit import PENALTIES, Layer, best_inputs, fit, improve_codes_, pieces_of
from bench.strategies.two_step import filter_levels
from tests.configs import make_config

TERNARY = np.array([-1.0, 0.0, 1.0])
MAPS = {
    "identity": ActivationMap("identity"),
    "relu": ActivationMap("relu"),
    "clip": ActivationMap("clip", 0.0, 1.5),
    "sign": ActivationMap("sign"),
    "round": ActivationMap("round", bits=2),
    "tsq": make_quantizer("tsq", 2, 2).activation_map(),
}


def oracle(form: str, x: np.ndarray) -> np.ndarray:
    """Return the map called ``form`` in NumPy."""
    step = 0.786785
    return {
        "identity": lambda: x,
        "relu": lambda: np.maximum(x, 0.0),
        "clip": lambda: np.clip(x, 0.0, 1.5),
        "sign": lambda: np.where(x >= 0, 1.0, -1.0),
        "round": lambda: np.rint(3.0 * np.clip(x, 0.0, 1.0)) / 3.0,
        "tsq": lambda: step * sum((x > t).astype(float) for t in (0.67449, 1.5 * step, 2.5 * step)),
    }[form]()


def layer(rows, target, slope=1.0, offset=0.0, form="identity", levels=TERNARY) -> Layer:
    out = target.shape[1]
    made = (rows, target, np.full(out, slope), np.full(out, offset), levels)
    x, y, s, c, t = (torch.tensor(np.asarray(one, dtype=np.float64)) for one in made)
    return Layer(x, y, s, c, pieces_of(MAPS[form]), t)


def start(weight: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and scales of the ternary weights nearest to ``weight`` (m, out)."""
    found = make_quantizer("tsq", 2, 2).weight(torch.tensor(weight.T).float()).double().T
    scale = found.abs().amax(0)
    return (found / scale).round(), scale


@pytest.mark.parametrize("form", MAPS)
def test_the_pieces_are_the_map(form):
    x = np.random.default_rng(0).normal(size=200) * 2.0
    np.testing.assert_allclose(pieces_of(MAPS[form])(torch.tensor(x)), oracle(form, x), rtol=1e-6)


@pytest.mark.parametrize("form", MAPS)
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_z_is_the_best_of_a_fine_grid(form, penalty):
    dice = np.random.default_rng(1)
    target, response = oracle(form, dice.normal(size=12)), dice.normal(size=12) * 2.0
    grid = np.linspace(-9.0, 9.0, 180_001)
    z, least = best_inputs(torch.tensor(target), torch.tensor(response), penalty, pieces_of(MAPS[form]))
    for i in range(12):
        costs = (target[i] - oracle(form, grid)) ** 2 + penalty * (grid - response[i]) ** 2
        assert least[i].item() == pytest.approx(costs.min(), abs=2e-3)
        assert least[i].item() <= costs.min() + 1e-6  # float32 thresholds
        assert penalty * (z[i].item() - response[i]) ** 2 <= costs.min() + 1e-6


def test_a_layer_of_two_weights_by_hand():
    """y = (2, -0.1) of the rows (1, 0) and (0, 1): a t = (2, 0), which misses by 0.01."""
    found = fit(
        layer(np.eye(2), np.array([[2.0], [-0.1]])),
        torch.tensor([[1.0], [-1.0]]).double(),
        torch.tensor([1.05]),
    )
    assert found.codes.flatten().tolist() == [1.0, 0.0] and found.scale.item() == pytest.approx(2.0)
    assert found.before.item() == pytest.approx(0.95**2 + 0.95**2) and found.after.item() == pytest.approx(
        0.01
    )
    shifted = fit(  # the same behind the affine map -2 x + 1
        layer(np.eye(2), np.array([[-3.0], [1.2]]), slope=-2.0, offset=1.0),
        torch.tensor([[1.0], [-1.0]]).double(),
        torch.tensor([1.05]),
    )
    assert shifted.codes.flatten().tolist() == [1.0, 0.0] and shifted.scale.item() == pytest.approx(2.0)


def error(x: np.ndarray, u: np.ndarray, codes: np.ndarray) -> float:
    """Return min over a >= 0 of |u - a x t|^2."""
    v = x @ codes
    a = max(float(v @ u), 0.0) / float(v @ v) if v.any() else 0.0
    return float(((u - a * v) ** 2).sum())


@pytest.mark.parametrize("levels", [TERNARY, np.array([-1.0, 1.0])], ids=["ternary", "binary"])
def test_codes_are_the_best_of_all_for_orthogonal_rows_and_the_best_of_all_neighbours_for_others(levels):
    dice = np.random.default_rng(2)
    for orthogonal in (True, False):
        for _ in range(10):
            x = dice.normal(size=(40, 5))
            x = np.linalg.qr(x)[0] if orthogonal else x
            u = x @ dice.normal(size=5) + 0.3 * dice.normal(size=40)
            codes = np.sign(x.T @ u)[:, None].copy()
            before = error(x, u, codes[:, 0])
            for _ in range(8):
                scale = improve_codes_(codes, x.T @ x, (x.T @ u)[:, None], levels)
                after = error(x, u, codes[:, 0])
                assert after <= before * (1 + 1e-12)
                assert ((u - scale[0] * (x @ codes[:, 0])) ** 2).sum() == pytest.approx(after)
                before = after
            neighbours = [
                np.where(np.arange(5) == i, level, codes[:, 0]) for i in range(5) for level in levels
            ]
            every = [np.array(t) for t in itertools.product(levels, repeat=5)]
            tried = every if orthogonal and len(levels) == 2 else neighbours
            assert before <= min(error(x, u, t) for t in tried) * (1 + 1e-9)


@pytest.mark.parametrize(("form", "left"), [("identity", 0.0), ("relu", 0.7), ("tsq", 0.9)])
def test_planted_ternary_weights_are_found(form, left):
    """From weights near to others a linear fit finds the planted ones, another one comes nearer."""
    dice = np.random.default_rng(3)
    x = np.maximum(dice.normal(size=(1000, 12)), 0.0)
    codes = dice.choice(TERNARY, size=(12, 4))
    target = oracle(form, x @ (0.7 * codes) - 0.2)
    near = 0.7 * codes + 0.25 * dice.normal(size=codes.shape)
    found = fit(layer(x, target, offset=-0.2, form=form), *start(near))
    assert found.before.sum() > 100.0 and found.after.sum() <= left * found.before.sum() + 1e-9
    if left == 0.0:
        np.testing.assert_array_equal(found.codes, codes)
        np.testing.assert_allclose(found.scale, 0.7)


@pytest.mark.parametrize("form", MAPS)
def test_no_step_raises_the_penalized_sum_and_no_filter_becomes_worse(form):
    dice = np.random.default_rng(4)
    x, weight = dice.normal(size=(300, 20)), dice.normal(size=(20, 6))
    made = layer(x, oracle(form, 0.5 * (x + 0.1) @ weight + 0.3), slope=0.5, offset=0.3, form=form)
    codes, scale = start(weight)
    found = fit(made, codes, scale)
    assert {penalty for penalty, _, _ in found.path} == set(PENALTIES)
    for penalty in PENALTIES:
        sums = [value for p, *pair in found.path if p == penalty for value in pair]
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(sums))
    for given, errors in (((codes, scale), found.before), ((found.codes, found.scale), found.after)):
        t, a = (value.numpy() for value in given)
        response = 0.5 * (x @ t) * a + 0.3
        want = ((made.target.numpy() - oracle(form, response)) ** 2).sum(0)
        np.testing.assert_allclose(errors, want, rtol=1e-5)
    assert (found.after <= found.before).all() and found.after.sum() < found.before.sum()
    assert set(np.unique(found.codes)) <= set(TERNARY) and (found.scale > 0).all()


def test_a_filter_without_effect_and_one_of_zeros_keep_their_start():
    dice = np.random.default_rng(5)
    x = dice.normal(size=(50, 4))
    made = layer(x, x @ dice.normal(size=(4, 2)), slope=0.0)
    codes, scale = torch.zeros(4, 2).double(), torch.zeros(2).double()
    codes[:, 1], scale[1] = 1.0, 0.5
    found = fit(made, codes, scale)
    assert torch.equal(found.codes, codes) and torch.equal(found.scale, scale)


# --- a network ---


def two_step(bits="2/2", quantizer="tsq", **fields):
    """Return a run of 10 steps, the fit before step 5."""
    options = {"images": 24, "rows": 10**6, **fields.pop("options", {})}
    config = make_config(bits=bits, quantizer=quantizer, strategy={"kind": "two_step", **options}, **fields)
    return make_run(config, synthetic(96), "cpu")


def test_rows_times_weights_are_the_layers_outputs():
    run = two_step()
    layers = dict(run.network.low_precision_layers())
    images = torch.rand(5, 3, 40, 40)
    run.network.eval()
    run.clock.set(0, 1.0)
    with torch.no_grad():
        survey = Survey(run.network, layers, images, 20, seed=0)
        assert list(survey.order) == [f"conv{i}" for i in range(1, 7)]
        for name, one in layers.items():
            (rows,) = survey.rows_of(name)
            assert len(rows) == (20 if name != "conv6" else 5)  # conv6 has one position an image
            torch.testing.assert_close(rows @ one.weight.flatten(1).T, survey.responses[name])
            norm, activation = survey.behind[name]
            assert norm is getattr(run.network, f"bn{name[-1]}")
            assert activation.form == ("table" if name != "conv6" else "clip")  # the classifier bounds
            slope, offset = affine_of(norm, one.weight)
            x = torch.rand(3, len(slope), 2, 2)
            torch.testing.assert_close(
                norm(x), x * slope[:, None, None].float() + offset[:, None, None].float()
            )


def test_each_layer_is_fitted_to_its_full_precision_activation_behind_the_fitted_ones(caplog):
    run = two_step()
    for _ in range(5):
        run.train_step()
    before = copy.deepcopy(run.network)
    images = torch.cat([x for x, _ in run.data.estimation_batches(2, 16)])[:24]
    with caplog.at_level(logging.INFO, logger="bench.trial"):
        run.strategy.calibrate(run.network, images, 5)
    logged = {m[1]: float(m[2]) for m in re.finditer(r"error of (\w+): .*, fitted ([\d.e+-]+)", caplog.text)}
    read = {}
    for key, network in (("full", before), ("low", run.network)):
        network.eval()
        for name in ("conv2", "conv4", "conv6"):
            bn = network.get_submodule("bn" + name[-1])
            bn.register_forward_hook(lambda m, i, y, key=(key, name): read.__setitem__(key, y))
    for clock, factor, network in ((before.conv1.clock, 1.0, before), (run.clock, 0.0, run.network)):
        clock.set(4, factor)
        with torch.no_grad():
            network(images)
    for name in ("conv2", "conv4", "conv6"):
        full, low = (read[key, name].double().numpy() for key in ("full", "low"))
        # the classifier bounds what it reads and does not quantize it
        full, low = (
            np.clip(x, 0.0, 3 * 0.786785) if name == "conv6" else oracle("tsq", x) for x in (full, low)
        )
        assert logged[name] == pytest.approx(((full - low) ** 2).sum(), rel=2e-3)


@pytest.mark.parametrize(
    ("quantizer", "bits", "levels"), [("tsq", "2/2", 3), ("bwn", "1/2", 2), ("bireal", "1/1", 2)]
)
def test_fitted_weights_are_what_the_quantizer_returns_and_stay(quantizer, bits, levels):
    run = two_step(bits, quantizer, options={"images": 16, "rows": 64})
    conv = run.network.conv2
    for step in range(5):
        run.train_step()
        assert torch.equal(conv.low_precision_weight(False), conv.weight), step
    run.train_step()  # fits, then trains
    fitted = conv.weight.detach().clone()
    assert max(len(one.unique()) for one in fitted.abs().flatten(1)) <= levels - 1
    torch.testing.assert_close(conv.low_precision_weight(False), fitted, rtol=1e-6, atol=0.0)
    other = run.network.linear.weight.detach().clone()
    for _ in range(4):
        run.train_step()
    assert torch.equal(conv.weight, fitted) and not torch.equal(run.network.linear.weight, other)


def test_without_frozen_the_fit_is_a_start():
    run = two_step(options={"images": 16, "rows": 64, "frozen": False})
    for _ in range(6):
        run.train_step()
    fitted = run.network.conv2.weight.detach().clone()
    run.train_step()
    assert not torch.equal(run.network.conv2.weight, fitted) and run.network.conv2.partition is None


def test_levels_are_those_of_quantizers_with_one_scale_a_filter():
    assert filter_levels(make_quantizer("tsq", 2, 2)) == [-1.0, 0.0, 1.0]
    assert filter_levels(make_quantizer("bwn", 1, 2)) == [-1.0, 1.0]
    for kind, w_bits, a_bits in (
        ("dorefa", 1, 1), ("dorefa", 2, 2), ("twn", 2, 2), ("lsq", 2, 2), ("ttq", 2, 2), ("xnor", 1, 1),
        ("clipq", 2, 2), ("inq", 2, 2), ("full_precision", 32, 32), ("bnn", 1, 1), ("weq", 2, 2),
        ("syq", 2, 2),
    ):  # fmt: skip
        assert filter_levels(make_quantizer(kind, w_bits, a_bits)) is None, kind


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantizer": "dorefa", "bits": "2/2"}, r"one scale a filter.*not 'dorefa' at 2/2 bits"),
        ({"quantizer": "full_precision", "bits": "32/32"}, r"bits has 32 of weights"),
        (
            {"quantizer": "tsq", "bits": "2/2", "network": {"kind": "svhn_convnet", "activation": "abs"}},
            r'"clip"',
        ),
    ],
)
def test_what_cannot_be_is_said(fields, words):
    with pytest.raises(InputError, match=words):
        make_strategy(make_config(strategy={"kind": "two_step"}, **fields), 5)
