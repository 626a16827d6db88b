"""Sharpness and barrier: on functions whose answer is known, and on small trials."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.cli.main import main
from bench.errors import InputError
from bench.records.store import Store
from bench.training import sharpness
from bench.training.evaluate import reestimate_batch_norm
from bench.training.job import Job
from bench.training.sharpness import barrier, filter_noise, path_losses, rise_under_noise, subject, untrained
from bench.training.trial import run_trial
from tests.configs import make_config

ONE, OTHER, XNOR = "1" * 16, "2" * 16, "3" * 16


def test_the_noise_of_a_filter_has_its_share_of_the_norm():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[2] = 0.0
    noise = filter_noise(weight, 0.3, key=7)
    norms = [[filter.norm().item() for filter in tensor] for tensor in (noise, weight)]
    np.testing.assert_allclose(norms[0], 0.3 * np.array(norms[1]), rtol=1e-5)
    assert torch.equal(noise, filter_noise(weight, 0.3, key=7))
    assert not torch.equal(noise, filter_noise(weight, 0.3, key=8))


def test_the_rise_of_a_quadratic_is_its_formula():
    """L(w) = 1/2 sum h w^2: the mean rise is size^2 / 2 times the sum over filters of |w|^2 mean(h)."""
    dice = np.random.default_rng(0)
    centre = {name: torch.tensor(dice.normal(size=(4, 50))) for name in ("a", "b")}
    curvature = {name: torch.tensor(dice.uniform(0.5, 2, size=(4, 50))) for name in centre}

    def loss(weights):
        squares = (curvature[n] * (w - centre[n]).square() for n, w in weights.items())
        return 0.5 * float(sum(square.sum() for square in squares))

    size = 0.2
    expected = (
        0.5 * size**2 * sum(float(w.square().sum(1) @ curvature[name].mean(1)) for name, w in centre.items())
    )
    found = rise_under_noise(loss, centre, size, draws=200)
    assert found.mean == pytest.approx(expected, rel=0.02)
    assert abs(found.mean - expected) < 4 * found.error < 0.1 * expected
    doubled = rise_under_noise(loss, centre, 2 * size, draws=200)
    assert doubled.mean == pytest.approx(4 * found.mean, rel=1e-9)  # the same draws
    assert math.isnan(rise_under_noise(loss, centre, size, draws=1).error)


def test_the_barrier_of_known_paths():
    double_well = [(w**2 - 1) ** 2 for w in np.linspace(-1, 1, 11)]
    assert barrier(double_well) == pytest.approx(1.0)
    parabola = [w**2 for w in np.linspace(-1, 2, 11)]
    assert barrier(parabola) == 0.0  # one valley
    tilted = [loss + 3 * i / 10 for i, loss in enumerate(double_well)]
    assert barrier(tilted) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharpness")
    store = Store(folder)
    branch = {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}}
    for id, fields in (
        (ONE, {"strategy": branch, "seed": 1}),
        (OTHER, {"seed": 2}),
        (XNOR, {"quantizer": "xnor", "epochs": 6}),
    ):
        assert run_trial(Job(make_config(**fields), id, {}, store, folder)) == "done"
    return store


def test_measuring_changes_nothing_and_stronger_noise_does_more(store, tmp_path):
    found = subject(store, ONE, tmp_path, 64)
    assert sum(len(labels) for _, labels in found.images) == 64
    before = {name: t.clone() for name, t in found.network.state_dict().items()}
    start = found.loss()
    weak, strong = (sharpness.sharpness(found, size, 5) for size in (0.01, 1.0))
    stored = sharpness.sharpness(found, 1.0, 5, stored=True)
    assert abs(weak.mean) < abs(strong.mean) and strong.mean > 0 and stored.mean != strong.mean
    assert found.loss() == start
    after = found.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_scaling_stored_weights_behind_a_sign_changes_the_noise_on_stored_weights_alone(store, tmp_path):
    """XNOR-Net's scale of a filter is divided out by batch norm; what counts is which weights lie near 0."""
    found = subject(store, XNOR, tmp_path, 32)
    quantized, stored = (sharpness.sharpness(found, 0.3, 3, stored=stored) for stored in (False, True))
    layers = [layer for _, layer in found.network.low_precision_layers()]
    with torch.no_grad():
        for layer in layers:  # every weight at its filter's mean magnitude: the quantized ones stay the same
            layer.weight.copy_(layer.quantizer.weight(layer.weight))
    again, firm = (sharpness.sharpness(found, 0.3, 3, stored=stored) for stored in (False, True))
    assert again.mean == pytest.approx(quantized.mean, rel=1e-3)
    assert abs(firm.mean) < 0.5 * abs(stored.mean)


def test_a_path_ends_at_both_trials_and_leaves_them_alone(store, tmp_path):
    one, other = (subject(store, id, tmp_path, 64) for id in (ONE, OTHER))
    before = one.loss(), other.loss()
    losses = path_losses(one, other, 5)
    for subject_, loss in ((one, losses[0]), (replace(other, images=one.images), losses[-1])):
        network = copy.deepcopy(subject_.network)
        reestimate_batch_norm(network, one.images)
        assert replace(subject_, network=network).loss() == pytest.approx(loss, rel=1e-5)
    assert barrier(path_losses(one, one, 3)) == pytest.approx(0.0, abs=1e-6)
    assert (one.loss(), other.loss()) == before


def test_no_line_joins_networks_of_other_shapes(store, tmp_path):
    run_trial(Job(make_config(width=0.25, epochs=1), "4" * 16, {}, store, tmp_path))
    one, other = (subject(store, id, tmp_path, 64) for id in (ONE, "4" * 16))
    with pytest.raises(InputError, match="no line joins the weights"):
        path_losses(one, other, 3)


def test_untrained_weights_are_those_of_the_recipe(store, tmp_path):
    found = subject(store, OTHER, tmp_path, 64)
    start = untrained(found)
    assert start.loss() > found.loss()
    assert not torch.equal(start.network.conv1.weight, found.network.conv1.weight)


def test_the_command_prints_both_trials_and_the_barrier(store, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    places = [
        "--results",
        str(store.root),
        "--images",
        "32",
        "--draws",
        "2",
        "--size",
        "0.1",
        "--points",
        "3",
    ]
    assert main(["sharpness", ONE, OTHER, *places, "--json", str(file)]) == 0
    shown, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "rise at 0.1" in shown and "Barrier" in shown and shown.count("untrained") == 2
    assert found["barrier"] == pytest.approx(barrier(found["path"])) and len(found["path"]) == 3
    assert [trial["id"] for trial in found["trials"]] == [ONE, OTHER] and found["noise_on"] == "quantized"
    assert main(["sharpness", ONE, OTHER, XNOR, *places]) == 2
    assert "one trial or two" in capsys.readouterr().err
    assert main(["sharpness", "f" * 16, *places]) == 2
