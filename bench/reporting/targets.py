"""The published rows that a cell of ours is held against: all that match, never averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.reporting.published_tables import DatasetName, Names, NetworkName, Row


@dataclass(frozen=True)
class Match:
    """A published row for a cell, the reasons why it cannot be compared (none: it can), and remarks."""

    row: Row
    not_comparable: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def _options_agree(ours: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(ours.get(key) == value for key, value in wanted.items())


def _choice(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {"kind": value}


def matches(
    config: Mapping[str, Any],
    bits: tuple[int, int, int],
    rows: Iterable[Row],
    names: Names,
    published: Mapping[str, Any] | None = None,
    train_images: int | None = None,
    images: int | None = None,
) -> list[Match]:
    """Return the published rows for a trial's configuration, in the order of the tables.

    Args:
        config: The configuration.
        bits: Of weights, activations and gradients.
        rows: The rows of the published tables.
        names: What the tables call networks, data sets and methods.
        published: The arm's own ``{table, method}``: then only its rows count, and what else differs (another
            data set, say) is listed in ``not_comparable`` instead of hiding the row.
        train_images: Those of one epoch; None where unknown.
        images: All that were processed; None where unknown.
    """
    wanted = {key: value for key, value in (published or {}).items() if key in ("table", "method")}
    found = []
    for row in rows:
        named = _options_agree({"table": row.table, "method": row.method}, wanted)
        if named and _same_bits_and_width(row, bits, config, names, bool(published)):
            fit = _fit(row, config, bits, names, train_images, images)
            if published or (fit.same_method and not fit.elsewhere):
                found.append(Match(row, fit.reasons, fit.remarks))
    return found


def _entry_of_network(row: Row, names: Names) -> NetworkName | None:
    return next((entry for entry in names.networks if row.network in entry.published), None)


def _same_bits_and_width(
    row: Row, bits: tuple[int, int, int], config: Mapping[str, Any], names: Names, explicit: bool
) -> bool:
    """Return whether a row has a trial's bits and width; ``explicit``: gradient bits may differ."""
    w, a, g = row.bits
    if (w, a) != bits[:2] or (g is not None and g != bits[2] and not explicit):
        return False
    entry = _entry_of_network(row, names)
    width = row.width if row.width is not None else entry.width if entry is not None else 1.0
    return math.isclose(width, float(config.get("width", 1.0)), rel_tol=1e-9)


class _Fit(NamedTuple):
    """How a row fits a trial: the reasons why the two cannot be compared, and remarks."""

    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    same_method: bool
    elsewhere: bool  # another network or another data set


def _fit(
    row: Row,
    config: Mapping[str, Any],
    bits: tuple[int, int, int],
    names: Names,
    train_images: int | None,
    images: int | None,
) -> _Fit:
    strategy, network = _choice(config, "strategy"), _choice(config, "network")
    entry = _entry_of_network(row, names)
    same_network = (
        entry is not None and entry.kind == network.get("kind") and _options_agree(network, entry.options)
    )
    source = next((source for source in names.datasets if row.dataset in source.published), None)
    same_data = source is not None and source.kind == _choice(config, "dataset").get("kind")
    same_method = _same_method(row, _choice(config, "quantizer"), strategy, names)
    reasons = [] if same_network else [f"another network ({row.network})"]
    if not same_data:
        reasons.append(f"another data set ({row.dataset})")
    elif source is not None:
        reasons.extend(_short_of(config, source, train_images, images))
    g = row.bits[2]
    if g is not None and g != bits[2]:
        reasons.append(f"{g} gradient bits")
    if isinstance(strategy.get("factor"), Mapping) and strategy["factor"].get("keep"):
        reasons.append("our branch was never removed")
    remarks = [entry.note] if entry is not None and entry.note else []
    if not same_method:
        remarks.append("the arm names this method; the quantizer or strategy has another name here")
    return _Fit(tuple(reasons), tuple(remarks), same_method, not (same_network and same_data))


def _same_method(row: Row, quantizer: Mapping[str, Any], strategy: Mapping[str, Any], names: Names) -> bool:
    """Return whether ``names`` give this quantizer with this strategy the name of the row's method."""
    return any(
        row.method in entry.published
        and entry.table in (None, row.table)
        and quantizer.get("kind") in entry.quantizer
        and strategy.get("kind") in entry.strategy
        and _options_agree(quantizer, entry.options)
        for entry in names.methods
    )


def _short_of(
    config: Mapping[str, Any], source: DatasetName, train_images: int | None, images: int | None
) -> list[str]:
    """Return in what a run falls short of the published budget; up to a tenth less is accepted."""
    reasons = []
    if config.get("train_size") is not None:
        reasons.append(f"subset of {config['train_size']:,} training images")
    elif train_images is not None and train_images < 0.9 * source.train_images:
        reasons.append(f"{train_images:,} of {source.train_images:,} training images")
    if images is None:
        reasons.append("unknown budget")
    elif images < 0.9 * source.images:
        reasons.append(f"short budget: {images:,} images processed of {source.images:,}")
    return reasons
