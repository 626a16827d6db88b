"""What every registered part is held against, one line a part. A missing line fails by the table's name.

``QUANTIZERS``      independent formulas of values and gradients, in NumPy float64
``FACTORS``, ``LEARNING_RATES``   options and the formula of the value, likewise
``STRATEGIES``      options of a tiny run, a dict a variant, and the roles that are trials themselves
``NETWORKS``        the smallest instance that the checks build; None where a test of its own builds instances
``DATASETS``        options of an instance
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tests.quantizers import quantizer_oracles as oracle

Array = np.ndarray
ULP = 2.0**-23


# --- quantizers ---


@dataclass(frozen=True)
class QuantizerOracle:
    """The formulas of one quantizer; at 32 bits of weights every quantizer is the identity.

    ``weight(w, g, bits, options, scales)`` returns (q, dL/dw, {scale: dL/dscale}) for dL/dq = g; ``scales``
    are the learned ones by name. ``activation(x, g, bits)`` returns (y, dL/dx); with ``learned_activation``
    it is given ``scales`` too and returns {scale: dL/dscale} as well. ``ties(w, bits)`` and
    ``activation_ties(x, bits)``, with ``scales`` where learned, mark numbers so close to a threshold that
    float32 may take the other side; without the latter the thresholds are those of rounding on [0, 1].
    ``exact``: activations equal the formula to the last digit of float32. ``options`` are further options to
    check, beside the defaults.
    """

    weight: Callable[..., tuple[Array, Array, dict[str, Array]]]
    activation: Callable[..., tuple[Any, ...]]
    options: tuple[Mapping[str, Any], ...] = ()
    ties: Callable[[Array, int], Array] | None = None
    activation_ties: Callable[..., Array] | None = None
    learned_activation: bool = False
    exact: bool = True


def _dorefa(w, g, bits, options, scales, **flags):
    values = oracle.tanh_round(w, g, bits) if bits > 1 else oracle.mean_sign(w, g, **flags)
    return (*values, {})


def _dorefa_ties(w, bits):
    if bits == 1:
        return np.zeros(w.shape, bool)
    n = 2**bits - 1
    r = np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5
    near = np.abs(r * n - np.floor(r * n) - 0.5) <= 4 * n * ULP
    return near & (w != 0)  # a zero is a tie that must match


def _syq(w, g, bits, options, scales, ternary=True, zero_to_zero=False):
    eta = options.get("eta", 0.05 if bits == 2 else 0.0)
    return oracle.symmetric(w, g, scales["scale"], eta, ternary and bits == 2, zero_to_zero=zero_to_zero)


def _ttq(w, g, bits, options, scales):
    return oracle.two_scales(w, g, scales["positive"], scales["negative"], options.get("threshold", 0.05))


def _pact_activation(x, g, bits, scales):
    y, dx, dalpha = oracle.clipped_round(x, g, scales["alpha"], bits)
    return y, dx, {"alpha": dalpha}


def _pact_ties(x, bits, scales):
    n = 2**bits - 1
    r = np.clip(x / scales["alpha"], 0, 1) * n
    return (np.abs(r - np.floor(r) - 0.5) <= 8 * n * ULP) & (bits < 32)


def _lsq(w, g, bits, options, scales):
    half = 2 ** (bits - 1)
    q, dw, dstep = oracle.stepped(w, g, scales["weight_step"], -half, half - 1, w.size)
    return q, dw, {"weight_step": dstep}


def _lsq_activation(x, g, bits, scales):
    if bits == 32:
        return (*_relu(x, g), {})
    y, dx, dstep = oracle.stepped(x, g, scales["input_step"], 0, 2**bits - 1, 1)
    return y, dx, {"input_step": dstep}


def _lsq_ties(x, bits, scales):
    if bits == 32:
        return np.zeros(x.shape, bool)
    r = np.clip(x / scales["input_step"], 0, 2**bits - 1)
    return np.abs(r - np.floor(r) - 0.5) <= 8 * ULP * np.maximum(r, 1)


def _reactnet_activation(x, g, bits, scales):
    return oracle.shifted_sign(
        x, g, scales["shift_in"], scales["slope"], scales["shift_out"], scales["threshold"]
    )


def _reactnet_ties(x, bits, scales):
    return np.abs(oracle.shifted_sign(x, x, *(scales[n] for n in _REACTNET))[3]) < 1e-6


_REACTNET = ("shift_in", "slope", "shift_out", "threshold")


def _hwgq_activation(x, g, bits):
    return _relu(x, g) if bits == 32 else oracle.half_gaussian(x, g, bits)


def _qnn(x, g, bits, levels):
    y = np.clip(x, -1, 1) if bits == 32 else levels(x, bits)
    return y, g * (np.abs(x) <= 1)


def _hard_tanh_or(formula):
    return lambda x, g, bits: (np.clip(x, -1, 1), g * (np.abs(x) <= 1)) if bits == 32 else formula(x, g)


def _qnn_oracle(levels):
    return QuantizerOracle(
        lambda w, g, bits, options, scales: (*_qnn(w, g, bits, levels), {}), partial(_qnn, levels=levels)
    )


def _lqnets(w, g, bits, options, scales):
    step = 0.6745 / 2 ** (bits - 1)
    return oracle.nearest(w, step * np.arange(1 - 2**bits, 2**bits, 2)), g, {}


def _lqnets_activation(x, g, bits):
    if bits == 32:
        return _relu(x, g)
    levels = 2 * 0.6745 / (2**bits - 1) * np.arange(2**bits)
    return oracle.nearest(np.maximum(x, 0), levels), g * ((x > 0) & (x <= levels[-1]))


def _weq(w, g, bits, options, scales):
    return oracle.weighted_clusters(w, 2 ** (bits - 1), options.get("sweeps", 4)), g, {}


def _tang_activation(x, g, bits, scales):
    y, dx, dslope, _ = oracle.residual_signs(x, g, bits, scales["slope"])
    return y, dx, {"slope": dslope}


def _tang_ties(x, bits, scales):
    return oracle.residual_signs(x, x, bits, scales["slope"])[3] < 1e-5


def _dorefa_pytorch(w, g, bits, options, scales):
    if bits == 1:
        return (*oracle.mean_sign(w, g, zero_to_zero=True), {})
    t = np.tanh(w)
    return oracle.tanh_round(w, g, bits)[0] * np.abs(t).max(), g * (1 - t**2), {}


def _dorefa_pytorch_activation(x, g, bits):
    y, dx = _unit(x, g, bits)
    return ((x > 0).astype(float) if bits == 1 else y), dx


def _all_tanh_ties(w, bits):
    return _dorefa_ties(w, bits) if bits > 1 else np.zeros(w.shape, bool)


def _without_scales(formula):
    return lambda w, g, bits, options, scales: (*formula(w, g), {})


def _relu(x, g):
    return np.maximum(x, 0.0), g * (x > 0)


def _unit(x, g, bits, rounding=oracle.round_half_even):
    if bits == 32:
        return np.clip(x, 0, 1), g * ((x >= 0) & (x <= 1))
    return oracle.unit_activation(x, g, bits, rounding)


def _unit_or_relu(x, g, bits):
    return _relu(x, g) if bits == 32 else _unit(x, g, bits)


def _sign_or_relu(x, g, bits):
    return _relu(x, g) if bits == 32 else oracle.sign_activation(x, g)


_HALF_UP = partial(_unit, rounding=oracle.round_half_up)


def _half_up_of_relu(x, g, bits):
    y, dx = _HALF_UP(x, g, bits)
    return y, dx * (x != 0)


_GRANULARITIES = ({"granularity": "row"}, {"granularity": "layer"})

QUANTIZERS: dict[str, QuantizerOracle] = {
    "binaryconnect": QuantizerOracle(_without_scales(lambda w, g: (oracle.sign(w), g)), _unit_or_relu),
    "bireal": QuantizerOracle(
        _without_scales(lambda w, g: (oracle.filter_sign(w, g)[0], g * (np.abs(w) <= 1))),
        _hard_tanh_or(oracle.approximate_sign),
        exact=False,
    ),
    "bnn": QuantizerOracle(
        lambda w, g, bits, options, scales: (*oracle.sign_activation(w, g), {}),
        lambda x, g, bits: oracle.sign_activation(x, g),
    ),
    "bwn": QuantizerOracle(_without_scales(oracle.filter_sign), _unit_or_relu),
    "clipq": QuantizerOracle(
        lambda w, g, bits, options, scales: (oracle.clipped_means(w, bits, options.get("clip", 0.5)), g, {}),
        _unit_or_relu,
        ({"clip": 0.0}, {"clip": 0.8}),
    ),
    "dorefa": QuantizerOracle(_dorefa, _unit, ties=_dorefa_ties),
    "dorefa_bitorch": QuantizerOracle(
        lambda w, g, bits, options, scales: (oracle.tanh_round(w, g, bits)[0], g, {}),
        lambda x, g, bits: (oracle.unit_activation(x, g, bits)[0], g),
        ties=_all_tanh_ties,
    ),
    "dorefa_channelwise": QuantizerOracle(partial(_dorefa, per_channel=True), _unit),
    "dorefa_channelwise_released": QuantizerOracle(
        partial(_dorefa, per_channel=True, zero_to_zero=True), _unit
    ),
    "dorefa_pytorch": QuantizerOracle(_dorefa_pytorch, _dorefa_pytorch_activation, ties=_all_tanh_ties),
    "dorefa_released": QuantizerOracle(partial(_dorefa, zero_to_zero=True), _unit, ties=_dorefa_ties),
    "full_precision": QuantizerOracle(
        lambda w, g, bits, options, scales: (w, g, {}), lambda x, g, bits: _relu(x, g)
    ),
    "hwgq": QuantizerOracle(_without_scales(oracle.filter_sign), _hwgq_activation),
    "inq": QuantizerOracle(
        lambda w, g, bits, options, scales: (oracle.powers_of_two(w, bits), g, {}), _unit_or_relu
    ),
    "irnet": QuantizerOracle(
        _without_scales(oracle.libra),
        _hard_tanh_or(lambda x, g: oracle.decaying_sign(x, g * (np.abs(x) <= 1), 0.0)),
        exact=False,
    ),
    "lqnets": QuantizerOracle(_lqnets, _lqnets_activation, exact=False),
    "lsq": QuantizerOracle(
        _lsq, _lsq_activation, activation_ties=_lsq_ties, learned_activation=True, exact=False
    ),
    "pact": QuantizerOracle(
        _dorefa,
        _pact_activation,
        ties=_dorefa_ties,
        activation_ties=_pact_ties,
        learned_activation=True,
        exact=False,
    ),
    "qnn": _qnn_oracle(oracle.linear_levels),
    "qnn_log": _qnn_oracle(oracle.power_levels),
    "reactnet": QuantizerOracle(
        _without_scales(lambda w, g: (oracle.filter_sign(w, g)[0], g * (np.abs(w) <= 1))),
        lambda x, g, bits, scales: _reactnet_activation(x, g, bits, scales)[:3],
        activation_ties=_reactnet_ties,
        learned_activation=True,
        exact=False,
    ),
    "syq": QuantizerOracle(_syq, _HALF_UP, (*_GRANULARITIES, {"eta": 0.3})),
    "syq_four_levels": QuantizerOracle(partial(_syq, ternary=False, zero_to_zero=True), _half_up_of_relu),
    "syq_released": QuantizerOracle(partial(_syq, zero_to_zero=True), _half_up_of_relu),
    "tang": QuantizerOracle(
        _without_scales(oracle.sign_activation),
        _tang_activation,
        activation_ties=_tang_ties,
        learned_activation=True,
        exact=False,
    ),
    "tsq": QuantizerOracle(
        _without_scales(lambda w, g: (oracle.best_ternary(w), g)),
        lambda x, g, bits: _relu(x, g) if bits == 32 else oracle.sparse_levels(x, g, bits),
        exact=False,
    ),
    "ttq": QuantizerOracle(_ttq, _unit_or_relu, ({"threshold": 0.4},)),
    "twn": QuantizerOracle(
        lambda w, g, bits, options, scales: (*oracle.ternary_mean(w, g, options.get("threshold", 0.7)), {}),
        _unit_or_relu,
        ({"threshold": 0.3},),
    ),
    "weq": QuantizerOracle(
        _weq,
        lambda x, g, bits: _relu(x, g) if bits == 32 else oracle.logarithmic(x, g, bits),
        ({"sweeps": 0},),
    ),
    "xnor": QuantizerOracle(
        lambda w, g, bits, options, scales: (*oracle.filter_sign(w, g), {}), _sign_or_relu
    ),
}


# --- schedules: (options, formula of the progress p in [0, 1) and of the epoch e) ---

Case = tuple[Mapping[str, Any], Callable[[Array, Array], Array]]


def _ending(formula: Callable[[Array], Array], until: float = 0.6) -> list[Case]:
    """Return the case of a factor that is ``formula`` of u = p / until, and 0 from u = 1 on."""
    return [
        (
            {"until": until},
            lambda p, e: np.where(p < until, formula(np.minimum(p / until, 1)), 0.0),
        )
    ]


FACTORS: dict[str, list[Case]] = {
    "constant": [*_ending(np.ones_like), ({"keep": True}, lambda p, e: np.ones_like(p))],
    "cosine": _ending(lambda u: (1 + np.cos(np.pi * u)) / 2),
    "exponential": _ending(lambda u: np.exp(u * np.log(0.001))),
    "linear": _ending(lambda u: 1 - u),
    "staircase": [
        (
            {"every_epochs": 1.5, "decay": 0.25},
            lambda p, e: np.where(0.25 ** np.floor(e / 1.5) < 0.001, 0.0, 0.25 ** np.floor(e / 1.5)),
        )
    ],
    "step": [
        (
            {"at": [0.25, 0.5], "values": [0.5, 0.0]},
            lambda p, e: np.select([p < 0.25, p < 0.5], [1, 0.5], 0.0),
        ),
        ({"at_epochs": [3], "values": [0.0]}, lambda p, e: np.where(e < 3, 1.0, 0.0)),
    ],
}  # fmt: skip

LEARNING_RATES: dict[str, list[Case]] = {
    "constant": [({"initial": 0.1}, lambda p, e: np.full_like(p, 0.1))],
    "cosine": [
        ({"initial": 0.1, "final": 0.02}, lambda p, e: 0.02 + 0.08 * (1 + np.cos(np.pi * p)) / 2),
    ],
    "exponential": [({"initial": 0.1, "final": 0.001}, lambda p, e: 0.1 * np.exp(p * np.log(0.01)))],
    "linear": [({"initial": 0.1, "final": 0.02}, lambda p, e: 0.02 + 0.08 * (1 - p))],
    "polynomial": [({"initial": 0.1, "power": 3.0}, lambda p, e: 0.1 * (1 - p) ** 3)],
    "staircase": [
        ({"initial": 0.1, "decay": 0.5, "every_epochs": 4}, lambda p, e: 0.1 * 0.5 ** np.floor(e / 4)),
    ],
    "step": [
        ({"initial": 0.1, "at": [0.5], "gamma": 0.1}, lambda p, e: np.where(p < 0.5, 0.1, 0.01)),
        ({"initial": 0.1, "at_epochs": [4], "values": [0.3]}, lambda p, e: np.where(e < 4, 0.1, 0.3)),
    ],
}


# --- strategies ---


@dataclass(frozen=True)
class StrategyCase:
    """Options and ``fields`` of a tiny run, roles that are trials, and roles trained within the trial."""

    options: Mapping[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


FACTOR = {"kind": "cosine", "until": 0.6}
MERGES = ("sum", "difference", "concat", "preactivation")

STRATEGIES: dict[str, list[StrategyCase]] = {
    "anneal": [
        StrategyCase({"factor": FACTOR, "what": what}) for what in ("both", "weights", "activations", "signs")
    ],
    "apprentice": [
        StrategyCase({"scheme": "A"}, joint=("teacher",)),
        StrategyCase({"scheme": "B"}, needed=("teacher",)),
        StrategyCase({"scheme": "C"}, needed=("teacher", "start")),
    ],
    "auxiliary": [StrategyCase(), StrategyCase({"layers": ["conv2", "linear"], "weight": 0.5})],
    "distillation": [StrategyCase(needed=("teacher",))],
    "fitnets": [
        StrategyCase(needed=("teacher",)),
        StrategyCase({"until": 0.5, "hint": "conv3", "guided": "conv3"}, needed=("teacher",)),
    ],
    "incremental": [StrategyCase(), StrategyCase({"portions": [0.3, 1.0], "begin": 0.0, "until": 0.5})],
    "mutual": [StrategyCase({"peers": 2}, joint=("peer",))],
    "plain": [StrategyCase()],
    "progressive": [StrategyCase({"factor": FACTOR, "merge": merge}) for merge in MERGES],
    "rocket": [
        StrategyCase(joint=("booster",)),
        StrategyCase({"shared": ["conv0", "conv1", "bn1"], "block": False}, joint=("booster",)),
    ],
    "staged": [
        StrategyCase({"stages": ["1/32"]}),
        StrategyCase({"stages": ["32/32", "8/8", "4/4"], "bn_reestimate": 2}),
        StrategyCase({"guided": True}, joint=("twin",)),
        StrategyCase({"stages": ["2/32", "1/32", "1/4"], "guided": True, "guidance": 0.1}, joint=("twin",)),
    ],
    "two_step": [
        StrategyCase(
            {"images": 16, "rows": 64, "bn_reestimate": 1}, fields={"quantizer": "tsq", "bits": "2/2"}
        ),
        StrategyCase({"images": 16, "rows": 64, "frozen": False}, fields={"quantizer": "bwn", "bits": "1/2"}),
    ],
}


# --- networks and data sets ---


@dataclass(frozen=True)
class NetworkCase:
    """Options and width of an instance that is checked in a second; merges that the network cannot have."""

    options: Mapping[str, Any] = field(default_factory=dict)
    width: float = 0.0625
    refused: tuple[str, ...] = ()


NETWORKS: dict[str, NetworkCase | None] = {
    "alexnet_dorefa": NetworkCase({"input_size": 96}),
    "alexnet_syq": NetworkCase({"input_size": 96}),
    "alexnet_xnor": NetworkCase({"input_size": 96}),
    "bnn_convnet": NetworkCase(),
    "mobilenet_v2": NetworkCase({"input_size": 64}, refused=("concat",)),
    "python": None,  # tests/networks/test_convert.py
    "resnet18": NetworkCase({"input_size": 64}),
    "resnet20": NetworkCase(),
    "resnet32": NetworkCase(),
    "resnet34": NetworkCase({"input_size": 64}),
    "resnet44": NetworkCase(),
    "resnet50": NetworkCase({"input_size": 64}),
    "resnet56": NetworkCase(),
    "squeezenet1_1": NetworkCase({"input_size": 64}, width=1.0),
    "svhn_convnet": NetworkCase(),
    "timm": None,  # tests/networks
    "torchvision": None,  # tests/networks/test_convert.py
    "vgg_small": NetworkCase(),
}

DATASETS: dict[str, Mapping[str, Any]] = {
    "cifar10": {},
    "cifar100": {},
    "digits": {},
    "imagefolder": {"name": "mine"},
    "imagenet": {},
    "npz": {"name": "mine"},
    "svhn": {},
}
