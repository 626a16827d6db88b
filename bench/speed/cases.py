"""The cases of ``bench speed``: quantizers, merges and networks. Each row times the step of one trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.experiments.config import TrialConfig

BATCH = 128
ON = {"kind": "constant", "until": 0.5}  # the branch is on at step 0 and off at the last step
NETWORKS = (("svhn_convnet", 0.25), ("svhn_convnet", 1.0), ("resnet20", 1.0))
MERGES = ("sum", "difference", "concat", "preactivation")


@dataclass(frozen=True)
class Case:
    """One row: the trained configuration, and whether its factor is above 0."""

    quantizer: str
    bits: str
    strategy: str = "plain"
    merge: str | None = None
    factor_on: bool = False

    def config(self, network: str, width: float, precision: str) -> TrialConfig:
        """Return the trial whose step is measured."""
        strategy: dict[str, Any] = {"kind": self.strategy}
        full = {"dataset": "digits", "network": network, "width": width, "epochs": 2, "batch_size": BATCH}
        full |= {"augmentation": "crop_flip", "precision": precision}
        if self.merge is not None:
            strategy |= {"merge": self.merge, "factor": ON}
        if self.strategy == "apprentice":
            strategy |= {"scheme": "B", "teacher": TrialConfig.model_validate(full).dump()}
        return TrialConfig.model_validate(
            {**full, "quantizer": self.quantizer, "bits": self.bits, "strategy": strategy}
        )

    def row(self) -> dict[str, Any]:
        """Return the fields that describe the case in its row."""
        row = {"quantizer": self.quantizer, "bits": self.bits, "strategy": self.strategy}
        return {**row, "merge": self.merge, "factor_on": self.factor_on}


UNIT = Case("full_precision", "32/32")
PLAIN = Case("dorefa", "1/1")
CASES = (
    UNIT,
    PLAIN,
    Case("dorefa", "1/2"),
    Case("dorefa", "2/2"),
    Case("dorefa_channelwise", "1/1"),
    Case("bnn", "1/1"),
    Case("xnor", "1/1"),
    Case("syq", "2/2"),
    *(Case("dorefa", "1/1", "progressive", merge, on) for merge in MERGES for on in (True, False)),
    Case("dorefa", "1/1", "apprentice"),
)
