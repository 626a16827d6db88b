"""Progressive learning (EXP-Net): a full-precision branch beside every low-precision convolution, faded out.

Source: *Progressive Learning of Low-Precision Networks*, arXiv 1905.11781; merges as in the authors' figure and in their
released scripts (see ``bench/layers``). The factor f(t) multiplies the output of the branch and ends at exactly 0.
"""

from __future__ import annotations

from bench.layers.branch import Branch
from bench.strategies.base import Faded

ENTRIES = [
    {
        "name": "progressive",
        "factory": "Progressive",
        "help": "EXP-Net: a full-precision branch at each low-precision convolution, faded to zero and removed",
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
                "nullable": True,
                "min": 1,
                "help": "size of the branch's kernel; null: that of the main path",
            },
            "width_ratio": {
                "type": "float",
                "default": 1.0,
                "above": 0,
                "max": 4,
                "only_with": {"merge": ["concat"]},
                "help": "channels of the branch over those of the main path (concat only)",
            },
            "batch_norm": {
                "type": "bool",
                "default": True,
                "only_with": {"merge": ["sum", "difference", "concat"]},
                "help": "the branch has its own batch norm (preactivation: never)",
            },
            "layers": {
                "type": "names",
                "default": None,
                "nullable": True,
                "help": "the layers that get a branch; null: every low-precision convolution",
            },
            "statistics": {
                "type": "str",
                "choices": ["main", "joint"],
                "default": "main",
                "only_with": {"merge": ["concat"]},
                "help": "concat: the next layer's scale over its main channels, or over main and extra ones (released)",
            },
            "bn_reestimate": "shared",
        },
    }
]


class Progressive(Faded):
    """The expanded network; f(t) from the ``factor`` schedule."""

    @property
    def branch(self) -> Branch:
        options = self.options
        layers = options["layers"]
        return Branch(
            merge=options["merge"],
            kernel=options["kernel"],
            width_ratio=options["width_ratio"],
            batch_norm=options["batch_norm"],
            layers=None if layers is None else tuple(layers),
            statistics=options["statistics"],
        )
