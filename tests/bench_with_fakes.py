"""The ``bench`` command with the training function of ``running_fakes``: a process that tests can send signals to."""

import sys

from bench.cli import main

if __name__ == "__main__":
    sys.exit(main(train="running_fakes:train"))
