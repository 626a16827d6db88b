"""Eager, compiled and captured do the same steps; what cannot be had is said and done without."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import datasets
from bench.costs.measure import make_run
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.launch.progress import Progress
from bench.launch.session import Session, Stop
from bench.layers.max_pool import MaxPool2, _Largest
from bench.machine.folders import cache_folder
from bench.networks import convnets
from bench.networks.builder import Builder, Network
from bench.quantizers.functional import pass_inside
from bench.records.store import Store
from bench.training import execution, setup
from bench.training.capture import Recording
from bench.training.job import Job
from bench.training.loop import Run
from bench.training.resume import resume
from bench.training.trial import run_trial
from tests.configs import make_config

ID = "0" * 16
STEPS = 200
ON = {"kind": "cosine", "until": 0.5}


def config(**changes) -> TrialConfig:
    """200 steps on 64 images, in 50 epochs; a branch is there for the first 100."""
    tiny = {"width": 0.0625, "bits": "1/2", "epochs": STEPS // 4, "batch_size": 8, "train_size": 32}
    return make_config(**{**tiny, "augmentation": "crop_flip", **changes})


def progressive(merge: str = "sum", **options) -> dict:
    return {"kind": "progressive", "merge": merge, "factor": ON, **options}


FULL = config(quantizer="full_precision", bits="32/32", augmentation="crop_flip").dump()


def apprentice(scheme: str) -> dict:
    return {"kind": "apprentice", "scheme": scheme, "teacher": FULL}


@pytest.fixture(scope="module")
def arrays() -> datasets.Arrays:
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    return datasets.Arrays(pixels, np.arange(64) % 10, pixels[:32], np.arange(32) % 10, 10)


@pytest.fixture
def uncompiled(monkeypatch):
    """Let compiled code be eager code, so that a captured step is eager arithmetic."""
    monkeypatch.setattr(torch, "compile", lambda function, **named: function)


def two_layers(builder: Builder, num_classes: int, **_options) -> Network:
    """A network that compiles in seconds: two low-precision convolutions, the first of them pooled."""
    convs = [convnets.Spec(64, 3, 1, MaxPool2), convnets.Spec(64, 3, 0)]
    front = {"conv0": builder.first_conv(builder.channels(64), 3, padding=1, bias=True)}
    return convnets.ConvNet(builder, num_classes, input_size=8, front=front, size=8, convs=convs, hidden=[])


@contextlib.contextmanager
def small_networks():
    """Let every network be one of two low-precision layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnets, "svhn_convnet", two_layers)
        patch.setattr(TrialConfig, "input_size", None)  # the network tells its size itself
        yield


def steps(run: Run, count: int) -> Run:
    for _ in range(count):
        run.train_step()
    return run


def equal(one, other) -> bool:
    """Whether two states have the same bits; clocks, memory and learning rates are left out."""
    if isinstance(one, dict):
        left_out = {"training_seconds", "wall_seconds", "peak_memory_bytes", "param_groups"}
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one.keys() - left_out)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


CASES = {
    "plain": {},
    "sum": {"strategy": progressive(), "bits": "1/1"},
    "concat, sgd": {
        "strategy": progressive("concat"),
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "momentum": 0.9,
    },
    "nesterov, preactivation": {
        "strategy": progressive("preactivation"),
        "optimizer": "sgd",
        "nesterov": True,
    },
    "batch norm re-estimated": {"strategy": progressive("difference", bn_reestimate=2)},
    "stochastic": {"quantizer": {"kind": "bnn", "stochastic": True}, "bits": "1/1", "augmentation": "svhn"},
    "gradient quantizer": {"bits": "1/2/4", "strategy": progressive()},
    "after the step": {"quantizer": "ttq", "bits": "2/32"},
    "joint teacher": {"strategy": apprentice("A")},
    "frozen teacher": {"strategy": apprentice("B"), "micro_batches": 2},
    "bf16": {"precision": "bf16", "strategy": progressive()},
    "auxiliary module": {"strategy": {"kind": "auxiliary"}},
    "falling bit widths": {"strategy": {"kind": "staged", "stages": ["32/32", "8/8", "1/4"]}},
    "hints": {"strategy": {"kind": "fitnets", "teacher": FULL}},
    "booster": {"strategy": {"kind": "rocket", "booster": FULL}, "optimizer": "sgd"},
    "guided": {"strategy": {"kind": "staged", "stages": ["1/32"], "guided": True, "twin": FULL}},
    "incremental": {
        "strategy": {"kind": "incremental", "begin": 0.0},
        "optimizer": "sgd",
        "weight_decay": 1e-3,
    },
    "peers": {"strategy": {"kind": "mutual", "peers": 2, "peer": FULL}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_recorded_step_is_the_eager_one_bit_for_bit(case, arrays, uncompiled):
    """Capturing without the CUDA graph: static inputs, warm-up undone, a recording a stage, removal."""
    count = STEPS if case == "sum" else 12
    short = config(epochs=max(2, count // 4), **CASES[case])
    eager, captured = (make_run(short, arrays, "cpu", mode) for mode in ("eager", "captured"))
    captured.rehearse()
    assert captured.step == 0
    steps(eager, short.epochs * 4), steps(captured, short.epochs * 4)
    assert equal(eager.state(), captured.state())


@pytest.mark.slow
def test_a_process_may_compile_more_networks_than_the_compiler_expects(arrays, monkeypatch):
    """By default it keeps 8 versions of one function, and the step of every network is the same function."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **named: compiler(function, backend="eager", **named)
    )
    torch._dynamo.reset()
    with small_networks():
        for seed in range(10):
            steps(make_run(config(epochs=2, seed=seed), arrays, "cpu", "compiled"), 1)


SLOW_GRAPHS = ["auxiliary module", "booster", "falling bit widths", "guided", "incremental", "peers"]


@pytest.mark.parametrize(
    "case",
    [
        "hints",  # the quickest of them
        *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_GRAPHS),
    ],
)
def test_a_step_is_one_graph(case, arrays, monkeypatch):
    """What a strategy reads in the network breaks no graph; the compiler orders gradient sums."""
    short = config(epochs=2, **CASES[case])
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **named: compiler(f, backend="eager", **named))
    torch._dynamo.reset()
    with small_networks():
        eager, one_graph = (steps(make_run(short, arrays, "cpu", mode), 1) for mode in ("eager", "compiled"))
    assert torch.equal(eager.loss_sum, one_graph.loss_sum)
    for one, other in zip(
        *(run.optimizer.param_groups[0]["params"] for run in (eager, one_graph)), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_each_stage_is_recorded_once_and_a_removed_branch_is_left_alone(arrays, uncompiled, monkeypatch):
    run = make_run(config(epochs=4, strategy=progressive()), arrays, "cpu", "captured")
    recorded, record = [], run.recording.record
    monkeypatch.setattr(
        run.recording, "record", lambda inputs, stage: (recorded.append(stage), record(inputs, stage))
    )
    branch = run.network.conv1.branch.weight
    steps(run, 8)
    before, moment = branch.detach().clone(), run.optimizer.state[branch]["exp_avg"].clone()
    assert recorded == [(True, 0)]
    steps(run, 8)
    assert recorded == [(True, 0), (False, 0)]
    assert branch.grad is None
    assert torch.equal(branch, before) and torch.equal(run.optimizer.state[branch]["exp_avg"], moment)
    assert run.optimizer.state[branch]["step"] == 8


@pytest.mark.parametrize("stop", [1, 7, 8, 11])
def test_a_captured_trial_goes_on_from_a_checkpoint_exactly(stop, arrays, uncompiled, tmp_path):
    trial = config(epochs=4, strategy=progressive("concat"))
    whole = steps(make_run(trial, arrays, "cpu", "captured"), 16)
    stopped = steps(make_run(trial, arrays, "cpu", "captured"), stop)
    torch.save({"schema": 1, **stopped.state()}, tmp_path / "checkpoint.pt")
    other = make_run(trial, arrays, "cpu", "captured")
    other.rehearse()
    resume(other, torch.load(tmp_path / "checkpoint.pt", weights_only=True), tmp_path / "checkpoint.pt")
    assert equal(steps(other, 16 - stop).state(), whole.state())


def test_an_undone_step_leaves_no_trace(arrays):
    run = steps(make_run(config(optimizer="sgd", strategy=progressive()), arrays, "cpu"), 3)
    tensors = [*run.network.parameters(), *run.network.buffers(), run.loss_sum]
    copies, before = [t.detach().clone() for t in tensors], run.written()
    steps(run, 2)
    assert not torch.equal(tensors[0], copies[0]) and run.loss_sum != copies[-1]
    before.put_back()
    assert all(torch.equal(t, copy) for t, copy in zip(tensors, copies, strict=True))
    assert all(parameter.grad is None for parameter in run.network.parameters())


# --- nothing waits for the device ---------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Fails where a value is read from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"a step waits for the device: {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_nothing_from_the_device(case, arrays):
    run = make_run(config(**CASES[case]), arrays, "cpu")
    run.strategy.bn_reestimate = 0  # once a trial, between two steps
    run.train_step()  # the fused optimizer looks at its settings once
    with NoReading():
        run.train_step()
        run.step = STEPS - 1
        run.train_step()


def test_reading_a_value_is_noticed():
    with NoReading(), pytest.raises(AssertionError, match="waits"):
        torch.ones(()).item()


# --- what a step does ---------------------------------------------------------------------------------------


def test_weights_are_quantized_once_a_step_and_the_branch_is_gone_at_factor_zero(arrays, monkeypatch):
    run = make_run(config(strategy=progressive()), arrays, "cpu")
    layers = dict(run.network.low_precision_layers())
    quantized, convolved = [], []
    for name, layer in layers.items():
        weight, branch = layer.quantizer.weight, layer.branch.forward
        monkeypatch.setattr(
            layer.quantizer, "weight", lambda *a, n=name, f=weight: (quantized.append(n), f(*a))[1]
        )
        monkeypatch.setattr(
            layer.branch, "forward", lambda *a, n=name, f=branch: (convolved.append(n), f(*a))[1]
        )
    run.train_step()
    assert sorted(quantized) == sorted(convolved) == sorted(layers)
    quantized.clear(), convolved.clear()
    run.step = STEPS - 1
    run.train_step()
    assert sorted(quantized) == sorted(layers) and convolved == []
    assert all(layer.branch.weight.grad is None for layer in layers.values())


def test_preactivation_is_one_convolution_of_merged_weights(arrays):
    run = make_run(config(strategy=progressive("preactivation")), arrays, "cpu")
    count = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal count
            count += func is torch.ops.aten.convolution.default
            return func(*args, **(kwargs or {}))

    with Count():
        run.train_step()
    assert count == 7  # the first layer and six low-precision ones


# --- compiled -----------------------------------------------------------------------------------------------

compiler = pytest.mark.skipif(not execution.has_compiler(), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def made(arrays):
    """Return a function that returns a trained run of 200 steps on two layers, in a given mode."""

    def train(mode: str, dtype: torch.dtype = torch.float32) -> Run:
        with small_networks():
            run = make_run(config(strategy=progressive()), arrays, "cpu", mode)
        if dtype == torch.float64:
            run.network.double()
            prepare = run.data.prepare
            run.prepare = lambda *inputs: tuple(
                t.double() if t.is_floating_point() else t for t in prepare(*inputs)
            )
        return steps(run, STEPS)

    torch._dynamo.reset()
    yield train
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def compiled(made):
    """Return runs in modes that compile, by name."""
    return {
        name: made(mode)
        for name, mode in (("one", "compiled"), ("other", "compiled"), ("captured", "captured"))
    }


@pytest.mark.slow
@compiler
def test_compiled_steps_are_the_same_every_time_and_captured(compiled):
    assert equal(compiled["one"].state(), compiled["other"].state())
    assert equal(compiled["one"].state(), compiled["captured"].state())


@pytest.mark.slow
@compiler
def test_modes_end_close_to_each_other(compiled, made):
    """Compiled code sums in another order: a unit in the last place a step, until a sign or a code flips.

    A flip moves a weight or an activation by a whole level, so runs part as any two orders of summation do.
    How far that is shows the same run in float64: no mode may be further from it, or from eager, than three
    times what eager is.
    """
    eager, exact = made("eager"), made("eager", torch.float64)

    def distance(one: Run, other: Run) -> float:
        """Return the largest mean difference of a parameter."""
        pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
        return max((a - b).detach().abs().mean().item() for a, b in pairs)

    allowed = 3.0 * distance(eager, exact)  # 3 * 0.007, of kernels of mean magnitude 0.16
    assert 0.0 < allowed < 0.05
    assert distance(compiled["one"], exact) < allowed and distance(compiled["one"], eager) < allowed
    losses = [float(run.loss_sum) / STEPS for run in (eager, compiled["one"], exact)]
    assert max(losses) - min(losses) < 0.02 * max(losses)


@pytest.mark.slow
@compiler
def test_levels_are_exact_in_compiled_code(compiled):
    """What the compiled forward pass hands on is i/n rounded once, and weights are +E or -E."""
    run = compiled["one"]
    layer = run.network.conv1
    x = torch.linspace(-0.5, 1.5, 1000)
    codes = torch.compile(layer.quantizer.activation)(x)
    assert torch.equal(codes.unique(), torch.arange(4) / 3)
    weight = torch.compile(layer.quantizer.weight)(layer.weight)
    assert torch.equal(weight.detach().abs().unique(), weight.detach().abs().max()[None])


# --- pooling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_pooling_has_the_numbers_of_the_library(size):
    """Ties included: whichever way it is computed, the first of the largest gets the gradient."""
    pool, dice = MaxPool2(), torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (3, 5, *size), generator=dice).float().to(memory_format=torch.channels_last)
    x.requires_grad_()
    expected = torch.nn.functional.max_pool2d(x, 2)
    weights = torch.randn(expected.shape, generator=dice)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    for function in (pool, _Largest.apply, torch.compile(pool, backend="aot_eager")):
        y = function(x)
        assert torch.equal(y, expected) and y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(torch.autograd.grad((y * weights).sum(), x)[0], gradient)
    with torch.no_grad():
        assert torch.equal(pool(x), expected)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_the_window_is_the_same_compiled(bounds):
    """Ends included; compiled it is arithmetic alone."""
    near = [float(np.nextafter(np.float32(e), np.float32(d))) for e in (-1, 0, 1) for d in (-9, 9)]
    x = torch.tensor([-2.0, -1.0, 0.0, -0.0, 0.5, 1.0, 2.0, *(v for v in near if abs(v) > 1e-30)])
    grad = torch.arange(1.0, len(x) + 1)
    expected = torch.where((x >= bounds[0]) & (x <= bounds[1]), grad, 0.0)
    window = torch.compile(pass_inside, backend="aot_eager")
    assert torch.equal(pass_inside(grad, x, *bounds), expected)
    assert torch.equal(window(grad, x, *bounds), expected)


# --- what cannot be had -------------------------------------------------------------------------------------


def decided(**changes) -> dict:
    return execution.decide(config(**changes), 10**6, "cpu")


def test_without_a_compiler_long_trials_are_eager_and_say_so(monkeypatch, tmp_path):
    assert not execution.has_compiler() or decided()["mode"] == "compiled"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = decided()
    assert found["mode"] == "eager" and "compiler" in found["fallback"]
    assert "fallback" not in execution.decide(config(), 100, "cpu")  # it would have been eager anyway


def test_the_fallback_is_recorded_and_said_once(monkeypatch, tmp_path, capsys, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(execution, "COMPILED_STEPS", {"cpu": 1, "cuda": 1})
    trial = config(epochs=1, train_size=32, dataset="digits")
    store, told = Store(tmp_path), []
    session = Session({}, {}, {}, store, Progress({"a": "A", "b": "B"}, {}, {}), Stop())
    for id in ("a" * 16, "b" * 16):
        assert run_trial(Job(trial, id, {}, store, tmp_path, on_epoch=told.append)) == "done"
        how = store.read_trial(id)["execution"]
        assert how["mode"] == "eager" and "compiler" in how["fallback"]
    notes = [line for line in told if "note" in line]
    assert len(notes) == 2 and "eager" in notes[0]["note"] and told[0] == notes[0]
    assert "compiler" in caplog.text
    session.epoch("a", notes[0])
    session.epoch("b", notes[1])
    assert capsys.readouterr().out.count("compiler") == 1


def test_a_compiled_trial_is_not_resumed_without_a_compiler():
    here = execution.fell_back({"mode": "eager", "threads": 1}, "no compiler")
    then = {"mode": "compiled", "threads": 1}
    assert execution.differences(then, here) == ["mode: 'compiled' then, but no compiler here"]
    with pytest.raises(InputError, match="accept-other-hardware"):
        execution.resume_execution(then, here, False, "trial")
    assert execution.resume_execution(then, here, True, "trial")[0] == here
    # and one that fell back goes on in eager mode where there is a compiler
    assert execution.resume_execution(here, then, False, "trial") == (here, [])


def test_which_mode_is_chosen(monkeypatch):
    monkeypatch.setattr(execution, "has_compiler", lambda: True)
    choose = execution._wanted_mode
    assert choose(config(), 10**6, "cpu", 1) == "compiled" and choose(config(), 10**4, "cpu", 1) == "eager"
    assert choose(config(), 10**4, "cuda", 1) == "captured" and choose(config(), 100, "cuda", 1) == "eager"
    assert choose(config(), 10**4, "cuda", 2) == "compiled"
    assert choose(config(epsilon_mode="tensorflow"), 10**4, "cuda", 1) == "compiled"
    assert choose(config(activation_checkpointing=True), 10**6, "cuda", 1) == "eager"


def test_a_capture_that_fails_falls_back_before_the_first_step(monkeypatch, tmp_path, uncompiled):
    plain = execution.decide
    monkeypatch.setattr(execution, "decide", lambda *a: {**plain(*a), "mode": "captured"})

    def fails(self):
        self.work(*self.inputs)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    trial, store, told = config(epochs=1), Store(tmp_path), []
    assert run_trial(Job(trial, "a" * 16, {}, store, tmp_path)) == "done"  # emulated
    monkeypatch.setattr(Recording, "_call", fails)
    assert run_trial(Job(trial, "b" * 16, {}, store, tmp_path, on_epoch=told.append)) == "done"
    how = store.read_trial("b" * 16)["execution"]
    assert (
        how["mode"] == "eager" and "not permitted" in how["fallback"] and "not permitted" in told[0]["note"]
    )
    assert store.read_trial("a" * 16)["execution"]["mode"] == "captured"
    (one,), (other,) = (store.epochs(id * 16) for id in "ab")
    assert one["train_loss"] == other["train_loss"] and one["test_correct"] == other["test_correct"]


@pytest.mark.parametrize("mode", ["compiled", "captured"])
def test_a_network_that_the_compiler_does_not_understand_is_trained_without_it(mode, monkeypatch, tmp_path):
    """A cumulative average of batch norm, which a user's network may have, reads a number from the device."""
    compiler, plain, made = torch.compile, execution.decide, setup.make_network
    monkeypatch.setattr(torch, "compile", lambda f, **named: compiler(f, backend="eager", **named))
    monkeypatch.setattr(execution, "decide", lambda *a: {**plain(*a), "mode": mode})

    def make(*arguments, **named):
        network = made(*arguments, **named)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        return network

    monkeypatch.setattr(setup, "make_network", make)
    torch._dynamo.reset()
    told, store = [], Store(tmp_path)
    with small_networks():
        job = Job(config(epochs=1), ID, {}, store, tmp_path, on_epoch=told.append)
        assert run_trial(job) == "done"
    how = store.read_trial(ID)["execution"]
    assert how["mode"] == "eager" and how["fallback"].startswith(f"the step cannot be {mode} (")
    assert how["fallback"] in told[0]["note"]


def test_a_rehearsal_leaves_no_trace(arrays, uncompiled):
    fields = {"strategy": progressive("concat"), "quantizer": "lqnets", "bits": "2/2"}
    one, other = (make_run(config(epochs=4, **fields), arrays, "cpu", "compiled") for _ in range(2))
    one.rehearse()
    assert equal(one.state(), other.state()) and equal(steps(one, 9).state(), steps(other, 9).state())


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bf16_warns_with_an_estimate(native, monkeypatch, tmp_path, caplog):
    sets = ["avx2", "avx512_bf16"] if native else ["avx2"]
    monkeypatch.setattr(execution, "instruction_sets", lambda: sets)
    told, store = [], Store(tmp_path)
    trial = config(epochs=1, precision="bf16", optimizer="sgd")
    assert run_trial(Job(trial, ID, {}, store, tmp_path, on_epoch=told.append)) == "done"
    notes = [line["note"] for line in told if "note" in line]
    assert len(notes) == (0 if native else 1) and ("emulates" in caplog.text) is (not native)
    if notes:
        assert "s a step" in notes[0] and "for the rest" in notes[0] and told[0] == {"note": notes[0]}


def test_measuring_a_step_changes_nothing(arrays):
    one, other = (make_run(config(optimizer="sgd"), arrays, "cpu") for _ in range(2))
    assert one.seconds_per_step() > 0
    assert equal(one.state(), other.state()) and equal(steps(one, 3).state(), steps(other, 3).state())


def test_compiled_code_is_kept_where_every_trial_finds_it(monkeypatch, tmp_path):
    how = execution.decide(config(), 100, "cpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    execution.apply(how)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ  # an eager trial has none
    execution.apply({**how, "mode": "compiled"})
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_folder() / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    execution.apply({**how, "mode": "compiled"})
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
