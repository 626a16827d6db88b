"""The entry of ``bench``: reads the command line, calls the command's module, turns errors into one message.

A command's module is imported when the command runs, so that ``list``, ``show`` and ``status`` answer without
torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from bench.cli import OK, STOPPED, WRONG_INPUT
from bench.cli.parser import make_parser, parse
from bench.errors import InputError
from bench.machine.foreign import from_command_line, granted
from bench.text import inert

# The commands whose function is not ``bench.cli.NAME:NAME_command``.
_ELSEWHERE = {"list": "bench.cli.show:list_command", "speed": "bench.speed.measure:main"}


def main(argv: Sequence[str] | None = None, *, train: str | None = None) -> int:
    """Run ``bench`` and return its exit status; ``train`` replaces the training function in tests."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            # A name that this terminal cannot show is no error.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, commands = make_parser()
        args = parse(parser, commands, argv)
        if args.command is None:
            parser.print_help()
            return WRONG_INPUT
        args.train = train
        with granted(from_command_line(getattr(args, "allow_code", []))):
            module, function = place_of(args.command)
            status: int = getattr(import_module(module), function)(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        _complain(str(error))
        return WRONG_INPUT
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        _drop_output()
        return OK
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a file or folder that cannot be used, and that no module explained better
        if error.filename is None:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _complain(f"the output cannot be written: {error.strerror}")
            _drop_output()
            return WRONG_INPUT
        _complain(f"{error.filename}: {error.strerror}")
        return WRONG_INPUT


def _drop_output() -> None:
    """Let what is still to be written to the standard output go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def place_of(command: str) -> tuple[str, str]:
    """Return the module and the name of a command's function."""
    module, _, name = _ELSEWHERE.get(command, f"bench.cli.{command}:{command}_command").partition(":")
    return module, name


def _complain(message: str) -> None:
    """Print an error: its first line after the program's name, the other lines indented."""
    first, *others = message.splitlines() or ["wrong input"]
    lines = [f"bench: {inert(first)}", *(f"  {inert(line)}" for line in others)]
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
