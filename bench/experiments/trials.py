"""What an experiment file expands to: trials, index lines, arms."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.experiments.claims import Claim
from bench.experiments.config import TrialConfig
from bench.experiments.tuning_table import Tuning


@dataclass(frozen=True)
class Trial:
    """One training run. ``needs`` maps a role to the id of a further trial. Without data an id is None."""

    id: str | None
    config: TrialConfig
    needs: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class IndexLine:
    """A trial that the experiment wants, and why: a line of ``index.jsonl`` (see ``as_dict``).

    ``grid`` holds the values of the arm's own axes and of its baseline's. A teacher or a start has ``arm``
    None and its ``role``. ``baseline_trial`` is the run of the baseline that this one is paired with. A
    tuning trial has the role "tuning", the name of its arm in ``tunes``, and in ``grid`` the values tried.
    """

    arm: str | None
    baseline: str | None
    grid: dict[str, Any]
    trial: Trial
    baseline_trial: Trial | None = None
    role: str | None = None
    profile: str | None = None
    tunes: str | None = None

    @property
    def id(self) -> str | None:
        """The trial's identity."""
        return self.trial.id

    @property
    def baseline_id(self) -> str | None:
        """The identity of the paired run of the baseline."""
        return self.baseline_trial.id if self.baseline_trial else None

    def as_dict(self) -> dict[str, Any]:
        """Return the line as it stands in ``index.jsonl``."""
        names = ("arm", "baseline", "grid", "id", "baseline_id", "role", "profile")
        line = {name: getattr(self, name) for name in names}
        return line if self.tunes is None else line | {"tunes": self.tunes}


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. ``axes`` are its own: dotted field -> how many values."""

    name: str
    baseline: str | None = None
    published: dict[str, Any] | None = None
    allow_differences: tuple[str, ...] = ()
    axes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An expanded experiment file. ``trials`` are unique; a trial stands behind those that it needs.

    With ``tuning`` they are the trials as the file has them, before anything is chosen:
    ``bench.tuning.search`` returns the tuning trials, and the final ones with the values chosen. ``data_dir``
    is where the data lies (None: by default).
    """

    path: Path
    name: str
    title: str
    targets: tuple[str, ...]
    text: str
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    index: tuple[IndexLine, ...]
    profile: str | None = None
    tuning: Tuning | None = None
    claims: tuple[Claim, ...] = ()
    data_dir: Path | None = None
    deviations: tuple[str, ...] = ()

    def lines(self, arm: str | None) -> list[IndexLine]:
        """Return the index lines of one arm (None: of the teachers and starts)."""
        return [line for line in self.index if line.arm == arm]
