"""Progressive learning (EXP-Net): a full-precision branch beside every low-precision convolution, faded out.

Source: *Progressive Learning of Low-Precision Networks*, arXiv 1905.11781. Merges are as in the authors'
figure and in their released scripts (see ``bench/layers``). The factor f(t) multiplies the output of the
branch and ends at exactly 0.
"""

from __future__ import annotations

from dataclasses import fields

from bench.errors import InputError, nearest
from bench.layers.branch import Branch
from bench.layers.low_precision import low_precision_modules
from bench.networks import Network
from bench.schedules import factor_value
from bench.strategies.base import Build, Faded, Weights

ENTRIES = [
    {
        "name": "progressive",
        "factory": "Progressive",
        "help": "EXP-Net: a full-precision branch at each low-precision convolution, faded to zero and "
        "removed",
        "title": "Progressive Learning of Low-Precision Networks",
        "arxiv": "1905.11781",
        "step_cost": [
            {"only_with": {"merge": ["concat"]}, "factor": 1.9},
            {"only_with": {"merge": ["preactivation"]}, "factor": 1.2},
            {"factor": 1.5},
        ],
        "options": {
            "merge": {
                "type": "str",
                "choices": ["sum", "difference", "concat", "preactivation"],
                "help": "where the outputs of branch and main path meet",
            },
            "factor": {"type": "factor", "help": "the schedule of the branch's factor"},
            "kernel": {
                "type": "int",
                "default": None,
                "min": 1,
                "help": "size of the branch's kernel; null: that of the main path",
            },
            "width_ratio": {
                "default": 1.0,
                "above": 0,
                "max": 4,
                "only_with": {"merge": ["concat"]},
                "help": "channels of the branch over those of the main path (concat only)",
            },
            "batch_norm": {
                "default": True,
                "only_with": {"merge": ["sum", "difference", "concat"]},
                "help": "the branch has its own batch norm (preactivation: never)",
            },
            "relu": {
                "default": False,
                "only_with": {"merge": ["sum", "difference", "concat"]},
                "help": "a ReLU behind the branch's batch norm (a comment of the released SVHN file)",
            },
            "layer_factors": {
                "type": "factors",
                "default": None,
                "help": "factors of single layers, by the layer's name; `factor` is that of every other "
                "layer",
            },
            "layers": {
                "type": "names",
                "default": None,
                "help": "the layers that get a branch; null: every low-precision convolution",
            },
            "statistics": {
                "choices": ["main", "joint"],
                "default": "main",
                "only_with": {"merge": ["concat"]},
                "help": "concat: the next layer's scale over its main channels, or over main and extra "
                "ones (released)",
            },
            "bn_reestimate": "shared",
        },
    }
]


class Progressive(Faded):
    """The expanded network; f(t) by ``factor``, for layers in ``layer_factors`` by their own schedule.

    The branches are removed when the last factor is 0. A layer whose own factor is 0 before that adds zeros
    until then.
    """

    def layer_factors(self, step: int) -> dict[str, float]:
        """Return the factors at ``step`` of the layers that have one of their own."""
        return {
            layer: factor_value(factor, step, self.total_steps, self.steps_per_epoch)
            for layer, factor in (self.options["layer_factors"] or {}).items()
        }

    def factor(self, step: int) -> float:
        """Return the largest factor of any layer at ``step``."""
        return max(super().factor(step), *self.layer_factors(step).values(), 0.0)

    def prepare(self, network: Network, build: Build, weights: Weights) -> None:
        """Give ``layer_factors`` their factors; ``InputError`` for a layer without a branch."""
        if self.options["layer_factors"] is None:
            return
        branches = {name: m for name, m in low_precision_modules(network) if m.branch is not None}
        unknown = [
            f"'{name}'{nearest(name, branches)}" for name in self.layer_factors(0) if name not in branches
        ]
        if unknown:
            raise InputError(
                f"strategy.layer_factors: no branch stands at {', '.join(unknown)}. Branches: "
                f"{', '.join(branches)}."
            )
        next(iter(branches.values())).clock.give_layers_factors(
            lambda step: (
                dict.fromkeys(branches, super(Progressive, self).factor(step)) | self.layer_factors(step)
            )
        )

    @property
    def branch(self) -> Branch:
        given = {field.name: self.options[field.name] for field in fields(Branch)}
        layers = given.pop("layers")
        return Branch(**given, layers=None if layers is None else tuple(layers))
