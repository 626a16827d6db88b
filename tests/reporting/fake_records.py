"""Hand-made records for the tests of the report: written through the store, as a real run writes them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from bench.records.store import Store

CONFIG: dict[str, Any] = {
    "dataset": {"kind": "digits"},
    "network": {"kind": "svhn_convnet"},
    "width": 0.25,
    "quantizer": {"kind": "dorefa"},
    "bits": "1/1/32",
    "strategy": {"kind": "plain"},
    "seed": 0,
    "epochs": 4,
    "batch_size": 100,
    "precision": "fp32",
    "train_size": None,
    "holdout": 0,
}
SUM = {"kind": "progressive", "merge": "sum", "factor": {"kind": "cosine", "until": 0.5}}
DEVICE = "Test CPU"


def trial_id(config: dict[str, Any], salt: str = "") -> str:
    """Return an id of a configuration."""
    return hashlib.sha256((json.dumps(config, sort_keys=True) + salt).encode()).hexdigest()[:16]


class Results:
    """A results folder under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.texts: dict[str, str] = {}
        self.tuning_lines: dict[str, list[dict[str, Any]]] = {}

    def experiment(self, name: str, text: str) -> None:
        """Store an experiment file."""
        self.texts[name] = text
        self.lines.setdefault(name, [])

    def trial(
        self,
        name: str,
        arm: str | None,
        curve: list[float] | None,
        *,
        status: str = "done",
        baseline: str | None = None,
        expanded: list[float | None] | None = None,
        factor: list[float] | None = None,
        seen: int = 1000,
        steps: int = 500,
        grid: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        role: str | None = None,
        salt: str = "",
        **config: Any,
    ) -> str:
        """Record one trial whose test accuracies are ``curve``; None leaves it missing. Returns its id."""
        whole = {**CONFIG, "epochs": len(curve or [0] * 4), **config}
        id = trial_id(whole, salt)
        point = {
            "bits": whole["bits"].removesuffix("/32"),
            "width": whole["width"],
            **(grid or {}),
            "seed": whole["seed"],
        }
        line = {"arm": arm, "baseline": baseline, "grid": point, "id": id}
        if role:
            line["role"] = role
        self.lines[name].append(line)
        if curve is None or self.store.read_trial(id) is not None:  # equal trials run once
            return id
        self.store.write_trial(
            id,
            {
                "config": whole,
                "execution": {"device": DEVICE, "kind": "cpu", "mode": "eager"},
                "provenance": {
                    "commit": "c0ffee1234567890",
                    "dirty": False,
                    "versions": {"torch": "2.11.0"},
                    "data": "d1d2d3",
                    **(provenance or {}),
                },
            },
        )
        factor = factor or [0.0] * len(curve)
        expanded = expanded or [None] * len(curve)
        for i, accuracy in enumerate(curve):
            finite = math.isfinite(accuracy)
            self.store.append_epoch(
                id,
                {
                    "epoch": i + 1,
                    "step": steps * (i + 1),
                    "train_loss": 2.0 / (i + 1) if finite else None,
                    "train_acc": 50.0,
                    "val_acc": None,
                    "test_acc": 100.0 * round(accuracy * seen / 100) / seen if finite else None,
                    "test_acc_expanded": expanded[i],
                    "test_acc_top5": None,
                    "test_correct": round(accuracy * seen / 100) if finite else None,
                    "test_seen": seen if finite else None,
                    "factor": factor[i],
                    "lr": 0.001,
                    "seconds": 10.0,
                    "images_per_second": 100.0,
                    "sign_flip_rate": 0.01,
                    "branch_ratio": None,
                },
            )
        if status not in ("unfinished",):
            done = status == "done"
            self.store.write_summary(
                id,
                {
                    "status": status,
                    "reason": None if done else f"it {status}",
                    "final_test_acc": 100.0 * round(curve[-1] * seen / 100) / seen if done else None,
                    "wall_seconds": 10.0 * len(curve),
                    "model_bits": 12345,
                    "flags": [],
                    "warnings": [],
                    **(summary or {}),
                },
            )
        return id

    def write(self) -> Path:
        """Write the indices and return the folder."""
        for name, lines in self.lines.items():
            self.store.write_index(name, self.texts[name], lines)
            self.store.write_tuning(name, self.tuning_lines.get(name, []))
        return self.root
