"""Rows of diagnostics.npz: against NumPy, exact after a resume, never of test images in tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.layers.diagnostics import layer_diagnostics
from bench.records.store import Store
from bench.training.diagnostics import MEASURED, OBSERVED, Diagnostics, _codes, due, read
from bench.training.job import Job
from bench.training.trial import run_trial
from tests.configs import make_config

ID = "0" * 16
FACTOR = {"kind": "cosine", "until": 0.7}
SUM = {"kind": "progressive", "merge": "sum", "factor": FACTOR}


def test_rows_are_few():
    assert [epoch for epoch in range(1, 41) if due(epoch, 40)] == [1, 10, 20, 30, 40]
    assert [epoch for epoch in range(1, 26) if due(epoch, 25)] == [1, 10, 20, 25]
    assert all(due(epoch, 20) for epoch in range(1, 21))


@pytest.mark.parametrize(("quantizer", "bits"), [("dorefa", "2/2"), ("twn", "2/32"), ("xnor", "1/1")])
def test_weights_are_the_formulas(quantizer, bits):
    run = make_run(make_config(quantizer=quantizer, bits=bits), synthetic(96), "cpu")
    network, layer = run.network, run.network.conv3
    before = layer.weight.detach().clone()
    levels_before = layer.quantizer.weight(before).detach()
    images = torch.rand(4, 3, 40, 40)
    with torch.no_grad():
        dice = torch.Generator().manual_seed(1)
        layer.weight += 0.05 * torch.randn(before.shape, generator=dice)
    rows = run.diagnostics
    rows.add(network, 1, 0.0, layer_diagnostics(network, images, detailed=True))
    found = {key: rows.rows[0][key][2] for key in MEASURED}
    w, low = layer.weight.detach().numpy(), layer.quantizer.weight(layer.weight).detach().double().numpy()
    scale = (w * low).sum() / (low * low).sum()
    codes = [
        np.searchsorted(np.unique(q.numpy().round(6)), q.numpy().round(6))
        for q in (levels_before, torch.tensor(low))
    ]
    if quantizer == "xnor":  # a scale for each filter
        codes = [q >= 0 for q in (levels_before.numpy(), low)]
    assert found["sign_changed"] == pytest.approx(((w >= 0) != (before.numpy() >= 0)).mean())
    assert (
        found["level_changed"] == pytest.approx((codes[0] != codes[1]).mean()) and found["level_changed"] > 0
    )
    assert found["weight_scale"] == pytest.approx(np.abs(low).mean(), rel=1e-6)
    error = np.linalg.norm(w - scale * low) / np.linalg.norm(w)
    assert found["weight_error"] == pytest.approx(error, rel=1e-4)
    rows.add(network, 2, 0.0, layer_diagnostics(network, images, detailed=True))
    assert rows.rows[1]["sign_changed"] == [0.0] * 6 and rows.rows[1]["level_changed"] == [0.0] * 6


def _place(value, table):
    """The level of a value, counted from 0 to either side."""
    side = [level for level in table if level * value > 0 and abs(level) <= abs(value)]
    return len(set(side)) * np.sign(value)


@pytest.mark.parametrize("quantizer", ["clipq", "dorefa_released"])
def test_levels_keep_their_names_where_the_table_of_levels_changes(quantizer):
    """CLIP-Q: the negative side has two levels, then one. A weight that becomes 0: three levels, not two."""
    bits = "2/2" if quantizer == "clipq" else "1/2"
    run = make_run(make_config(quantizer=quantizer, bits=bits), synthetic(96), "cpu")
    name, layer = run.diagnostics.layers[0]
    even = torch.linspace(-0.3, 0.3, layer.weight.numel()).view(layer.weight.shape)
    before, after = even.clone(), even.clone()
    if quantizer == "clipq":
        before.view(-1)[0], after.view(-1)[-1] = -0.5, 0.5
    else:
        after.view(-1)[-1] = 0.0
    with torch.no_grad():
        layer.weight.copy_(before)
        run.diagnostics.codes = {n: _codes(one)[0] for n, one in run.diagnostics.layers}
        layer.weight.copy_(after)
        found = run.diagnostics._measure(name, layer)
        low = [layer.quantizer.weight(w).numpy().ravel() for w in (before, after)]
    tables = [np.unique(values) for values in low]
    assert len(tables[0]) != len(tables[1]) or (tables[0] < 0).sum() != (tables[1] < 0).sum()
    places = [np.array([_place(v, table) for v in values]) for values, table in zip(low, tables, strict=True)]
    changed = (places[0] != places[1]).mean()
    assert found["level_changed"] == pytest.approx(changed) and 0 < changed < 0.3


def test_a_power_of_two_is_the_same_level_where_the_highest_one_moves():
    """INQ at 4 bits: powers 1/32 to 1/4, then 1/8 to 1. A weight of 0.3 is 1/4 before and after."""
    run = make_run(make_config(quantizer="inq", bits="4/32"), synthetic(96), "cpu")
    name, layer = run.diagnostics.layers[0]
    before = torch.linspace(-0.35, 0.35, layer.weight.numel()).view(layer.weight.shape)
    after = before.clone()
    after.view(-1)[-1] = 0.9
    low = [layer.quantizer.weight(w) for w in (before, after)]
    assert [w.abs().max().item() for w in low] == [0.25, 1.0] and layer.quantizer.statistics(before) == 0.25
    with torch.no_grad():
        layer.weight.copy_(before)
        run.diagnostics.codes = {n: _codes(one)[0] for n, one in run.diagnostics.layers}
        layer.weight.copy_(after)
        found = run.diagnostics._measure(name, layer)
    changed = (low[0] != low[1]).double().mean().item()
    assert found["level_changed"] == pytest.approx(changed) and 0.1 < changed < 0.4
    assert found["sign_changed"] == 0.0


def test_activations_are_the_formulas():
    run = make_run(make_config(bits="1/2"), synthetic(96), "cpu")
    read_by = {}
    run.network.conv4.register_forward_pre_hook(lambda m, inputs: read_by.update(y=inputs[0].numpy()))
    found = layer_diagnostics(run.network, torch.rand(4, 3, 40, 40), detailed=True)["conv4"]
    y = read_by["y"]
    bounded = np.clip(y, 0, 1)
    assert found["saturation"] == pytest.approx(((y < 0) | (y > 1)).mean())
    error = np.linalg.norm(np.round(3 * bounded) / 3 - bounded) / np.linalg.norm(bounded)
    assert found["activation_error"] == pytest.approx(error, rel=1e-5)


def test_a_trial_leaves_a_row_an_epoch_with_the_factor_and_the_ratio_of_each_branch(tmp_path):
    store = Store(tmp_path)
    assert run_trial(Job(make_config(strategy=SUM, epochs=3), ID, {}, store, tmp_path)) == "done"
    found = read(store.diagnostics(ID))
    assert list(found["layers"]) == [f"conv{i}" for i in range(1, 7)] and found["epoch"].tolist() == [1, 2, 3]
    assert found["factor"].tolist() == [line["factor"] for line in store.epochs(ID)]
    ratios = found["branch_ratio"]
    assert np.isnan(ratios[2]).all() and (ratios[:2] > 0).all()
    for line, row in zip(store.epochs(ID)[:2], ratios, strict=False):
        assert line["branch_ratio"] == pytest.approx(row.mean(), rel=1e-5)
    for key in set(OBSERVED + MEASURED) - {"branch_ratio"}:
        assert np.isfinite(found[key]).all(), key


def test_layers_in_full_precision_and_without_declared_levels_have_none(tmp_path):
    store = Store(tmp_path)
    config = make_config(quantizer="full_precision", bits="32/32", epochs=1)
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "done"
    assert not store.diagnostics(ID).exists()  # no low-precision layer
    run = make_run(make_config(bits="32/2"), synthetic(96), "cpu")
    run.diagnostics.add(
        run.network, 1, 0.0, layer_diagnostics(run.network, torch.rand(2, 3, 40, 40), detailed=True)
    )
    (row,) = run.diagnostics.rows
    assert row["level_changed"] == row["weight_scale"] == row["weight_error"] == [None] * 6


def test_stopped_and_resumed_the_file_is_the_same(tmp_path):
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    config = make_config(strategy=SUM, epochs=3)
    run_trial(Job(config, ID, {}, whole, tmp_path))
    for _ in range(10):
        asked = iter(range(100))
        job = Job(config, ID, {}, parts, tmp_path, stop=lambda asked=asked: next(asked) >= 3)
        if run_trial(job) == "done":
            break
    one, other = (read(store.diagnostics(ID)) for store in (whole, parts))
    assert all(np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f") for key in one)


def test_a_checkpoint_of_an_earlier_version_is_taken(tmp_path, monkeypatch):
    store, config = Store(tmp_path), make_config(strategy=SUM)
    asked = iter(range(100))
    run_trial(Job(config, ID, {}, store, tmp_path, stop=lambda: next(asked) >= 6))
    path = store.checkpoint(ID)
    state = torch.load(path, weights_only=True)
    del state["codes"]
    torch.save(state, path)
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "done"


def test_a_damaged_file_is_made_anew(tmp_path):
    path = tmp_path / "diagnostics.npz"
    path.write_bytes(b"PK no archive")
    assert read(path) is None
    names = ("layers", "epoch", "factor", *OBSERVED, *MEASURED)
    np.savez(path, **dict.fromkeys(names, np.array([{}], dtype=object)))  # would be unpickled
    assert read(path) is None
    np.savez_compressed(path, **dict.fromkeys(names, np.zeros(1 << 21)))  # 16 MB each, a few kB in the file
    assert path.stat().st_size < 1 << 20 and read(path) is None
    run = make_run(make_config(), synthetic(96), "cpu")
    rows = Diagnostics(run.network)
    rows.load(path, 5)
    assert rows.rows == []


def test_tuning_trials_are_observed_on_held_out_images(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("a test image was read")

    monkeypatch.setattr("bench.datasets.device_batches.DeviceData.test_batches", refuse)
    store = Store(tmp_path)
    config = make_config(holdout=20, evaluate_test=False)
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "done"
    assert np.isfinite(read(store.diagnostics(ID))["saturation"]).all()


def test_observing_changes_no_number(tmp_path, monkeypatch):
    """A quantizer that learns levels while it quantizes, LQ-Nets, is looked at in evaluation mode."""
    config = make_config(quantizer="lqnets", bits="2/2")
    with_rows, without = (make_run(config, synthetic(96), "cpu") for _ in range(2))
    monkeypatch.setattr(without.diagnostics, "add", lambda *arguments: None)
    for run in (with_rows, without):
        for _ in range(5):
            run.train_step()
        run.end_epoch()
    one, other = with_rows.network.state_dict(), without.network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert with_rows.diagnostics.rows and not without.diagnostics.rows
