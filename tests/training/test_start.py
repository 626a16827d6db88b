"""Training that begins with given weights: the field, the identity, refusals, the weights themselves."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from safetensors.torch import save_file

from bench.errors import InputError
from bench.experiments.expand import load_experiment
from bench.experiments.identity import identity_document
from bench.experiments.start import canonical, sealed
from bench.launch.plan import plan
from bench.networks import build, initialize
from bench.networks.adoption import renamed
from bench.randomness import Clock
from bench.records.store import Store
from bench.training import checkpoint, start, trial
from bench.training.job import Job
from tests.training.test_trial import ID, TEACHER, make_config, progressive

UNMOVED = {"learning_rate": 1e-30, "epochs": 1}  # a step too small to move a float32 weight
FULL = {"quantizer": "full_precision", "bits": "32/32"}
SUM = "a" * 64


def trained(**fields) -> dict[str, torch.Tensor]:
    """Return a state dict of the plain network that no initialisation of a trial gives."""
    network = build(make_config(**{**FULL, **fields}), num_classes=10, clock=Clock(0))
    initialize(network, 77, "he_normal")
    return network.state_dict()


def run(config, folder, needs=None):
    store = Store(folder / "runs")
    assert trial.run_trial(Job(config, ID, needs or {}, store, folder)) == "done"
    return checkpoint.load(store.folder(ID) / "weights.pt", "cpu")["network"]


def with_file(folder, state, name="weights.safetensors", **fields):
    """Write ``state`` to a file; return a sealed configuration that starts from it."""
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    else:
        torch.save({"state_dict": state}, folder / name)
    return make_config(start=sealed({"file": name}, folder), **{**UNMOVED, **fields})


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"strategy": progressive("concat"), "epochs": 2}, {"quantizer": "ttq", "bits": "2/32"}],
    ids=["plain", "concat", "learned scales"],
)
def test_training_begins_with_the_weights_of_a_file(name, fields, tmp_path):
    state = trained()
    found = run(with_file(tmp_path, state, name, **fields), tmp_path)
    kernels = [key for key, value in state.items() if value.dim() > 1]
    assert len(kernels) == 8 and all(torch.equal(found[key], state[key]) for key in kernels)


def test_learned_scales_begin_as_a_measure_of_the_given_weights(tmp_path):
    state = trained()
    quantizer = {"kind": "syq", "granularity": "layer", "scale_from_weights": True}
    found = run(with_file(tmp_path, state, quantizer=quantizer, bits="1/2"), tmp_path)
    assert found["conv3.quantizer.scale"].item() == pytest.approx(state["conv3.weight"].abs().mean().item())


def test_training_begins_with_the_weights_of_a_trial_which_a_run_waits_for(tmp_path):
    store = Store(tmp_path / "runs")
    trial.run_trial(Job(make_config(**FULL), TEACHER, {}, store, tmp_path))
    config = make_config(start=f"trial:{TEACHER}", **UNMOVED)

    class Wanted:
        id, needs = ID, {}

    Wanted.config = config
    (planned,) = plan([Wanted()], store)
    assert planned.needs == {"initial": TEACHER}
    found = run(config, tmp_path, planned.needs)
    first = checkpoint.load(store.folder(TEACHER) / "weights.pt", "cpu")["network"]
    assert torch.equal(found["conv3.weight"], first["conv3.weight"])
    assert store.read_trial(ID)["needs"] == {"initial": TEACHER}


def test_the_bytes_of_the_file_are_the_identity_not_its_name(tmp_path):
    one, other = ({"file": name, "checksum": SUM} for name in ("one.pt", "other.safetensors"))
    assert identity_document(make_config(start=one)) == identity_document(make_config(start=other))
    assert identity_document(make_config(start=one))["start"] == {"checksum": SUM}
    assert "start" not in identity_document(make_config())
    config = with_file(tmp_path, trained())
    assert (
        config.start["checksum"]
        == hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    )
    with_file(tmp_path, trained(width=0.25))
    with pytest.raises(InputError, match=r"weights\.safetensors is another file than the one named"):
        run(config, tmp_path)


def test_every_name_that_does_not_fit_is_in_one_message(tmp_path):
    state = trained()
    del state["conv1.weight"], state["linear.bias"]
    state |= {"more.weight": torch.ones(1), "conv2.weight": torch.ones(2, 2, 3, 3)}
    state["conv4.weight"][0, 0, 0, 0] = math.nan
    with pytest.raises(InputError) as caught:
        run(with_file(tmp_path, state), tmp_path)
    text = str(caught.value)
    for part in (
        r"weights.safetensors does not fit the network",
        "missing: ",
        "conv1.weight",
        "linear.bias",
        "not in the network: more.weight",
        "of another shape: conv2.weight (2, 2, 3, 3), not",
        "not finite: conv4.weight",
    ):
        assert part in text


LOST = {
    "not finite: conv4.weight": lambda w: w.double() * 1e300,
    "not floating-point numbers of 16 bits or more: conv4.weight (int8)": lambda w: w.to(torch.int8),
    "bits or more: conv4.weight (bool)": lambda w: w > 0,
    "bits or more: conv4.weight (complex64)": lambda w: w.to(torch.complex64),
    "bits or more: conv4.weight (float8_e4m3fn)": lambda w: w.to(torch.float8_e4m3fn),
    "not dense numbers in memory: conv4.weight": lambda w: w.to_sparse(),
}


@pytest.mark.parametrize("words", LOST)
def test_weights_that_a_copy_would_change_are_refused(words):
    state = trained()
    given = start.Start({**state, "conv4.weight": LOST[words](state["conv4.weight"])}, "weights.pt")
    with pytest.raises(InputError) as caught:
        given.put_into(build(make_config(**UNMOVED), num_classes=10, clock=Clock(0)))
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_taken(dtype):
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in trained().items()}
    network = build(make_config(**UNMOVED), num_classes=10, clock=Clock(0))
    start.Start(state, "weights.pt").put_into(network)
    assert torch.equal(network.state_dict()["conv4.weight"], state["conv4.weight"].float())


def test_a_negative_variance_is_named():
    state = trained()
    name = next(name for name in state if name.endswith("running_var"))
    given = start.Start({**state, name: -state[name]}, "weights.pt")
    with pytest.raises(InputError, match=f"negative variances: {name}"):
        given.put_into(build(make_config(**UNMOVED), num_classes=10, clock=Clock(0)))


def test_one_of_several_state_dicts_is_not_chosen_in_silence(tmp_path):
    state = trained()
    torch.save({"model": state, "model_ema": state}, tmp_path / "both.pt")
    torch.save({"model": state, "optimizer": {"step": torch.ones(1)}, "epoch": 3}, tmp_path / "one.pt")
    with pytest.raises(InputError, match="several state dicts, model, model_ema: save the one that is meant"):
        start.read(sealed({"file": "both.pt"}, tmp_path), tmp_path)
    assert start.read(sealed({"file": "one.pt"}, tmp_path), tmp_path).state.keys() == state.keys()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(99)])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_file_that_holds_no_weights_is_refused_and_not_executed(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    config = make_config(start=sealed({"file": name}, tmp_path), **UNMOVED)
    with pytest.raises(InputError, match=f"{name} cannot be read as weights"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("weights.pt", {"file": "weights.pt"}),
        ({"file": "trial:" + "0" * 16}, {"trial": "0" * 16}),
        ("torchvision:resnet18", {"torchvision": "resnet18"}),
        ({"timm": "resnet18", "checksum": SUM}, {"timm": "resnet18", "checksum": SUM}),
    ],
)
def test_ways_to_write_a_start(value, want):
    assert canonical(value) == want


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"fil": "x"}, r"start\.fil: there is no such key.*file"),
        ({"file": "x", "trial": "0" * 16}, "exactly one of file, trial"),
        ({}, "exactly one"),
        ({"trial": "12"}, "16 hexadecimal digits"),
        ({"file": 3}, r"start\.file: expected text"),
        ({"file": "x", "checksum": "abc"}, "SHA-256"),
    ],
)
def test_wrong_starts_name_the_key(value, message):
    with pytest.raises(InputError, match=message):
        canonical(value)


def test_an_experiment_file_names_its_start(tmp_path):
    save_file({key: value.contiguous() for key, value in trained().items()}, tmp_path / "weights.safetensors")
    text = """
        title = "starts"
        [defaults]
        dataset = "digits"
        network = "svhn_convnet"
        width = 0.125
        epochs = 1
        [[arms]]
        name = "given"
        quantizer = "dorefa"
        bits = "1/1"
        start = { file = "%s" }
    """
    path = tmp_path / "starts.toml"
    path.write_text(text % "weights.safetensors")
    (one,) = load_experiment(path, data_dir=tmp_path).trials
    assert len(one.config.start["checksum"]) == 64
    path.write_text(text % "absent.safetensors")
    with pytest.raises(InputError, match=r"absent\.safetensors is not there"):
        load_experiment(path, data_dir=tmp_path)


def test_a_librarys_weights_come_from_its_local_cache_under_the_networks_own_names(tmp_path, monkeypatch):
    from torchvision import models

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="not in the local cache, and the suite downloads nothing"):
        sealed({"torchvision": "squeezenet1_1"}, tmp_path)
    theirs = models.squeezenet1_1().state_dict()
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs, tmp_path / "checkpoints" / url.rpartition("/")[2])
    given = sealed({"torchvision": "squeezenet1_1"}, tmp_path)
    network = {"kind": "torchvision", "name": "squeezenet1_1"}
    config = make_config(network=network, width=1.0, start=given, augmentation="none")
    ours = build(config, num_classes=1000, clock=Clock(0))
    start.read(config.start, tmp_path).put_into(ours)
    mapped = renamed(ours, theirs)
    assert len(mapped) == len(theirs)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in mapped.items())
