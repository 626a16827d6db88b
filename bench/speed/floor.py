"""The least time of a step on a device, from the device's measured rates, and the memory of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.layers.diagnostics import in_evaluation
from bench.speed.cases import BATCH
from bench.speed.timing import timed
from bench.training.loop import Run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def roofline(device: str, dtype: str) -> dict[str, float]:
    """Return the measured rate of arithmetic in ``dtype`` (FLOP/s) and of a copy (bytes/s) on ``device``.

    The rate of arithmetic is that of a matrix product or of a 3x3 convolution, whichever is faster: different
    libraries may compute the two.
    """
    n = 4096 if device.startswith("cuda") else 768
    a = torch.randn(n, n, device=device).to(DTYPES[dtype])
    flops = 2 * n**3 / min(timed(lambda: a @ a, device) for _ in range(25))
    images = (
        torch.randn(BATCH, 64, 32, 32, device=device).to(DTYPES[dtype]).to(memory_format=torch.channels_last)
    )
    kernel = torch.randn(64, 64, 3, 3, device=device).to(DTYPES[dtype]).to(memory_format=torch.channels_last)
    work = 2 * images.numel() * 64 * 9
    flops = max(
        flops, work / min(timed(lambda: F.conv2d(images, kernel, padding=1), device) for _ in range(25))
    )
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / min(timed(lambda: target.copy_(source), device) for _ in range(7))
    return {"flops_per_second": flops, "bytes_per_second": moved}


@torch.no_grad()
def step_bytes(run: Run, factor_on: bool) -> int:
    """Return the bytes that a step of ``run`` moves at least, with everything between convolutions fused.

    Each convolution and linear layer moves its input and output once in the forward pass, and its input and
    the gradients of both once in the backward pass. Each weight is read in both passes, its gradient is
    written, and Adam passes over weight, gradient and two moments: ten times four bytes. An activation has 4
    bytes, 2 in bf16.
    """
    moved = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        y: Tensor = output[0] if isinstance(output, tuple) else output
        moved += 3 * inputs[0][0].numel() + 2 * y[0].numel()

    run.clock.set(0, 1.0 if factor_on else 0.0)
    with contextlib.ExitStack() as hooks, in_evaluation(run.network):
        for module in run.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(count))
        run.network(run.network.blank_image())
    weights = sum(p.numel() for p in run.network.parameters())
    return (4 if run.config.precision == "fp32" else 2) * moved * run.config.batch_size + 40 * weights


def floor_seconds(run: Run, factor_on: bool, rates: dict[str, float]) -> float:
    """Return the seconds of a step's operations, or of its bytes if longer, at the measured rates."""
    operations = run.step_flops(factor_on) / rates["flops_per_second"]
    return max(operations, step_bytes(run, factor_on) / rates["bytes_per_second"])


def allocated(device: str) -> int:
    """Return the bytes allocated on a GPU now; 0 on the CPU."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def peak_memory_cpu(run: Run, action: Callable[[], None]) -> int:
    """Return the bytes of all tensors at the peak of a step on the CPU.

    These are weights, moments, gradients and what the step allocates. The images and the scratch memory of
    libraries do not count.
    """
    networks = [run.network, *run.trained.values(), *run.strategy.forward_only()]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
    tensors += [
        value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    live = peak = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
