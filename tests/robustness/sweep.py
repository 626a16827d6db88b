"""All classifiers of torchvision and a small one of each timm family: kept exactly, or refused with a reason.

``python -m tests.robustness.sweep [--library torchvision|timm] [--network NAME]... [--seconds S] [--gigabytes
G]``

Each network is built in a process of its own, with random weights: transformed at 1/2 bits (DoReFa), checked
against its original (``bench.networks.convert.invariant``), and evaluated once, which must change no tensor.
Prints a line a network and the counts by reason; ends with 1 where something is neither kept nor refused by
one message.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torchvision

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.networks import build
from bench.randomness import Clock

FAMILIES = Path(__file__).with_name("timm_families.txt")
SMALL = 64  # pixels that are tried first; then the network's own size
EQUAL = "transformed, and in full precision the original"
BOUNDS = "not judged: more time or memory than the sweep allows"
CRASH = "FAILED: neither kept nor refused"
# words of a message -> the reason that is counted
REASONS = {
    "can become low precision": "refused: no convolution or linear layer that could become low precision",
    "not the same in training and in evaluation": "refused: training and evaluation compute otherwise",
    "computed in evaluation, but not in training": "refused: training and evaluation compute otherwise",
    "draws random numbers": "refused: draws random numbers of its own",
    "draws dropout": "refused: draws random numbers of its own",
    "is an autograd function": "refused: has an autograd function of its own",
    "cannot be followed by torch.fx": "refused: control flow that depends on tensors",
    "changes the tensor": "refused: changes a tensor of its own in forward",
    "statistics of the batch in evaluation": "refused: batch statistics in evaluation",
    "are one parameter": "refused: one parameter in two layers",
    "does not read images": "refused: reads no images of these sizes",
    "raised": "refused: its constructor raises",
    "for one image, not": "refused: returns something else than logits",
    "cannot be trained here": "refused: transformed, it is not the original",
}


def networks(library: str) -> list[tuple[str, str]]:
    """Return (family, name), the smallest first.

    Of torchvision every classifier; of timm the network with the fewest parameters in each family. Those are
    read from ``timm_families.txt``, since to find them takes minutes; families that are not there are
    measured.
    """
    if library == "torchvision":
        models = torchvision.models
        sizes = {
            name: models.get_model_weights(name).DEFAULT.meta["num_params"]
            for name in models.list_models(module=models)
        }
        return [(name, name) for name in sorted(sizes, key=sizes.__getitem__)]
    timm = importlib.import_module("timm")
    rows = [line.split() for line in FAMILIES.read_text().splitlines() if not line.startswith("#")]
    known = {family: name for family, name, _ in rows if timm.is_model(name)}
    for family in timm.list_modules():
        sizes = {name: _parameters(name) for name in timm.list_models(module=family) if family not in known}
        if sizes:
            known[family] = min(sizes, key=sizes.__getitem__)
    return list(known.items())


def _parameters(name: str) -> float:
    """Return how many parameters a network of timm has, infinite where it cannot be made without memory."""
    try:
        with torch.device("meta"):
            network = importlib.import_module("timm").create_model(name)
    except Exception:  # whatever a constructor does with tensors that have no values
        return float("inf")
    return sum(parameter.numel() for parameter in network.parameters())


def own_size(library: str, name: str) -> int:
    """Return the pixels of the images that a network was made for."""
    if library == "timm":
        settings = importlib.import_module("timm").get_pretrained_cfg(name)
        return int(settings.input_size[-1]) if settings is not None else 224
    return 299 if name == "inception_v3" else 224


def judge(library: str, name: str) -> tuple[str, str]:
    """Return the verdict on one network and the message of a refusal."""
    message = ""
    for size in dict.fromkeys((SMALL, own_size(library, name))):
        network = {"kind": library, "name": name, "input_size": size}
        fields = {"dataset": "digits", "network": network, "quantizer": "dorefa", "bits": "1/2", "epochs": 1}
        try:
            _try(TrialConfig.model_validate(fields), size)
            return f"{EQUAL}", f"{size} pixels"
        except InputError as error:
            message = str(error)
            if not re.search(r"does not read images|raised|cannot take a training step", message):
                break
        except Exception as error:  # a fault of the suite
            return CRASH, f"{type(error).__name__}: {error}"
    return next((reason for words, reason in REASONS.items() if words in message), "refused: other"), message


def _try(config: TrialConfig, size: int) -> None:
    network = build(config, num_classes=10, clock=Clock(), check_original=True).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        logits = network(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 10)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def _child(answer: Connection, library: str, name: str, gigabytes: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        answer.send(judge(library, name))
    except (MemoryError, RuntimeError) as error:
        answer.send((BOUNDS, str(error)))


def bounded(library: str, name: str, seconds: float, gigabytes: float) -> tuple[str, str]:
    """Return ``judge(library, name)`` from a process that gets so much time and memory."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, library, name, gigabytes))
    process.start()
    theirs.close()
    try:
        verdict, message = mine.recv() if mine.poll(seconds) else (BOUNDS, f"more than {seconds:g} s")
    except EOFError:
        verdict, message = BOUNDS, "its process ended"
    process.kill()
    process.join()
    if "allocate memory" in message or "bad_alloc" in message:
        verdict = BOUNDS
    return verdict, message


def main() -> int:
    """Judge every network and print the counts."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--library", choices=("torchvision", "timm"), action="append")
    parser.add_argument("--network", action="append", help="these alone; needs one --library")
    parser.add_argument("--seconds", type=float, default=180.0, help="a network")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of address space a network")
    args = parser.parse_args()
    failed = 0
    for library in args.library or ("torchvision", "timm"):
        found: dict[str, list[str]] = defaultdict(list)
        chosen = [(name, name) for name in args.network] if args.network else networks(library)
        for family, name in chosen:
            began = time.monotonic()
            verdict, message = bounded(library, name, args.seconds, args.gigabytes)
            found[verdict].append(name)
            label = name if family == name else f"{name} ({family})"
            print(f"{label}: {verdict}: {message} ({time.monotonic() - began:.0f} s)", flush=True)
        version = importlib.import_module(library).__version__
        print(f"\n{library} {version}, torch {torch.__version__}: {sum(map(len, found.values()))} networks")
        for verdict, names in sorted(found.items(), key=lambda item: -len(item[1])):
            listed = "" if verdict == EQUAL else f": {', '.join(names)}"
            print(f"{len(names):4d}  {verdict}{listed}")
        failed += len(found[CRASH])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
