"""What every forked process finds imported. Nothing is computed here."""

import importlib

for name in (
    "bench.launch.pool",
    "bench.training.trial",
    "bench.networks.convnets",
    "bench.networks.resnet",
    "bench.strategies.progressive",
    "sklearn.datasets",
    "torch._dynamo",
    "tests.launch.running_fakes",
    "tests.robustness.disturbance",
    "tests.tuning.training_fakes",
):
    importlib.import_module(name)
