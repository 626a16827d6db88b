"""``bench completion``: the script with which a shell completes commands, options and file names."""

from __future__ import annotations

import argparse

import shtab

from bench.cli import OK
from bench.cli.parser import make_parser

_FILES = {"file", "files", "results", "out", "data", "json"}  # the arguments that are paths


def completion_command(args: argparse.Namespace) -> int:
    """Print the script for a shell; return the exit status."""
    parser, commands = make_parser()
    for command in commands.values():
        for action in command._actions:
            if action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return OK
