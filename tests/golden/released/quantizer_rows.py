"""Quantizers held against quantizers.npz."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.experiments.config import TrialConfig, make_config
from bench.networks import build
from bench.quantizers import make_quantizer
from bench.quantizers.dorefa import quantize_gradient
from bench.randomness import Clock
from tests.golden.released.base import DTYPES, SUMS, Row, arrays, difference


@dataclass(frozen=True)
class Function:
    """How a function of quantizers.npz is called here: a quantizer, its bits, its options, and its ties.

    ``ties``: the elements at which the suite differs by choice are left out of the comparison: "threshold"
    for ternary weights that equal the threshold.
    """

    kind: str
    bits: int
    options: tuple[tuple[str, Any], ...] = ()
    ties: str | None = None


WEIGHTS = {
    **{f"dorefa_w{bits}": Function("dorefa_released", bits) for bits in (1, 2, 4, 8)},
    "tensorpack_w1": Function("dorefa", 1),
    "xnor_w1": Function("dorefa_channelwise_released", 1),
    "ttq": Function("ttq", 2, ties="threshold"),
    **{
        f"syq_{granularity}_{form}_eta{eta}": Function(
            "syq_released",
            1 if form == "binary" else 2,
            (("granularity", granularity), ("eta", float(eta))),
            ties="threshold" if form == "ternary" and eta != "0" else None,
        )
        for granularity in ("pixel", "row", "layer")
        for form in ("binary", "ternary")
        for eta in ("0", "0.05")
    },
}
FOUR_LEVELS = {
    f"syq_{granularity}_binary_eta0.05": Function(
        "syq_four_levels", 2, (("granularity", granularity), ("eta", 0.05))
    )
    for granularity in ("pixel", "row", "layer")
}


def _scaled(
    quantizer: torch.nn.Module, data: dict[str, np.ndarray], granularity: str, dtype: torch.dtype
) -> None:
    """Give a quantizer the scales that the release was run with."""
    for name, parameter in quantizer.named_parameters():
        key = f"scale_{granularity}" if name == "scale" else f"scale_ttq_{name}"
        parameter.data = torch.tensor(data[key], dtype=dtype).reshape(parameter.shape)


def _weight_rows(function: str, call: Function, precision: str) -> Iterator[tuple[str, float]]:
    """Yield (output, difference) of one weight function over all its inputs."""
    data, dtype = arrays("quantizers"), DTYPES[precision]
    options = dict(call.options)
    for source in ("w_normal", "w_zeros", "w_threshold", "w_linear"):
        if f"{function}.{source}.y" not in data:
            continue
        if precision == "float64" and source == "w_threshold" and call.ties == "threshold":
            continue  # what lies on the threshold in float32 lies on either side of it in float64
        if precision == "float64" and source == "w_threshold" and options.get("eta"):
            continue
        w = torch.tensor(data[source], dtype=dtype, requires_grad=True)
        quantizer = make_quantizer(call.kind, call.bits, weight_shape=w.shape, **options)
        _scaled(quantizer, data, options.get("granularity", "layer"), dtype)
        y = quantizer.weight(w)
        dy = torch.tensor(data["dy_" + source.removeprefix("w_")], dtype=dtype)
        inputs = {"x": w, **dict(quantizer.named_parameters())}
        gradients = dict(zip(inputs, torch.autograd.grad(y, list(inputs.values()), dy), strict=True))
        keep = np.ones(w.shape, bool)
        if call.ties and source == "w_threshold":
            keep = np.abs(data[source]) != np.float32(0.05)
        yield "y", difference(y[torch.tensor(keep)], data[f"{function}.{source}.y"][keep])
        yield (
            "gradients",
            difference(
                gradients.pop("x")[torch.tensor(keep)], data[f"{function}.{source}.dx"][keep], relative=True
            ),
        )
        for name, gradient in gradients.items():
            theirs = data[f"{function}.{source}.d{name}"]
            yield "gradients", difference(gradient.reshape(theirs.shape), theirs, relative=True)


def weights(precision: str) -> Iterator[Row]:
    """Yield the rows of weight functions; inputs and outputs of one function are one row."""
    families = {
        "DoReFa-Net, 1 to 8 bits": ("dorefa_released", [n for n in WEIGHTS if n.startswith("dorefa")]),
        "DoReFa-Net of tensorpack, 1 bit": ("dorefa", ["tensorpack_w1"]),
        "XNOR (1 bit, a scale per output channel)": ("dorefa_channelwise_released", ["xnor_w1"]),
        "TTQ": ("ttq", ["ttq"]),
        "SYQ, binary and ternary, pixel, row and layer": (
            "syq_released",
            [n for n in WEIGHTS if n.startswith("syq")],
        ),
    }
    calls = [
        (title, kind, {name: WEIGHTS[name] for name in names}) for title, (kind, names) in families.items()
    ]
    calls.append(("SYQ, the commented-out 2/x call", "syq_four_levels", FOUR_LEVELS))
    for title, kind, functions in calls:
        largest = {"y": 0.0, "gradients": 0.0}
        for name, call in functions.items():
            for output, found in _weight_rows(name, call, precision):
                largest[output] = max(largest[output], found)
        yield Row(
            "Quantizers",
            f"{title}: weights",
            precision,
            largest["y"],
            1e-6,
            "levels",
            f"`{kind}`",
            "a scale is a float32 mean of up to 1,152 magnitudes",
        )
        yield Row(
            "Quantizers",
            f"{title}: gradients",
            precision,
            largest["gradients"],
            1e-5,
            "gradients of weights and scales",
            f"`{kind}`",
            SUMS,
            relative=True,
        )


def activations(precision: str) -> Iterator[Row]:
    """Yield the rows of activation functions and of the gradient quantizer."""
    data, dtype = arrays("quantizers"), DTYPES[precision]
    clock = Clock(0)
    for function, kind, fold in (
        ("act_abs", "dorefa_released", True),
        ("act_clip", "dorefa_released", False),
        ("act_syq", "syq_released", False),
    ):
        values = gradients = 0.0
        for bits in (1, 2, 4):
            network = {"kind": "svhn_convnet", "activation": "abs" if fold else "clip"}
            config = _config(network, kind, f"1/{bits}")
            layer = build(config, num_classes=10, clock=clock).conv1
            x = torch.tensor(data["x"], dtype=dtype, requires_grad=True)
            y = layer.activate(x)
            (dx,) = torch.autograd.grad(y, x, torch.tensor(data["dy_x"], dtype=dtype))
            values = max(values, difference(y, data[f"{function}_a{bits}.y"]))
            gradients = max(gradients, difference(dx, data[f"{function}_a{bits}.dx"]))
        name = {"act_abs": "min(1, |x|)", "act_clip": "clip(x, 0, 1)", "act_syq": "SYQ's, half up"}[function]
        ours = f"`{kind}`" + (", activation = `abs`" if fold else "")
        yield Row(
            "Quantizers",
            f"activations {name}, 1, 2, 4 bits",
            precision,
            values,
            1e-7,
            "levels i / n",
            ours,
            "float32 holds i / n to 6e-8",
        )
        yield Row(
            "Quantizers",
            f"activations {name}: gradients",
            precision,
            gradients,
            1e-6,
            "0 outside [0, 1]",
            ours,
            "the release multiplies by n and divides by n on the way back",
        )
    alive = data["g"].reshape(len(data["g"]), -1).any(1)
    largest = 0.0
    for bits in (1, 2, 4, 8):
        g, noise = (torch.tensor(data[key], dtype=dtype) for key in ("g", "noise"))
        found = quantize_gradient(g, 2**bits - 1, noise)[torch.tensor(alive)]
        largest = max(largest, difference(found, data[f"grad_g{bits}.dx"][alive]))
    yield Row(
        "Quantizers",
        "gradients, 1, 2, 4, 8 bits, given noise",
        precision,
        largest,
        1e-6,
        "levels of max |g|",
        "`dorefa_released`",
        "one rounding of a product; an all-zero sample stays 0 here and is not a number there",
    )


def _config(network: Any, quantizer: Any, bits: str, **changes: Any) -> TrialConfig:
    fields = {"dataset": "digits", "epochs": 1, "width": 0.125, **changes}
    return make_config({**fields, "network": network, "quantizer": quantizer, "bits": bits})
