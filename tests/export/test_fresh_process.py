"""PyTorch's files of networks x quantizers x merges x precisions, run by a fresh process on real images.

Quantizers, merges and precisions take turns, so that every network is trained with two of each.
``BENCH_EXPORT_CASES=N`` draws N of the whole product instead, as ``make soak`` does.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.errors import InputError
from bench.export import foreign_formats as foreign
from bench.export.files import write_file
from bench.export.plain import plain_network
from bench.foreign import Grant, granted
from tests.export.networks_for_export import (
    ALL,
    DRAWN,
    NETWORKS,
    OWN,
    OWN_MODULE,
    QUANTIZERS,
    STRATEGIES,
    trained,
    widths,
)

pytestmark = pytest.mark.slow


def in_turns() -> list[tuple[str, str, str, str, str]]:
    """Return (network, quantizer, bits, merge, precision), two cases a network."""
    found = [("svhn_convnet_abs", "syq", "2/8", "difference", "fp32")]  # most quantizers refuse this network
    networks, merges = [name for name in NETWORKS if name != "svhn_convnet_abs"], list(STRATEGIES)
    for i in range(2 * len(networks)):
        kind = QUANTIZERS[2 * i % len(QUANTIZERS)]
        bits = widths(kind)
        precision = ("fp32", "bf16")[(i + i // len(networks)) % 2]
        network, merge = networks[i % len(networks)], merges[i % len(merges)]
        if network == "mobilenet_v2" and merge in ("concat", "joint"):
            merge = "sum"  # depthwise convolutions read no extra channels: the network refuses them
        found.append((network, kind, bits[i % len(bits)], merge, precision))
    return found


CASES = random.Random(1).sample(ALL, min(DRAWN, len(ALL))) if DRAWN else in_turns()
WITH_PYTORCH = """
import sys, bench, numpy, torch
torch.set_num_threads(1)
for folder in sys.argv[2:]:
    images = torch.from_numpy(numpy.load(f"{folder}/images.npy"))
    images = images.contiguous(memory_format=torch.channels_last)
    logits = torch.from_numpy(numpy.load(f"{folder}/logits.npy"))
    with torch.no_grad():
        for name in ("levels.safetensors", "packed.safetensors"):
            network = bench.load(f"{folder}/{name}", allow_code=[sys.argv[1]])
            assert torch.equal(network(images), logits), (folder, name)
        assert torch.equal(torch.export.load(f"{folder}/x.pt2").module()(images), logits), (folder, "x.pt2")
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for the cases, with the module of a user's own."""
    made = tmp_path_factory.mktemp("fresh")
    (made / f"{OWN_MODULE}.py").write_text(OWN)
    return made


@pytest.fixture(scope="module")
def written(folder):
    """Train the network of each case and write its files; return the names of the folders of the cases."""
    made = []
    with granted(Grant((OWN_MODULE,), str(folder))):
        for case in CASES:
            try:
                name = "-".join(case).replace("/", "_")
                write(folder / name, *case)
                made.append(name)
            except InputError:
                if not DRAWN:
                    raise
    return made


def write(folder: Path, network: str, kind: str, bits: str, merge: str, precision: str) -> None:
    """Train a network and write its files, images and logits."""
    changes = {"quantizer": kind, "bits": bits, "precision": precision, **NETWORKS[network]}
    net, images, config = trained(merge, **changes)
    folder.mkdir()
    with torch.no_grad():
        np.save(folder / "logits.npy", net(images).numpy())
    np.save(folder / "images.npy", images.contiguous().numpy())
    for packed in (False, True):
        file = folder / f"{('levels', 'packed')[packed]}.safetensors"
        write_file(file, plain_network(net), config, 10, packed=packed)
    foreign.write_pt2(folder / "x.pt2", plain_network(net))


def test_pytorch_reads_equal_logits(folder, written):
    run(folder, "-c", WITH_PYTORCH, OWN_MODULE, *written)


def run(folder: Path, *words: str) -> None:
    """Run Python in ``folder``, on one thread; its failure shows what it printed."""
    root = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, *words], cwd=folder, env=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
