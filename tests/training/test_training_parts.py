"""Optimizer, losses, evaluation and batch-norm re-estimation against formulas written out here."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.strategies.distances import soft_cross_entropy
from bench.training.evaluate import Accuracy, evaluate, reestimate_batch_norm
from bench.training.losses import make_loss, squared_hinge
from bench.training.optimizer import adam_epsilon, decayed_parameters, make_optimizer, set_step
from tests.configs import make_config


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.hidden = nn.Linear(2, 3)
        self.out = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (
            "all",
            {
                "conv.weight",
                "conv.bias",
                "bn.weight",
                "bn.bias",
                "hidden.weight",
                "hidden.bias",
                "out.weight",
                "out.bias",
            },
        ),
        ("kernels", {"conv.weight", "hidden.weight", "out.weight"}),
        ("linear", {"hidden.weight", "out.weight"}),
        ("classifier", {"out.weight"}),
    ],
)
def test_weight_decay_reaches_what_the_recipe_says(where, names):
    toy = Toy()
    chosen = decayed_parameters([toy], where)
    assert {name for name, p in toy.named_parameters() if id(p) in chosen} == names


def adam_oracle(w, grads, lr, beta1, beta2, eps, decay, tensorflow):
    """Adam in float64, epsilon after the correction (Kingma and Ba) or before it (TensorFlow)."""
    m = v = 0.0
    for t, loss_gradient in enumerate(grads, start=1):
        g = loss_gradient + decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        if tensorflow:
            w = w - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps)
        else:
            w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


@pytest.mark.parametrize("mode", ["pytorch", "tensorflow"])
def test_adam_is_the_formula(mode):
    recipe = make_config(epsilon=1e-3, epsilon_mode=mode, weight_decay=0.01, weight_decay_on="all")
    layer = nn.Linear(3, 1, bias=False)
    start = layer.weight.detach().double().numpy().copy()
    grads = [np.full((1, 3), 1e-3 * (i + 1)) * [[1, -2, 0.1]] for i in range(5)]
    optimizer = make_optimizer(recipe, [layer])
    for step, grad in enumerate(grads):
        set_step(optimizer, recipe, step, 0.01)
        layer.weight.grad = torch.tensor(grad, dtype=torch.float32)
        optimizer.step()
    expected = adam_oracle(start, grads, 0.01, 0.9, 0.999, 1e-3, 0.01, mode == "tensorflow")
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_tensorflow_epsilon_is_as_large_as_the_text_says():
    recipe = make_config(epsilon=1e-5, epsilon_mode="tensorflow")
    assert adam_epsilon(recipe, 0) / 1e-5 == pytest.approx(31.6, rel=1e-2)
    assert adam_epsilon(recipe, 2799) / 1e-5 == pytest.approx(1.03, abs=0.005)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_of_a_parameter_whose_first_gradient_comes_later(nesterov):
    """A learned scale in a stage of full precision, or a layer behind FitNets' hints."""
    toy = Toy()
    weights = [toy.out.weight, toy.out.bias]
    optimizer = make_optimizer(make_config(optimizer="sgd", momentum=0.5, nesterov=nesterov), [toy])
    set_step(optimizer, make_config(optimizer="sgd"), 0, 0.1)
    wanted = [w.detach().clone() for w in weights]
    moments = [torch.zeros_like(w) for w in weights]
    for step in range(4):
        for i, w in enumerate(weights):
            w.grad = torch.full_like(w, 1.0 + i + step) if step >= 2 * i else None
            if w.grad is not None:
                moments[i] = 0.5 * moments[i] + w.grad
                wanted[i] = wanted[i] - 0.1 * (w.grad + 0.5 * moments[i] if nesterov else moments[i])
        optimizer.step()
        for w, want in zip(weights, wanted, strict=True):
            torch.testing.assert_close(w.detach(), want)


def test_sgd_with_momentum_and_coupled_decay_is_the_formula():
    recipe = make_config(optimizer="sgd", momentum=0.9, weight_decay=0.1)
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.3, -0.6]])  # by chance a weight near 0 would be off by its rounding
    w, u = layer.weight.detach().double().numpy().copy(), 0.0
    optimizer = make_optimizer(recipe, [layer])
    for step, lr in enumerate([0.1, 0.1, 0.01]):
        g = np.array([[0.5, -1.0]]) * (step + 1)
        u = 0.9 * u + g + 0.1 * w
        w = w - lr * u
        set_step(optimizer, recipe, step, lr)
        layer.weight.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-5)


def test_a_parameter_without_gradient_is_left_alone_with_its_moments():
    recipe = make_config(weight_decay=0.1)
    layer = nn.Linear(2, 2)
    optimizer = make_optimizer(recipe, [layer])
    set_step(optimizer, recipe, 0, 0.1)
    before = layer.bias.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert torch.equal(layer.bias, before) and layer.bias not in optimizer.state


def test_squared_hinge_by_hand():
    logits = torch.tensor([[0.5, -0.5], [2.0, 0.0]])
    labels = torch.tensor([0, 1])
    # targets (+1, -1), (-1, +1): terms (0.5)^2, (0.5)^2, 3^2, 1^2; mean over 4
    assert squared_hinge(logits, labels).item() == pytest.approx((0.25 + 0.25 + 9 + 1) / 4)
    assert make_loss(make_config(loss="squared_hinge"))(logits, labels).item() == pytest.approx(2.625)


def test_cross_entropy_with_smoothing_by_hand():
    logits = np.array([[1.0, 0.0, -1.0]])
    log_p = logits - np.log(np.exp(logits).sum())
    target = np.array([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    loss = make_loss(make_config(label_smoothing=0.1))(
        torch.tensor(logits, dtype=torch.float32), torch.tensor([0])
    )
    assert loss.item() == pytest.approx(-(target * log_p).sum(), rel=1e-6)


def test_soft_cross_entropy_and_its_gradient_by_formula():
    rng = np.random.default_rng(0)
    z, t, temperature = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), 3.0

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(z / temperature), softmax(t / temperature)
    student = torch.tensor(z, requires_grad=True)
    loss = soft_cross_entropy(student, torch.tensor(t), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(-(q * np.log(p)).sum(1).mean() * temperature**2)
    np.testing.assert_allclose(student.grad.numpy(), (p - q) * temperature / 4, rtol=1e-9)


def test_evaluate_counts_and_restores_the_mode():
    network = nn.Identity().train()
    logits = (
        torch.eye(10)[[0, 1, 2, 3, 4]] * 2 - torch.arange(10) * 0.01
    )  # ties below the top go to the smaller class
    labels = torch.tensor([0, 1, 2, 9, 0])
    result = evaluate(network, [(logits[:2], labels[:2]), (logits[2:], labels[2:])], 10)
    # right: 0, 1, 2. Top-5 of image 4 (label 9) is {3, 0, 1, 2, 4}: wrong; of image 5 (label 0) {4, 0, 1, 2,
    # 3}: right
    assert (result.correct, result.top5, result.seen) == (3, 4, 5)
    assert result.percent == 60.0 and result.percent_top5 == 80.0
    assert result.predicted[:5] == (1, 1, 1, 1, 1) and result.labelled == (2, 1, 1, 0, 0, 0, 0, 0, 0, 1)
    assert network.training


def test_at_chance():
    labelled = (216, 784, 0)
    assert Accuracy(216, 0, 1000, (1000, 0, 0), labelled).at_chance()  # always one class
    assert Accuracy(784, 0, 1000, (300, 700, 0), labelled).at_chance()  # no better than the commonest class
    assert not Accuracy(900, 0, 1000, (200, 800, 0), labelled).at_chance()
    even = (100,) * 10
    # chance 10 %, standard error sqrt(0.1 * 0.9 / 1000) = 0.949 %: the limit is 12.85 %
    assert Accuracy(128, 0, 1000, even, even).at_chance()
    assert not Accuracy(129, 0, 1000, even, even).at_chance()


def test_batch_norm_is_reestimated_as_the_plain_average_of_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    batches = [torch.randn(8, 2) * (i + 1) + i for i in range(3)]
    count = copy.deepcopy(network[0].num_batches_tracked)
    reestimate_batch_norm(network, [(batch, None) for batch in batches])
    means = np.mean([b.numpy().mean(0) for b in batches], axis=0)
    variances = np.mean([b.numpy().var(0, ddof=1) for b in batches], axis=0)
    np.testing.assert_allclose(network[0].running_mean.numpy(), means, rtol=1e-5)
    np.testing.assert_allclose(network[0].running_var.numpy(), variances, rtol=1e-5)
    assert network[0].momentum == 0.1 and network[0].num_batches_tracked == count and not network.training
