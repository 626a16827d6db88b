"""The entry of ``bench``: reads the command line, calls the command's module, turns errors into one message.

A command's module is imported when the command runs, so that ``list``, ``show`` and ``status`` answer without
torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from bench.cli import OK, STOPPED, WRONG_INPUT
from bench.cli.parser import make_parser, parse
from bench.errors import InputError

COMMANDS = {
    "list": "bench.cli.show:list_command",
    "show": "bench.cli.show:show_command",
    "run": "bench.cli.run:run_command",
    "status": "bench.cli.status:status_command",
    "report": "bench.cli.report:report_command",
    "log": "bench.cli.log:log_command",
    "verify": "bench.cli.verify:verify_command",
    "sharpness": "bench.cli.sharpness:sharpness_command",
    "export": "bench.cli.export:export_command",
    "data": "bench.cli.data:data_command",
    "new": "bench.cli.new:new_command",
    "schema": "bench.cli.schema:schema_command",
    "completion": "bench.cli.completion:completion_command",
    "doctor": "bench.cli.doctor:doctor_command",
    "speed": "bench.speed.measure:main",
}


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
        from bench.foreign import from_command_line, granted

        module, _, function = COMMANDS[args.command].partition(":")
        with granted(from_command_line(getattr(args, "allow_code", []))):
            status: int = getattr(import_module(module), function)(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        _complain(str(error))
        return WRONG_INPUT
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return STOPPED
    except OSError as error:  # a file or folder that cannot be used, and that no module explained better
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}")
        return WRONG_INPUT


def _complain(message: str) -> None:
    """Print an error: its first line after the program's name, the other lines indented."""
    from bench.text import inert

    first, *others = message.splitlines() or ["wrong input"]
    lines = [f"bench: {inert(first)}", *(f"  {inert(line)}" for line in others)]
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
