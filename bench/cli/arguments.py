"""Types of the command line's arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from bench.errors import InputError, nearest

FORMATS = ("md", "tex", "csv", "png", "pdf", "html", "parquet")


class Help(RawDescriptionRichHelpFormatter):
    """Help in colour on a terminal; rich is imported when help is printed."""

    text_markup = help_markup = False  # square brackets are brackets
    group_name_formatter = str.capitalize


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one message, with the nearest valid name."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\nsee `{self.prog} --help`")


class Once(argparse._StoreAction):
    """Stores a value; a second one is refused, where another command takes several of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given: frozenset[str] = getattr(namespace, "given", frozenset())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice; this command takes one")
        namespace.given = given | {self.dest}
        super().__call__(parser, namespace, values, option_string)


def number(kind: type, low: float, *, strict: bool = False, high: float = math.inf) -> Callable[[str], Any]:
    """Return an argument type: a finite number from ``low`` (``strict``: above it) to ``high``."""
    name = "whole number" if kind is int else "number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (strict and value == low) or value > high:
            to = "" if math.isinf(high) else f" to {high:g}"
            bounds = f"{'above' if strict else 'from'} {low:g}{to}"
            raise argparse.ArgumentTypeError(f"expected a {name} {bounds}, not {text!r}")
        return value

    return parse


def gpu_share(text: str) -> Any:
    return text if text == "auto" else number(float, 0, strict=True)(text)


def path_argument(text: str) -> Path:
    """Return the path of an option; whether something is there is asked later."""
    try:
        os.stat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no path: there is a NUL in it") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no path here: {error.strerror}") from None
    return Path(text)


def formats(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for name in chosen:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no format of reports.{nearest(name, FORMATS)} Known: {', '.join(FORMATS)}"
            )
    if not chosen:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(FORMATS)}")
    return chosen


def add(
    group: argparse._ActionsContainer, usage: str, text: str, kind: Callable | None = None, **more: Any
) -> None:
    """Add the argument ``usage``: "--jobs N" takes a value, which help calls N; "--fresh" is a switch.

    "trial TRIAL" is no option: it has its place in the command line.
    """
    name, _, value = usage.partition(" ")
    taken: dict[str, Any] = {"metavar": value, "type": kind} if value else {"action": "store_true"}
    group.add_argument(name, help=text, **taken, **more)


def add_selection(command: argparse.ArgumentParser, what: str = "what is run") -> None:
    group = command.add_argument_group(f"which trials ({what})")
    add(group, "--profile P", "a profile of the file, for instance quick")
    fields = "a field and its value, for instance epochs=3 or strategy.factor.until=0.25; may be repeated"
    add(group, "--set KEY=VALUE", fields, action="append", default=[], dest="overrides")
    add(group, "--only ARM", "this arm and its baseline; may be repeated", action="append", default=[])
    add(group, "--seeds N", "the seeds 0 to N-1", number(int, 1))


def add_places(command: argparse.ArgumentParser, *, data: bool = True) -> argparse._ArgumentGroup:
    group = command.add_argument_group("where")
    records = "the folder of the records (runs)"
    add(group, "--results DIR", records, path_argument, default=Path("runs"), action=Once)
    if data:
        add_data(group)
    return group


def add_data(group: argparse._ActionsContainer) -> None:
    add(group, "--data DIR", "the folder of the data sets ($BENCH_DATA, else a cache folder)")


def add_code(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("code of your own")
    code = "parts may be imported from this module or package, and from what lies in it; may be repeated"
    add(group, "--allow-code MODULE", code, action="append", default=[])


def add_file(command: argparse.ArgumentParser) -> None:
    add(command, "file FILE", "an experiment file, or the name of a shipped experiment", Path)
