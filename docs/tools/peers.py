"""``python -m docs.tools.peers``: ``bench speed`` with other libraries' 1-bit layers in the SVHN network.

The libraries are Brevitas (github.com/Xilinx/brevitas) and BITorch (github.com/hpi-xnor/bitorch); the extra
``peers`` installs them. Their steps are timed in the same rounds as ours. Each library builds
``bench.networks.convnets.svhn_convnet`` with its own layers in place of DoReFa 1/1. These are the nearest
equivalents, not equal maths.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.cli.main import main
from bench.speed import measure
from bench.speed.timing import timed
from bench.training.loop import Run

# (channels, kernel, padding, pool, dropout) of conv1 .. conv6 at width 1
_CONVS = (
    (64, 3, 1, 0, 0.0),
    (64, 3, 1, 2, 0.0),
    (128, 3, 0, 0, 0.0),
    (128, 3, 1, 0, 0.0),
    (128, 3, 0, 0, 0.0),
    (512, 5, 0, 0, 0.5),
)
WHAT = {
    "brevitas": "W: sign times a constant scale (SignedBinaryWeightPerTensorConst); "
    "A: sign (SignedBinaryActPerTensorConst)",
    "bitorch": "W: sign; A: sign (QConv2d with straight-through sign)",
}
Layer = Callable[
    [int, int, int, int], nn.Module
]  # (in, out, kernel, padding) -> quantizes what it reads, then convolves


def _brevitas() -> Layer:
    import brevitas.nn as qnn
    from brevitas.quant import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst

    def layer(width: int, out: int, kernel: int, padding: int) -> nn.Module:
        activation = qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst, bit_width=1)
        weights = SignedBinaryWeightPerTensorConst
        conv = qnn.QuantConv2d(
            width, out, kernel, padding=padding, bias=False, weight_quant=weights, weight_bit_width=1
        )
        return nn.Sequential(activation, conv)

    return layer


def _bitorch() -> Layer:
    from bitorch.layers import QConv2d

    def layer(width: int, out: int, kernel: int, padding: int) -> nn.Module:
        return QConv2d(
            width,
            out,
            kernel,
            padding=padding,
            bias=False,
            input_quantization="sign",
            weight_quantization="sign",
        )

    return layer


def installed() -> dict[str, Layer]:
    """Return the layers of the libraries that can be imported, by name."""
    found = {}
    for name, make in (("brevitas", _brevitas), ("bitorch", _bitorch)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = make()
        except Exception:  # the library is absent, or does not work with this torch
            continue
    return found


def svhn_convnet(layer: Layer, width: float, classes: int = 10) -> nn.Sequential:
    """Return the SVHN network (input 40x40) with ``layer`` as its convolutions 1 to 6."""

    def channels(count: int) -> int:
        return max(1, round(count * width))

    before = channels(48)
    modules: list[nn.Module] = [nn.Conv2d(3, before, 5), nn.MaxPool2d(2)]
    for count, kernel, padding, pool, dropout in _CONVS:
        after = channels(count)
        modules += [nn.Dropout(dropout)] if dropout else []
        modules += [layer(before, after, kernel, padding), nn.BatchNorm2d(after, eps=1e-4)]
        modules += [nn.MaxPool2d(pool)] if pool else []
        before = after
    return nn.Sequential(*modules, nn.Hardtanh(0.0, 1.0), nn.Flatten(), nn.Linear(before, classes))


def step(layer: Layer, run: Run, width: float, mode: str) -> Callable[[], None]:
    """Return a training step of a peer's network on the batches of ``run``."""
    network = svhn_convnet(layer, width).to(run.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(network) if mode != "eager" else network

    def action() -> None:
        images, labels = run.data.train_batch(0)
        with run._autocast():
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return action


def further(run: Run, network: str, width: float, mode: str) -> list[measure.Further]:
    """Return the peers' steps beside the SVHN network, whose ``run`` gives the batches."""
    found: list[measure.Further] = []
    for name, layer in installed().items() if network == "svhn_convnet" else ():
        about: dict[str, Any] = {"kind": "peer", "peer": name, "what": WHAT[name]}
        about |= {"quantizer": name, "bits": "1/1"}
        try:
            action = step(layer, run, width, mode)
            about["first_step_seconds"] = timed(action, str(run.device))
        except Exception as error:  # the compiler refuses the library, or the library refuses this torch
            reason = type(error).__name__
            print(f"bench speed: {name} in mode {mode} cannot be measured ({reason})", file=sys.stderr)
            continue
        found.append((about, action, measure.BATCH))
    return found


if __name__ == "__main__":
    measure.EXTRAS.append(further)
    raise SystemExit(main(["speed", *sys.argv[1:]]))
