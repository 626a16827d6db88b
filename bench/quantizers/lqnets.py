"""LQ-Nets: levels spanned by a learned basis, fitted to what is quantized (arXiv 1807.10029)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.quantizers.deployed import ActivationMap, level_table
from bench.quantizers.functional import compute_dtype, full_precision, to_levels, with_slope
from bench.quantizers.shared import Rectified

ENTRIES = [
    {
        "name": "lqnets",
        "factory": "LQNets",
        "help": "levels are sums of k learned numbers, each with sign + or - (weights), or taken or not "
        "(activations)",
        "title": "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural Networks",
        "arxiv": "1807.10029",
        "options": {
            "moving": {
                "default": 0.9,
                "min": 0.0,
                "below": 1.0,
                "help": "share of the old basis that a training step keeps",
            }
        },
        "w_bits": [1, 2, 3, 4, 32],
        "a_bits": [1, 2, 3, 4, 32],
        "revision": 2,
    }
]

QUARTILE = 0.6745  # half of a standard normal variable is less than this far from 0
RIDGE = 0.0001  # how much the old basis counts where a fit has no unique solution


def binary_codes(bits: int, low: float) -> Tensor:
    """Return the 2^bits codes of ``bits`` digits, each ``low`` or 1: float32 of shape (2^bits, bits)."""
    numbers = torch.arange(1 << bits)[:, None] >> torch.arange(bits)
    return torch.where(numbers % 2 == 1, 1.0, low)


def normal_equations(digits: Tensor, x: Tensor) -> Tensor:
    """Return B'B and, as its last column, B'x.

    ``digits`` B (..., n, k), ``x`` (..., n) -> (..., k, k + 1), a sum over n.
    """
    transposed = digits.transpose(-1, -2)
    with full_precision(x):
        return torch.cat([transposed @ digits, transposed @ x[..., None]], -1)


def fitted_basis(equations: Tensor, basis: Tensor) -> Tensor:
    """Return the basis v that minimises |B v - x|^2 (eq. 8), with a little weight on the old one.

    ``equations`` (..., k, k + 1): the ``normal_equations`` of B and x, or sums of them; ``basis`` (..., k) ->
    (..., k): the solution of (B'B + d I) v = B'x + d basis, d = 0.0001.
    """
    gram, right = equations[..., :-1], equations[..., -1]
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    return torch.linalg.solve_ex(gram + RIDGE * identity, right + RIDGE * basis)[0]


def sorted_levels(basis: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the levels of ``basis`` (..., k) for ``codes`` (2^k, k), rising, and which code each has."""
    with full_precision(basis):
        levels, order = torch.sort(basis @ codes.T)
    return levels, order


class LQNets(Rectified):
    """LQ-Nets (arXiv 1807.10029).

    weight:      the nearest of the levels sum_i b_i v_i, b_i = +-1 (eq. 3), v the basis of the filter, k
                 numbers. At a tie, 0 at 1 bit for instance, the lower level. The gradient passes straight.
    activation:  of the ReLU, the nearest of the levels sum_i b_i v_i, b_i = 0 or 1, v one basis for the
                 layer; gradient 1[0 < x <= highest level]
    bound:       ReLU

    The bases are buffers, not parameters: each training step moves them by 1 - ``moving`` towards the
    least-squares fit to the numbers that the present levels quantize (Algorithm 1 with one iteration,
    ``fitted_basis``). The weights' basis moves after the update, the activations' in the forward pass, fitted
    to the images of all workers. Of M micro-batches each one keeps ``moving``^(1/M), so that a step keeps
    ``moving``.

    The maps and the fit are those of the authors' TensorFlow code, compared formula by formula
    (github.com/microsoft/LQ-Nets, learned_quantization.py, commit 86b9b75), but for two points. That code
    has the 0.0001 in the fit of the weights alone, and cannot invert where some digit is never used. It
    starts the weights' basis from the deviation of He's initialisation; here ``start_`` takes the deviation
    of the layer's weights.
    """

    weight_basis: Tensor | None
    input_basis: Tensor
    weight_codes: Tensor
    input_codes: Tensor
    _read: tuple[Tensor, Tensor]  # thresholds and levels of the last activations

    def __init__(self, *args: Any, moving: float = 0.9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.moving = moving
        self.register_buffer("weight_basis", None)
        if self.w_bits < 32:
            self.register_buffer("weight_codes", binary_codes(self.w_bits, -1.0), persistent=False)
        if self.a_bits < 32:
            self.running = ("input_basis",)
            self.register_buffer("input_codes", binary_codes(self.a_bits, 0.0), persistent=False)
            powers = 2.0 ** torch.arange(self.a_bits)
            self.register_buffer("input_basis", 2.0 * QUARTILE / (2**self.a_bits - 1) * powers)

    def create_scales(self, weight_shape: Sequence[int], device: Any = None) -> None:
        """Create the basis of each filter, (out, k), for weights of deviation 1."""
        if self.w_bits < 32:
            powers = 2.0 ** torch.arange(self.w_bits, device=device)
            self.weight_basis = (QUARTILE / 2 ** (self.w_bits - 1) * powers).repeat(weight_shape[0], 1)

    @torch.no_grad()
    def start_(self, w: Tensor) -> None:
        """Scale the bases to the deviation of the weights."""
        if self.weight_basis is not None:
            deviation = w.detach().to(compute_dtype(w)).square().mean().sqrt()
            powers = 2.0 ** torch.arange(self.w_bits, device=w.device)
            self.weight_basis.copy_(deviation * QUARTILE / 2 ** (self.w_bits - 1) * powers)

    def _filters(self, w: Tensor) -> Tensor:
        """Return the weights of each filter, (out, n), in the dtype of their basis; it is made if need be."""
        if self.weight_basis is None:
            self.create_scales(w.shape, w.device)
        assert self.weight_basis is not None
        return w.detach().flatten(1).to(self.weight_basis.dtype).contiguous()

    def _places(self, filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the place of each weight (out, n) in its filter's sorted levels, these, and their order."""
        assert self.weight_basis is not None
        levels, order = sorted_levels(self.weight_basis, self.weight_codes)
        thresholds = (levels[:, 1:] + levels[:, :-1]) / 2.0
        return torch.searchsorted(thresholds, filters), levels, order

    def weight(self, w: Tensor, statistics: Tensor | None = None) -> Tensor:
        if self.w_bits == 32:
            return w
        filters = self._filters(w)
        places, levels, _ = self._places(filters)
        return with_slope(w, levels.gather(1, places).view(w.shape), 1.0)

    @torch.no_grad()
    def after_step_(self, w: Tensor) -> None:
        """Move the basis of each filter towards its fit; the weights stay."""
        if self.weight_basis is None:
            return
        filters = self._filters(w)
        places, _, order = self._places(filters)
        digits = self.weight_codes[order.gather(1, places)]
        fit = fitted_basis(normal_equations(digits, filters), self.weight_basis)
        self.weight_basis.lerp_(fit, 1.0 - self.moving)

    def stored_scales(self, w: Tensor) -> int:
        """Return the numbers of all bases."""
        weights = w.shape[0] * self.w_bits if self.w_bits < 32 else 0
        return weights + (self.a_bits if self.a_bits < 32 else 0)

    def level_values(self, w: Tensor, statistics: Tensor | None = None) -> Tensor | None:
        """Return the levels of each filter, (2^k, out, 1, ...), rising; None at 32 bits."""
        if self.w_bits == 32:
            return None
        filters = self._filters(w)
        levels = self._places(filters)[1].T
        return levels.reshape(*levels.shape, *[1] * (w.dim() - 1))

    def _input_table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return thresholds and rising levels of the activations, and which code each level has."""
        levels, order = sorted_levels(self.input_basis, self.input_codes)
        return (levels[1:] + levels[:-1]) / 2.0, levels, order

    def activation_map(self) -> ActivationMap:
        """Return the table of the input's levels; max(x, 0) at 32 bits."""
        if self.a_bits == 32:
            return self.bound_map()
        thresholds, levels, _ = self._input_table()
        thresholds = torch.where(thresholds < 0.0, -torch.inf, thresholds)  # the input is rectified first
        return level_table(thresholds, levels)

    def activation(self, x: Tensor) -> Tensor:
        """Return the quantized activations, any shape; ReLU at 32 bits. While training, the basis moves."""
        if self.a_bits == 32:
            return torch.relu(x)
        thresholds, levels, order = self._input_table()
        self._read = thresholds, levels
        real = self._rectified(x)
        if self.training:
            self._move_input_basis(real, thresholds, order)
        return _quantized(x, real, thresholds, levels)

    def reread(self, x: Tensor) -> Tensor:
        """Return ``x``, any shape, on the levels of the last ``activation``; ReLU at 32 bits."""
        return torch.relu(x) if self.a_bits == 32 else _quantized(x, self._rectified(x), *self._read)

    @torch.no_grad()
    def _move_input_basis(self, real: Tensor, thresholds: Tensor, order: Tensor) -> None:
        flat = real.flatten()
        digits = self.input_codes[order[torch.bucketize(flat, thresholds)]]
        equations = normal_equations(digits, flat)
        if self.sum_over_workers is not None:  # the fit to the whole batch is no mean of the shares' fits
            equations = self.sum_over_workers(equations)
        fit = fitted_basis(equations, self.input_basis)
        self.input_basis.lerp_(fit, 1.0 - self.moving ** (1.0 / self.parts))

    def _rectified(self, x: Tensor) -> Tensor:
        """Return max(x, 0) in the dtype of the basis, without gradient."""
        return x.detach().to(self.input_basis.dtype).clamp_min(0.0)


def _quantized(x: Tensor, real: Tensor, thresholds: Tensor, levels: Tensor) -> Tensor:
    """Return ``real``, the rectified ``x``, any shape, on the levels; the gradient is 1[0 < x <= highest]."""
    slope = ((real > 0) & (real <= levels[-1])).to(real.dtype)
    return with_slope(x, to_levels(real, thresholds, levels), slope)
