"""Progressive learning of low-precision networks: experiments one can trust, trace and re-run.

    import bench

    bench.run("digits", profile="quick", results="runs")      # what `bench run` does; returns DataFrames
    found = bench.results("runs")                             # found.trials, found.epochs
    bench.plot.convergence("runs", "digits")                  # a matplotlib figure
    bench.network("resnet20", "dorefa", "1/2")                # an nn.Module
    bench.load("52fbdcf5", "runs")                            # the network that a finished trial ships

Names in ``__all__`` are kept. They are loaded when they are first used: ``import bench`` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.errors import InputError

if TYPE_CHECKING:
    from bench import plot
    from bench.api import Results, layer_runs, load, load_experiment, network, report, results, run
    from bench.quantizers import make_quantizer

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Results",
    "__version__",
    "layer_runs",
    "load",
    "load_experiment",
    "make_quantizer",
    "network",
    "plot",
    "report",
    "results",
    "run",
]

_API = ("Results", "layer_runs", "load", "load_experiment", "network", "report", "results", "run")
_HOMES = {**dict.fromkeys(_API, "bench.api"), "make_quantizer": "bench.quantizers"}


def __getattr__(name: str) -> Any:
    if name == "plot":
        return import_module("bench.plot")
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
