"""The network that a finished trial ships: built from its record, written to a file, and checked against it.

The check is of the file, not of the network that was written: the file is read again, by the program that
will run it, and answers every test image.
"""

from __future__ import annotations

import copy
import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from bench import datasets
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.config import TrialConfig
from bench.export import foreign_formats as foreign
from bench.export.files import form_and_bytes, read_file, write_file
from bench.export.plain import latent_weights, plain_network
from bench.export.pt2 import run_pt2, write_pt2
from bench.export.rounding import TOLERANCE, judge
from bench.integer.convert import integer_network, layer_runs
from bench.machine.devices import cpu_name
from bench.networks import Network
from bench.randomness import Clock
from bench.records.store import Store
from bench.text import clean
from bench.training import setup
from bench.training.evaluate import EVALUATION_BATCH
from bench.training.finished import deployed_network, finished_trial, reestimate_

SUFFIXES = {
    "safetensors": ".safetensors",
    "packed": ".packed.safetensors",
    "onnx": ".onnx",
    "qonnx": ".qonnx.onnx",
    "pt2": ".pt2",
}
ON_INTEGERS = "{} (integers)"  # the name, in records, of a file that runs on integers
BIT_FOR_BIT = ("safetensors", "packed", "pt2")  # formats that PyTorch runs
_ROUNDS = 30  # measurements of the latency
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Deployment:
    """A finished trial's network, ready to be written.

    ``network`` is the trained one, stripped, in evaluation mode; ``plain`` what ships; ``images`` iterates
    over the images that the trial was evaluated on, None where the data is not here; ``recorded`` is the
    accuracy on them in the record, in percent. They are the test images, or with ``held_out`` (a trial
    whose ``evaluate_test`` is false, as all tuning trials) held-out training images.
    """

    id: str
    config: TrialConfig
    classes: int
    network: Network
    plain: fx.GraphModule
    images: Batches | None
    held_out: bool
    recorded: float | None


@dataclass(frozen=True)
class Checked:
    """What a written file answered on all images of the evaluation, beside the trained network.

    ``correct``, ``seen``       counts of the file
    ``accuracy``                their ratio in percent
    ``held_out``                whether the images are held-out training images instead of test images
    ``recorded``                the accuracy in the trial's record, in percent
    ``equal_logits``            whether all logits equal the trained network's, bit for bit
    ``other_predictions``       how many predictions do not equal the trained network's
    ``moved``                   images whose logits are off, and of which an activation is so near a
                                threshold that rounding alone moves it (``bench.export.rounding``)
    ``wrong``                   images whose logits are off without such an activation
    ``difference``              the largest difference of a logit of all images that were not moved
    ``spread``                  the standard deviation of all logits
    ``allowed``                 the largest difference from the logits in float64 that counts as rounding
    ``latency_ms``              median time of one image, on one thread; ``latency_spread_ms``: half the
                                distance of the quartiles
    ``processor``               where it was measured
    """

    correct: int
    seen: int
    accuracy: float
    held_out: bool
    recorded: float | None
    equal_logits: bool
    other_predictions: int
    moved: int
    wrong: int
    difference: float
    spread: float
    allowed: float
    latency_ms: float
    latency_spread_ms: float
    processor: str

    def passed(self, format: str, *, accept_ties: bool = False) -> bool:
        """Return whether the file is the network.

        Of PyTorch's formats all logits are equal. Of formats that other programs run, no image is off without
        a cause, and all predictions are equal; with ``accept_ties`` predictions of images that rounding moves
        may differ.
        """
        if format in BIT_FOR_BIT:
            return self.equal_logits
        return self.wrong == 0 and (accept_ties or self.other_predictions == 0)


def prepare(store: Store, id: str, data_dir: Path) -> Deployment:
    """Return the network of the finished trial ``id``, on the CPU.

    With ``eval_bn`` its batch norm is re-estimated as the evaluation did, which needs the training images.
    Raises ``InputError`` where the trial is not finished, its weights or needed data are absent, the data is
    not what it was trained on, or its network is code that the command line does not allow.
    """
    config, weights, summary, checksum = finished_trial(store, id, "exported")
    here = catalog.checksum(config.dataset, data_dir) is not None
    data = None
    if here:
        images = datasets.load(config.dataset, data_dir, checksum)
        data = setup.make_batches(config, images, Clock(config.seed))
    facts = catalog.facts(config.dataset, data_dir)
    classes = data.num_classes if data is not None else facts.num_classes
    if classes is None:
        raise InputError(
            f"{data_dir}: the data set {catalog.label(config.dataset)} is not here: how many classes?"
        )
    network = deployed_network(config, classes, weights, str(store.folder(id) / "weights.pt"))
    if config.eval_bn:
        if data is None:
            raise InputError(
                f"{data_dir}: eval_bn = {config.eval_bn} needs the training images, which are not here"
            )
        reestimate_(network, config, data)
    tested = config.evaluate_test  # else the test images stay unseen here, too
    batches = None if data is None else data.test_batches if tested else data.holdout_batches
    shown = None if batches is None else lambda: batches(EVALUATION_BATCH)
    recorded = summary.get("final_test_acc" if tested else "final_val_acc")
    plain = plain_network(network)
    return Deployment(id, config, classes, network, plain, shown, not tested, recorded)


def write(deployment: Deployment, format: str, path: Path, *, latent: bool = False) -> dict[str, Any]:
    """Write the network to ``path`` as ``format``, a key of ``SUFFIXES``; return the record's entry on it."""
    plain = deployment.plain
    about: dict[str, Any] = {"format": format}
    if format in ("safetensors", "packed"):
        written = write_file(
            path,
            copy.deepcopy(plain),
            deployment.config,
            deployment.classes,
            packed=format == "packed",
            latent=latent_weights(deployment.network) if latent else None,
        )
        about |= asdict(written)
    else:
        if latent:
            raise InputError(f"--latent: a {format} file has no place for them; use safetensors")
        if format == "qonnx":
            about["plain_weights"] = foreign.write_qonnx(path, plain)
        else:
            {"onnx": foreign.write_onnx, "pt2": write_pt2}[format](path, plain)
    return about | facts_of(path)


def facts_of(path: Path) -> dict[str, Any]:
    """Return name, size in bytes and SHA-256 of a file; raises ``InputError`` where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return {"file": path.name, "file_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def found_at(format: str, path: Path) -> dict[str, Any]:
    """Return the record's entry on a file that is there; raises ``InputError`` for one of another format."""
    about = {"format": format, **facts_of(path)}
    if format in ("safetensors", "packed"):
        form, about["tensor_bytes"] = form_and_bytes(path)
        here = "packed" if form == "packed" else "safetensors"
        if here != format:
            raise InputError(f"{path}: is a file of the format {here}, not {format}")
    return about


def runner(format: str, path: Path) -> foreign.Runner:
    """Return the network in a file as a function of images, by its program or on "integers"."""
    readers: dict[str, Callable[[Path], foreign.Runner]] = {
        "onnx": foreign.run_onnx,
        "qonnx": foreign.run_qonnx,
        "pt2": run_pt2,
        "integers": lambda path: integer_network(read_file(path)),
    }
    return readers.get(format, read_file)(path)


def layers_on_integers(path: Path) -> dict[str, Any]:
    """Return what the record keeps of a file that runs on integers.

    ``integer_layers`` are those of ``layers``; ``in_float32`` gives of the others the reason, by name.
    """
    runs = layer_runs(integer_network(read_file(path)))
    there = [run for run in runs if run.arithmetic == "integers"]
    found = {"layers": len(runs), "integer_layers": len(there)}
    reasons = {run.name: run.reason for run in runs if run.arithmetic == "float32"}
    return {**found, "instructions": there[0].instructions if there else None, "in_float32": reasons}


@torch.no_grad()
def check(deployment: Deployment, format: str, path: Path) -> Checked:
    """Read ``path`` again and compare it with the trained network on all images of the evaluation.

    Raises ``InputError`` for a file that is damaged, or is a network of other images or classes.
    """
    if deployment.images is None:
        raise ValueError("the images are not here")
    run = runner(format, path)
    wanted, found, right = [], [], 0
    image = None
    for images, labels in deployment.images():
        wanted.append(deployment.network(images))
        found.append(_answers(run, path, images, wanted[-1]))
        right += int((found[-1].topk(1, dim=1).indices[:, 0] == labels).sum())
        image = images[:1] if image is None else image
    if image is None:
        raise InputError("the set of images is empty: nothing to check the file against")
    one, other = torch.cat(wanted), torch.cat(found)
    spread = float(one.std())
    wrong, moved, allowed = _judged(deployment, wanted, found, spread)
    latency = _latency(run, image)
    return Checked(
        correct=right,
        seen=len(one),
        accuracy=100.0 * right / len(one),
        held_out=deployment.held_out,
        recorded=deployment.recorded,
        equal_logits=torch.equal(one, other),
        other_predictions=int((one.topk(1).indices != other.topk(1).indices).sum()),
        moved=int(moved.sum()),
        wrong=int(wrong.sum()),
        difference=float(torch.where(moved, 0.0, (one - other).abs().amax(1)).max()),
        spread=spread,
        allowed=allowed,
        latency_ms=statistics.median(latency),
        latency_spread_ms=(latency[3 * _ROUNDS // 4] - latency[_ROUNDS // 4]) / 2,
        processor=cpu_name(),
    )


def _answers(run: foreign.Runner, path: Path, images: Tensor, wanted: Tensor) -> Tensor:
    """Return a file's logits; raises ``InputError`` where its network has other images or classes."""
    try:
        found = run(images)
    except MemoryError:
        raise
    except Exception as error:  # of the program that runs the file: one class an error
        raise InputError(
            f"{path}: it cannot answer the trial's images, so it is another network ({clean(error, 200)})"
        ) from None
    if found.shape != wanted.shape:
        raise InputError(
            f"{path}: it has {found.shape[-1]} logits and the trial {wanted.shape[-1]}: it is another network"
        )
    return found


def _judged(
    deployment: Deployment, wanted: list[Tensor], found: list[Tensor], spread: float
) -> tuple[Tensor, Tensor, float]:
    """Return which images are off without a cause, which rounding moved, and the most that was allowed."""
    assert deployment.images is not None
    if torch.equal(torch.cat(wanted), torch.cat(found)):
        none = torch.zeros(sum(map(len, wanted)), dtype=torch.bool)
        return none, none, TOLERANCE * spread
    each = [
        judge(deployment.plain, images, ours, theirs, spread)
        for (images, _), ours, theirs in zip(deployment.images(), wanted, found, strict=True)
    ]
    wrong, moved = torch.cat([one.wrong for one in each]), torch.cat([one.moved for one in each])
    return wrong, moved, max(one.allowed for one in each)


def evaluated_arrays(deployment: Deployment) -> dict[str, Any]:
    """Return ``images`` (N, 3, S, S) float32, ``labels`` and ``logits`` of the evaluation.

    Images are as the network reads them. Raises ``InputError`` where the data is not here.
    """
    if deployment.images is None:
        raise InputError("--images: the data set is not here")
    batches = list(deployment.images())
    with torch.no_grad():
        logits = torch.cat([deployment.plain(images) for images, _ in batches])
    images, labels = (torch.cat([batch[i] for batch in batches]).contiguous().numpy() for i in range(2))
    return {"images": images, "labels": labels, "logits": logits.numpy()}


def _latency(run: foreign.Runner, image: Tensor) -> list[float]:
    """Return the sorted milliseconds of ``_ROUNDS`` runs on one image, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            run(image)
        found = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            run(image)
            found.append(1000.0 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return sorted(found)
