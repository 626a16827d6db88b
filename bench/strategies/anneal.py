"""The control without a branch: weights and activations move gradually from full to low precision.

Weights ``(1 - f) Q(w) + f w`` and activations ``(1 - f) q(x) + f bound(x)`` under the same factor f(t) as
the progressive strategy. If this does as well, the gradual start matters and the extra convolution does not.
Our own control; the idea of interpolating towards the quantized value is also that of *Alpha-Blending* (Liu
and Mattina, arXiv 1903.01061).
"""

from __future__ import annotations

from bench.strategies.base import Faded

ENTRIES = [
    {
        "name": "anneal",
        "factory": "Anneal",
        "help": "a control: the factor blends full into low precision, without a branch",
        "title": "",
        "options": {
            "what": {
                "type": "str",
                "choices": ["both", "weights", "activations"],
                "default": "both",
                "help": "what is blended",
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
