"""Every registered quantizer by two workers: the numbers of one, up to the order of summation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench import registry
from bench.datasets.batch_rows import rows
from bench.quantizers import Quantizer, make_quantizer
from bench.randomness import Clock, Draws
from bench.training.distributed import SOLO, Team, average_statistics, share_statistics
from tests.conformance.test_registered import own
from tests.launch.team_helpers import together

INPUTS = (8, 5, 4, 4)  # of a layer: (B, C, H, W)


def quantizers_of(kind: str) -> Iterator[tuple[str, Quantizer]]:
    """Yield a quantizer of each width of activations and each switch of the quantizer, with a name."""
    entry = registry.get("quantizers", kind)
    g_bits = entry.facts.get("g_bits", [32])[0]
    switches = [name for name, spec in entry.options.items() if spec["default"] is False]
    for options in ({}, *({name: True} for name in switches)):
        for a_bits in entry.facts["a_bits"]:
            made = make_quantizer(
                kind, entry.facts["w_bits"][0], a_bits, g_bits, (6, 5, 3, 3), INPUTS[1], **options
            )
            yield f"{kind} {a_bits} {options}", made


def shared(team: Team) -> dict[str, dict[str, np.ndarray]]:
    """Return what each quantizer makes of this worker's images in two steps, and what it has become."""
    return {
        name: _two_steps(quantizer, team)
        for kind in own("quantizers")
        for name, quantizer in quantizers_of(kind)
    }


def _two_steps(quantizer: Quantizer, team: Team) -> dict[str, np.ndarray]:
    """Return of the last step: values and gradients of this worker's images, the sums and the buffers."""
    mine, clock = rows(INPUTS[0], team.rank_and_size), Clock(0)
    quantizer = quantizer.double().train()
    quantizer.draws, clock.samples = Draws(clock, "quantizer", "layer"), mine
    share_statistics([quantizer], team)
    generator = torch.Generator().manual_seed(2)
    found: dict[str, np.ndarray] = {}
    for step in range(2):
        clock.step.fill_(step)
        quantizer.zero_grad()
        x, g = (torch.randn(INPUTS, generator=generator, dtype=torch.float64) for _ in range(2))
        images = x[mine].requires_grad_()
        y = quantizer.gradient(quantizer.activation(images))
        (y * g[mine]).sum().backward()
        average_statistics([quantizer], team)
        found = {"own value": y.detach().numpy(), "own gradient": images.grad.numpy()}
        for name, parameter in quantizer.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {name}"] = team.total(parameter.grad).numpy()
        found |= {name: buffer.numpy().copy() for name, buffer in quantizer.named_buffers()}
    return found


def test_every_quantizer_makes_of_its_images_what_one_worker_makes_of_all():
    """Values, gradients by image, summed gradients of parameters, and buffers that training moves."""
    parts = together("tests.conformance.test_workers:shared")
    whole = shared(SOLO)
    assert len(whole) > len(own("quantizers")) and {len(part) for part in parts} == {len(whole)}
    for quantizer, numbers in whole.items():
        for name, want in numbers.items():
            found = [part[quantizer][name] for part in parts]
            found = [np.concatenate(found)] if name.startswith("own") else found
            for each in found:
                np.testing.assert_allclose(each, want, rtol=1e-9, atol=1e-11, err_msg=f"{quantizer}: {name}")
