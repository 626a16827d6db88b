"""The report of an experiment: files of tables and figures, and one self-contained page."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import InputError
from bench.records.store import StoreError, write_atomic
from bench.reporting import tables as tb
from bench.reporting.cells import Cell, compare_published, convergence, make_cells
from bench.reporting.records import Records, experiments_in, read_experiment
from bench.reporting.targets import Row, find_table, load_names, load_table
from bench.text import clean, webpage

FORMATS = ("md", "tex", "csv", "png", "pdf", "html")
SINGLE_PANELS = 6  # up to so many panels get a figure of their own at column width
_RESERVED = {"published", "gains"}  # names in the output folder that are no experiment's

_COLUMNS = (
    (
        "Arm",
        "the line of the comparison, as the experiment file names it, with the grid axes that have no column",
    ),
    (
        "W/A",
        "bits of weights and activations (and of gradients, where they are quantized); 32 is full precision",
    ),
    ("n", "finished runs, one a seed; '2 of 3': one is missing, diverged or failed, see Flags and Runs"),
    (
        "Test accuracy",
        "of the network that would ship, at the last epoch, on the whole test set: the branch removed (factor 0), fp32. "
        "Mean over seeds ± half the 95 % interval (Student's t). One run, or runs that are all the same, have no interval",
    ),
    (
        "Gain",
        "accuracy minus the baseline's at the same seed, mean over seeds, with its 95 % interval (paired)",
    ),
    (
        "Published",
        "what others printed for the same method, network, width and bits, with its kind; never averaged",
    ),
    ("Budget", "epochs × training images of an epoch"),
    ("Claim", "after Holm's correction over all gains of the experiment, at a family-wise error of 5 %"),
    ("Deployed, as trained", "with the factor forced to 0; with the branch as it stood at that epoch"),
)
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid #e5e5e5;text-align:left;vertical-align:top}
thead th{border-bottom:2px solid #444}.r{text-align:right;white-space:nowrap}
.note{color:#8a3b00;font-size:.8rem;min-width:12rem}
.small{font-size:.8rem;color:#555}figure{margin:1rem 0;display:inline-block;vertical-align:top}
img{max-width:100%;height:auto}pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:.8rem}
dt{font-weight:600}dd{margin:0 0 .4rem 1rem}
"""


@dataclass
class Report:
    """What a report shows of one experiment, before any file is written."""

    records: Records
    cells: list[Cell]
    tables: list[tb.Table]
    epochs: dict[str, pd.DataFrame]
    text: str = ""
    figures: list[tuple[str, str, dict[str, bytes]]] = field(
        default_factory=list
    )  # name, caption, kind -> bytes


def make_report(records: Records, text: str = "") -> Report:
    """Return the tables of an experiment's records. Raises ``InputError`` for a bad or unknown published table."""
    cells = make_cells(records)
    folders = _folders(records)
    names = load_names(folders)
    wanted = [
        *records.targets,
        *(p["table"] for p in records.published.values() if isinstance(p.get("table"), str)),
    ]
    tables: dict[str, list[Row]] = {}
    for name in dict.fromkeys(wanted):
        try:
            tables[name] = load_table(find_table(name, folders), names)
        except InputError as error:
            raise InputError(f"{clean(records.name)}.toml: {error}") from None
    compare_published(cells, records, tables, names)
    epochs = {str(id): frame.reset_index(drop=True) for id, frame in records.epochs.groupby("id", sort=False)}
    timed = [convergence(cell, epochs) for cell in cells if cell.arm is not None]
    found = [
        tb.accuracy_table(records, cells),
        tb.claims_table(records, cells),
        tb.convergence_table(records, timed),
        tb.published_table(records, cells),
        tb.runs_table(records, cells),
    ]
    return Report(records, cells, [table for table in found if table is not None], epochs, text)


def _folders(records: Records) -> list[Path]:
    """Where a user's published tables may lie: beside the experiment file, else in the working copy."""
    places = [records.folder / "published"] if records.folder is not None else []
    return [*places, Path("paper_tables") / "published"]


def draw(report: Report, kinds: Sequence[str]) -> None:
    """Render the figures of a report in the given kinds (``png``, ``pdf``)."""
    from bench.reporting import curves

    look = curves.looks(report.cells)
    title = report.records.title
    for name, caption, make in _plans(report, curves, look, title):
        figure = make()
        if figure is not None:
            report.figures.append((name, caption, {kind: curves.render(figure, kind) for kind in kinds}))
            curves.close(figure)


def _plans(report: Report, curves: Any, look: Any, title: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (file name, caption, function that draws) of every figure."""
    cells, epochs = report.cells, report.epochs
    yield "widths", "Accuracy by width: ours and published.", lambda: curves.width_figure(cells, look, title)
    yield (
        "forest",
        "Gains over the baseline, paired by seed.",
        lambda: curves.forest_figure(cells, look, title),
    )
    panels = curves.panels(cells)
    drawn = panels[: curves.PANELS]
    caption = "Test accuracy, training loss and factor."
    if len(panels) > len(drawn):
        caption += f" The first {len(drawn)} of {len(panels)} panels; curves.csv has all."
    taken: set[str] = set()
    if len(drawn) <= SINGLE_PANELS:
        for panel in drawn:
            name = "curves" if len(drawn) == 1 else f"curves-{_slug(panel.title)}"
            while name in taken:
                name += "-2"
            taken.add(name)
            yield name, caption, lambda panel=panel: curves.convergence_figure([panel], epochs, look, title)
        if len(drawn) == 1 and len(drawn[0].cells) > 4:
            yield (
                "curves_wide",
                caption,
                lambda: curves.convergence_figure(drawn, epochs, look, title, wide=True),
            )
    if len(drawn) > 1:
        for start in range(0, len(drawn), 3):
            name = "curves_wide" if len(drawn) <= 3 else f"curves_wide-{start // 3 + 1}"
            some = drawn[start : start + 3]
            yield name, caption, lambda some=some: curves.convergence_figure(some, epochs, look, title)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60] or "panel"


# -- the page --------------------------------------------------------------------------------------------------------


def page(report: Report) -> str:
    """Return the self-contained HTML page: no script, no outside resource, everything from files escaped."""
    records = report.records
    by_name = {table.name: table for table in report.tables}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{webpage(records.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{webpage(records.title)}</h1>",
        f"<p>{webpage(_what(report))}</p>",
    ]
    headings = {
        "accuracy": "Accuracy",
        "claims": "Gains over the baseline",
        "convergence": "Convergence",
        "published": "Published values",
        "runs": "Runs",
    }
    for name, heading in headings.items():
        if name in by_name and name != "runs":
            parts += [f"<h2>{heading}</h2>", tb.to_html(by_name[name]), *_images(report, name)]
    parts.append(_unfinished(report))
    parts += ["<h2>What the columns mean</h2><dl>"]
    parts += [f"<dt>{webpage(term)}</dt><dd>{webpage(meaning)}.</dd>" for term, meaning in _COLUMNS]
    parts += ["</dl><h2>Provenance</h2>", _provenance(report)]
    parts += ["<details><summary>All runs</summary>", tb.to_html(by_name["runs"]), "</details>"]
    if report.text:
        lines = "\n".join(webpage(line) if line.strip() else "" for line in report.text.splitlines())
        parts.append(f"<details><summary>The experiment file</summary><pre>{lines}</pre></details>")
    parts.append("</body></html>")
    return "\n".join(part for part in parts if part) + "\n"


def _what(report: Report) -> str:
    trials = [trial for cell in report.cells for trial in cell.trials]
    done = sum(trial["status"] == "done" for trial in trials)
    sets = ", ".join(dict.fromkeys(cell.dataset for cell in report.cells if cell.dataset))
    networks = ", ".join(dict.fromkeys(cell.network for cell in report.cells if cell.network))
    return (
        f"{done} of {len(trials)} runs finished; data: {sets or 'unknown'}; network: {networks or 'unknown'}. "
        "Measured is the test accuracy of the network that would ship, after the last epoch, with any training-only "
        "branch removed."
    )


def _images(report: Report, table: str) -> list[str]:
    where = {"accuracy": ("widths",), "claims": ("forest",), "convergence": ("curves",)}.get(table, ())
    parts = []
    singles = any(name.startswith("curves-") for name, _, _ in report.figures)
    for name, caption, kinds in report.figures:
        if not any(name.startswith(prefix) for prefix in where) or "png" not in kinds:
            continue
        if singles and name.startswith("curves_wide"):
            continue  # the same curves again
        if name == "curves" and any(other == "curves_wide" for other, _, _ in report.figures):
            continue
        data = base64.b64encode(kinds["png"]).decode()
        inches = (
            int.from_bytes(kinds["png"][16:20], "big") / 200
        )  # drawn at 200 dots an inch, shown at 120 pixels
        parts.append(
            f'<figure><img alt="{webpage(caption)}" width="{inches * 120:.0f}" src="data:image/png;base64,{data}">'
            f'<figcaption class="small">{webpage(caption)}</figcaption></figure>'
        )
    if parts and table == "convergence":
        note = "Solid: deployed, mean over seeds; band: lowest to highest seed. Dashed: expanded, while the branch is on."
        parts.append(f'<p class="small">{note}</p>')
    return parts


def _unfinished(report: Report) -> str:
    rows = [(cell, t) for cell in report.cells for t in cell.trials if t["status"] != "done"]
    if not rows:
        return "<h2>Missing and failed runs</h2><p>None: every run of the experiment finished.</p>"
    body = "".join(
        f"<tr><td>{webpage(cell.label)}</td><td>{webpage(cell.bits_label)}</td><td>{webpage(t['seed'])}</td>"
        f"<td>{webpage(t['id'] or '?')}</td><td>{webpage(t['status'])}</td>"
        f"<td>{webpage(clean(t['reason'] or '', 300))}</td></tr>"
        for cell, t in rows
    )
    return (
        "<h2>Missing and failed runs</h2><div class=scroll><table><thead><tr><th>Arm</th><th>W/A</th><th>Seed</th>"
        f"<th>Run</th><th>Status</th><th>Reason</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _provenance(report: Report) -> str:
    trials = [t for cell in report.cells for t in cell.trials]
    commits = sorted(
        {f"{t['commit']}{' with uncommitted changes' if t['dirty'] else ''}" for t in trials if t["commit"]}
    )
    versions = sorted({f"{name} {version}" for t in trials for name, version in t["versions"].items()})
    facts = [
        ("Code", ", ".join(commits) or "not recorded"),
        ("Versions", ", ".join(versions) or "not recorded"),
        ("Device", "; ".join(sorted({str(t["device"]) for t in trials if t["device"]})) or "not recorded"),
        (
            "Data checksums",
            ", ".join(sorted({t["data"].strip('"') for t in trials if t["data"]})) or "not recorded",
        ),
        ("Training time", f"{sum(t['wall_seconds'] or 0 for t in trials) / 3600:.2f} hours over all runs"),
    ]
    return "<dl>" + "".join(f"<dt>{webpage(k)}</dt><dd>{webpage(v)}</dd>" for k, v in facts) + "</dl>"


# -- the command -----------------------------------------------------------------------------------------------------


def write_report(
    experiments: Sequence[Path] | None,
    profile: str | None,
    results: Path,
    out: Path | None = None,
    formats: Sequence[str] | None = None,
) -> int:
    """Write the report of each experiment file (or of all experiments recorded in ``results``) to ``<out>/<experiment>/``.

    Prints what was written and returns 0. ``out`` is ``report`` inside ``results`` unless given; ``formats`` are among
    ``FORMATS``, all of them by default. Raises ``InputError`` where there is nothing to report or an input is wrong.
    """
    results = Path(results)
    out = Path(out) if out is not None else results / "report"
    wanted = _formats(formats)
    reports = []
    problems = []
    for read in _selected(experiments, profile, results):
        try:
            records, text = read()
            if records.name in _RESERVED:
                raise InputError(
                    f"{records.name}: the report keeps this name for itself; rename the experiment file"
                )
            report = make_report(records, text)
            _write(report, out / records.name, wanted)
            reports.append(report)
        except StoreError as error:
            if error.no_space:
                raise
            problems.append(str(error))
        except InputError as error:  # the others' reports are written all the same
            problems.append(str(error))
    if not experiments and len(reports) > 1:
        _write_gains(reports, out, wanted)
    if problems:
        raise InputError("\n".join(problems))
    return 0


def _formats(formats: Sequence[str] | None) -> list[str]:
    chosen = list(formats or FORMATS)
    for name in chosen:
        if name not in FORMATS:
            raise InputError(f"--format: '{clean(name)}' is none of {', '.join(FORMATS)}")
    return chosen


def _selected(
    experiments: Sequence[Path] | None, profile: str | None, results: Path
) -> list[Callable[[], tuple[Records, str]]]:
    """Return, for each experiment wanted, a function that reads its records and the text of its file."""
    if experiments:
        return [partial(_read_file, Path(path), profile, results) for path in experiments]
    if profile is not None:
        raise InputError("--profile needs the experiment file whose profile it is")
    names = experiments_in(results)
    if not names:
        raise InputError(
            f"{results}: no experiment is recorded here; `bench run FILE --results {results}` makes one"
        )
    return [partial(_read_stored, name, results) for name in names]


def _read_file(path: Path, profile: str | None, results: Path) -> tuple[Records, str]:
    from bench.experiments.expand import load_experiment

    loaded = load_experiment(path, profile=profile)
    return read_experiment(results, loaded.name, loaded), loaded.text


def _read_stored(name: str, results: Path) -> tuple[Records, str]:
    records = read_experiment(results, name)
    stored = results / name / f"{name}.toml"
    text = stored.read_text(encoding="utf-8", errors="replace") if stored.is_file() else ""
    return records, text


def _write(report: Report, folder: Path, formats: Sequence[str]) -> None:
    """Write an experiment's files and print their paths, with a line on what stands in them."""
    kinds = [kind for kind in ("png", "pdf") if kind in formats or (kind == "png" and "html" in formats)]
    if kinds:
        draw(report, kinds)
    written = []
    for table in report.tables:
        for kind in ("md", "tex", "csv"):
            if kind in formats:
                written.append((folder / f"{table.name}.{kind}", tb.FORMATS[kind](table).encode()))
    if "csv" in formats and report.epochs:
        from bench.reporting.curves import curve_data

        written.append((folder / "curves.csv", tb.to_csv(curve_data(report.cells, report.epochs)).encode()))
    for name, _, images in report.figures:
        written.extend((folder / f"{name}.{kind}", data) for kind, data in images.items() if kind in formats)
    if "html" in formats:
        written.append((folder / "index.html", page(report).encode()))
    trials = [trial for cell in report.cells for trial in cell.trials]
    done = sum(trial["status"] == "done" for trial in trials)
    print(f"{clean(report.records.name)}: {done} of {len(trials)} runs done")
    for path, data in written:
        write_atomic(path, data)
        print(f"  {clean(path)}")


def _write_gains(reports: Sequence[Report], out: Path, formats: Sequence[str]) -> None:
    """Write the gains of all experiments together: a table and a forest plot."""
    frames = [table.data for report in reports for table in report.tables if table.name == "claims"]
    if not frames:
        return
    written = []
    if "csv" in formats:
        written.append((out / "gains.csv", tb.to_csv(pd.concat(frames, ignore_index=True)).encode()))
    kinds = [kind for kind in ("png", "pdf") if kind in formats]
    if kinds:
        from bench.reporting import curves

        cells: list[Cell] = []
        headings: dict[int, str] = {}
        for report in reports:
            headings[len(cells)] = report.records.title
            cells += report.cells
        figure = curves.forest_figure(cells, title="All paired gains, by question", headings=headings)
        if figure is not None:
            written.extend((out / f"gains.{kind}", curves.render(figure, kind)) for kind in kinds)
            curves.close(figure)
    for path, data in written:
        write_atomic(path, data)
        print(f"  {clean(path)}")
