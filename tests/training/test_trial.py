"""Whole trials on a few digits: records, exact resume, divergence, and equality of what must be equal."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.roles import needed_roles
from bench.records.store import Store
from bench.training import checkpoint
from bench.training.job import Job
from bench.training.trial import comparable, final_weights, run_trial
from tests.configs import make_config

ID = "0" * 16
TEACHER, START = "a" * 16, "b" * 16
COSINE = {"kind": "cosine", "until": 0.6}
UNEQUAL = {"wall_seconds", "peak_memory_bytes"}


def progressive(merge: str, **options) -> dict:
    return {"kind": "progressive", "merge": merge, "factor": COSINE, **options}


def apprentice(scheme: str, **options) -> dict:
    full = make_config(quantizer="full_precision", bits="32/32").dump()
    start = {"start": full} if scheme == "C" else {}
    return {"kind": "apprentice", "scheme": scheme, "teacher": full, **start, **options}


def record(store: Store, trial_id: str = ID) -> tuple[list[dict], dict]:
    """Return what of a record must be equal between equal runs."""
    summary = {key: value for key, value in store.summary(trial_id).items() if key not in UNEQUAL}
    return [comparable(line) for line in store.epochs(trial_id)], summary


def weights(store: Store, trial_id: str = ID) -> dict[str, torch.Tensor]:
    return checkpoint.load(store.folder(trial_id) / "weights.pt", "cpu")["network"]


def equal_weights(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_needs(config: TrialConfig, store: Store, data_dir) -> dict[str, str]:
    """Train what ``config`` needs and return the roles' ids."""
    needs = {}
    for role in needed_roles(config.strategy):
        name = needs[role] = {"teacher": TEACHER, "start": START}[role]
        if store.summary(name) is None:
            run_trial(Job(TrialConfig.model_validate(config.strategy[role]), name, {}, store, data_dir))
    return needs


def test_a_trial_leaves_a_complete_record(tmp_path):
    store, seen = Store(tmp_path), []
    config = make_config(strategy=progressive("sum"), holdout=20)
    assert run_trial(Job(config, ID, {}, store, tmp_path, on_epoch=seen.append)) == "done"
    lines, summary, trial = store.epochs(ID), store.summary(ID), store.read_trial(ID)
    assert seen == lines and [line["epoch"] for line in lines] == [1, 2]
    first, last = lines
    assert (first["step"], last["step"]) == (5, 10)
    assert first["factor"] > 0 and first["test_acc_expanded"] is not None and first["branch_ratio"] > 0
    assert last["factor"] == 0 and last["test_acc_expanded"] is None and last["branch_ratio"] is None
    assert last["test_acc"] == 100 * last["test_correct"] / last["test_seen"]
    assert last["test_acc_top5"] is None and last["val_acc"] is not None
    assert 0 < first["sign_flip_rate"] < 1
    assert summary["status"] == "done" and summary["final_test_acc"] == last["test_acc"]
    assert summary["best_epoch"] == summary["selected_epoch"] == 2
    assert trial["config"] == config.dump() and trial["id"] == ID
    assert trial["execution"]["threads"] == 1 and trial["execution"]["mode"] == "eager"
    assert TrialConfig.model_validate(trial["config"]) == config
    assert not store.checkpoint(ID).exists()
    json.loads(
        (store.folder(ID) / "summary.json").read_text(),
        parse_constant=lambda _: pytest.fail("NaN in a record"),
    )


def test_evaluate_every_leaves_the_weights_and_the_last_epoch_as_they_are(tmp_path):
    every, third = Store(tmp_path / "every"), Store(tmp_path / "third")
    fields = {"strategy": progressive("sum"), "holdout": 20, "epochs": 5}
    run_trial(Job(make_config(**fields), ID, {}, every, tmp_path))
    run_trial(Job(make_config(**fields, evaluate_every=3), ID, {}, third, tmp_path))
    assert equal_weights(weights(every), weights(third))
    measured = {"val_acc", "test_acc", "test_acc_expanded", "test_correct", "test_seen"}
    for whole, sparse in zip(record(every)[0], record(third)[0], strict=True):
        if sparse["epoch"] in (3, 5):
            assert sparse == whole
        else:
            assert all(sparse[key] is None for key in measured)
            assert {**whole, **dict.fromkeys(measured)} == sparse
    assert every.summary(ID)["final_test_acc"] == third.summary(ID)["final_test_acc"]


def test_evaluate_test_false_reads_no_test_image_and_judges_the_deployed_network(tmp_path, monkeypatch):
    fields = {"strategy": progressive("sum"), "holdout": 20}
    both, blind = Store(tmp_path / "both"), Store(tmp_path / "blind")
    run_trial(Job(make_config(**fields), ID, {}, both, tmp_path))

    def refuse(*_arguments):
        raise AssertionError("a test image was read")

    monkeypatch.setattr("bench.datasets.device_batches.DeviceData.test_batches", refuse)
    assert run_trial(Job(make_config(**fields, evaluate_test=False), ID, {}, blind, tmp_path)) == "done"
    assert equal_weights(weights(both), weights(blind))
    lines, summary = blind.epochs(ID), blind.summary(ID)
    assert all(line[key] is None for line in lines for key in line if key.startswith("test_"))
    assert [line["val_acc"] for line in lines] == [line["val_acc"] for line in both.epochs(ID)]
    assert summary["final_val_acc"] == both.summary(ID)["final_val_acc"] == lines[-1]["val_acc"] is not None
    assert summary["final_test_acc"] is summary["selected_test_acc"] is summary["best_test_acc"] is None
    with pytest.raises(InputError, match="evaluate_test: false needs holdout above 0"):
        make_config(evaluate_test=False)


CASES = {
    "plain": {},
    "sgd": {"optimizer": "sgd", "weight_decay": 1e-4, "augmentation": "crop_flip"},
    "sum": {"strategy": progressive("sum")},
    "difference, augmentation": {"strategy": progressive("difference"), "augmentation": "svhn"},
    "concat": {"strategy": progressive("concat")},
    "concat, joint": {"strategy": progressive("concat", statistics="joint")},
    "preactivation": {"strategy": progressive("preactivation")},
    "batch norm re-estimated": {"strategy": progressive("sum", bn_reestimate=2), "eval_bn": 2},
    "gradient quantizer": {"bits": "1/2/4", "strategy": progressive("sum")},
    "stochastic bnn": {"quantizer": {"kind": "bnn", "stochastic": True}},
    "xnor": {"quantizer": "xnor", "strategy": progressive("sum")},
    "syq": {"quantizer": "syq", "bits": "2/2", "strategy": progressive("concat")},
    "ttq": {"quantizer": "ttq", "bits": "2/32"},
    "tensorflow epsilon": {"epsilon": 1e-5, "epsilon_mode": "tensorflow"},
    "residual": {"network": "resnet20", "strategy": progressive("concat"), "train_size": 48, "epochs": 2},
    "bf16": {"precision": "bf16", "strategy": progressive("sum")},
}


# Each of the first goes another way through the loop; the conformance tests stop every strategy.
QUICK = ["plain", "sgd", "sum", "concat", "batch norm re-estimated", "gradient quantizer", "bf16"]


@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK)]
)
def test_stopped_anywhere_and_resumed_a_trial_ends_the_same(case, tmp_path):
    """Stopped after steps 1, 3, 5, ..., inside epochs and around removal, each time as in a new process."""
    config = make_config(**CASES[case])
    whole, pieces = Store(tmp_path / "whole"), Store(tmp_path / "pieces")
    for store in (whole, pieces):
        needs = with_needs(config, store, tmp_path)
    assert run_trial(Job(config, ID, needs, whole, tmp_path)) == "done"
    sessions = 0
    while True:
        steps = itertools.count(1)
        sessions += 1
        outcome = run_trial(
            Job(config, ID, needs, pieces, tmp_path, stop=lambda steps=steps: next(steps) == 2)
        )
        if outcome == "done":
            break
    assert sessions >= 3
    assert record(pieces) == record(whole)
    assert equal_weights(weights(pieces), weights(whole))
    resumes = [json.loads(line) for line in (pieces.folder(ID) / "resumes.jsonl").read_text().splitlines()]
    assert len(resumes) == sessions - 1 and all("differs_from" not in line for line in resumes)


def test_peak_memory_is_that_of_all_sessions(tmp_path, monkeypatch):
    """The session after removal needs less memory than the one with the branch."""
    store, config = Store(tmp_path), make_config(strategy=progressive("sum"))
    for peak, stop in ((900, True), (100, True), (200, False)):
        monkeypatch.setattr("bench.training.execution.peak_memory", lambda _device, peak=peak: peak)
        run_trial(Job(config, ID, {}, store, tmp_path, stop=lambda stop=stop: stop))
    assert store.summary(ID)["peak_memory_bytes"] == 900


def test_lines_without_a_checkpoint_are_kept_and_trained_again_alike(tmp_path):
    store = Store(tmp_path)
    config = make_config()
    run_trial(Job(config, ID, {}, store, tmp_path))
    expected = record(store)
    (store.folder(ID) / "summary.json").unlink()
    store.write_epochs(ID, store.epochs(ID)[:1])
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "done"
    assert record(store) == expected


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    store = Store(tmp_path)
    config = make_config()
    for at in (2, 4):
        steps = itertools.count(1)
        run_trial(Job(config, ID, {}, store, tmp_path, stop=lambda steps=steps, at=at: next(steps) == at))
    path = store.checkpoint(ID)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert checkpoint.load(path, "cpu")["step"] == 2
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "done"
    undisturbed = Store(tmp_path / "undisturbed")
    run_trial(Job(config, ID, {}, undisturbed, tmp_path))
    assert record(store) == record(undisturbed) and equal_weights(weights(store), weights(undisturbed))


def test_a_bit_changed_in_a_checkpoint_s_numbers_is_noticed(tmp_path):
    """``torch.load`` does not look at the checksums of an archive's parts."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"network": {"weight": torch.ones(1000)}})
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(9).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    assert checkpoint.load(path, "cpu") is None


def test_files_of_another_trial_are_refused(tmp_path):
    store, other = Store(tmp_path), "f" * 16
    for id, seed in ((ID, 0), (other, 1)):
        run_trial(Job(make_config(seed=seed), id, {}, store, tmp_path))
    mine, its = (store.folder(id) / "weights.pt" for id in (ID, other))
    final_weights(store, ID, "teacher", "cpu")
    mine.write_bytes(its.read_bytes())
    with pytest.raises(InputError, match=f"{mine}: it belongs to the trial {other}"):
        final_weights(store, ID, "teacher", "cpu")
    stopped = Store(tmp_path / "stopped")
    for id, seed in ((ID, 0), (other, 1)):
        run_trial(Job(make_config(seed=seed), id, {}, stopped, tmp_path, stop=lambda: True))
    stopped.checkpoint(ID).write_bytes(stopped.checkpoint(other).read_bytes())
    with pytest.raises(InputError, match=f"{stopped.checkpoint(ID)}: it belongs to the trial {other}"):
        run_trial(Job(make_config(), ID, {}, stopped, tmp_path))


def test_a_factor_of_zero_from_the_start_has_the_records_of_plain(tmp_path):
    none = {"kind": "step", "at": [0.0], "values": [0.0]}
    plain, faded = Store(tmp_path / "plain"), {}
    run_trial(Job(make_config(), ID, {}, plain, tmp_path))
    strategies = [
        progressive(merge, factor=none) for merge in ("sum", "difference", "concat", "preactivation")
    ]
    strategies.append({"kind": "anneal", "factor": none})
    for index, strategy in enumerate(strategies):
        faded = Store(tmp_path / str(index))
        run_trial(Job(make_config(strategy=strategy), ID, {}, faded, tmp_path))
        assert record(faded) == record(plain), strategy
        assert equal_weights(weights(faded), weights(plain)), strategy


def test_two_arms_of_one_seed_share_initial_weights_and_batches(tmp_path):
    """The learning rate moves no float32 weight, so the first epoch's plain loss is that of the start."""
    store = Store(tmp_path)
    for trial_id, strategy in (("1" * 16, {"kind": "plain"}), ("2" * 16, progressive("concat"))):
        config = make_config(strategy=strategy, learning_rate=1e-30, epochs=1)
        run_trial(Job(config, trial_id, {}, store, tmp_path, stop=lambda: False))
    one, other = weights(store, "1" * 16), weights(store, "2" * 16)
    assert one.keys() == other.keys()
    kernels = [name for name in one if one[name].dim() > 1]  # a batch norm's shift starts at 0 and does move
    assert len(kernels) == 8 and all(torch.equal(one[name], other[name]) for name in kernels)


def test_divergence_is_a_result(tmp_path):
    store = Store(tmp_path)
    config = make_config(quantizer="full_precision", bits="32/32", learning_rate=1e30)
    assert run_trial(Job(config, ID, {}, store, tmp_path)) == "diverged"
    summary = store.summary(ID)
    assert summary["status"] == "diverged" and "not finite" in summary["reason"]
    assert summary["final_test_acc"] is None
    assert store.epochs(ID)[-1]["train_loss"] is None


def test_a_network_at_chance_is_flagged(tmp_path):
    store = Store(tmp_path)
    run_trial(Job(make_config(learning_rate=1e-30, epochs=1), ID, {}, store, tmp_path))
    assert store.summary(ID)["flags"] == ["at_chance"]


def test_an_upper_bound_that_keeps_its_branch_reports_the_expanded_network(tmp_path):
    store = Store(tmp_path)
    strategy = progressive("sum", factor={"kind": "constant", "keep": True})
    run_trial(Job(make_config(strategy=strategy), ID, {}, store, tmp_path))
    summary, last = store.summary(ID), store.epochs(ID)[-1]
    assert summary["final_test_acc"] is None and summary["best_test_acc"] is None
    assert summary["final_test_acc_expanded"] == last["test_acc_expanded"] is not None


def test_other_hardware_is_refused_unless_accepted(tmp_path):
    store = Store(tmp_path)
    config = make_config()
    steps = itertools.count(1)
    assert run_trial(Job(config, ID, {}, store, tmp_path, stop=lambda: next(steps) == 3)) == "stopped"
    trial = store.read_trial(ID)
    trial["execution"]["device"] = "another processor"
    store.write_trial(ID, trial)
    with pytest.raises(InputError, match=r"another processor.*--fresh.*--accept-other-hardware"):
        run_trial(Job(config, ID, {}, store, tmp_path))
    assert run_trial(Job(config, ID, {}, store, tmp_path, accept_other_hardware=True)) == "done"
    resumes = (store.folder(ID) / "resumes.jsonl").read_text()
    assert "another processor" in resumes


def test_missing_weights_of_a_teacher_are_named(tmp_path):
    store = Store(tmp_path)
    config = make_config(strategy=apprentice("B"))
    needs = with_needs(config, store, tmp_path)
    (store.folder(TEACHER) / "weights.pt").unlink()
    with pytest.raises(InputError, match=f"teacher {TEACHER}"):
        run_trial(Job(config, ID, needs, store, tmp_path))


def test_training_flops_count_branch_steps_and_teachers(tmp_path):
    store = Store(tmp_path)
    flops = {}
    for index, strategy in enumerate(({"kind": "plain"}, progressive("sum"), apprentice("B"))):
        trial_id = f"{index:016x}"
        config = make_config(strategy=strategy)
        run_trial(Job(config, trial_id, with_needs(config, store, tmp_path), store, tmp_path))
        flops[strategy["kind"]] = store.summary(trial_id)["train_flops"]
    conv0, classifier = 3 * 6 * 25 * 36**2, 64 * 10
    expanded = (
        9 * (6 * 8 * 18**2 + 8 * 8 * 18**2 + 8 * 16 * 7**2 + 16 * 16 * 7**2 + 16 * 16 * 5**2) + 16 * 64 * 25
    )
    assert flops["plain"] == 10 * 16 * 6 * (
        conv0 + expanded + classifier
    )  # steps, images, 3 x 2 a multiply-accumulate
    assert (
        flops["progressive"] == flops["plain"] + 6 * 16 * 6 * expanded
    )  # the branch doubles six of the ten steps
    assert math.isclose(
        flops["apprentice"] / flops["plain"], 4 / 3, rel_tol=1e-6
    )  # a frozen forward beside 3
