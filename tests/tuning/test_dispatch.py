"""How long a run of many trials takes: a session's queue under a virtual clock, without processes."""

from __future__ import annotations

import heapq
import io
import random

import pytest

from bench.launch.execute import Outcome, Task
from bench.launch.plan import startable, tuning_priority
from bench.launch.progress import Progress
from bench.launch.session import Session, Stop
from bench.records.store import Store
from bench.tuning.halving import rungs

GPUS = 64


class Simulation:
    """Trials of known lengths: teachers and students, and searches that fill the queue as they go."""

    def __init__(self, tmp_path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.session = Session(
            {}, {}, {}, Store(tmp_path), Progress({}, {}, {}, stream=io.StringIO()), Stop()
        )
        self.session.feed = lambda: None
        self.seconds: dict[str, float] = {}  # of the part of a trial that is trained next
        self.work = 0.0
        self.chain: dict[
            str, float
        ] = {}  # when a trial could end at the earliest, with as many GPUs as it likes
        self.searches: list[dict] = []
        self.of_search: dict[str, dict] = {}

    def add(self, id: str, seconds: float, priority: float, needs=(), after: float = 0.0) -> None:
        self.seconds[id] = seconds
        self.work += seconds
        self.chain[id] = max([after, *(self.chain[needed] for needed in needs)]) + seconds
        roles = {f"role{number}": needed for number, needed in enumerate(needs)}
        self.session.add(Task(id, {}, roles, "", ""), id, 1, seconds, priority)

    def add_teacher(self, name: str, students: int) -> None:
        length = self.dice.lognormvariate(0.0, 0.5)
        own = [self.dice.lognormvariate(0.3, 0.5) for _ in range(students)]
        self.add(f"{name} teacher", length, length + max(own))
        for number, seconds in enumerate(own):
            self.add(f"{name} student {number}", seconds, seconds, (f"{name} teacher",))

    def add_search(self, name: str, configurations: int, finals: int) -> None:
        """A search by halving: rungs at 1/27, 1/9, 1/3 and all of the length, then final trials."""
        length = self.dice.lognormvariate(0.0, 0.5)
        steps = rungs(27, configurations, 3)
        search = {"name": name, "length": length, "rungs": steps, "number": 0, "finals": finals, "after": 0.0}
        self.searches.append(search)
        self._start_rung(search, [f"{name} configuration {n}" for n in range(configurations)])

    def _start_rung(self, search: dict, ids: list[str]) -> None:
        number, length = search["number"], search["length"]
        before = search["rungs"][number - 1].epoch if number else 0
        part = (search["rungs"][number].epoch - before) / 27
        left = length * (27 - before) / 27
        search["waiting"], search["ids"] = set(ids), ids
        for id in ids:
            self.of_search[id] = search
            self.add(
                id,
                part * length * self.dice.uniform(0.9, 1.1),
                tuning_priority(left, length),
                after=search["after"],
            )

    def ended(self, id: str) -> None:
        """Do as the feeder does: a complete rung puts the next one or the final trials into the queue."""
        search = self.of_search.get(id)
        if search is None or id not in search["waiting"]:
            return
        search["waiting"].discard(id)
        search["after"] = max(search["after"], self.chain[id])
        if search["waiting"]:
            return
        search["number"] += 1
        if search["number"] < len(search["rungs"]):
            count = search["rungs"][search["number"]].count
            self._start_rung(search, self.dice.sample(search["ids"], count))
        else:
            for number in range(search["finals"]):
                length = search["length"]
                self.add(f"{search['name']} final {number}", length, length, after=search["after"])

    def run(self) -> float:
        """Return when the last trial ends."""
        now, running = 0.0, []
        while True:
            while len(running) < GPUS and (task := self.session.next_task()) is not None:
                self.session.started(task.id)
                heapq.heappush(running, (now + self.seconds[task.id], task.id))
            if not running:
                return now
            now, id = heapq.heappop(running)
            search = self.of_search.get(id)
            last = search is None or search["number"] == len(search["rungs"]) - 1
            self.session.finished(Outcome(id, "done" if last else "rung"))
            self.ended(id)


@pytest.mark.parametrize("seed", [0])
def test_two_thousand_trials_with_teachers_and_rungs_fill_64_gpus(seed, tmp_path):
    simulation = Simulation(tmp_path, seed)
    for number in range(240):
        simulation.add_teacher(f"group {number}", students=5)
    for number in range(20):
        simulation.add_search(f"search {number}", configurations=27, finals=8)
    makespan = simulation.run()
    assert len(simulation.session.tasks) >= 2000
    assert set(simulation.session.tasks) == {id for id, o in simulation.session.outcomes.items()}
    bound = max(simulation.work / GPUS, *simulation.chain.values())
    assert makespan <= 1.05 * bound


def test_the_policy_is_the_longest_chain_first_among_those_whose_needs_are_done():
    needs = {"a": [], "b": ["t"], "c": [], "d": ["u"], "e": []}
    order = startable(
        needs, lambda id: id == "t", {"a": 1.0, "b": 3.0, "c": 2.0, "d": 9.0, "e": 8.0}, last={"e"}
    )
    assert order == ["b", "c", "a", "e"]
