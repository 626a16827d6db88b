"""The ``bench`` command with training that notices when a trial is executed twice at once."""

import sys

from bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main(train="tests.synthetic:train_with_witness"))
