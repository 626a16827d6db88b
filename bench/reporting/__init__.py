"""Records -> DataFrame -> statistics -> tables, curves, verdicts, page: pure functions, one module a stage.

``records`` reads, ``cells`` groups and pairs, ``statistics`` has the mathematics, ``targets`` the published numbers,
``tables`` and ``curves`` draw, ``page`` writes the report, ``compare`` holds one report against another, ``text`` makes
what comes from files inert.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(
    experiments: Sequence[Path] | None,
    profile: str | None,
    results: Path,
    out: Path | None = None,
    formats: Sequence[str] | None = None,
) -> int:
    """See ``bench.reporting.page.write_report``; pandas and matplotlib are imported when it is called."""
    from bench.reporting.page import write_report as write

    return write(experiments, profile, results, out, formats)


def compare_tables(new: Path, committed: Path) -> int:
    """See ``bench.reporting.compare.compare_tables``."""
    from bench.reporting.compare import compare_tables as compare

    return compare(new, committed)
