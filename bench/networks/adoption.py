"""Builds, checks and transforms modules that the suite did not write: torchvision's, timm's, the user's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import InputError, NetworkError, nearest
from bench.networks.builder import Builder, Network
from bench.networks.convert.invariant import check_is_original
from bench.networks.convert.plan import Choices
from bench.networks.convert.rewrite import transform
from bench.randomness import key_of
from bench.text import clean

log = logging.getLogger("bench.networks")


def adopted(
    make: Callable[[], Any],
    builder: Builder,
    num_classes: int,
    who: str,
    *,
    input_size: int | None,
    **choices: str,
) -> Network:
    """Return the module that ``make`` returns, transformed to a low-precision network.

    Args:
        make: Returns the module, in its own initialisation.
        builder: Makes the low-precision layers; its ``check_original`` asks for the comparison with the
            original.
        num_classes: The length of the logits of an image.
        who: The name of the network in messages.
        input_size: Height and width of the images in pixels; None: the module's attribute ``input_size``.
        **choices: Fields of ``Choices``.

    Raises:
        NetworkError: ``make`` raises or returns no module, the size is unknown, the module cannot be
            transformed, or the transformed network differs from the original. Each may depend on the seed.
        InputError: ``make`` itself raised it, for instance for code that is not allowed.
    """

    def made() -> nn.Module:
        return _made(make, builder, who)

    root = made()
    size = input_size if input_size is not None else getattr(root, "input_size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise NetworkError(
            f"network: the input size of {who} is not known: give it as input_size, or as an attribute of "
            "the module"
        )
    try:
        if builder.check_original:
            check_is_original(made, builder.config, num_classes, size, who)
        return transform(root, builder, num_classes, input_size=size, choices=Choices(**choices), who=who)
    except InputError as error:
        raise NetworkError(str(error)) from error


def _made(make: Callable[[], Any], builder: Builder, who: str) -> nn.Module:
    """Return the module of ``make``; parameters that the suite does not initialise depend on the seed."""
    with torch.random.fork_rng(devices=[]), _settings_kept():
        torch.manual_seed(key_of(builder.clock.seed, "init", who))
        try:
            root = make()
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # the user's code can raise anything
            log.info("%s raised", who, exc_info=True)
            raise NetworkError(f"network: {who} raised {type(error).__name__}: {clean(error, 300)}") from None
    if not isinstance(root, nn.Module):
        raise NetworkError(f"network: {who} returned {type(root).__name__}, not a torch.nn.Module")
    return root


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """Restore PyTorch's settings of the process, which the user's code may change as it is imported."""
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    settings: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        (torch.is_grad_enabled, torch.set_grad_enabled),
    )
    before = [(get, put, get()) for get, put in settings]
    try:
        yield
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)
        for name, value in flags.items():
            setattr(cudnn, name, value)


def check_known(library: str, known: Collection[str], name: str, field: str) -> None:
    """Raise ``InputError`` unless ``name``, of ``field``, is among the networks ``known`` to a library."""
    if name not in known:
        raise InputError(f"{field}: {library} has no network {name[:80]!r}.{nearest(name, known)}")


def cached_file(source: str, url: str) -> Path:
    """Return the path of ``url`` in torch's local cache; ``source`` names the file in messages.

    Nothing is downloaded, and the file is not read. Raises ``InputError`` where the file is absent.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise InputError(
            f"start: {source}: the weights are not in the local cache, and the suite downloads nothing. "
            f"Put {url} at {file}"
        )
    return file


def renamed(network: Network, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state``, a state dict of the original, with the names that its entries have in ``network``.

    Entries of layers that ``forward`` does not call are left out. Names that the original does not have stay,
    so that the caller can report them. Names of the suite's own networks stay as they are.
    """
    names: dict[str, str | None] = getattr(network, "original_keys", {})
    found = {names.get(name, name): value for name, value in state.items()}
    return {name: value for name, value in found.items() if name is not None}
