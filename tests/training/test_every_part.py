"""Every registered strategy and quantizer trains to the same numbers in each mode that promises them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.costs.measure import make_run, synthetic
from bench.training.loop import Run
from bench.training.resume import resume
from tests.configs import make_config
from tests.conformance import tables
from tests.training.test_modes import FULL, config, equal, small_networks

STEPS, STOP = 16, 7  # four epochs with an evaluation behind each; in the middle of a stage
ARRAYS = synthetic(64)


def strategies() -> dict[str, dict[str, Any]]:
    """Return the fields of every case of a strategy that a network of two layers can have."""
    found = {}
    for kind, cases in tables.STRATEGIES.items():
        for number, case in enumerate(cases):
            roles = dict.fromkeys((*case.needed, *case.joint), FULL)
            if "conv3" not in case.options.values():
                strategy = {"kind": kind, **case.options, **roles}
                found[f"{kind}-{number}"] = {"bits": "1/2", "strategy": strategy, **case.fields}
    return found


def quantizers() -> dict[str, dict[str, Any]]:
    """Return the fields of every quantizer at its second widths, which have more levels than two."""
    found = {}
    for kind in tables.QUANTIZERS:
        facts = registry.get("quantizers", kind).facts
        widths = (facts[name][min(1, len(facts[name]) - 1)] for name in ("w_bits", "a_bits"))
        found[kind] = {"quantizer": kind, "bits": "/".join(map(str, widths))}
    return found


PARTS = {**strategies(), **quantizers()}


def begun(fields: dict[str, Any], mode: str) -> Run:
    """Return a run on two low-precision layers at its first step."""
    with small_networks():
        run = make_run(config(epochs=STEPS // 4, **fields), ARRAYS, "cpu", mode)
    if mode != "eager":
        run.rehearse()
    return run


def trained(run: Run, until: int = STEPS) -> Run:
    """Return ``run`` after ``until`` steps, evaluated after each epoch."""
    while run.step < until:
        run.train_step()
        if run.step % run.steps_per_epoch == 0:
            run.end_epoch()
    return run


def continued(fields: dict[str, Any], mode: str, file: Path) -> Run:
    """Return a run that was stopped and went on from its checkpoint, ``file``."""
    torch.save({"schema": 1, **trained(begun(fields, mode), STOP).state()}, file)
    run = begun(fields, mode)
    resume(run, torch.load(file, weights_only=True), file)
    return trained(run)


def test_every_part_takes_part():
    kinds = {part.partition("-")[0] for part in PARTS}
    assert kinds == {*registry.entries("strategies"), *registry.entries("quantizers")}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_captured_resumed_and_recomputed_steps_are_the_eager_ones_bit_for_bit(part, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda function, **named: function)
    fields = PARTS[part]
    eager = trained(begun(fields, "eager")).state()
    assert equal(trained(begun({**fields, "activation_checkpointing": True}, "eager")).state(), eager)
    assert equal(continued(fields, "captured", tmp_path / "checkpoint.pt").state(), eager)


GRAPHS = [part for part in PARTS if part.endswith("-0")]  # of quantizers: tests/conformance


@pytest.mark.slow
@pytest.mark.parametrize("part", GRAPHS)
def test_a_compiled_step_follows_every_stage(part, monkeypatch):
    """What is compiled in one stage is not used in another one: nothing of a former stage is read."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **named: compiler(f, backend="eager", **named))
    torch._dynamo.reset()
    eager, compiled = (trained(begun(PARTS[part], mode)).state() for mode in ("eager", "compiled"))
    torch.testing.assert_close(compiled["network"], eager["network"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled["loss_sum"], eager["loss_sum"])


def test_levels_that_move_keep_as_much_of_a_step_in_micro_batches():
    """LQ-Nets: each part of a batch moves the levels less, so that old ones fade as fast."""
    for count in (1, 4):
        run = begun({"quantizer": "lqnets", "bits": "2/1", "micro_batches": count}, "eager")
        quantizer = run.network.conv1.quantizer
        start = quantizer.input_basis.clone()
        for _ in range(count):
            quantizer.activation(torch.full((count, 50_000), 2.0))  # the best level is 2
        torch.testing.assert_close(quantizer.input_basis - 2.0, 0.9 * (start - 2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["auxiliary", "fitnets", "staged"])
def test_what_a_strategy_taps_in_blocks_that_are_computed_again_is_not_copied(kind):
    """``eval_bn`` evaluates a copy of the network, not one of the strategy and of what it keeps of a step."""
    size = {"network": "resnet20", "width": 0.0625, "batch_size": 8, "train_size": 8, "epochs": 2}
    full = make_config(**size, quantizer="full_precision", bits="32/32").dump()
    roles = {"fitnets": {"teacher": full}, "staged": {"guided": True, "twin": full}}
    fields = {**size, "strategy": {"kind": kind, **roles.get(kind, {})}, "eval_bn": 1}
    eager, recomputed = (
        trained(make_run(make_config(**fields, activation_checkpointing=again), ARRAYS, "cpu"), 2).state()
        for again in (False, True)
    )
    assert equal(eager, recomputed)
