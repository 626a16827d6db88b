"""The control without a branch: weights and activations move gradually from full to low precision.

Weights ``(1 - f) Q(w) + f w`` and activations ``(1 - f) q(x) + f bound(x)`` under the same factor f(t) as
the progressive strategy. If this does as well, the gradual start matters and the extra convolution does not.
Our own control; the idea of interpolating towards the quantized value is also that of *Alpha-Blending* (Liu
and Mattina, arXiv 1903.01061).

``what = "signs"`` is the progressive sign of BITorch: weights ``Q(w) min(1, |w| / f)``, for weights of one
bit and scale s the line s w / f clipped to [-s, s], which grows steep as f falls to 0. The activations are
quantized from the start. The gradient is that of Q, as there, where it passes straight. BITorch lets f fall
like ``4^(-10 u)``, u the share of the epochs that are over; the schedule ``exponential`` falls alike.
Differences: BITorch evaluates with the sign from the start (here the "deployed" accuracy), and its f does not
reach 0. Formulas compared with bitorch/quantizations/progressive_sign.py of its public repository.
"""

from __future__ import annotations

from bench.strategies.base import Faded

ENTRIES = [
    {
        "name": "anneal",
        "factory": "Anneal",
        "help": "a control: the factor blends full into low precision, without a branch",
        "options": {
            "what": {
                "choices": ["both", "weights", "activations", "signs"],
                "default": "both",
                "help": "what is blended; signs: the weights, from a clipped line to the sign",
            },
            "factor": {"type": "factor", "help": "the schedule of the full-precision share"},
            "bn_reestimate": "shared",
        },
    }
]


class Anneal(Faded):
    """The network with blended weights and activations; f(t) from the ``factor`` schedule."""

    @property
    def blend(self) -> str:
        return self.options["what"]
