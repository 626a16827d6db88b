"""Two-Step Quantization: the codes of activations are learned, then each layer's weights are fitted.

Source: Wang, Hu, Zhang, Zhang, Liu and Cheng, *Two-Step Quantization for Low-bit Neural Networks*, CVPR 2018.
Step one trains with quantized activations and full-precision weights. Step two fits the low-precision weights
of one layer after the other, so that the layer's activation is that of the full-precision weights. The layer
reads what the layers before it, already quantized, give: a later layer makes up for the errors of earlier
ones. ``bench.strategies.layer_fit`` has the problem and its solution.

Seen of the paper: the abstract, summaries and the text of the authors' code for ternary weights (forward
weights are a t of least |w - a t|^2, as in the quantizer ``tsq``). They say that step two is a non-linear
least-squares regression with low-bit constraints, solved by alternation, and that the start is the nearest
weights. Neither the paper's text nor code of step two could be had. The variable z, the penalty and its rise
are those of Zhang et al., *Efficient and Accurate Approximations of Nonlinear Convolutional Networks*,
arXiv 1411.4229. Choices of the suite:

- z is solved for the steps of the quantized activation themselves, not for a clipped ReLU in their place.
- Batch norm behind the layer is part of the fit, with its running statistics; the scale a goes through it. A
  max-pooling is left out: the fit is of the activations before it. Where anything else lies between the layer
  and the next activation (the sum of a residual block), the layer's own output is fitted.
- Rows are drawn from ``images`` training images without augmentation, the first in the order in which batch
  norm is re-estimated too: an order by seed and purpose.
- With ``frozen`` the fitted weights stay; batch norms and full-precision layers are trained on to the end of
  the trial, so that all arms have the same number of steps. Otherwise training goes on with the quantizer's
  gradient, and the fit is a start.

The quantizer has one scale a filter, nothing learned, and activations of fixed levels: ``tsq``, ``bwn``,
``hwgq`` and ``bireal``. The operations of the fit are not in ``train_flops``.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from bench.errors import InputError
from bench.experiments.config import TrialConfig, short_bits
from bench.experiments.options import keywords
from bench.layers.diagnostics import in_evaluation
from bench.layers.low_precision import LowPrecisionLayer
from bench.layers.partition import Partition
from bench.networks import Network
from bench.quantizers import Quantizer, make_quantizer
from bench.strategies.base import Build, Weights
from bench.strategies.fitted_layers import Survey, affine_of
from bench.strategies.layer_fit import Layer, fit, pieces_of
from bench.strategies.staged import Stages

ENTRIES = [
    {
        "name": "two_step",
        "factory": "TwoStep",
        "help": "TSQ: activation codes are learned, then each layer's weights fitted to its activation",
        "title": "Two-Step Quantization for Low-bit Neural Networks (CVPR 2018)",
        "options": {
            "until": {
                "default": 0.5,
                "above": 0,
                "below": 1,
                "help": "share of all steps before the weights are fitted",
            },
            "frozen": {"default": True, "help": "fitted weights stay; false: training goes on from them"},
            "images": {
                "default": 1024,
                "min": 1,
                "max": 1000000,
                "help": "training images that the fit sees, all of them where there are fewer",
            },
            "rows": {
                "default": 8192,
                "min": 1,
                "max": 10000000,
                "help": "positions of these images, the same number of each, that a layer is fitted at",
            },
            "bn_reestimate": "shared",
        },
    }
]

log = logging.getLogger("bench.trial")


class TwoStep(Stages):
    """Full-precision weights up to ``until``, the fit, and fitted weights behind it."""

    def __init__(self, config: TrialConfig, steps_per_epoch: int) -> None:
        w_bits, a_bits, g_bits = config.bit_widths
        if w_bits == 32:
            raise InputError("strategy: two_step fits quantized weights; bits has 32 of weights")
        super().__init__(config, steps_per_epoch, [f"32/{a_bits}"])
        kind = config.quantizer["kind"]
        made: Quantizer = make_quantizer(kind, w_bits, a_bits, g_bits, **keywords(config.quantizer))
        levels = filter_levels(made)
        if levels is None or pieces_of(made.activation_map()) is None:
            raise InputError(
                f"strategy: two_step needs a quantizer with one scale a filter, nothing learned and "
                f"activations of fixed levels (tsq, bwn, hwgq, bireal), not '{kind}' at "
                f"{short_bits(config.bits)} bits"
            )
        if config.network.get("activation") == "abs":
            raise InputError('strategy: two_step needs network.activation = "clip", not "abs"')
        self.levels = levels

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        super().prepare(network, build, weights)
        if self.options["frozen"]:
            for layer in _fitted(network).values():
                layer.partition = Partition(layer.weight)

    def calibration_images(self, step: int) -> int:
        """Return ``images`` at the step of the fit, else 0."""
        return self.options["images"] if self.removal(step) else 0

    @torch.no_grad()
    def calibrate(self, network: Network, images: Tensor, step: int) -> None:
        """Fit the weights of each low-precision layer, in the order in which the layers are run.

        ``images``: (N, 3, S, S). The new stored weights are a t, so that the quantizer returns them.
        """
        layers = _fitted(network)
        clock = next(iter(layers.values())).clock
        with in_evaluation(network):
            clock.set(step - 1, self.factor(step - 1))
            survey = Survey(network, layers, images, self.options["rows"], self.config.seed)
            clock.set(step, 0.0)
            for name, layer in survey.order.items():
                weight, before, after = self._fit(survey, name)
                log.info("two_step: squared error of %s: %.4g, fitted %.4g", name, before, after)
                layer.weight.copy_(weight)
                if layer.partition is not None:
                    layer.partition.freeze_(layer.weight, 1.0)

    def _fit(self, survey: Survey, name: str) -> tuple[Tensor, float, float]:
        """Return a layer's fitted weights, float64, and the squared errors of the nearest and of these."""
        layer = survey.order[name]
        weight, (norm, activation) = layer.weight.double(), survey.behind[name]
        slope, offset = affine_of(norm, weight)
        target = survey.responses[name].double() * slope + offset
        if (bias := getattr(layer, "bias", None)) is not None:
            offset = offset + slope * bias.double()
        pieces = pieces_of(activation, weight.device)
        if pieces is None:
            raise InputError(f"strategy: two_step: the activation behind {name} has no fixed levels")
        levels = torch.tensor(self.levels, dtype=torch.float64, device=weight.device)
        nearest = layer.quantizer.weight(layer.weight, layer.fixed_statistics).double().flatten(1).T
        scale = nearest.abs().amax(0)
        codes = levels[(nearest / scale.clamp_min(1e-300) - levels[:, None, None]).abs().argmin(0)]
        rows = [part.double() for part in survey.rows_of(name)]
        parts = (x.chunk(len(rows), -1) for x in (pieces(target), slope, offset, codes, scale))
        fits = [
            fit(Layer(x, y, s, c, pieces, levels), t, a)
            for x, y, s, c, t, a in zip(rows, *parts, strict=True)
        ]
        fitted = torch.cat([(found.codes * found.scale).T for found in fits])
        before, after = (sum(float(getattr(f, name).sum()) for f in fits) for name in ("before", "after"))
        return fitted.reshape(weight.shape), before, after


def _fitted(network: Network) -> dict[str, LowPrecisionLayer]:
    """Return the layers with quantized weights, by name."""
    return {name: layer for name, layer in network.low_precision_layers() if layer.quantizer.w_bits < 32}


def filter_levels(quantizer: Quantizer) -> list[float] | None:
    """Return the codes t of weights a t with one scale a for each filter, rising, the largest 1.

    None for a quantizer that learns scales, scales its input, or does not return a t for the stored a t.
    """
    scale = torch.tensor([0.5, 0.25, 0.75, 0.125])[:, None]
    values = quantizer.level_values(scale * torch.ones(4, 9))
    if values is None or quantizer.scales_input or list(quantizer.parameters()):
        return None
    codes = (values / values.amax(0)).reshape(len(values), -1)
    levels = sorted({float(code) for code in codes.unique()})
    if len(levels) != len(values) or levels[-1] != 1.0 or not all(map(torch.isfinite, codes.flatten())):
        return None
    tries = torch.tensor([levels[i % len(levels)] for i in range(8)] + [1.0]) * scale
    return levels if torch.allclose(quantizer.weight(tries), tries, rtol=1e-6, atol=0.0) else None
