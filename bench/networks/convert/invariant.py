"""The check that a transformed network is the original: without quantizer and branch, both compute the same.

    check_is_original(make, config, num_classes, input_size, who)

Two copies of the original get the same weights; one of them is transformed with the quantizer
``full_precision``. On a small batch of noise both must agree

- in training: logits, the gradient of every parameter, the running statistics;
- in evaluation: logits;

and of the transformed network evaluation must change no tensor, and an image's logits must not depend on the
images beside it. Both run in float64, where nothing but an error can differ by more than 1e-9 of the largest
value; a network that only runs in float32 is held to 1e-5 (logits) and 1e-3 (gradients, statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.layers.diagnostics import watched
from bench.networks.builder import Builder
from bench.networks.convert.rewrite import TransformedNetwork, transform
from bench.randomness import Clock
from bench.text import clean

# of the largest value that is compared: (logits, gradients and statistics)
_TOLERANCES = {torch.float64: (1e-9, 1e-7), torch.float32: (1e-5, 1e-3)}
_DROPOUTS = (nn.modules.dropout._DropoutNd, StochasticDepth)
_LARGE = 64  # pixels from which two images are enough


def check_is_original(
    make: Callable[[], nn.Module], config: TrialConfig, num_classes: int, input_size: int, who: str
) -> None:
    """Compare a transformed network, in full precision, with its original.

    Args:
        make: Returns the original, a new one at each call.
        config: The trial's; its quantizer is not used.
        num_classes: The length of the logits of an image.
        input_size: Height and width of the images in pixels.
        who: The name of the network in messages.

    Raises:
        InputError: The networks differ; the message names layer and quantity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = make()
        torch.manual_seed(0)
        other = make()
        _check_new(original, other, who)
        for root in (original, other):
            _without_dropout(root)
        found = _tensors(other)
        try:
            other.load_state_dict(original.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"network: two calls of {who} return different networks: {clean(error, 200)}"
            ) from None
        _check_repeated(original, found, who)
        fields = {"quantizer": {"kind": "full_precision"}, "bits": "32/32"}
        builder = Builder(config.model_copy(update=fields), Clock())
        transformed = transform(other, builder, num_classes, input_size=input_size, who=who)
        _vary(original, transformed)
        problem = _problem_of(original, transformed, input_size)
    if problem:
        raise InputError(f"network: {who} cannot be trained here: {problem}")


def _check_new(original: nn.Module, other: nn.Module, who: str) -> None:
    """Raise where two calls return one layer, which each of the two networks would change for the other."""
    others = set(other.modules())
    for name, module in original.named_modules():
        if module in others and (module._parameters or module._buffers or isinstance(module, _DROPOUTS)):
            raise InputError(
                f"network: two calls of {who} return one and the same {type(module).__name__} "
                f"({name or 'the network itself'}); make a new one at each call, not as a default argument "
                "or outside of all functions"
            )


def _check_repeated(original: nn.Module, found: Mapping[str, Tensor], who: str) -> None:
    """Raise where a call with the same seed gave other values to what the suite does not initialise."""
    modules = dict(original.named_modules())
    for name, value in (*original.named_parameters(), *original.named_buffers()):
        module = modules[name.rpartition(".")[0]]
        drawn = isinstance(module, nn.Conv2d | nn.Linear) and value.requires_grad
        if not drawn and not torch.equal(torch.nan_to_num(value), torch.nan_to_num(found[name])):
            raise InputError(
                f"network: two calls of {who} with one seed give {name} different values, so that no trial "
                "could be repeated; draw them from PyTorch's generator of random numbers"
            )


def _without_dropout(root: nn.Module) -> None:
    for module in root.modules():
        if isinstance(module, _DROPOUTS):
            module.p = 0.0


@torch.no_grad()
def _vary(original: nn.Module, transformed: TransformedNetwork) -> None:
    """Add the same noise to the parameters of both: last layers and scales often start at 0."""
    generator = torch.Generator().manual_seed(1)
    others = dict(transformed.named_parameters())
    for name, parameter in original.named_parameters():
        noise = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise)
        here = transformed.original_keys.get(name)
        if here is not None:
            others[here].add_(noise)


def _problem_of(original: nn.Module, transformed: TransformedNetwork, input_size: int) -> str:
    """Return what differs, "" where nothing does; in float64 where the original can compute in it."""
    count = 4 if input_size <= _LARGE else 2
    images = torch.randn(count, 3, input_size, input_size, generator=torch.Generator().manual_seed(2))
    weights = {name: value.clone() for name, value in original.state_dict().items()}
    try:
        with torch.no_grad():
            original.double().eval()(images.double())
    except (RuntimeError, TypeError, ValueError):
        original.float().load_state_dict(weights)
        return _comparison_problem(original, transformed, images)
    return _comparison_problem(original, transformed.double(), images.double())


def _comparison_problem(original: nn.Module, transformed: TransformedNetwork, images: Tensor) -> str:
    close, loose = _TOLERANCES[images.dtype]
    answers = []
    for network in (original, transformed):
        try:
            logits = network.train()(images)
            weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
            (logits * weights).sum().backward()
        except (RuntimeError, ValueError) as error:
            whose = "it" if network is original else "the transformed network"
            return f"{whose} cannot take a training step of {len(images)} images: {clean(error, 300)}"
        answers.append(logits.detach())
    problem = _logits_problem(original, transformed, images, answers, close, "training")
    problem = problem or _state_problem(original, transformed, loose)
    if problem:
        return problem
    before = _tensors(transformed)
    with torch.no_grad():
        answers = [network.eval()(images) for network in (original, transformed)]
        turned = transformed(images.flip(0)).flip(0)
        alone = transformed(images[:1])
    problem = _logits_problem(original, transformed, images, answers, close, "evaluation")
    if problem:
        return problem
    for name, value in _tensors(transformed).items():
        if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[name])):
            return f"evaluation changes {name}"
    if not _close(answers[1], turned, close) or not _close(answers[1][:1], alone, close):
        return "in evaluation an image's logits depend on the other images of its batch"
    return ""


def _close(wanted: Tensor, found: Tensor, tolerance: float) -> bool:
    """Return whether two tensors agree up to ``tolerance`` times max(1, the largest value); NaN is NaN."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return False
    finite = wanted[torch.isfinite(wanted)].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    return torch.allclose(wanted, found, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of parameters and buffers by name."""
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: value.detach().clone() for name, value in named}


def _logits_problem(
    original: nn.Module,
    transformed: nn.Module,
    images: Tensor,
    answers: list[Tensor],
    tolerance: float,
    mode: str,
) -> str:
    if _close(answers[0], answers[1], tolerance):
        return ""
    distance = float((answers[0] - answers[1]).abs().max())
    return (
        f"transformed in full precision, its logits in {mode} differ from the original's by up to "
        f"{distance:.2g}{_first_difference(original, transformed, images, tolerance)}"
    )


def _state_problem(original: nn.Module, transformed: TransformedNetwork, tolerance: float) -> str:
    """Return the first gradient or buffer that differs after a training step, in words."""
    parameters = dict(transformed.named_parameters())
    for name, parameter in original.named_parameters():
        here = transformed.original_keys.get(name)
        found = None if here is None else parameters[here].grad
        wanted, got = (torch.zeros_like(parameter) if g is None else g for g in (parameter.grad, found))
        if not _close(wanted, got, tolerance):
            return f"transformed in full precision, the gradient of {name} differs from the original's"
    state = transformed.state_dict()
    for name, buffer in original.named_buffers():
        here = transformed.original_keys.get(name)
        if here is None or name.endswith("num_batches_tracked"):
            continue
        if not _close(buffer.double(), state[here].double(), tolerance):
            return (
                f"transformed in full precision, {name} after a step of training differs from the original's"
            )
    return ""


@torch.no_grad()
def _first_difference(original: nn.Module, transformed: nn.Module, images: Tensor, tolerance: float) -> str:
    """Return ", first in LAYER" for the first layer, in the order of the original, whose output differs."""
    outputs: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for network, found in zip((original, transformed), outputs, strict=True):
        with watched(network.named_modules(), partial(_keep, found)):
            network(images)
    for name, wanted in outputs[0].items():
        got = outputs[1].get(name)
        if name and got is not None and not _close(wanted, got, tolerance):
            return f", first in {name} ({type(original.get_submodule(name)).__name__})"
    return ""


def _keep(found: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    value = output[0] if isinstance(output, tuple) else output
    if isinstance(value, Tensor):
        found.setdefault(name, value)
