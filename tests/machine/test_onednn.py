"""The guard against oneDNN's strided 1x1 convolutions on CPUs without AVX-512."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.machine.onednn import guard_convolutions


@pytest.mark.parametrize("stride", [2, (2, 3)])
def test_the_guarded_convolution_is_the_same_function(monkeypatch, stride):
    x = torch.rand(2, 4, 9, 10, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.rand(6, 4, 1, 1, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    steps = (stride, stride) if isinstance(stride, int) else stride
    picked = x.detach()[:, :, :: steps[0], :: steps[1]]
    expected = torch.einsum("bchw,oc->bohw", picked, weight[:, :, 0, 0]) + bias[:, None, None]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(F, "conv2d", torch.conv2d)
    guard_convolutions()
    guarded = F.conv2d
    guard_convolutions()
    assert guarded is F.conv2d and guarded is not torch.conv2d
    y = F.conv2d(x, weight, bias, stride)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    gradient = torch.zeros_like(x)
    gradient[:, :, :: steps[0], :: steps[1]] = weight.sum(0)
    torch.testing.assert_close(x.grad, gradient)
    wide = torch.rand(2, 4, 9, 10), torch.rand(6, 4, 3, 3)
    assert torch.equal(F.conv2d(*wide, padding=1), torch.conv2d(*wide, padding=1))


def test_other_processors_keep_the_convolution(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(F, "conv2d", torch.conv2d)
    guard_convolutions()
    assert F.conv2d is torch.conv2d
