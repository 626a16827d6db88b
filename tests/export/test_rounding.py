"""Float64 as the judge of another program's logits: rounding passes, moved images are told, faults fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from bench.export.modules import Activation
from bench.export.rounding import TOLERANCE, exact_logits, judge
from bench.quantizers.deployed import ActivationMap


class Chain(nn.Module):
    """Sign or identity between two linear maps: (B, 3) -> (B, 2)."""

    def __init__(self, form: str, first: list[list[float]], second: list[list[float]]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, len(first), bias=False), nn.Linear(len(first), 2, bias=False)
        self.activation = Activation(ActivationMap(form))
        for layer, weight in ((self.first, first), (self.second, second)):
            layer.weight = nn.Parameter(torch.tensor(weight), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.activation(self.first(x)))


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, Chain)


def chain(form: str, first: list[list[float]], second: list[list[float]]) -> fx.GraphModule:
    module = Chain(form, first, second)
    return fx.GraphModule(module, Leaves().trace(module))


SIGNS = chain("sign", [[1.0, 1.0, 1.0], [0.1, 0.7, -0.3]], [[1.0, 0.25], [-0.5, 1.0]])
CLEAR = [[0.3, 0.2, 0.4], [0.1, -0.9, 0.3], [-0.7, 0.2, 0.1]]
MOVED = [1e8, -1.0, -1e8]  # float32 loses the 1, so that the sum is 0, whose sign is +1; exactly it is -1
NEAR = [0.5, -0.25, -0.25 + 2.0**-21]  # its sum is 5e-7


def test_exact_logits_are_those_of_the_formula():
    images = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    found, _ = exact_logits(SIGNS, images)
    x = images.numpy().astype(np.float64)
    first, second = (m.weight.numpy().astype(np.float64) for m in (SIGNS.first, SIGNS.second))
    np.testing.assert_array_equal(found.numpy(), np.where(x @ first.T >= 0, 1.0, -1.0) @ second.T)
    assert found.dtype == torch.float64 and torch.get_default_dtype() == torch.float32


def test_an_activation_on_a_threshold_is_told():
    _, tie = exact_logits(SIGNS, torch.tensor([*CLEAR, NEAR]))
    assert tie.tolist() == [False, False, False, True]


def test_an_activation_that_float64_moves_is_told():
    images = torch.tensor([MOVED])
    exact, tie = exact_logits(SIGNS, images)
    assert not torch.equal(SIGNS(images).double(), exact) and bool(tie.all())


def test_a_fault_fails_and_a_moved_image_is_excused():
    images = torch.tensor([*CLEAR, NEAR])
    wanted = SIGNS(images)
    off = torch.tensor([[0.0, 0.0], [3e-4, 0.0], [0.0, 0.9e-4], [0.5, 0.0]])
    judged = judge(SIGNS, images, wanted, wanted + off, 1.0)
    assert judged.wrong.tolist() == [False, True, False, False]
    assert judged.moved.tolist() == [False, False, False, True]
    assert judged.allowed == pytest.approx(TOLERANCE)


def test_where_float32_itself_is_off_another_program_may_round_as_much():
    # 1000 x - 999.9 x: the difference of large numbers, wrong in float32 by more than the tolerance
    cancelling = chain("identity", [[1000.1, 0.0, 0.0], [0.0, 999.9, 0.0]], [[1.0, -1.0], [0.0, 0.0]])
    images = torch.tensor([[3.3, 3.3003, 0.0], [7.7, 7.7007, 0.0], [5.1, 5.1, 0.0]])
    wanted = cancelling(images)
    exact, _ = exact_logits(cancelling, images)
    own = float((wanted - exact).abs().max())
    assert own > 2 * TOLERANCE
    for times, wrong in ((1.9, False), (2.1, True)):
        found = exact + times * own
        judged = judge(cancelling, images, wanted, found, 1.0)
        assert judged.allowed == pytest.approx(2 * own) and judged.wrong.tolist() == [wrong] * 3


def test_a_network_that_asks_for_float32_is_judged_in_float64():
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() + x.to(torch.float32) * 1e-9)[:, :2]

    images = torch.tensor([[1.0, 2.0, 3.0]])
    found, _ = exact_logits(fx.symbolic_trace(Asks()), images)
    assert found[0, 0].item() == 1.0 + 1e-9
