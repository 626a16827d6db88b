"""``bench report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.experiments.selection import Selection
from bench.reporting.write import write_report


def report_command(args: argparse.Namespace) -> int:
    """Write tables, curves and the page from the records; return the exit status."""
    results = args.results or [Path("runs")]
    return write_report(args.files or None, Selection.of(args), results, args.out, args.formats, args.data)
