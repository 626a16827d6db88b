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

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of an output: no room, no terminal
# The commands whose function is not ``bench.cli.NAME:NAME_command``.
_ELSEWHERE = {"list": "bench.cli.show:list_command", "speed": "bench.speed.measure:main"}


def main(argv: Sequence[str] | None = None, *, train: str | None = None) -> int:
    """Run ``bench`` and return its exit status; ``train`` replaces the training function in tests."""
    _open_closed_streams()
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
        if error.filename is not None:
            _complain(f"{error.filename}: {error.strerror}")
        elif error.errno in _UNWRITABLE:
            _complain(f"the output cannot be written: {error.strerror}")
            _drop_output()
        elif error.errno == errno.ENOENT:  # the working folder was removed, or temporary files have no place
            gone = error.strerror == os.strerror(errno.ENOENT)
            _complain("the working folder is no longer there" if gone else str(error.strerror))
        else:
            raise
        return WRONG_INPUT


def _open_closed_streams() -> None:
    """Give every standard stream that is closed (``>&-``) the null device, here and in processes begun here.

    The next file that is opened would take the number of the stream, and output would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


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
    with contextlib.suppress(OSError):  # nobody reads it, or there is no room for it
        print("\n".join(lines), file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
