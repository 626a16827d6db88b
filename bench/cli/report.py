"""``bench report``."""

from __future__ import annotations

import argparse

from bench import reporting


def report_command(args: argparse.Namespace) -> int:
    """Write tables, curves and the page from the records; return the exit status."""
    out = args.out if args.out is not None else args.results / "report"
    return reporting.write_report(args.files or None, args.profile, args.results, out, args.formats)
