"""What is drawn together, in which colour, and the curves as numbers.

Colours are Okabe and Ito's, safe for the colour-blind, and belong to an arm throughout an experiment; full
precision is grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.figures.style import GREY, MARKERS, PALETTE
from bench.text import clean


@dataclass(frozen=True)
class Panel:
    """What is drawn together: cells that differ in the arm (full precision stands in every panel of its
    network).
    """

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Look:
    """Colour and marker of a series."""

    color: str
    marker: str


def root_of(cell: Cell) -> Cell:
    """Return the last baseline of a cell's chain of baselines."""
    while cell.pairing is not None:
        cell = cell.pairing.against
    return cell


def full_precision(cell: Cell) -> bool:
    """Return whether nothing of a cell's network is quantized."""
    return cell.facts.bits == (32, 32, 32)


def looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """Return a colour (and, from the eighth series on, a marker) for each series' label, in the arms' order."""
    result: dict[str, Look] = {}
    greys = colours = 0
    for cell in sorted(
        (cell for cell in cells if cell.arm is not None), key=lambda c: (c.runs.order, c.settings)
    ):
        if cell.label in result:
            continue
        if full_precision(cell):
            result[cell.label] = Look(GREY, MARKERS[greys % len(MARKERS)])
            greys += 1
        else:
            result[cell.label] = Look(
                PALETTE[colours % len(PALETTE)], MARKERS[colours // len(PALETTE) % len(MARKERS)]
            )
            colours += 1
    return result


def panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return the panels of the convergence curves.

    An arm stands with its baseline even where it trains longer; otherwise budgets are separate panels.
    """
    groups: dict[tuple, list[Cell]] = {}
    references = []
    for cell in cells:
        if cell.arm is None or not any(t["status"] in ("done", "diverged") for t in cell.trials):
            continue
        root = root_of(cell)
        budget = (root.facts.epochs, root.facts.batch_size, root.facts.train_images, root.facts.precision)
        place = (cell.facts.dataset, cell.facts.network, cell.facts.width, budget)
        if full_precision(cell):
            references.append((place, cell))
        else:
            groups.setdefault((*place, cell.facts.bits), []).append(cell)
    for place, cell in references:
        joined = [
            group for key, group in groups.items() if key[:4] == place and not all(map(full_precision, group))
        ]
        for group in joined:
            group.append(cell)
        if not joined:
            groups.setdefault((*place, cell.facts.bits), []).append(cell)
    described = {key: _title_parts(group) for key, group in groups.items()}
    varying = [i for i in range(6) if len({facts[i] for facts in described.values()}) > 1]
    result = []
    for key, group in groups.items():
        facts = described[key]
        shown = [facts[i] for i in varying if facts[i]] or [facts[i] for i in (0, 1, 2, 3)]
        result.append(
            Panel(
                clean(", ".join(shown), 100), tuple(sorted(group, key=lambda c: (c.runs.order, c.settings)))
            )
        )
    return result


def _title_parts(group: Sequence[Cell]) -> list[str]:
    cell = next((c for c in group if not full_precision(c)), group[0])
    root = root_of(cell)
    return [
        cell.facts.dataset,
        cell.facts.network,
        f"width {cell.facts.width:g}" if cell.facts.width is not None else "",
        f"W/A {cell.bits_label}" if cell.facts.bits else "",
        f"{root.facts.epochs} epochs" if root.facts.epochs else "",
        f"{root.facts.train_images} images" if root.facts.train_images else "",
    ]


def curve_data(cells: Sequence[Cell], epochs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the curves as drawn: for each cell and epoch mean, lowest and highest over the finished runs."""
    frames = []
    for cell in cells:
        runs = [epochs[trial["id"]] for trial in cell.runs.done if trial["id"] in epochs]
        if cell.arm is None or not runs:
            continue
        columns = ["test_acc", "test_acc_expanded", "train_loss", "factor"]
        together = pd.concat([run[["epoch", *columns]] for run in runs])
        together[columns] = together[columns].apply(pd.to_numeric, errors="coerce")
        by_epoch = together.groupby("epoch", sort=True)
        frame = pd.DataFrame({"n": by_epoch.size()})
        for column in columns:
            frame[column] = by_epoch[column].mean()
            if column != "factor":
                frame[f"{column}_min"] = by_epoch[column].min()
                frame[f"{column}_max"] = by_epoch[column].max()
        place = {
            "arm": cell.arm,
            "settings": cell.settings,
            "dataset": cell.facts.dataset,
            "network": cell.facts.network,
            "width": cell.facts.width,
            "bits": cell.bits_label,
            "epochs": cell.facts.epochs,
        }
        frames.append(frame.reset_index().assign(**place)[[*place, "epoch", *frame.columns]])
    if not frames:
        return pd.DataFrame(columns=["arm", "epoch"])
    result = pd.concat(frames, ignore_index=True).astype(object)
    return result.where(result.notna(), None)
