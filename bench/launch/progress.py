"""What a person sees while trials run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from bench.text import duration, inert, say, unread

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


def pace(line: Mapping[str, Any], epochs: int | None) -> tuple[str, str, str]:
    """Return accuracy, speed and remaining time of a trial as texts, from its last epoch; "" what is unknown.

    ``epochs`` is their number in all. The rest is guessed to go on at the speed of the last epoch.
    """
    accuracy, speed, seconds = (line.get(key) for key in ("test_acc", "images_per_second", "seconds"))
    left = "" if epochs is None or not seconds else f"ETA {duration((epochs - line['epoch']) * seconds)}"
    return (
        "" if accuracy is None else f"{accuracy:.1f} %",
        "" if not speed else f"{speed:,.0f} images/s",
        left,
    )


class Progress:
    """Counts what is done and guesses how long the rest takes, from the work done so far in this session."""

    def __init__(
        self,
        labels: Mapping[str, str],
        epochs: Mapping[str, int],
        costs: Mapping[str, float],
        *,
        stream: TextIO | None = None,
        interval: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labels, self.epochs, self.costs = dict(labels), dict(epochs), dict(costs)
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.interval = 0.2 if self.live else interval
        self.total = len(labels)
        self.done = 0
        self.running: dict[str, Mapping[str, Any]] = {}  # id -> the last epoch that is recorded
        self._fractions: dict[str, float] = {}  # of each trial, finished now
        self._at_start: dict[str, float] = {}  # of each trial, finished before this session
        self._clock = clock
        self._began = clock()
        self._shown = 0.0 if self.live else self._began
        self._display: Live | None = None  # of a terminal, once there is something to show

    def add(self, id: str, label: str, epochs: int, cost: float) -> None:
        """Add a trial, or add it again where it goes on after a rung."""
        self.labels[id], self.epochs[id], self.costs[id] = label, epochs, cost
        self.total += 1

    def resumed(self, id: str, epochs: int) -> None:
        """Note that a trial starts with so many epochs done."""
        self._fractions[id] = self._at_start[id] = min(1.0, epochs / max(1, self.epochs.get(id, 1)))

    def started(self, id: str) -> None:
        """A trial starts to run."""
        self.running[id] = {"epoch": round(self._fractions.get(id, 0.0) * self.epochs.get(id, 1))}
        self.tick()

    def epoch(self, id: str, line: Mapping[str, Any]) -> None:
        """A running trial recorded an epoch."""
        self.running[id] = line
        self._fractions[id] = min(1.0, line["epoch"] / max(1, self.epochs.get(id, 1)))
        self.tick()

    def finished(self, id: str, text: str) -> None:
        """A trial is over; ``text`` says how."""
        self.running.pop(id, None)
        self._fractions[id] = 1.0
        self.done += 1
        self.note(f"[{self.done}/{self.total}] {self.labels.get(id, id)}: {text}")

    def paused(self, id: str) -> None:
        """A trial no longer runs but is not over."""
        self.running.pop(id, None)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._display is not None:
            with unread():
                self._display.console.print(inert(text), markup=False, highlight=False, soft_wrap=True)
        else:
            say(inert(text), self.stream)
        self._shown = 0.0 if self.live else self._clock()
        self.tick()

    def remaining(self) -> float | None:
        """Return the seconds that the rest should take, None as long as nothing is known."""
        worked = sum(
            self.costs.get(id, 1.0) * (f - self._at_start.get(id, 0.0)) for id, f in self._fractions.items()
        )
        rest = sum(self.costs.get(id, 1.0) * (1.0 - self._fractions.get(id, 0.0)) for id in self.labels)
        return None if worked <= 0 else rest * (self._clock() - self._began) / worked

    def _summary(self) -> str:
        left = self.remaining()
        return f"{self.done}/{self.total} trials | ETA {'?' if left is None else duration(left)}"

    def line(self) -> str:
        """Return what is done and what runs, in one line."""
        parts = [self._summary()]
        for id, last in list(self.running.items()):
            accuracy, *_ = pace(last, self.epochs.get(id))
            at = f"{last['epoch']}/{self.epochs.get(id, '?')}"
            parts.append(" ".join(filter(None, [self.labels.get(id, id), at, accuracy])))
        return inert(" | ".join(parts))

    def _table(self, lines: int) -> RenderableType:
        """Return the summary and a line for each running trial, at most ``lines`` in all."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for _ in range(4):
            table.add_column(justify="right", no_wrap=True)
        running = list(self.running.items())
        shown = running if len(running) < lines else running[: max(0, lines - 2)]
        for id, last in shown:
            name = Text(inert(self.labels.get(id, id)))
            at = f"epoch {last['epoch']}/{self.epochs.get(id, '?')}"
            table.add_row(name, at, *pace(last, self.epochs.get(id)))
        more = [Text(f"and {len(running) - len(shown)} more")] if len(shown) < len(running) else []
        return Group(Text(self._summary(), style="bold"), table, *more)

    def tick(self) -> None:
        """Show how things stand when it is time to."""
        now = self._clock()
        if now - self._shown < self.interval or not (self.running or self.live):
            return
        self._shown = now
        if not self.live:
            return say(self.line(), self.stream)
        with unread():
            display = self._started_display()
            display.update(self._table(display.console.height), refresh=True)

    def _started_display(self) -> Live:
        if self._display is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, highlight=False, legacy_windows=False)
            self._display = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._display.start()
        return self._display

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._display is not None:
            with unread():
                self._display.stop()
            self._display = None
        self.live = False
