"""The ``bench`` command whose training is disturbed as ``disturbance`` is told by the environment."""

import sys

from bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main(train="tests.robustness.disturbance:train"))
