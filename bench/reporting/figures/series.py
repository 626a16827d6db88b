"""What is drawn together, in which colour, and the curves as numbers.

Colours are Okabe and Ito's, safe for the colour-blind, and belong to an arm throughout an experiment; full
precision is grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from bench.reporting.cells import Cell
from bench.reporting.figures.style import GREY, LINES, MARKERS, PALETTE, TOGETHER
from bench.reporting.statistics.intervals import LEVEL, student_quantile
from bench.reporting.tuned import Searched
from bench.text import clean

T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """Cells drawn together: they differ in the arm; full precision is in every panel of its network."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of a series; an empty line style is a solid line."""

    color: str
    marker: str
    line: str = ""

    @property
    def marks(self) -> dict[str, Any]:
        """The look of a line whose points are all marked, as matplotlib takes it."""
        return {"color": self.color, "marker": self.marker or "o", "ls": self.line or "-"}


def root_of(cell: Cell) -> Cell:
    """Return the last baseline of a cell's chain of baselines."""
    while cell.pairing is not None:
        cell = cell.pairing.against
    return cell


def full_precision(cell: Cell) -> bool:
    """Return whether nothing of a cell's network is quantized."""
    return cell.facts.bits == (32, 32, 32)


def looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """Return a look for each series' label, in the arms' order: no two series look the same.

    After eight series the colours begin again, with another marker and a broken line.
    """
    result: dict[str, Look] = {}
    greys = colours = 0
    for cell in sorted(
        (cell for cell in cells if cell.arm is not None), key=lambda c: (c.runs.order, c.settings)
    ):
        if cell.label in result:
            continue
        if full_precision(cell):
            result[cell.label] = Look(GREY, MARKERS[greys % len(MARKERS)], LINES[min(greys, 1)])
            greys += 1
        else:
            result[cell.label] = numbered_looks(colours + 1)[-1]
            colours += 1
    return result


def numbered_looks(count: int) -> list[Look]:
    """Return so many looks, no two of them the same: up to 64, more are grey."""
    found = []
    for number in range(count):
        again, color = divmod(number, len(PALETTE))
        own = PALETTE[color] if again < len(MARKERS) else GREY
        found.append(Look(own, MARKERS[again % len(MARKERS)], LINES[min(again, 1)]))
    return found


def search_looks(searches: Sequence[Searched], look: Mapping[str, Look]) -> list[Look]:
    """Return the look of each search: that of its row of the tables, where each search has its own."""
    found = [look.get(search.label) for search in searches]
    if None in found or len(set(found)) < len(found):
        return numbered_looks(len(searches))
    return [how for how in found if how is not None]


def panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return the panels of the convergence curves.

    An arm stands with its baseline even where it trains longer; otherwise budgets are separate panels. What
    has more than eight series is split into small multiples, each with the first series, the baseline.
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
        ordered = sorted(group, key=lambda c: (c.runs.order, c.settings))
        result += _multiples(clean(", ".join(shown), 100), ordered)
    return result


def _multiples(title: str, cells: Sequence[Cell]) -> list[Panel]:
    """Return one panel of at most ``TOGETHER`` cells, or several, each with the first cell."""
    if len(cells) <= TOGETHER:
        return [Panel(title, tuple(cells))]
    first, *others = cells
    parts = even_parts(others, TOGETHER - 1)
    return [
        Panel(f"{title}, part {number} of {len(parts)}", (first, *part))
        for number, part in enumerate(parts, 1)
    ]


def even_parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Return the items in as few parts of at most ``most`` as hold them, all about as long."""
    count = -(-len(items) // most)
    size = -(-len(items) // max(1, count))
    return [items[start : start + size] for start in range(0, len(items), max(1, size))]


def _title_parts(group: Sequence[Cell]) -> list[str]:
    cell = next((c for c in group if not full_precision(c)), group[0])
    root = root_of(cell)
    return [
        *cell.place,
        f"{root.facts.epochs} epochs" if root.facts.epochs else "",
        f"{root.facts.train_images} images" if root.facts.train_images else "",
    ]


def curve_data(cells: Sequence[Cell], epochs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the curves as drawn: for each cell and epoch mean, lowest and highest over the finished runs.

    ``_low`` and ``_high`` are the ends of the 95 % t-interval of the mean, absent for a single run.
    """
    frames = []
    columns = ["test_acc", "test_acc_expanded", "train_loss", "factor"]
    for cell in cells:
        runs = [epochs[trial["id"]] for trial in cell.runs.done if trial["id"] in epochs]
        if cell.arm is None or not runs:
            continue
        together = pd.concat([run[["epoch", *columns]] for run in runs])
        together[columns] = together[columns].apply(pd.to_numeric, errors="coerce")
        place = {
            "arm": cell.arm,
            "settings": cell.settings,
            "dataset": cell.facts.dataset,
            "network": cell.facts.network,
            "width": cell.facts.width,
            "bits": cell.bits_label,
            "epochs": cell.facts.epochs,
        }
        frame = _by_epoch(together, columns)
        frames.append(frame.reset_index().assign(**place)[[*place, "epoch", *frame.columns]])
    if not frames:
        return pd.DataFrame(columns=["arm", "epoch"])
    result = pd.concat(frames, ignore_index=True).astype(object)
    return result.where(result.notna(), None)


def _by_epoch(together: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return a row an epoch: the number of runs, and of each column mean, lowest, highest and interval."""
    by_epoch = together.groupby("epoch", sort=True)
    frame = pd.DataFrame({"n": by_epoch.size()})
    for column in columns:
        mean = by_epoch[column].mean()
        frame[column] = mean
        if column == "factor":
            continue
        frame[f"{column}_min"] = by_epoch[column].min()
        frame[f"{column}_max"] = by_epoch[column].max()
        n = by_epoch[column].count()
        quantiles = n.map(lambda k: student_quantile(LEVEL, k - 1) if k > 1 else float("nan"))
        half = quantiles * by_epoch[column].std() / n**0.5
        frame[f"{column}_low"], frame[f"{column}_high"] = mean - half, mean + half
    return frame
