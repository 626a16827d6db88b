"""``bench data``: list, fetch, import, prepare and verify data sets."""

from __future__ import annotations

import argparse

from bench.cli import OK
from bench.datasets import manage
from bench.errors import InputError, nearest
from bench.machine.folders import resolve_data_dir
from bench.text import inert, say

ACTIONS = ("list", "fetch", "import", "prepare", "verify")


def data_command(args: argparse.Namespace) -> int:
    """Do what ``args.what`` says with the data set ``args.name``; return the exit status."""
    if args.what not in ACTIONS:
        raise InputError(
            f"bench data: no '{args.what}'.{nearest(args.what, ACTIONS)} Known: {', '.join(ACTIONS)}."
        )
    folder = resolve_data_dir(args.data)
    if args.what in ("fetch", "prepare") and args.name is None:
        raise InputError(f"bench data {args.what}: which data set? `bench data list` names them")
    if args.what == "import":
        from bench.datasets.imports import import_images

        if args.name is None:
            raise InputError("bench data import: from where? A folder of Parquet files, or torchvision:CLASS")
        _print_inert(import_images(args.name, args.new_name, folder, args.label))
    elif args.what == "fetch":
        _print_inert(manage.fetch(args.name, folder))
    elif args.what == "prepare":
        line = manage.prepare(
            args.name,
            folder,
            form=args.form,
            short_side=args.short_side,
            max_corrupt=args.max_corrupt,
            yes=args.yes,
            say=_print_inert,
        )
        _print_inert(line)
    elif args.what == "verify":
        _print_inert(manage.verify(args.name, folder))
    elif args.name is not None:
        raise InputError(f"bench data list: takes no name ({args.name!r})")
    else:
        _print_inert(manage.list_text(folder))
    return OK


def _print_inert(text: str) -> None:
    """Print lines that hold names of files and folders, made harmless for a terminal."""
    say("\n".join(map(inert, text.split("\n"))))
