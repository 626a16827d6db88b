"""The ``bench`` command with the training of ``running_fakes``, as a process that takes signals."""

import sys

from bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main(train="tests.launch.running_fakes:train"))
