"""What the records say of a tuning trial: all that a search knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bench.records.files import StoreError
from bench.records.store import Store


@dataclass(frozen=True)
class Result:
    """A tuning trial's record.

    ``status`` is done, diverged, failed, unfinished, missing or damaged. ``accuracy`` maps an epoch to the
    held-out accuracy of the deployed network after the epoch, in percent. ``operations`` are those of the
    training so far, where the summary tells them.
    """

    status: str
    accuracy: Mapping[int, float] = field(default_factory=dict)
    final: float | None = None
    operations: float | None = None
    seconds: float = 0.0
    stopped: int | None = None  # the epoch after which ASHA gave the trial up


MISSING = Result("missing")


class Results:
    """Reads results from a store; a finished trial is read once."""

    def __init__(self, store: Store, stopped: Mapping[str, int] | None = None) -> None:
        """``stopped`` are the trials that ASHA gave up before, with the epochs."""
        self.store = store
        self.stopped = dict(stopped or {})
        self._finished: dict[str, Result] = {}

    def __call__(self, id: str | None) -> Result:
        """Return what is recorded of a trial; one without identity (its data is absent) is missing."""
        if id is None:
            return MISSING
        if id not in self._finished:
            result = self._read(id)
            if result.status not in ("done", "diverged"):
                return replace(result, stopped=self.stopped.get(id))
            self._finished[id] = result
        return self._finished[id]

    def _read(self, id: str) -> Result:
        if not self.store.folder(id).is_dir():
            return MISSING
        if self.store.inspect(id).status == "damaged":  # a run sets it aside and trains it again
            return Result("damaged")
        try:
            summary, lines = self.store.summary(id), self.store.epochs(id)
        except StoreError:
            return Result("damaged")
        accuracy = {
            line["epoch"]: float(line["val_acc"])
            for line in lines
            if isinstance(line.get("val_acc"), int | float)
        }
        seconds = sum(
            float(line["seconds"]) for line in lines if isinstance(line.get("seconds"), int | float)
        )
        if summary is None:
            return Result("unfinished" if lines else "missing", accuracy, seconds=seconds)
        operations = summary.get("train_flops")
        return Result(
            summary["status"],
            accuracy,
            summary.get("final_val_acc"),
            float(operations) if isinstance(operations, int | float) else None,
            seconds,
        )
