"""The options of one run: where its records and data lie, and what of the hardware its trials may use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.errors import InputError


@dataclass(frozen=True)
class RunOptions:
    """The options of ``bench run``, each field by its option's name."""

    results: Path
    data_dir: Path
    device: str | None = None
    gpus_per_trial: float | Literal["auto"] | None = None
    cpus_per_trial: float | None = None
    workers_per_trial: int = 1
    address: str | None = None
    no_ray: bool = False
    jobs: int | None = None
    max_minutes: float | None = None
    fresh: bool = False
    accept_other_hardware: bool = False
    log: str | None = None  # the tracker that epochs are sent to
    function: str | None = None  # "module:name" of the training function; None: the suite's own

    @property
    def gpu_share(self) -> float | None:
        """The part of a GPU that each trial takes; None: as much as it is measured to take."""
        return self.gpus_per_trial if isinstance(self.gpus_per_trial, float) else None

    def check(self) -> None:
        """Raise ``InputError`` for numbers that are none of these options', and for a contradiction."""
        for name, number, low in (
            ("jobs", self.jobs, 1),
            ("workers-per-trial", self.workers_per_trial, 1),
            ("gpus-per-trial", self.gpu_share, None),
            ("cpus-per-trial", self.cpus_per_trial, None),
            ("max-minutes", self.max_minutes, 0),
        ):
            if number is not None and not (
                (number > 0 if low is None else number >= low) and number < math.inf
            ):
                bounds = "above 0" if low is None else f"from {low}"
                raise InputError(f"--{name}: expected a finite number {bounds}, not {number!r}")
        workers, gpus = self.workers_per_trial, self.gpus_per_trial
        if workers > 1 and gpus not in (None, workers):
            raise InputError(
                f"--gpus-per-trial does not go with --workers-per-trial {workers}: each worker has one GPU"
            )
        if self.no_ray:
            for option, value in (("--address", self.address), ("--cpus-per-trial", self.cpus_per_trial)):
                if value is not None:
                    raise InputError(f"{option} is for Ray; it does not go with --no-ray")
        if isinstance(gpus, float) and gpus > 1 and workers == 1:
            raise InputError(
                f"--gpus-per-trial {gpus:g}: a trial takes one GPU, or a share of one, in this version"
            )
        if gpus is not None and self.device == "cpu":
            raise InputError("--gpus-per-trial does not go with --device cpu")
