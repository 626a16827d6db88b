"""``bench verify``."""

from __future__ import annotations

import argparse

from bench.launch.execute import TRAIN
from bench.launch.verify import verify
from bench.machine.folders import resolve_data_dir


def verify_command(args: argparse.Namespace) -> int:
    """Train a recorded trial again and compare the records; return the exit status."""
    data_dir = resolve_data_dir(args.data)
    return verify(args.trial, args.results, data_dir, args.device, function=args.train or TRAIN)
