"""FitNets: the two stages, what gets a gradient in each, and lambda."""

from __future__ import annotations

import pytest
import torch

from bench.costs.measure import make_run, synthetic
from bench.errors import InputError
from bench.strategies import make_strategy
from bench.strategies.fitnets import Regressor
from tests.configs import make_config
from tests.strategies.toys import FULL


def run_of(epochs=4, **options):
    options = {"kind": "fitnets", "teacher": FULL, **options}
    return make_run(make_config(bits="1/2", epochs=epochs, strategy=options), synthetic(96), "cpu")


def batch(run, step):
    run.clock.set(step, 0.0)
    return run.prepare(*run.data.inputs(step), run.clock.step)


def test_the_stage_of_hints_comes_first():
    strategy = make_strategy(make_config(epochs=4, strategy={"kind": "fitnets", "until": 0.3}), 5)
    assert [strategy.stage(step) for step in range(20)] == [0] * 6 + [1] * 14
    assert {strategy.factor(step) for step in range(20)} == {0.0}


def test_hints_are_the_formula_and_reach_what_lies_before_the_guided_layer_alone():
    run = run_of(until=0.5, hint="conv4", guided="conv4")
    images, labels = batch(run, 0)
    network, teacher = run.network, run.strategy.teacher
    read = {}
    for key, module in (("v", network.conv4), ("u", teacher.conv4)):
        module.register_forward_pre_hook(
            lambda m, i, key=key: read.__setitem__(key, m.bounded(i[0].detach()))
        )
    loss = run.strategy.loss(network(images), images, labels, run.loss)
    conv = run.strategy.regressor.conv
    expected = 0.5 * (torch.relu(conv(read["v"])) - read["u"]).square().mean()  # the teacher's map is a ReLU
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    reached = [name for name, p in network.named_parameters() if p.grad is not None]
    assert {name.split(".")[0] for name in reached} == {
        "conv0",
        "conv1",
        "bn1",
        "conv2",
        "bn2",
        "conv3",
        "bn3",
    }
    assert all(p.grad is not None for p in run.trained["regressor"].parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_distillation_is_the_formula_and_the_regressor_is_left_alone():
    run = run_of(until=0.25)  # 20 steps: distillation from step 5
    images, labels = batch(run, 12)
    logits = run.network(images)
    loss = run.strategy.loss(logits, images, labels, run.loss)
    target = torch.softmax(run.strategy.teacher(images) / 3, 1)
    soft = -(target * torch.log_softmax(logits / 3, 1)).sum(1).mean()
    share = 4 + (1 - 4) * (12 - 5) / 14
    assert loss.item() == pytest.approx((run.loss(logits, labels) + share * soft).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in run.trained["regressor"].parameters())
    assert all(p.grad is not None for p in run.network.parameters())


def test_lambda_falls_from_the_first_step_of_the_stage_to_the_last_of_the_trial():
    run = run_of(until=0.25)
    found = []
    for step in (5, 12, 19):
        run.clock.set(step, 0.0)
        found.append(run.strategy.distillation_weight().item())
    assert found == pytest.approx([4.0, 2.5, 1.0])


def test_layers_behind_the_guided_one_do_not_move_in_the_stage_of_hints():
    run = run_of(until=0.5, guided="conv3", hint="conv3")
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    for _ in range(5):
        run.train_step()
    moved = {name for name, p in run.network.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"conv0", "conv1", "bn1", "conv2", "bn2"}


def test_the_regressor_takes_up_a_difference_of_sizes():
    regressor = Regressor((3, 9, 9), (5, 7, 7))
    assert regressor(torch.rand(2, 3, 9, 9)).shape == (2, 5, 7, 7)
    assert regressor.macs == 5 * 3 * 9 * 49
    assert Regressor((6,), (4,))(torch.rand(2, 6)).shape == (2, 4, 1, 1)
    with pytest.raises(InputError, match=r"strategy.guided: its features, \(3, 7, 7\), are smaller"):
        Regressor((3, 7, 7), (5, 9, 9))


def test_an_unknown_layer_is_named():
    with pytest.raises(InputError, match=r"strategy.hint: .*'conv7'"):
        run_of(hint="conv7")
