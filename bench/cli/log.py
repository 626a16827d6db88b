"""``bench log``: records of earlier runs to an experiment tracker."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli import OK
from bench.errors import InputError, nearest
from bench.records.store import Store
from bench.records.trackers import send
from bench.text import clean, plural, say


def log_command(args: argparse.Namespace) -> int:
    """Send the recorded trials, with their epochs, to a tracker; return the exit status."""
    store = Store(args.results)
    recorded = store.experiments()
    names = [Path(file).stem for file in args.files] or recorded
    for name in names:
        if name not in recorded:
            told = nearest(name, recorded)
            raise InputError(f"{args.results}: no experiment {name!r} is recorded here.{told}")
    if not names:
        raise InputError(f"{args.results}: no experiment is recorded here")
    out = args.out or log_folder(args.results, args.to)
    trials, epochs = send(store, names, args.to, out)
    say(f"{clean(out)}: {plural(trials, 'trial')}, {plural(epochs, 'epoch')} sent to {args.to}")
    return OK


def log_folder(results: Path, tracker: str) -> Path:
    """Return the folder that a tracker writes to unless another is given."""
    return results / "logs" / tracker
