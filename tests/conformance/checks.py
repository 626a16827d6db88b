"""The checks of every registered part. Each takes the part's name and its line of ``tables.py``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry
from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.experiments.library import Library
from bench.experiments.options import complete, keywords
from bench.experiments.resolve import with_teachers
from bench.experiments.roles import joint_roles, needed_roles, role_names, roles, step_cost
from bench.experiments.toml_files import Problems
from bench.export.modules import Activation
from bench.layers.branch import Branch
from bench.layers.low_precision import strip
from bench.networks import build, costs, describe_layers, initialize
from bench.quantizers import make_quantizer
from bench.randomness import Clock
from bench.records.store import Store
from bench.schedules import factor_value, learning_rate_value, never_removed
from bench.training import checkpoint
from bench.training.job import Job
from bench.training.trial import comparable, run_trial
from tests.configs import make_config
from tests.conformance.tables import ULP, Case, NetworkCase, QuantizerOracle, StrategyCase
from tests.quantizers import quantizer_oracles

SHAPES = ((6, 5, 3, 3), (7, 12))  # of a convolution and of a linear layer: (out, in, kh, kw), (out, in)


# --- quantizers ---


def values(shape: Any, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return normal float64 values that float32 holds exactly."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32).astype(np.float64)


def run(function, x, g, dtype=torch.float32, parameters=()) -> list[np.ndarray]:
    """Return (value, dL/dx, dL/dparameters) as float64 arrays for dL/dvalue = g."""
    x = torch.tensor(x, dtype=dtype, requires_grad=True)
    y = function(x)
    assert y.dtype == dtype and y.shape == x.shape
    inputs, g = [x, *parameters], torch.tensor(g, dtype=dtype)
    grads = torch.autograd.grad(y, inputs, g, allow_unused=True, materialize_grads=True)
    return [t.detach().to(torch.float64).numpy() for t in (y, *grads)]


def with_scales(quantizer, shape, seed: int = 3) -> dict[str, np.ndarray]:
    """Give learned scales unlike positive values; return them by name as float64."""
    quantizer.weight(torch.zeros(shape))
    generator = np.random.default_rng(seed)
    for parameter in quantizer.parameters():
        parameter.data = torch.tensor(
            generator.uniform(0.2, 1.7, tuple(parameter.shape)), dtype=torch.float32
        )
    return {name: p.detach().double().numpy() for name, p in quantizer.named_parameters()}


def check_quantizer_weights(kind: str, oracle: QuantizerOracle) -> None:
    """Values and gradients at every declared bit width; zeros, equal weights, bfloat16, given statistics."""
    facts = registry.get("quantizers", kind).facts
    for bits in facts["w_bits"]:
        for options in ({}, *oracle.options):
            for shape in SHAPES:
                quantizer = make_quantizer(kind, bits, facts["a_bits"][0], **options)
                scales = with_scales(quantizer, shape)
                w, g = values(shape, scale=0.7), values(shape, seed=1)
                w.flat[:4] = [0.0, -0.0, 1.0, -1.0]
                got, dw, *dscales = run(quantizer.weight, w, g, parameters=list(quantizer.parameters()))
                formula = (w, g, {}) if bits == 32 else oracle.weight(w, g, bits, options, scales)
                want, want_dw, want_dscales = formula
                sure = ~oracle.ties(w, bits) if oracle.ties and bits < 32 else np.ones(shape, bool)
                assert sure.mean() > 0.9
                np.testing.assert_allclose(
                    got[sure], want[sure], rtol=3e-7, err_msg=f"{kind} {bits} {options}"
                )
                np.testing.assert_allclose(dw, want_dw, rtol=3e-5, atol=2e-6)
                for (name, _), d in zip(quantizer.named_parameters(), dscales, strict=True):
                    want_d = want_dscales.get(
                        name, np.zeros(d.shape)
                    )  # parameters of the activations have none
                    np.testing.assert_allclose(d, want_d, rtol=1e-4, atol=1e-5, err_msg=name)
            _check_edges(kind, bits, options)


def _check_edges(kind: str, bits: int, options: Mapping[str, Any]) -> None:
    shape, facts = SHAPES[0], registry.get("quantizers", kind).facts
    for value in (0.0, -0.0, 0.3, -0.3, 1e-30, 1e-42):
        quantizer = make_quantizer(kind, bits, facts["a_bits"][0], weight_shape=shape, **options)
        parameters = list(quantizer.parameters())
        for array in run(quantizer.weight, np.full(shape, value), np.ones(shape), parameters=parameters):
            assert np.isfinite(array).all(), (kind, bits, options, value)
    for extreme in (50.0, 1e4, 1e15, 1e30):  # saturated, beside denormal and usual weights
        quantizer = make_quantizer(kind, bits, facts["a_bits"][0], weight_shape=shape, **options)
        w = values(shape, scale=0.7)
        w.flat[:5] = [extreme, -extreme, 1e-45, -1e-45, 1e-40]
        for array in run(quantizer.weight, w, np.ones(shape), parameters=list(quantizer.parameters())):
            assert np.isfinite(array).all(), (kind, bits, options, extreme)
    quantizer = make_quantizer(kind, bits, facts["a_bits"][0], weight_shape=shape, **options)
    with_scales(quantizer, shape)
    w = torch.tensor(values(shape)).to(torch.bfloat16)
    assert torch.equal(quantizer.weight(w), quantizer.weight(w.float()).to(torch.bfloat16))
    measured = quantizer.statistics(w.float())
    assert torch.equal(quantizer.weight(w.float(), measured), quantizer.weight(w.float()))
    if bits < 32:
        many = torch.tensor(values((4, 400))).float()
        levels = len(make_quantizer(kind, bits, facts["a_bits"][0], **options).weight(many)[0].unique())
        assert 2 <= levels <= 2**bits


def _nearly_equal(found: np.ndarray, want: np.ndarray, err_msg: str = "") -> None:
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-6, err_msg=err_msg)


def check_quantizer_activations(kind: str, oracle: QuantizerOracle) -> None:
    """Values and gradients at declared bit widths, ties, infinities, bfloat16; the input stays."""
    facts = registry.get("quantizers", kind).facts
    x = np.concatenate([values(5_000, scale=0.8), [0, -0.0, 1, -1, 2, 1e30, -1e30, 1 + 2 * ULP, 1e-45]])
    x = x.astype(np.float32).astype(np.float64)
    g = values(x.size, seed=1)
    for bits in facts["a_bits"]:
        quantizer = make_quantizer(kind, facts["w_bits"][0], bits).eval()  # nothing is learned from x
        scales = (with_scales(quantizer, SHAPES[0]),) if oracle.learned_activation else ()
        parameters = list(quantizer.parameters()) if oracle.learned_activation else []
        y, dx, *dscales = run(quantizer.activation, x, g, parameters=parameters)
        want, want_dx, *want_dscales = oracle.activation(x, g, bits, *scales)
        sure = np.ones(x.shape, bool)
        if oracle.activation_ties is not None:
            sure = ~oracle.activation_ties(x, bits, *scales)
        elif bits < 32:
            t = quantizer_oracles.thresholds(bits)
            sure = (np.abs(x[:, None] - t) > 4 * ULP * t).all(axis=1)
        assert sure.mean() > 0.99
        same = np.testing.assert_array_equal if oracle.exact else _nearly_equal
        same(y[sure], np.float32(want[sure]), err_msg=f"{kind} {bits}")
        same(dx, np.float32(want_dx), err_msg=f"{kind} {bits}")
        for (name, _), d in zip(quantizer.named_parameters(), dscales, strict=True):
            want_d = want_dscales[0].get(name, np.zeros(d.shape))
            np.testing.assert_allclose(d, want_d, rtol=1e-4, atol=1e-3, err_msg=f"{kind} {bits} {name}")
        half, one = np.array([0.5]), np.array([1.0])
        same(
            run(quantizer.activation, half, one)[0],
            np.float32(oracle.activation(half, one, bits, *scales)[0]),
        )
        for extreme in (np.inf, -np.inf):
            y, dx = run(quantizer.activation, np.array([extreme]), one)
            assert bits == 32 or np.isfinite(y).all(), f"{kind} {bits} of {extreme}: {y}"
            assert not np.isnan(y).any() and np.isfinite(dx).all(), f"{kind} {bits} of {extreme}: {y}, {dx}"
        narrow = torch.tensor(values(500)).to(torch.bfloat16)
        before = narrow.clone()
        assert torch.equal(
            quantizer.activation(narrow), quantizer.activation(narrow.float()).to(torch.bfloat16)
        )
        assert torch.equal(narrow, before)


def check_declared_bits(kind: str) -> None:
    """A low-precision layer stores its declared bits a weight, and 32 for each scale of the quantizer."""
    facts = registry.get("quantizers", kind).facts
    for w_bits in facts["w_bits"]:
        bits = f"{w_bits}/{facts['a_bits'][0]}"
        network = build(make_config(quantizer=kind, bits=bits), num_classes=10, clock=Clock(0))
        rows = {row.name: row for row in describe_layers(network)}
        for name, layer in network.low_precision_layers():
            weight = layer.weight
            channels = getattr(layer, "in_channels", None)
            alone = make_quantizer(
                kind, w_bits, facts["a_bits"][0], weight_shape=weight.shape, channels=channels
            )
            scales = alone.stored_scales(weight)
            assert rows[name].bits == w_bits * weight.numel() + 32 * scales, (kind, bits, name)


def check_levels(kind: str, oracle: QuantizerOracle) -> None:
    """Codes and values give ``weight`` exactly, at the declared bits unless zeros stay 0, and in bfloat16."""
    facts = registry.get("quantizers", kind).facts
    for bits in facts["w_bits"]:
        for options in ({}, *oracle.options):
            for shape in SHAPES:
                quantizer = make_quantizer(kind, bits, facts["a_bits"][0], weight_shape=shape, **options)
                with_scales(quantizer, shape)
                w = torch.tensor(values(shape, scale=0.7)).float()
                levels = quantizer.weight_levels(w)
                if bits == 32:
                    assert levels is None
                    continue
                assert levels.codes.dtype == torch.uint8 and levels.codes.shape == shape
                assert torch.equal(levels.weight(), quantizer.weight(w))
                unscaled = bits == 1 and options.get("eta")  # a quirk of syq: levels +-s and +-1 at one bit
                assert levels.bits == (2 if unscaled else bits), (kind, bits, options)
                given = quantizer.statistics(w)
                assert torch.equal(quantizer.weight_levels(w, given).weight(), levels.weight())
                narrow = w.to(torch.bfloat16)
                stored = quantizer.weight_levels(narrow).weight().to(torch.bfloat16)
                assert torch.equal(stored, quantizer.weight(narrow))
                w.view(-1)[:3] = torch.tensor([0.0, -0.0, 1.0])
                assert torch.equal(quantizer.weight_levels(w).weight(), quantizer.weight(w))


def check_deployed_activations(kind: str) -> None:
    """The deployed form equals ``activation`` and ``bound`` at every bit width, on each tie and beside it."""
    facts = registry.get("quantizers", kind).facts
    for bits in facts["a_bits"]:
        quantizer = make_quantizer(kind, facts["w_bits"][0], bits).eval()
        ties = torch.tensor(quantizer_oracles.thresholds(bits) if bits < 32 else [0.5]).float()
        x = torch.cat(
            [torch.tensor(values(5_000, scale=0.8)).float(), torch.tensor([0.0, -0.0, 1.0, -1.0, 1e30])]
        )
        x = torch.cat([x, ties, *(torch.nextafter(ties, torch.tensor(to)) for to in (-9.0, 9.0))])
        for map, own in (
            (quantizer.activation_map(), quantizer.activation),
            (quantizer.bound_map(), quantizer.bound),
        ):
            assert torch.equal(Activation(map)(x), own(x)), (kind, bits, map)
        levels = quantizer.activation_map().values
        assert quantizer.activation_map().quantizes == (bits < 32)
        assert levels is None or len(levels) == 2**bits


def check_quantizer_autocast(kind: str) -> None:
    """Maps of float32, their gradients and what moves with them have the same bits in a bf16 step."""
    facts = registry.get("quantizers", kind).facts
    w, x = (torch.tensor(values(shape)).float() for shape in (SHAPES[0], (3, SHAPES[0][1], 9, 9)))
    for bits in zip(
        *(itertools.islice(itertools.cycle(facts[n]), 9) for n in ("w_bits", "a_bits")), strict=True
    ):
        found = []
        for enabled in (False, True):
            quantizer = make_quantizer(kind, *bits, weight_shape=w.shape, channels=x.shape[1])
            quantizer.start_(w)
            inputs = [t.clone().requires_grad_() for t in (w, x)]
            for _ in range(2):  # the second pass has levels that the first one moved
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    outputs = [quantizer.weight(inputs[0]), quantizer.activation(inputs[1])]
                    outputs.append(quantizer.bound(inputs[1]))
                    if quantizer.scales_input:
                        outputs.append(quantizer.input_scale(inputs[1], 3))
                quantizer.after_step_(w.clone())
            loss = sum((y * y.detach().sin()).sum() for y in outputs)
            learned = [*inputs, *quantizer.parameters()]
            grads = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
            found.append([*outputs, *grads, *quantizer.state_dict().values()])
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other), (kind, bits)


def check_quantizer_compiled(kind: str) -> None:
    """One graph without a break gives the eager values and gradients of weights and activations.

    At the fewest and at the most bits; compiled together, since each compilation takes seconds.
    """
    facts = registry.get("quantizers", kind).facts
    widths = sorted({(facts["w_bits"][i], facts["a_bits"][i]) for i in (0, -1)})
    quantizers = [make_quantizer(kind, *bits, weight_shape=SHAPES[0]).eval() for bits in widths]
    w, x = (torch.tensor(values(shape)).float() for shape in (SHAPES[0], (50,)))

    def each(w: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        return [y for q in quantizers for y in (q.weight(w), q.activation(x))]

    torch._dynamo.reset()
    found = []
    for function in (each, torch.compile(each, backend="aot_eager", fullgraph=True)):
        inputs = [t.clone().requires_grad_() for t in (w, x)]
        outputs = function(*inputs)
        weights = [torch.tensor(values(y.shape, seed=1)).float() for y in outputs]
        found.append(outputs)
        for y, g, source in zip(outputs, weights, inputs * len(quantizers), strict=True):
            found[-1] = [*found[-1], *torch.autograd.grad(y, [source], g, retain_graph=True)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


# --- schedules ---

TOTAL, EPOCH = 200, 20  # steps in all, steps an epoch


def _progress() -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(TOTAL, dtype=np.float64)
    return steps / TOTAL, steps / EPOCH


def check_factor(kind: str, cases: Sequence[Case]) -> None:
    """The formula at every step; 1 at the start, within [0, 1], 0 for good; the end is noticed."""
    for options, formula in cases:
        spec = complete("factors", {"kind": kind, **options})
        found = np.array([factor_value(spec, step, TOTAL, EPOCH) for step in range(TOTAL)])
        np.testing.assert_allclose(found, formula(*_progress()), rtol=1e-12, atol=1e-12)
        assert found[0] == 1.0 and (found >= 0).all() and (found <= 1).all()
        zeros = np.flatnonzero(found == 0.0)
        assert not zeros.size or (found[zeros[0] :] == 0.0).all(), "once 0 the factor stays 0"
        removed = never_removed(spec, TOTAL // EPOCH, EPOCH) is None
        assert removed == (found[-1] == 0.0 or spec["keep"])


def check_learning_rate(kind: str, cases: Sequence[Case]) -> None:
    """The formula at every step; with a warm-up the rate rises linearly to the initial one."""
    for options, formula in cases:
        spec = complete("learning_rates", {"kind": kind, **options})
        found = np.array([learning_rate_value(spec, step, TOTAL, EPOCH) for step in range(TOTAL)])
        np.testing.assert_allclose(found, formula(*_progress()), rtol=1e-12)
        warm = complete("learning_rates", {"kind": kind, **options, "warmup_epochs": 2})
        rise = [learning_rate_value(warm, step, TOTAL, EPOCH) for step in range(2 * EPOCH)]
        np.testing.assert_allclose(rise, spec["initial"] * np.arange(1, 41) / 40, rtol=1e-12)


# --- strategies ---


def strategy_config(
    kind: str, case: StrategyCase, folder: Path
) -> tuple[TrialConfig, dict[str, TrialConfig]]:
    """Return a tiny configuration with this strategy, and the trials that it needs, by role."""
    config = make_config(strategy={"kind": kind, **case.options}, **case.fields)
    return with_teachers(config, Library(folder, folder, Problems("conformance")))


def check_strategy(kind: str, case: StrategyCase, folder: Path) -> None:
    """Roles as declared, cost paths, and a trial stopped at every third step that ends with the same bits."""
    config, needs = strategy_config(kind, case, folder)
    assert tuple(needs) == needed_roles(config.strategy) == case.needed
    assert joint_roles(config.strategy) == case.joint and set(needs) | set(case.joint) <= set(
        role_names(kind)
    )
    assert step_cost(config.strategy) >= 1.0
    if not any(spec["type"] == "factor" for spec in registry.get("strategies", kind).options.values()):
        _check_declared_cost(config)

    whole, parts = Store(folder / "whole"), Store(folder / "parts")
    ids = {role: role[0].encode().hex()[0] * 16 for role in needs}
    for store in (whole, parts):
        for role, needed in needs.items():
            assert run_trial(Job(needed, ids[role], {}, store, folder)) == "done"
    id = "0" * 16
    assert run_trial(Job(config, id, ids, whole, folder)) == "done"
    for _ in range(10):
        asked = iter(range(100))
        outcome = run_trial(Job(config, id, ids, parts, folder, stop=lambda asked=asked: next(asked) >= 2))
        if outcome == "done":
            break
        assert outcome == "stopped"
    assert [comparable(line) for line in whole.epochs(id)] == [comparable(line) for line in parts.epochs(id)]
    one, other = (
        checkpoint.load(store.folder(id) / "weights.pt", "cpu")["network"] for store in (whole, parts)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    measured = make_run(config, synthetic(96), "cpu")  # what `bench show --cost` builds
    measured.train_step()


def _check_declared_cost(config: TrialConfig) -> None:
    """What a step costs, with further networks of equal size, is that of its operations within a quarter."""
    plain, run = (make_run(c, synthetic(96), "cpu") for c in (make_config(), config))
    declared = step_cost(config.strategy) + sum(role.cost for role in roles(config.strategy))
    assert run.step_flops(True) / plain.step_flops(True) == pytest.approx(declared, rel=0.25)


# --- networks ---


def check_network(kind: str, case: NetworkCase, merge: str) -> None:
    """At f = 0 the expanded, the stripped and the plain network have the same logits; costs are counted."""
    network = {"kind": kind, **case.options}
    config, clock = make_config(network=network, width=case.width, bits="1/2"), Clock(0)
    if merge in case.refused:
        with pytest.raises(InputError, match=rf"strategy\.merge: .*{merge}"):
            build(config, num_classes=10, clock=clock, branch=Branch(merge))
        return
    expanded = build(config, num_classes=10, clock=clock, branch=Branch(merge))
    initialize(expanded, 0, config.initialization)
    size = expanded.input_size
    assert size == config.input_size
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    clock.set(5, 0.5)
    expanded.train()(x)  # moves the running statistics
    expanded.eval()
    clock.set_factor(0.0)
    with torch.no_grad():
        logits = expanded(x)
        bare = strip(expanded)
        plain = build(config, num_classes=10, clock=clock).eval()
        plain.load_state_dict(bare.state_dict())
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, bare(x)) and torch.equal(logits, plain(x))
        clock.set_factor(0.5)
        assert not torch.equal(expanded(x), logits), "the branch did nothing"
        clock.set_factor(0.0)
    assert costs(bare, size).macs == costs(plain, size).macs > 0
    rows = describe_layers(plain)
    assert sum(not row.full_precision for row in rows) == len(plain.low_precision_layers()) > 0


def check_declared_size(kind: str) -> None:
    """The entry's ``macs`` and ``input_size`` are those of the network at its default options and width 1."""
    facts = registry.get("networks", kind).facts
    classes = 1000 if facts["input_size"] >= 128 else 10
    network = build(make_config(network=kind, width=1.0, bits="1/2"), num_classes=classes, clock=Clock(0))
    assert network.input_size == facts["input_size"] and costs(network).macs == facts["macs"]


# --- data sets ---


def check_dataset(kind: str, options: Mapping[str, Any], folder: Path) -> None:
    """In an empty folder: facts, the name, and a checksum or a message that names the remedy."""
    dataset = complete("datasets", {"kind": kind, **options})
    facts = catalog.facts(dataset, folder)
    entry = registry.get("datasets", kind)
    assert facts.num_classes == entry.facts.get("num_classes") and catalog.label(dataset).startswith(kind)
    source = registry.load("datasets", kind)
    if catalog.checksum(dataset, folder) is None:
        problem = source.problem(keywords(dataset), folder)
        assert problem and str(folder) in problem
        with pytest.raises(InputError, match=re.escape(str(folder))):
            source.load(keywords(dataset), folder)
        return
    arrays = source.load(keywords(dataset), folder)
    assert len(arrays.x_train) == facts.train_count and len(arrays.x_test) == facts.test_count
