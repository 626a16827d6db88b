"""Every strategy on a converted network: the numbers are those of the suite's own network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.experiments import permission
from bench.export.plain import plain_network
from bench.layers.diagnostics import layer_diagnostics
from bench.layers.low_precision import low_precision_modules, strip
from bench.machine.foreign import Grant, granted
from bench.networks import Builder, costs
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock
from bench.strategies.fitted_layers import Survey
from bench.strategies.taps import block_inputs
from bench.training.loop import Run
from bench.training.memory import recompute_activations
from bench.training.start import Start
from tests.configs import make_config
from tests.networks import plain_networks

FADED = {"kind": "linear", "until": 0.5}
FULL = {"quantizer": "full_precision", "bits": "32/32", "strategy": {"kind": "plain"}}
FURTHER = {
    "apprentice": ("teacher",),
    "distillation": ("teacher",),
    "fitnets": ("teacher",),
    "mutual": ("peer",),
    "rocket": ("booster",),
}


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    with granted(Grant((plain_networks.__name__,))):
        yield


def run_of(kind: str, own: bool, roles: tuple[str, ...] = (), **fields: Any) -> Run:
    """Return a run of six steps of the suite's network of a kind, or of the user's ``own`` that is equal."""
    network = permission.sealed({"kind": f"python:{plain_networks.__name__}.{kind}", "input_size": 32})
    chosen = {"network": network, "width": 1.0} if own else plain_networks.SUITE[kind]
    rate = {"kind": "constant", "initial": 1e-3}
    size = {"train_size": 24, "batch_size": 8}
    fields = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": rate, **size, **chosen, **fields}
    full = make_config(**{**fields, **FULL}).dump()
    strategy = {**fields.pop("strategy", {"kind": "plain"}), **dict.fromkeys(roles, full)}
    return make_run(make_config(strategy=strategy, **fields), synthetic(24), "cpu")


def pair(kind: str, *roles: str, **fields: Any) -> tuple[Run, Run]:
    return run_of(kind, False, roles, **fields), run_of(kind, True, roles, **fields)


def parameters(run: Run) -> dict[str, torch.nn.Parameter]:
    trained = {name: p for role, m in run.trained.items() for name, p in m.named_parameters(role)}
    return {**dict(run.network.named_parameters()), **trained}


def check_step(ours: Run, converted: Run) -> None:
    """Do a step of both; losses and gradients agree. The converted network then goes on from ours."""
    before = [run.loss_sum.item() for run in (ours, converted)]
    for run in (ours, converted):
        run.train_step()
    losses = [run.loss_sum.item() - b for run, b in zip((ours, converted), before, strict=True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), ours.step
    others = parameters(converted)
    for name, parameter in parameters(ours).items():
        grad, other = parameter.grad, others[name].grad
        assert (grad is None) == (other is None), name
        if grad is not None and other is not None:
            near = 1e-5 + 1e-3 * float(grad.abs().max())
            torch.testing.assert_close(grad, other, rtol=0, atol=near, msg=f"{ours.step} {name}")
    with torch.no_grad():
        for name, parameter in parameters(ours).items():
            others[name].copy_(parameter)
        converted.network.load_state_dict(ours.network.state_dict())


def check_deployed(ours: Run, converted: Run) -> None:
    """In evaluation both agree with the branch and without; the exported network is the deployed one."""
    images = next(iter(ours.data.test_batches(8)))[0]
    factor = ours.strategy.factor(ours.step - 1)
    with torch.no_grad():
        for f in (factor, 0.0):
            answers = []
            for run in (ours, converted):
                run.clock.set_factor(f)
                answers.append(run.network.eval()(images))
            torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)
        assert torch.equal(strip(converted.network)(images), answers[1])
        assert torch.equal(plain_network(converted.network)(images), answers[1])
    for run in (ours, converted):
        run.network.train()


LINES = {
    "plain": ({"kind": "plain"}, "dorefa", "1/2"),
    "sum": ({"kind": "progressive", "merge": "sum", "factor": FADED}, "dorefa", "1/2"),
    "joint": (
        {"kind": "progressive", "merge": "concat", "factor": FADED, "statistics": "joint"},
        "dorefa",
        "1/2",
    ),
    "anneal": ({"kind": "anneal", "factor": FADED}, "dorefa", "1/2"),
    "signs": ({"kind": "anneal", "factor": FADED, "what": "signs"}, "dorefa", "1/2"),
    "apprentice A": ({"kind": "apprentice", "scheme": "A"}, "dorefa", "1/2"),
    "apprentice C": ({"kind": "apprentice", "scheme": "C"}, "dorefa", "1/2"),
    "distillation": ({"kind": "distillation"}, "dorefa", "1/2"),
    "mutual": ({"kind": "mutual"}, "dorefa", "1/2"),
    "rocket": ({"kind": "rocket"}, "dorefa", "1/2"),
    "auxiliary": ({"kind": "auxiliary"}, "dorefa", "1/2"),
    "fitnets": ({"kind": "fitnets"}, "dorefa", "1/2"),
    "incremental": ({"kind": "incremental"}, "inq", "4/32"),
    "guided": ({"kind": "staged", "guided": True, "stages": ["4/4"]}, "dorefa", "2/2"),
    "two_step": ({"kind": "two_step", "images": 24, "rows": 1000}, "tsq", "2/2"),
}
CASES = [
    *(("chain", line) for line in LINES),
    *(("post", line) for line in ("auxiliary", "fitnets", "guided")),
    ("pre", "auxiliary"),
]


@pytest.mark.parametrize(("kind", "line"), CASES)
def test_a_strategy_trains_a_converted_network_as_the_suite_s(kind, line):
    """Six steps through every stage: loss, gradients, deployed and exported logits, operations."""
    strategy, quantizer, bits = LINES[line]
    roles = FURTHER.get(strategy["kind"], ())
    roles += ("start",) * (strategy.get("scheme") == "C") + ("twin",) * bool(strategy.get("guided"))
    runs = pair(kind, *roles, strategy=strategy, quantizer=quantizer, bits=bits)
    ours, converted = runs
    named = parameters(ours), parameters(converted)
    assert named[0].keys() == named[1].keys()
    assert all(torch.equal(p, named[1][name]) for name, p in named[0].items())
    assert costs(ours.network) == costs(converted.network)
    assert ours.strategy.largest_loss(3.0) == converted.strategy.largest_loss(3.0)
    for on in (True, False):
        assert ours.step_flops(on) == converted.step_flops(on)
    for step in range(ours.total_steps):
        check_step(*runs)
        if step in (0, ours.total_steps - 1):
            check_deployed(*runs)


def test_a_run_of_a_converted_network_goes_on_after_a_checkpoint_as_if_without():
    """In the stage of hints, in the first and in the second portion: the state is all that the rest needs."""
    for line, at in (("fitnets", 1), ("incremental", 2), ("incremental", 4), ("two_step", 4), ("guided", 2)):
        strategy, quantizer, bits = LINES[line]
        roles = FURTHER.get(strategy["kind"], ()) + ("twin",) * bool(strategy.get("guided"))
        fields = {"strategy": strategy, "quantizer": quantizer, "bits": bits}
        whole, second = (run_of("chain", True, roles, **fields) for _ in range(2))
        for _ in range(at):
            whole.train_step()
        second.restore(copy.deepcopy(whole.state()))
        for run in (whole, second):
            while run.step < run.total_steps:
                run.train_step()
        found = second.network.state_dict()
        assert all(torch.equal(v, found[name]) for name, v in whole.network.state_dict().items()), line


def test_the_fit_of_two_steps_knows_the_activation_behind_functions_of_pooling_and_flattening():
    strategy, quantizer, bits = LINES["two_step"]
    behind = []
    for run in pair("chain", strategy=strategy, quantizer=quantizer, bits=bits):
        layers = dict(run.network.low_precision_layers())
        survey = Survey(run.network.eval(), layers, torch.rand(3, 3, 32, 32), 20, seed=0)
        names = {module: name for name, module in run.network.named_modules()}
        behind.append({name: (names.get(norm), map_) for name, (norm, map_) in survey.behind.items()})
    assert behind[0] == behind[1] and behind[0]["conv5"][0] == "bn5"


@pytest.mark.parametrize("kind", ["chain", "post"])
def test_the_diagnostics_of_a_layer_are_of_what_its_bounding_map_reads(kind):
    found = []
    for run in pair(kind):
        run.clock.set_factor(0.0)
        images = next(iter(run.data.test_batches(8)))[0]
        found.append(layer_diagnostics(run.network, images, detailed=True))
    for name, observed in found[0].items():
        for key in ("saturation", "activation_error"):
            assert found[1][name][key] == pytest.approx(observed[key], rel=1e-4), name
        assert 0.0 < observed["saturation"] < 1.0


def test_learned_bounds_have_their_penalty_and_keep_their_start():
    """PACT's clip in front of the last layer is decayed like the classifier's; no file of weights has it."""
    ours, converted = pair("chain", quantizer="pact", bits="2/2")
    for run in (ours, converted):
        run.network.linear.weight.data.mul_(3.0)
        run.network(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 9).sum().backward()
        run.network.add_penalty_()
    alphas = {n: p for n, p in converted.network.named_parameters() if n.endswith("alpha")}
    outside = next(p for n, p in alphas.items() if "conv" not in n)
    wanted = ours.network.get_parameter("linear.quantizer.alpha")
    torch.testing.assert_close(outside.grad, wanted.grad)
    outside.data.fill_(5.0)
    given = {n: v for n, v in converted.network.state_dict().items() if "quantizer" not in n}
    Start(given, "weights.pt").put_into(converted.network)
    assert outside.item() == 5.0


def test_the_layers_of_a_sequential_are_blocks_and_those_of_a_block_are_one():
    def conv() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU())

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(conv(), conv())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.body(x)

    features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), conv(), conv(), Residual())
    root = torch.nn.Sequential(features, torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
    network = transform(root, Builder(make_config(bits="1/2"), Clock(3)), 10, input_size=8)
    assert block_inputs(network) == ["0.1.0", "0.2.0", "0.3.body.0.0", "2"]


def test_activations_of_a_converted_network_with_a_list_of_blocks_are_recomputed():
    """Its gradients are the same; the layers hold their inputs alone."""
    ours, other = run_of("post", True), run_of("post", True)
    recompute_activations(other.network)
    layers = [layer for _, layer in low_precision_modules(other.network)]
    assert layers and all("forward" in vars(layer) for layer in layers)
    check_step(ours, other)
