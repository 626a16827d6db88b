"""Plain training: the low-precision network alone. The baseline of every comparison."""

from __future__ import annotations

from bench.strategies.base import Strategy

ENTRIES = [
    {
        "name": "plain",
        "factory": "Plain",
        "help": "the low-precision network alone, the baseline of every comparison",
    }
]


class Plain(Strategy):
    """Nothing beside the network and the recipe's loss."""
