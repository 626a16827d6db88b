"""Distillation and mutual learning on networks of one matrix: loss and gradients against NumPy formulas."""

from __future__ import annotations

import numpy as np
import pytest

from bench.experiments.roles import roles
from bench.launch.plan import relative_cost
from tests.configs import make_config
from tests.strategies import toys
from tests.strategies.toys import FULL, IMAGES, Linear, cross_entropy, hard, hard_gradient, kl, softmax

STUDENT, TEACHER, OTHER = ([[0.3, -0.2], [0.1, 0.4]], [[1.0, -1.0], [0.5, 0.2]], [[-0.7, 0.1], [0.6, -0.3]])


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.9), (1.0, 0.5), (2.5, 1.0), (2.5, 0.0)])
def test_distillation_is_the_formula_and_the_teacher_gets_no_gradient(temperature, weight):
    teacher, student = Linear(np.zeros((2, 2))), Linear(STUDENT)
    state = {"teacher": Linear(TEACHER).state_dict()}
    strategy = toys.strategy(
        "distillation", teacher, weights=state, teacher=FULL, temperature=temperature, weight=weight
    )
    loss = strategy.loss(student(toys.images()), toys.images(), toys.labels(), cross_entropy)
    loss.backward()
    z, t = IMAGES @ np.array(STUDENT), IMAGES @ np.array(TEACHER)
    p, q = softmax(z / temperature), softmax(t / temperature)
    soft = -(q * np.log(p)).sum(1).mean() * temperature**2
    close(loss.item(), weight * soft + (1 - weight) * hard(z))
    dz = weight * temperature * (p - q) / len(z) + (1 - weight) * hard_gradient(z)
    close(student.weight.grad, IMAGES.T @ dz)
    assert teacher.weight.grad is None and not teacher.weight.requires_grad and not teacher.training
    assert strategy.trained() == {} and strategy.forward_only() == [teacher]


def test_mutual_learning_is_the_formula_and_targets_are_constants():
    networks = [Linear(w) for w in (STUDENT, TEACHER, OTHER)]
    strategy = toys.strategy("mutual", *networks[1:], peers=2, peer=FULL, weight=0.7)
    assert list(strategy.trained()) == ["peer1", "peer2"]
    loss = strategy.loss(networks[0](toys.images()), toys.images(), toys.labels(), cross_entropy)
    loss.backward()
    answers = [IMAGES @ np.array(w) for w in (STUDENT, TEACHER, OTHER)]
    total = 0.0
    for k, (z, network) in enumerate(zip(answers, networks, strict=True)):
        others = [answers[i] for i in range(3) if i != k]
        total += hard(z) + 0.7 / 2 * sum(kl(other, z) for other in others)
        dz = hard_gradient(z) + 0.7 / 2 * sum(softmax(z) - softmax(other) for other in others) / len(z)
        close(network.weight.grad, IMAGES.T @ dz)
    close(loss.item(), total)


def test_peers_begin_with_other_weights_than_the_network_and_each_other():
    seeds = []
    made = make_config(strategy={"kind": "mutual", "peers": 3, "peer": FULL}, seed=5)
    strategy = toys.make_strategy(made, 5)
    strategy.prepare(Linear(STUDENT), lambda config: seeds.append(config.seed) or Linear(STUDENT), {})
    assert len({5, *seeds}) == 4


def test_a_step_is_planned_with_every_peer():
    def cost(**options):
        return relative_cost(make_config(**options))

    mutual = {"kind": "mutual", "peers": 3, "peer": FULL}
    assert [(role.joint, role.cost) for role in roles(make_config(strategy=mutual).strategy)] == [(True, 3.0)]
    assert cost(strategy=mutual) == pytest.approx(4 * cost())


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("distillation", {"temperature": 3.0, "weight": 0.25}, 0.25 * 3 * 10 + 0.75 * 10),
        ("distillation", {"temperature": 0.5, "weight": 1.0}, 10),
        ("mutual", {"peers": 2, "weight": 0.5}, 3 * 1.5 * 10),
        ("auxiliary", {"weight": 0.5}, 15),
    ],
)
def test_the_largest_loss_counts_every_term(kind, options, expected):
    strategy = toys.make_strategy(make_config(strategy={"kind": kind, **options}), 5)
    assert strategy.largest_loss(10.0) == pytest.approx(expected)
