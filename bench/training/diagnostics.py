"""Numbers of a trial's low-precision layers along the training: the rows of ``diagnostics.npz``.

A row is made at the first epoch, at every tenth and at the last; in trials of at most 20 epochs at every
one. The arrays of the file, E rows and L layers:

    layers            (L,) names of the low-precision layers
    epoch, factor     (E,) the epoch, from 1, and the factor of its last step
    branch_ratio      (E, L) norm of f times the branch's output over the main path's, where the two meet
    saturation        (E, L) share of the layer's inputs that the bounding map changes
    activation_error  (E, L) |q(x) - bound(x)| / |bound(x)|, of norms over the batch
    sign_changed      (E, L) share of the stored weights whose sign is another than in the row before
    level_changed     (E, L) share of the quantized weights that have another level than in the row before;
                      levels count from 0 to either side, so that they keep their names where the table of
                      levels changes (CLIP-Q's sides, the zero of a released quantizer); INQ's are their
                      powers of two, which stay what they are where the highest one moves
    weight_scale      (E, L) mean |Q(w)|
    weight_error      (E, L) min over s of |w - s Q(w)| / |w|: what no scale makes up for

Numbers are float32, NaN where there is none (no branch, weights in full precision, levels that a quantizer
does not declare). The first row compares with the weights that training began with. Weights are those of the
deployed network. Activations are of the network that is trained, on one batch of the images that are
evaluated: held-out training images in trials that see no test image.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.layers.diagnostics import in_evaluation
from bench.layers.low_precision import LowPrecisionLayer
from bench.networks import Network
from bench.quantizers.deployed import Levels, look_up
from bench.records.files import write_atomic

log = logging.getLogger("bench.trial")
OBSERVED = ("branch_ratio", "saturation", "activation_error")
MEASURED = ("sign_changed", "level_changed", "weight_scale", "weight_error")
_ROW = ("epoch", "factor", *OBSERVED, *MEASURED)
LARGEST = 64 << 20
_ZERO = 256  # no place among the levels, of which there are at most 256
EVERY, SHORT = 10, 20  # epochs from row to row; trials of at most so many epochs have a row an epoch


def due(epoch: int, epochs: int) -> bool:
    """Return whether ``epoch`` (from 1) of a trial of ``epochs`` has a row."""
    return epochs <= SHORT or epoch in (1, epochs) or epoch % EVERY == 0


class Diagnostics:
    """The rows so far, and the ``codes`` of the weights at the last one: sign and level, int16, by layer."""

    def __init__(self, network: Network) -> None:
        self.layers = network.low_precision_layers()
        self.rows: list[dict[str, Any]] = []
        with in_evaluation(network):
            self.codes = {name: _codes(layer)[0] for name, layer in self.layers}

    def add(
        self, network: Network, epoch: int, factor: float, observed: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Add the row of ``epoch`` from what ``layer_diagnostics`` returned; the network's factor is 0."""
        row: dict[str, Any] = {"epoch": epoch, "factor": factor}
        row |= {key: [observed[name][key] for name, _ in self.layers] for key in OBSERVED}
        with in_evaluation(network), torch.no_grad():
            measured = [self._measure(name, layer) for name, layer in self.layers]
        row |= {key: [found[key] for found in measured] for key in MEASURED}
        self.rows.append(row)

    def _measure(self, name: str, layer: LowPrecisionLayer) -> dict[str, float | None]:
        before, (codes, has_levels) = self.codes[name], _codes(layer)
        self.codes[name] = codes
        found: dict[str, float | None] = {
            "sign_changed": _share((before ^ codes) & 1),
            "level_changed": _share((before ^ codes) >> 1) if has_levels else None,
        }
        if layer.quantizer.w_bits == 32:
            return {**found, "weight_scale": None, "weight_error": None}
        weight = layer.weight.detach().double()
        low = layer.low_precision_weight(with_extra=False).detach().double()
        # the best scale is w.q / q.q, and what is left of |w|^2 is 1 - cos^2 of the angle between both
        square = (weight * low).sum() ** 2 / (weight.square().sum() * low.square().sum())
        return {
            **found,
            "weight_scale": float(low.abs().mean()),
            "weight_error": float((1.0 - square).clamp_min(0.0).sqrt()),
        }

    def save(self, path: Path) -> None:
        """Write the rows to ``path``, atomically; nothing without rows or layers."""
        if not self.rows or not self.layers:
            return
        arrays: dict[str, np.ndarray] = {"layers": np.array([name for name, _ in self.layers])}
        arrays["epoch"] = np.array([row["epoch"] for row in self.rows], np.int32)
        arrays["factor"] = np.array([row["factor"] for row in self.rows], np.float64)
        for key in (*OBSERVED, *MEASURED):
            arrays[key] = np.array([row[key] for row in self.rows], dtype=float).astype(np.float32)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue())

    def load(self, path: Path, epoch: int) -> None:
        """Take over the rows up to ``epoch`` from ``path``; a warning where the file does not have them."""
        found = read(path)
        if found is None or list(found["layers"]) != [name for name, _ in self.layers]:
            if epoch and self.layers:
                log.warning("%s: damaged or absent; the rows up to epoch %d are lost", path, epoch)
            return
        self.rows = [
            {key: found[key][i].tolist() for key in _ROW}
            for i in range(len(found["epoch"]))
            if found["epoch"][i] <= epoch
        ]


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of a ``diagnostics.npz``, None where there is none or it is damaged.

    The file is not trusted: nothing is unpickled, and nothing that unpacks to more than ``LARGEST`` bytes is.
    """
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                return None
            for key in ("layers", *_ROW):
                with archive.open(f"{key}.npy") as member:
                    found[key] = np.lib.format.read_array(member, allow_pickle=False)
    except Exception:  # whatever reading bytes that are no such archive raises; a record is whole without it
        return None
    shape = (*found["epoch"].shape, *found["layers"].shape)
    return found if all(found[key].shape == shape for key in (*OBSERVED, *MEASURED)) else None


@torch.no_grad()
def _codes(layer: LowPrecisionLayer) -> tuple[Tensor, bool]:
    """Return 2 x level + (1 where w >= 0), int16 in the weight's shape, and whether the levels are known.

    The levels are told apart by ``_places``, powers of two by ``_powers``.
    """
    codes = (layer.weight >= 0).to(torch.int16)
    try:
        levels = layer.weight_levels()
    except ValueError:  # the quantizer does not declare its levels: its export fails, training does not
        levels = None
    if levels is None:
        return codes, False
    quantizer = layer.quantizer
    places = _powers(levels) if quantizer.absolute_levels else _places(levels, quantizer.w_bits)
    return codes + 2 * places.to(torch.int16), True


def _places(levels: Levels, bits: int) -> Tensor:
    """Return the place of each weight's level, counted from 0 to either side: int64 in the weight's shape.

    With h = 2^(bits - 1) the positive levels are h, h + 1, ..., the negative ones h - 1, h - 2, ...; 0 is
    ``_ZERO``. So the places of levels without 0 are the codes.
    """
    half, values = 1 << (bits - 1), levels.values
    places = [
        torch.where(
            row > 0,
            half - 1 + ((values > 0) & (values <= row)).sum(0),
            torch.where(row < 0, half - ((values < 0) & (values >= row)).sum(0), _ZERO),
        )
        for row in values
    ]
    return look_up(levels.codes, torch.stack(places))


def _powers(levels: Levels) -> Tensor:
    """Return a name of each weight's level that is 0 or a power of two: the exponent, by sign; int64."""
    values = levels.values
    exponents = torch.frexp(values.abs()).exponent.long()  # from -148 to 128
    places = torch.where(values > 0, 1024 + exponents, torch.where(values < 0, 2048 + exponents, _ZERO))
    return look_up(levels.codes, places)


def _share(x: Tensor) -> float:
    return float((x != 0).double().mean())


def signs_of(network: Network) -> dict[str, Tensor]:
    """Return whether each low-precision weight is at least 0, bool in the weight's shape, by layer."""
    return {name: layer.weight.detach() >= 0 for name, layer in network.low_precision_layers()}


def flip_rate(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> float | None:
    """Return the share of weights whose sign differs, over all layers; None without any."""
    count = sum(signs.numel() for signs in now.values())
    flips = sum(int((signs != before[name]).sum()) for name, signs in now.items())
    return flips / count if count else None
