"""A run that grows: when a trial has ended, the queue gets what the search wants next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.launch.session import Session
from bench.tuning.phases import WantedTrial
from bench.tuning.search import Search, Unfolded

Enqueue = Callable[[Sequence[WantedTrial], Unfolded], None]


class Feeder:
    """Fills the queue of a session from a search: an instance is the session's ``feed``."""

    def __init__(self, search: Search, session: Session, enqueue: Enqueue, file: str) -> None:
        """``enqueue`` puts trials into the queue; ``file`` is the name of the experiment file as run."""
        self.search, self.session, self.enqueue, self.file = search, session, enqueue, file
        self._settled = -1

    def __call__(self) -> None:
        """Look at the records and enqueue what is wanted now and is not in the queue yet."""
        dropped = {id: o.epoch for id, o in self.session.outcomes.items() if o.status == "dropped"}
        self.search.results.stopped |= dropped
        unfolded = self.search.unfold()
        new = [wanted for wanted in unfolded.wanted if self._is_new(wanted)]
        settled = len(dropped) + sum(search.complete for search in unfolded.standing.points)
        if new or settled != self._settled:
            self._settled = settled
            self.search.write(unfolded, self.file)
        if new:
            self.enqueue(new, unfolded)

    def _is_new(self, wanted: WantedTrial) -> bool:
        """Return whether a trial is not in the queue, or has ended at an earlier rung than is wanted now."""
        id = wanted.trial.id
        assert id is not None
        task = self.session.tasks.get(id)
        if task is None:
            return id not in self.session.known
        outcome = self.session.outcomes.get(id)
        return outcome is not None and outcome.status == "rung" and task.until != wanted.until
