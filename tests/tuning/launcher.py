"""Runs the ``bench`` command with the fake training function: a process of its own, to be killed."""

import sys

from bench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], train="tests.tuning.training_fakes:train"))
