"""What ``bench speed`` measures: quantizers, merges and networks, each row a trial whose step is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.experiments.config import TrialConfig

BATCH = 128
ON = {"kind": "constant", "until": 0.5}  # on at step 0, off at the last
NETWORKS = (("svhn_convnet", 0.25), ("svhn_convnet", 1.0), ("resnet20", 1.0))
MERGES = ("sum", "difference", "concat", "preactivation")


@dataclass(frozen=True)
class Case:
    """One row: what is trained, and whether its factor is above 0."""

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
        """Return what a row says of it."""
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
