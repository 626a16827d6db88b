"""The self-contained page of an experiment: no script, no outside resource, everything from files escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from bench.reporting.report import Drawing, Report
from bench.text import clean

_HEADINGS = {
    "accuracy": "Accuracy",
    "claims": "Declared claims",
    "gains": "Gains over the baseline",
    "convergence": "Convergence",
    "published": "Published values",
}
_FIGURES = {
    "accuracy": "widths",
    "gains": "forest",
    "convergence": "curves",
}  # table -> beginning of the names
_COLUMNS = (
    (
        "Arm",
        "the line of the comparison, as the experiment file names it, with grid axes that have no column",
    ),
    (
        "W/A",
        "bits of weights and activations (and of gradients, where they are quantized); 32 is full precision",
    ),
    ("n", "finished runs, one a seed; '2 of 3': one is missing, diverged or failed, see Flags and Runs"),
    (
        "Test accuracy",
        "of the network that would ship, at the last epoch, on the whole test set: the branch removed "
        "(factor 0), fp32. Mean over seeds ± half the 95 % interval (Student's t). One run, or runs that "
        "are all the same, have no interval",
    ),
    (
        "Never removed",
        "accuracy of a network that keeps its branch: an upper bound, not a network that would ship",
    ),
    (
        "Gain",
        "accuracy minus the baseline's at the same seed, mean over seeds, with its 95 % interval (paired)",
    ),
    (
        "Claim, Verdict",
        "of comparisons that the experiment file declares before the runs; every other gain is exploratory",
    ),
    (
        "Published",
        "what others printed for the same method, network, width and bits, with its kind; never averaged",
    ),
    ("Budget", "epochs × training images of an epoch"),
    ("Deployed, as trained", "with the factor forced to 0; with the branch as it stood at that epoch"),
)


@dataclass(frozen=True)
class _Image:
    caption: str
    data: str  # base64
    width: int  # pixels on the page


@cache
def _template() -> jinja2.Template:
    """Return the page's template: each text from a file is cleaned, then escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.filters["transposed"] = lambda columns: list(zip(*columns, strict=True))
    environment.filters["cut"] = clean
    return environment.get_template("page.html.j2")


def page(report: Report, drawings: Sequence[Drawing] = ()) -> str:
    """Return the HTML of an experiment's page."""
    by_name = {table.name: table for table in report.tables}
    sections = [
        (heading, by_name[name], _images(drawings, _FIGURES.get(name)))
        for name, heading in _HEADINGS.items()
        if name in by_name
    ]
    return _template().render(
        title=report.records.title,
        what=_what(report),
        sections=sections,
        unfinished=[(c, t) for c in report.cells for t in c.trials if t["status"] != "done"],
        columns=_COLUMNS,
        provenance=list(_provenance(report)),
        runs=by_name["runs"],
        file=report.records.text.splitlines(),
    )


def _what(report: Report) -> str:
    trials = [trial for cell in report.cells for trial in cell.trials]
    done = sum(trial["status"] == "done" for trial in trials)
    sets = ", ".join(dict.fromkeys(c.facts.dataset for c in report.cells if c.facts.dataset))
    networks = ", ".join(dict.fromkeys(c.facts.network for c in report.cells if c.facts.network))
    return (
        f"{done} of {len(trials)} runs finished; data: {sets or 'unknown'}; network: {networks or 'unknown'}. "
        "Measured is the test accuracy of the network that would ship, after the last epoch, with any training-only "
        "branch removed."
    )


def _images(drawings: Sequence[Drawing], start: str | None) -> list[_Image]:
    """Return the figures of a section; curves that stand in several figures are shown once."""
    names = {drawing.name for drawing in drawings}
    singles = any(name.startswith("curves-") for name in names)
    images = []
    for drawing in drawings:
        if start is None or not drawing.name.startswith(start) or "png" not in drawing.files:
            continue
        if drawing.name.startswith("curves_wide") and singles:
            continue
        if drawing.name == "curves" and "curves_wide" in names:
            continue
        png = drawing.files["png"]
        inches = int.from_bytes(png[16:20], "big") / 200  # drawn at 200 dots an inch, shown at 120 pixels
        images.append(_Image(drawing.caption, base64.b64encode(png).decode(), round(inches * 120)))
    return images


def _provenance(report: Report) -> Iterator[tuple[str, str]]:
    trials: list[Any] = [trial for cell in report.cells for trial in cell.trials]
    commits = {
        f"{t['commit']}{' with uncommitted changes' if t['dirty'] else ''}" for t in trials if t["commit"]
    }
    versions = {f"{name} {version}" for t in trials for name, version in t["versions"].items()}
    yield "Code", ", ".join(sorted(commits)) or "not recorded"
    yield "Versions", ", ".join(sorted(versions)) or "not recorded"
    yield "Device", "; ".join(sorted({str(t["device"]) for t in trials if t["device"]})) or "not recorded"
    sums = {t["data"].strip('"') for t in trials if t["data"]}
    yield "Data checksums", ", ".join(sorted(sums)) or "not recorded"
    hours = sum(t["wall_seconds"] or 0 for t in trials) / 3600
    yield "Training time", f"{hours:.2f} hours over all runs"
