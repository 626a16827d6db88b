"""``bench report``: reads the records of each experiment, writes its tables, figures and page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.selection import Selection
from bench.experiments.shipped import locate, shipped_experiments
from bench.experiments.toml_files import read_text
from bench.machine.folders import resolve_data_dir
from bench.records.files import StoreError, exclusive_folder, explained, write_atomic, write_together
from bench.records.store import Store
from bench.reporting.ablation import ablation_data, ablations
from bench.reporting.cells import Cell
from bench.reporting.claims import judge, seeds_of_all, verdicts
from bench.reporting.formats import FORMATS as TABLE_FORMATS
from bench.reporting.formats import to_csv
from bench.reporting.frames import epoch_frame, to_parquet, trial_frame
from bench.reporting.merge import merge
from bench.reporting.records import Records, experiments_in, read_experiment
from bench.reporting.report import Report, cells_of, make_report
from bench.reporting.tables import claim_texts
from bench.reporting.tuned import choices_at_edges, standing
from bench.text import clean, command, say
from bench.tuning.search import Search

FORMATS = ("md", "tex", "csv", "png", "pdf", "html")
ON_REQUEST = ("parquet",)  # formats that are written where they are asked for, and not by default
MANIFEST = "files.txt"  # names the files that a report wrote into its folder, a line each
_RESERVED = {"published", "gains"}  # names in the output folder that are no experiment's


def write_report(
    experiments: Sequence[Path] | None,
    selection: Selection,
    results: Path | Sequence[Path],
    out: Path | None = None,
    formats: Sequence[str] | None = None,
    data_dir: Path | None = None,
) -> int:
    """Write the report of each experiment to ``<out>/<experiment>/``, print what was written and return 0.

    Args:
        experiments: The experiment files; None: every experiment that is recorded in ``results``.
        selection: Which of the trials of each file are shown.
        results: The results folder, or several: an experiment that several folders hold parts of is one.
        out: The folder to write to; None: ``report`` inside the first results folder.
        formats: Some of ``FORMATS`` and ``ON_REQUEST``; None: all of ``FORMATS``.
        data_dir: The folder of the data sets, for the identities of trials with overrides; None: the default.

    Raises:
        InputError: There is nothing to report, or an input is wrong. The reports of other experiments are
            written.
    """
    folders = [Path(results)] if isinstance(results, str | Path) else [Path(folder) for folder in results]
    out = Path(out) if out is not None else folders[0] / "report"
    wanted = list(formats or FORMATS)
    for name in wanted:
        if name not in (*FORMATS, *ON_REQUEST):
            raise InputError(f"--format: '{clean(name)}' is none of {', '.join((*FORMATS, *ON_REQUEST))}")
    problems: list[str] = []
    read: list[tuple[Records, list[Cell]]] = []
    for reader in _readers(experiments, selection, folders, data_dir):
        with _collected(problems):
            records = reader()
            if records.name in _RESERVED:
                raise InputError(
                    f"{records.name}: the report keeps this name for itself; rename the experiment file"
                )
            read.append((records, cells_of(records)))
    reports = _reports(read)
    for report in reports:
        with _collected(problems):
            _write(report, out / report.records.name, wanted)
    if "html" in wanted and (len(reports) > 1 or (reports and not experiments)):
        from bench.reporting.page import leaderboard_page

        with _collected(problems):
            _save(out, {"index.html": leaderboard_page(reports).encode()})
    if not experiments and len(reports) > 1:
        with _collected(problems):
            _write_gains(reports, out, wanted)
    if problems:
        raise InputError("\n".join(problems))
    return 0


@contextlib.contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    """Keep the message of an experiment that cannot be reported, so that the others are."""
    try:
        yield
    except InputError as error:
        if isinstance(error, StoreError) and error.no_space:
            raise
        problems.append(str(error))


def _reports(read: Sequence[tuple[Records, list[Cell]]]) -> list[Report]:
    """Return the reports; a pair of arms has one verdict in all of them, from the seeds of all."""
    pool = seeds_of_all(cell for _, cells in read for cell in cells)
    judged = [judge(records, cells, pool) for records, cells in read]
    known = verdicts(entry for entries in judged for entry in entries)
    return [
        make_report(records, cells, entries, known)
        for (records, cells), entries in zip(read, judged, strict=True)
    ]


def _readers(
    experiments: Sequence[Path] | None, selection: Selection, results: Sequence[Path], data_dir: Path | None
) -> list[Callable[[], Records]]:
    """Return, for each experiment wanted, a function that reads its records."""
    if experiments:
        return [partial(_read_file, Path(path), selection, results, data_dir) for path in experiments]
    if selection:
        raise InputError("--profile, --set, --only and --seeds need the experiment file that they are about")
    held = {folder: experiments_in(folder) for folder in results}
    for folder, names in held.items():
        if not names:
            make = command("run", "FILE", "--results", folder)
            raise InputError(f"{folder}: no experiment is recorded here; `{make}` makes one")
    names = sorted({name for names in held.values() for name in names})
    return [partial(_read_all, [f for f in results if name in held[f]], name) for name in names]


def _read_all(folders: Sequence[Path], name: str) -> Records:
    return merge([read_experiment(folder, name) for folder in folders])


def _read_file(path: Path, selection: Selection, folders: Sequence[Path], data_dir: Path | None) -> Records:
    """Return the records of an experiment file, from the indices of its runs or from its expansion.

    An index does not say which overrides a trial was run with: the file is expanded with them, as by a run.
    """
    name = path.stem
    path = locate(path) if name in shipped_experiments() else path
    parts = []
    for folder in folders:
        recorded = Store(folder).index(name)
        if recorded and selection.overrides:
            parts.append(_expanded(path, selection, folder, data_dir))
        elif lines := selection.lines(recorded) if recorded else []:
            text = read_text(path) if path.is_file() else None
            parts.append(read_experiment(folder, name, text=text, folder=path.parent, lines=lines))
    return merge(parts) if parts else _expanded(path, selection, folders[0], data_dir)


def _expanded(path: Path, selection: Selection, results: Path, data_dir: Path | None) -> Records:
    """Return the records of the trials that a run with this selection has, as far as a search chose them."""
    data_dir = resolve_data_dir(data_dir)  # here, because a report of what is recorded needs no data
    loaded, tried = selection.load(path, data_dir), None
    if selection.overrides:
        for trial in loaded.trials:
            if trial.id is None:
                catalog.require(trial.config.dataset, data_dir)
    if loaded.tuning:
        search = Search(loaded, Store(results))
        unfolded = search.unfold()
        loaded, tried = unfolded.experiment, search.lines(unfolded)
    return read_experiment(
        results,
        loaded.name,
        text=loaded.text,
        folder=Path(loaded.path).parent,
        lines=[line.as_dict() for line in loaded.index],
        configs={trial.id: trial.config.dump() for trial in loaded.trials if trial.id},
        tried=tried,
    )


# -- files ---------------------------------------------------------------------------------------------------


def _write(report: Report, folder: Path, formats: Sequence[str]) -> None:
    """Write an experiment's files; print how far its runs are, each claim with its verdict, and the paths."""
    kinds = [kind for kind in ("png", "pdf") if kind in formats or (kind == "png" and "html" in formats)]
    drawings = []
    if kinds:
        from bench.reporting.figures import draw

        drawings = draw(report, kinds)
    written: dict[str, bytes] = {}
    for table in report.tables:
        for kind in ("md", "tex", "csv"):
            if kind in formats:
                written[f"{table.name}.{kind}"] = TABLE_FORMATS[kind](table).encode()
    if "csv" in formats and report.epochs:
        from bench.reporting.figures import curve_data

        written["curves.csv"] = to_csv(curve_data(report.cells, report.epochs)).encode()
    if "csv" in formats and (panels := ablations(report.cells, report.tuned)):
        written["heat.csv"] = to_csv(ablation_data(report.records.name, panels)).encode()
    for drawing in drawings:
        files = drawing.files.items()
        written |= {f"{drawing.name}.{kind}": data for kind, data in files if kind in formats}
    if "parquet" in formats:
        written["trials.parquet"] = to_parquet(trial_frame([report.records]))
        written["epochs.parquet"] = to_parquet(epoch_frame([report.records]))
    if "html" in formats:
        from bench.reporting.page import page

        written["index.html"] = page(report, drawings).encode()
    trials = [trial for cell in report.cells for trial in cell.trials]
    done = sum(trial["status"] == "done" for trial in trials)
    told = [f"{done} of {len(trials)} runs done", standing(report.tuned), choices_at_edges(report.tuned)]
    say(f"{clean(report.records.name)}: {'; '.join(filter(None, told))}")
    for text in claim_texts(report.judged):
        say(f"  {clean(text)}")
    _update(folder, written, formats)


def _save(folder: Path, files: Mapping[str, bytes], manifest: bytes | None = None) -> None:
    """Write files into a folder, all or, on a full disk, none, and ``manifest`` before them; print paths."""
    first = {} if manifest is None else {folder / MANIFEST: manifest}
    write_together({**first, **{folder / name: data for name, data in files.items()}}, "--out")
    for name in files:
        say(f"  {clean(folder / name)}")


def _update(folder: Path, written: dict[str, bytes], formats: Sequence[str]) -> None:
    """Write files into a report's folder, and remove the files of an earlier report that are obsolete.

    Only files that the manifest says a report wrote are removed, and only those of the formats that are
    written now. Whenever the machine stops, the manifest names every file. Another report into the same
    folder waits.
    """
    manifest = folder / MANIFEST
    with exclusive_folder(folder, "--out"):
        with explained(manifest, "--out"):
            earlier = manifest.read_bytes().decode(errors="replace") if manifest.is_file() else ""
        listed = [name for name in earlier.splitlines() if Path(name).name == name]
        there = [name for name in listed if (folder / name).is_file()]
        names = {*written, *there}
        _save(folder, written, _listed(names))
        obsolete = [n for n in there if n not in written and n.rpartition(".")[2] in formats]
        for name in obsolete:
            with explained(folder / name, "--out"):
                (folder / name).unlink()
            say(f"  removed {clean(folder / name)}: of an earlier report")
        if obsolete:
            write_atomic(manifest, _listed(names.difference(obsolete)), "--out")


def _listed(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in sorted(names)).encode()


def _write_gains(reports: Sequence[Report], out: Path, formats: Sequence[str]) -> None:
    """Write the gains of all experiments together as a table, and the primary ones as a forest plot."""
    frames = [table.data for report in reports for table in report.tables if table.name == "gains"]
    if not frames:
        return
    written = {}
    if "csv" in formats:
        written["gains.csv"] = to_csv(pd.concat(frames, ignore_index=True)).encode()
    kinds = [kind for kind in ("png", "pdf") if kind in formats]
    if kinds:
        from bench.reporting.figures import gains_figure, render

        if (figure := gains_figure(reports)) is not None:
            written.update({f"gains.{kind}": render(figure, kind) for kind in kinds})
    _save(out, written)
