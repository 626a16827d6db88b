"""``bench schema``."""

from __future__ import annotations

import argparse
import json

from bench.cli import OK
from bench.experiments.schema import json_schema


def schema_command(args: argparse.Namespace) -> int:
    """Print the JSON Schema of experiment files; return the exit status."""
    print(json.dumps(json_schema(), indent=2))
    return OK
