"""The table of what each arm's search tried, chose and cost."""

from __future__ import annotations

from collections.abc import Sequence

from bench.experiments.labels import value_text
from bench.reporting.records import Records
from bench.reporting.table import NONE, Column, Table
from bench.reporting.tuned import WITHIN, Searched
from bench.text import duration, fixed


def tuning_table(records: Records, searches: Sequence[Searched]) -> Table | None:
    """Return a row for each arm and grid point that was tuned; None where nothing was."""
    if not searches:
        return None
    best = [max((t.score for t in search.scored if t.score is not None), default=None) for search in searches]
    widths = [search.width() for search in searches]
    columns = [
        Column("Arm", [search.label for search in searches]),
        Column("Tried", [f"{len(s.scored)} of {len(s.tried)}" for s in searches], "r"),
        Column("Chosen", [search.choice for search in searches]),
        Column("At an edge", [_edges(search) for search in searches], optional=True),
        Column("Held out, %", [NONE if score is None else fixed(score) for score in best], "r"),
        Column(
            f"Rates within {WITHIN:g} point",
            [f"{w[0]:.3g} to {w[1]:.3g}" if w else NONE for w in widths],
            "r",
        ),
        Column("their ratio", [f"× {w[1] / w[0]:.3g}" if w else NONE for w in widths], "r"),
        Column("Expected best after 1, 2, 4, all", [_expected(search) for search in searches], "r"),
        Column("Training time", [duration(sum(t.seconds for t in s.tried)) for s in searches], "r"),
    ]
    data = [
        {
            "experiment": records.name,
            "arm": search.arm,
            "point": search.place,
            "configuration": ", ".join(f"{k}={value_text(v)}" for k, v in tried.configuration.items()),
            "learning_rate": tried.rate,
            "held_out": tried.score,
            "held_out_by_seed": " ".join("diverged" if a is None else f"{a:.8g}" for a in tried.accuracies),
            "chosen": tried.chosen,
            "at_edge": _edges(search) if tried.chosen else "",
            "operations": tried.operations,
            "seconds": tried.seconds,
        }
        for search in searches
        for tried in search.tried
    ]
    told = (
        " The configurations were not drawn at random, so this is a description of them, not an expectation."
    )
    if all(search.random for search in searches):
        told = ""
    notes = [
        "Each configuration was trained without the held-out images and measured on them alone; the "
        f"test images were not evaluated. Rates within {WITHIN:g} point: the learning rates around the "
        f"best whose best mean held-out accuracy is at most {WITHIN:g} point below it, and the largest "
        "over the smallest. Expected best "
        "after k configurations: Dodge et al. 2019, 1909.03004." + told,
        _edge_note(searches),
    ]
    return Table("tuning", f"{records.title}: tuning", columns, data, list(filter(None, notes)))


def _edges(search: Searched) -> str:
    return "; ".join(edge.text for edge in search.edges)


def _edge_note(searches: Sequence[Searched]) -> str:
    """Return what the chosen numbers at an edge mean, or that there are none; "" while nothing is chosen."""
    if not any(search.chosen for search in searches):
        return ""
    if any(search.edges for search in searches):
        return (
            "At an edge: the arm tried no number beyond the chosen one, so a better one may lie there, and "
            "the arm may be under-tuned."
        )
    return "No chosen number lies at an edge of those that its arm tried."


def _expected(search: Searched) -> str:
    values = search.expected_best()
    if not values:
        return NONE
    wanted = sorted({k for k in (1, 2, 4, len(values)) if k <= len(values)})
    return ", ".join(fixed(values[k - 1]) for k in wanted)
