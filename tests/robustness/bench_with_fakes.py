"""The ``bench`` command with the training function of ``running_fakes``: a process that tests can send
signals to.
"""

import sys

from bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main(train="tests.launch.running_fakes:train"))
