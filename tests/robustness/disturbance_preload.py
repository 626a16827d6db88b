"""What every disturbed trial imports, before its process is forked. Nothing is computed here."""

import importlib

for name in (
    "bench.training.trial",
    "bench.networks.convnets",
    "bench.networks.resnet",
    "bench.strategies.progressive",
    "sklearn.datasets",
    "torch._dynamo",
    "tests.robustness.disturbance",
):
    importlib.import_module(name)
