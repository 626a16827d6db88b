"""How a low-precision network is trained: orthogonal to the quantizer, one module a strategy."""

from bench.strategies.base import Faded, Loss, Strategy, make_strategy

__all__ = ["Faded", "Loss", "Strategy", "make_strategy"]
