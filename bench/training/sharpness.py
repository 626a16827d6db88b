"""How sharp the minimum is that a trial ended in, and the barrier between two trials.

**Sharpness.** The mean rise of the training loss when noise of a stated size is added to the weights of the
low-precision layers. The noise of a filter is drawn from a normal distribution and scaled to ``size`` times
the norm of the filter's weights, which makes it independent of the scale of the weights (Li et al.,
*Visualizing the Loss Landscape of Neural Nets*, 1712.09913, section 4).

The noise is added to the *quantized* weights. The deployed network is a function of them alone: stored
weights behind a sign can be moved and scaled without changing that function, so that a sharpness of theirs
would say as much of the parametrisation as of the minimum (Dinh et al., 1703.04933). Noise on the *stored*
weights, before they are quantized, is the other measure: what it changes are signs and levels, and it says
how firmly the weights hold theirs.

**Barrier.** The largest rise of the training loss, on the straight line between the weights of two trials,
over the line between their losses (Frankle et al., 1912.05671; Entezari et al., 2110.06296): 0 where both
lie in one valley. The line joins the quantized weights and all other parameters. Batch norm's running
statistics belong to one point of the line, so they are measured anew at each (Jordan et al., 2211.08403), at
the ends as well.

Both are of training images without augmentation, in evaluation mode, with the loss of the recipe.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import datasets
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.roles import needed_roles
from bench.layers.low_precision import LowPrecisionLayer, low_precision_modules
from bench.networks import Network
from bench.randomness import Clock, key_of, normal
from bench.records.store import Store
from bench.training import setup
from bench.training.evaluate import EVALUATION_BATCH, reestimate_batch_norm
from bench.training.finished import deployed_network, finished_trial, reestimate_
from bench.training.losses import make_loss

Batches = list[tuple[Tensor, Tensor]]


# --- pure functions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rise:
    """The mean rise of a loss over draws of noise, and the standard error of the mean (NaN of one draw)."""

    mean: float
    error: float


def filter_noise(weight: Tensor, size: float, key: int) -> Tensor:
    """Return noise, float32, in the shape of ``weight`` (out, ...).

    The noise of a filter has ``size`` times the norm of the filter's weights.
    """
    noise = normal(key, weight.shape).to(weight.device).flatten(1)
    norms = weight.detach().float().flatten(1).norm(dim=1, keepdim=True)
    return (noise * (size * norms / noise.norm(dim=1, keepdim=True))).view(weight.shape)


def rise_under_noise(
    loss: Callable[[Mapping[str, Tensor]], float], weights: Mapping[str, Tensor], size: float, draws: int
) -> Rise:
    """Return how much ``loss`` of ``weights`` rises when ``filter_noise`` is added to all of them at once."""
    start = loss(weights)
    rises = []
    for draw in range(draws):
        noise = {n: filter_noise(w, size, key_of("sharpness", n, draw)) for n, w in weights.items()}
        rises.append(loss({name: w + noise[name].to(w.dtype) for name, w in weights.items()}) - start)
    error = statistics.stdev(rises) / math.sqrt(draws) if draws > 1 else math.nan
    return Rise(statistics.fmean(rises), error)


def barrier(losses: Sequence[float]) -> float:
    """Return the largest rise of ``losses``, evenly spaced on a path, over the line between both ends."""
    last = len(losses) - 1
    return max(loss - ((last - i) * losses[0] + i * losses[-1]) / last for i, loss in enumerate(losses))


# --- of trials ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A finished trial's deployed network and the training images that it is measured on."""

    id: str
    config: TrialConfig
    network: Network
    images: Batches

    def loss(self) -> float:
        """Return the recipe's loss of the network as it stands, the mean over all images."""
        loss = make_loss(self.config)
        with torch.no_grad():
            found = [(loss(self.network(x), y).item(), len(y)) for x, y in self.images]
        return sum(value * count for value, count in found) / sum(count for _, count in found)


def subject(store: Store, id: str, data_dir: Path, count: int) -> Subject:
    """Return the finished trial ``id`` with about ``count`` of its training images, whole batches of them.

    Raises ``InputError`` where the trial is not finished, weights or data are absent, or the data is not what
    it was trained on.
    """
    config, weights, _, checksum = finished_trial(store, id, "measured")
    loaded = datasets.load(config.dataset, data_dir, checksum)
    data = setup.make_batches(config, loaded, Clock(config.seed))
    where = str(store.folder(id) / "weights.pt")
    network = deployed_network(config, data.num_classes, weights, where)
    size = min(EVALUATION_BATCH, count)
    images = list(data.estimation_batches(max(1, count // size), size))
    if config.eval_bn:
        reestimate_(network, config, data)
    return Subject(id, config, network, images)


def sharpness(found: Subject, size: float, draws: int, *, stored: bool = False) -> Rise:
    """Return the rise of the training loss under noise on the quantized, or the ``stored``, weights."""
    layers = dict(low_precision_modules(found.network))

    def loss(weights: Mapping[str, Tensor]) -> float:
        with _computing_with(layers, weights, quantize=stored):
            return found.loss()

    return rise_under_noise(
        loss, {name: _layer_weight(layer, stored) for name, layer in layers.items()}, size, draws
    )


def measure(found: Subject, sizes: Sequence[float], draws: int, *, stored: bool = False) -> dict[str, Any]:
    """Return loss and rises of a trial after training and before, as a table for JSON.

    ``untrained`` is None where training began with given weights: the trial that they come from has the
    numbers.
    """

    def numbers(subject: Subject) -> dict[str, Any]:
        rises = [sharpness(subject, size, draws, stored=stored) for size in sizes]
        return {
            "loss": subject.loss(),
            "rises": [{"size": size, **asdict(rise)} for size, rise in zip(sizes, rises, strict=True)],
        }

    given = found.config.start is not None or "start" in needed_roles(found.config.strategy)
    return {
        "id": found.id,
        "trained": numbers(found),
        "untrained": None if given else numbers(untrained(found)),
    }


def untrained(found: Subject) -> Subject:
    """Return the trial with the weights that the recipe draws; batch norm is measured on the images."""
    config = found.config
    classes = found.network(found.images[0][0][:1]).shape[1]
    network = setup.make_network(config, classes, Clock(config.seed))
    reestimate_batch_norm(network, found.images)
    return Subject(found.id, config, network.eval(), found.images)


def path_losses(one: Subject, other: Subject, points: int) -> list[float]:
    """Return the training losses at ``points`` even distances from ``one`` to ``other``, both ends included.

    Raises ``InputError`` for networks of other layers or shapes.
    """
    layers = dict(low_precision_modules(one.network))
    ends = [_parameters(subject.network) for subject in (one, other)]
    shapes = [{name: tuple(value.shape) for name, value in end.items()} for end in ends]
    if shapes[0] != shapes[1]:
        raise InputError(f"no line joins the weights of {one.id} and {other.id}: their networks differ")
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    losses = []
    try:
        for i in range(points):
            share = i / (points - 1)
            here = {name: (1.0 - share) * value + share * ends[1][name] for name, value in ends[0].items()}
            one.network.load_state_dict({n: v for n, v in here.items() if n in before}, strict=False)
            weights = {name: here[f"{name}.quantized"] for name in layers}
            with _computing_with(layers, weights, quantize=False):
                reestimate_batch_norm(one.network, one.images)
                losses.append(one.loss())
    finally:
        one.network.load_state_dict(before)
    return losses


def _layer_weight(layer: LowPrecisionLayer, stored: bool) -> Tensor:
    return (layer.weight if stored else layer.low_precision_weight(with_extra=False)).detach()


def _parameters(network: Network) -> dict[str, Tensor]:
    """Return what a line between networks joins: quantized weights, and all parameters not quantized."""
    layers = dict(low_precision_modules(network))
    stored = {f"{name}.weight" for name in layers}
    found = {n: p.detach().clone() for n, p in network.named_parameters() if n not in stored}
    return found | {
        f"{name}.quantized": _layer_weight(layer, False).clone() for name, layer in layers.items()
    }


@contextlib.contextmanager
def _computing_with(
    layers: Mapping[str, LowPrecisionLayer], weights: Mapping[str, Tensor], *, quantize: bool
) -> Iterator[None]:
    """Let the layers compute with ``weights`` within the context, first quantized with ``quantize``."""
    for name, layer in layers.items():
        weight = weights[name]
        if quantize:
            weight = layer.quantizer.weight(weight, layer.fixed_statistics).detach()
        # a deployed network has no extra weights
        layer.low_precision_weight = lambda with_extra, w=weight: w  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.low_precision_weight
