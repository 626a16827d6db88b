"""The question of an experiment and the answer that its records give, in sentences."""

from __future__ import annotations

from collections import Counter

from bench.reporting.cells import Cell
from bench.reporting.pairing import OVER_CHANCE
from bench.reporting.report import Report
from bench.reporting.tables import claim_texts, gain_text
from bench.reporting.tuned import choices_at_edges, standing
from bench.text import clean, plural


def question(report: Report) -> list[str]:
    """Return the comment that the experiment file begins with, as paragraphs."""
    paragraphs: list[str] = []
    begun = False
    for line in report.records.text.splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("#").strip()
        if words and begun:
            paragraphs[-1] += f" {words}"
        elif words:
            paragraphs.append(words)
        begun = bool(words)
    return [clean(text, 600) for text in paragraphs[:3]]


def answer(report: Report) -> list[str]:
    """Return the answer, a sentence a line: each declared claim, then how far the runs are.

    An experiment without declared claims has no verdict; its answer says so and gives the range of its gains.
    """
    if report.judged:
        return [*claim_texts(report.judged), _finished_runs(report)]
    return [_exploratory_gains(report), _finished_runs(report)]


def _exploratory_gains(report: Report) -> str:
    paired = [(cell, cell.pairing.gain.interval.mean) for cell in report.cells if cell.pairing is not None]
    known = [(mean, cell) for cell, mean in paired if mean is not None]
    if not known:
        return "No gain can be told yet."
    gains = [cell for _, cell in sorted(known, key=lambda gain: gain[0]) if not _both_at_chance(cell)]
    untold = len(known) - len(gains)
    if not gains:
        return f"No gain can be told: in {plural(untold, 'pair')} of arms both are at chance."
    told = f"Exploratory, no claim was declared: {plural(len(gains), 'gain')} over a baseline, "
    over_chance = sum(OVER_CHANCE in cell.flags for cell in gains)
    chance = f" In {over_chance} of them the baseline is at chance." if over_chance else ""
    if untold:
        chance += f" Left out: {plural(untold, 'pair')} of arms of which both are at chance."
    if len(gains) == 1:
        return f"{told}{_gain_and_place(gains[0])}.{chance}"
    return f"{told}from {_gain_and_place(gains[0])} to {_gain_and_place(gains[-1])}.{chance}"


def _both_at_chance(cell: Cell) -> bool:
    return cell.at_chance and cell.pairing is not None and cell.pairing.against.at_chance


def _gain_and_place(cell: Cell) -> str:
    place = ", ".join(filter(None, [cell.label, cell.width_text, cell.bits_text]))
    return f"{gain_text(cell.pairing)} points ({place})"


def _finished_runs(report: Report) -> str:
    trials = [trial for cell in report.cells for trial in cell.trials]
    counts = Counter(trial["status"] for trial in trials)
    others = [f"{count} {status}" for status, count in counts.items() if status != "done"]
    told = [f"{counts['done']} of {plural(len(trials), 'run')} finished"] if trials else ["No final run yet"]
    if goes_on := standing(report.tuned):
        told.append(goes_on)
    elif report.tuned:
        told.append(f"each arm tuned: {', '.join(dict.fromkeys(s.effort for s in report.tuned))}")
    elif report.cells:
        told.append("untuned: the hyper-parameters stand in the experiment file")
    if at_edges := choices_at_edges(report.tuned):
        told.append(at_edges)
    return "; ".join(told) + (f" ({', '.join(others)})." if others else ".")
