"""``bench data list``, ``fetch``, ``prepare`` and ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bench import registry
from bench.datasets.sources import Source
from bench.errors import InputError, nearest
from bench.experiments import catalog
from bench.experiments.options import NAMED
from bench.text import command, data_size, plural, table


def offered(data_dir: Path) -> dict[str, tuple[Source, dict]]:
    """Return, by name, the suite's data sets and the user's own data sets in the data folder."""
    found: dict[str, tuple[Source, dict]] = {}
    for kind in registry.entries("datasets"):
        source: Source = registry.load("datasets", kind)
        found.update({name: (source, options) for name, options in source.labels(data_dir).items()})
    return found


def _find(name: str, data_dir: Path) -> tuple[Source, dict]:
    known = offered(data_dir)
    if name in known:
        return known[name]
    if name.startswith(NAMED):
        kind, _, own = name.partition(":")
        return registry.load("datasets", kind), {"name": own}
    raise InputError(
        f"no data set is called '{name[:80]}'.{nearest(name, known)} "
        f"Known: {', '.join(known)}, npz:NAME, imagefolder:NAME."
    )


def list_text(data_dir: Path) -> str:
    """Return a table of the data sets, with state, images, classes and size, and lines on missing files."""
    rows: list[tuple[str, ...]] = []
    notes = []
    known = offered(data_dir)
    for name, (source, options) in known.items():
        problem = source.problem(options, data_dir)
        try:
            facts = source.facts(options, data_dir)
        except InputError as error:
            problem, facts = str(error), catalog.Facts()
        paths = source.paths(options, data_dir)
        present = [path for path in paths if path.is_file()]
        begun = source.begun(options, data_dir)
        state = "ready" if not problem else "incomplete" if begun else "missing"
        size = data_size(sum(path.stat().st_size for path in present)) if paths else "embedded"
        counts = (facts.train_count, facts.test_count, facts.num_classes)
        rows.append((name, state, *(f"{n:,}" if n is not None else "?" for n in counts), size))
        if problem and (begun or not source.fetchable):
            notes.append(problem)
        notes += [f"{name}: {line}" for line in source.remarks(options, data_dir)]
    missing = [row[0] for row in rows if row[1] in ("missing", "incomplete") and known[row[0]][0].fetchable]
    if missing:
        fetch_one = command("data", "fetch", "NAME", "--data", data_dir)
        notes.append(f"`{fetch_one}` downloads {', '.join(missing)}; nothing is downloaded without it.")
    if "npz:svhn_subset" not in known:
        prepare_subset = command("data", "prepare", "svhn_subset", "--data", data_dir)
        notes.append(f"`{prepare_subset}` builds npz:svhn_subset from the files of svhn.")
    notes += _unknown_folders(data_dir, known)
    notes += [
        "A file NAME.npz of yours in the data folder is the data set npz:NAME; a folder NAME of photographs,",
        "NAME/train/CLASS/* and NAME/val/CLASS/*, is imagefolder:NAME; `bench data prepare` writes shards.",
    ]
    header = ("data set", "state", "train", "test", "classes", "on disk")
    return "\n".join([f"data folder: {data_dir}", "", table(header, rows), "", *notes])


def fetch(name: str, data_dir: Path) -> str:
    """Download and check the missing files of ``name``; return a line about them. Raises ``InputError``."""
    source, options = _find(name, data_dir)
    source.fetch(options, data_dir)
    paths = source.paths(options, data_dir)
    if not paths:
        return f"{name} comes with scikit-learn: nothing to download"
    return f"{name}: ready in {data_dir} ({data_size(sum(path.stat().st_size for path in paths))})"


def prepare(
    name: str,
    data_dir: Path,
    *,
    form: str,
    short_side: int | None,
    max_corrupt: int,
    yes: bool,
    say: Callable[[str], None],
) -> str:
    """Write photographs as shards, or build ``svhn_subset``; return a line about the result.

    The size of the shards is printed first and must be confirmed.

    Args:
        name: The data set, as an experiment names it.
        data_dir: The data folder.
        form: "jpeg" or "raw".
        short_side: In pixels, with "raw" alone; None: the default.
        max_corrupt: How many corrupt images may be left out.
        yes: Whether the size is confirmed; else the terminal is asked.
        say: Is told how it goes on.

    Raises:
        InputError: The data set cannot be prepared so, or the size was not confirmed.
    """
    from bench.datasets import svhn_subset
    from bench.datasets.photographs import prepare
    from bench.datasets.photographs.source import PhotographSource

    if name in (svhn_subset.NAME, f"npz:{svhn_subset.NAME}"):
        built = svhn_subset.build(data_dir)
        return f"npz:{svhn_subset.NAME}: ready as {built}, cut from SVHN's official files"
    source, options = _find(name, data_dir)
    if not isinstance(source, PhotographSource):
        raise InputError(
            f"bench data prepare: {name} is read as it is; photographs are prepared (imagenet, imagefolder), "
            f"and {svhn_subset.NAME} is built from svhn"
        )
    how = prepare.settings(form, short_side, max_corrupt)
    manifest = prepare.prepare(
        name,
        lambda: source.listing(options, data_dir),
        source.shards_folder(options, data_dir),
        how,
        confirm=lambda text: prepare.ask(text, yes),
        say=say,
    )
    without = f", without {len(manifest.corrupt)} corrupt ones" if manifest.corrupt else ""
    images, size = sum(manifest.counts.values()), data_size(manifest.total_bytes)
    return f"{name}: {images:,} images ready in {manifest.folder} ({size}){without}"


def verify(name: str | None, data_dir: Path) -> str:
    """Check every byte of ``name``, or of all data sets on disk; return a line for each.

    Raises ``InputError`` naming each corrupt file. Without ``name``, absent data sets are no error.
    """
    chosen = offered(data_dir) if name is None else {name: _find(name, data_dir)}
    lines, problems = [], []
    for label, (source, options) in chosen.items():
        paths = source.paths(options, data_dir)
        absent = bool(paths) and not any(path.is_file() for path in paths)
        absent |= bool(source.problem(options, data_dir)) and _contained(label, paths, chosen, data_dir)
        if absent and name is None:
            lines.append(f"{label}: not there")
            continue
        found = source.verify(options, data_dir)
        problems += [problem for problem in found if problem not in problems]
        checked = f"{plural(len(paths), 'file')} checked" if paths else "embedded"
        lines.append(f"{label}: corrupt or incomplete" if found else f"{label}: intact, {checked}")
        lines += [f"{label}: {line}" for line in source.remarks(options, data_dir, thorough=True)]
    if problems:
        intact = [line for line in lines if ": intact" in line]
        raise InputError("\n".join(problems + intact))
    return "\n".join(lines)


def _contained(label: str, paths: list[Path], chosen: dict, data_dir: Path) -> bool:
    """Return whether all files of ``label`` on disk belong to another, complete data set.

    ``svhn`` and ``svhn_extra`` have common files.
    """
    there = {path for path in paths if path.is_file()}
    others = (
        set(source.paths(options, data_dir))
        for name, (source, options) in chosen.items()
        if name != label and not source.problem(options, data_dir)
    )
    return any(there <= other for other in others)


def _unknown_folders(data_dir: Path, sets: Mapping[str, tuple[Source, dict]]) -> list[str]:
    """Return a line for each folder that belongs to no data set: what the folder lacks to be one."""
    from bench.datasets.photographs.listing import class_folders, form_problem

    if not data_dir.is_dir():
        return []
    taken = {
        path.relative_to(data_dir).parts[0]
        for source, options in sets.values()
        for path in source.paths(options, data_dir)
    } | {name.partition(":")[2] for name in sets}
    return [
        f"{problem}, so it is no data set"
        for name in class_folders(data_dir)
        if name not in taken | {"imagenet", "imagenet.shards"} and (problem := form_problem(data_dir / name))
    ]
