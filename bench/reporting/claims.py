"""The declared claims of experiments, tested on all seeds of each pair of arms, with one verdict a pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.experiments.claims import EQUAL_EPOCHS, Claim, same_value
from bench.experiments.declared import Point
from bench.experiments.labels import plain
from bench.experiments.overrides import has_values
from bench.reporting import statistics as st
from bench.reporting.cells import UNFINISHED, Cell, Pairing
from bench.reporting.grouping import Trial
from bench.reporting.pairing import accuracies, axis, best_partners, compare
from bench.reporting.records import Records
from bench.reporting.tuned import searches, standing
from bench.text import plural

TOLERANCE = 0.05  # how far the operations of two arms may be apart "at equal operations"
PairKey = tuple[object, object]  # the identities of two cells
Pool = Mapping[object, Mapping[int, Trial]]  # the trials by seed of each cell identity


@dataclass(frozen=True)
class Judged:
    """A declared claim at one grid point.

    ``cell`` and ``pairing`` are None where no run fits the claim. ``waiting`` is what the claim still waits
    for, or "". ``operations`` is the ratio of the training operations, the arm's over those of the arm that
    it is compared with. The p-values with ``_holm`` are corrected over all claims of the experiment, None
    where the claim waits.
    """

    claim: Claim
    waiting: str = ""
    cell: Cell | None = None
    pairing: Pairing | None = None
    operations: float | None = None
    p_holm: float | None = None
    p_equivalence: float | None = None
    p_equivalence_holm: float | None = None
    verdict: str = ""

    @property
    def at_edge(self) -> str:
        """The chosen numbers of both arms that lie at an edge of what was tried, in words; "" for none."""
        cells = [self.cell, self.pairing.against if self.pairing else None]
        told = [(cell, edge) for cell in cells if cell and cell.search for edge in cell.search.edges]
        return "; ".join(f"{cell.label}: {edge.text}" for cell, edge in told)


def seeds_of_all(cells: Iterable[Cell]) -> Pool:
    """Return the trials by seed of each cell identity, over all experiments that have it.

    An identity with two ended runs of one seed is left out: data or code was revised between the two, and
    each cell keeps to its own runs.
    """
    pool: dict[object, dict[int, Trial]] = {}
    revised = set()
    for cell in cells:
        if not cell.runs.config:  # nothing is recorded: equal to the unknown cells of all experiments
            continue
        known = pool.setdefault(cell.identity, {})
        for trial in cell.trials:
            other = known.setdefault(trial["seed"], trial)
            if other["status"] in UNFINISHED:
                known[trial["seed"]] = trial
            elif trial["status"] not in UNFINISHED and trial["id"] != other["id"]:
                revised.add(cell.identity)
    return {identity: trials for identity, trials in pool.items() if identity not in revised}


def judge(records: Records, cells: Sequence[Cell], pool: Pool | None = None) -> list[Judged]:
    """Return the declared claims of an experiment with their verdicts, in their order.

    A claim covers each grid point that the file declares for its arm, or that the arm has a run at. Each of
    them is one test of the family that Holm's correction runs over, with runs or without. A claim is tested
    on all seeds of its pair, which ``pool`` has: ``seeds_of_all`` of every experiment of the report. A claim
    has no verdict before all of these seeds are through, nor before every arm is tuned, since
    neither the number of pairs nor that of the tests is the declared one. The others have a verdict where it
    stays the same whatever the p-value of a claim that waits will be, between 0 and 1.
    """
    pool = seeds_of_all(cells) if pool is None else pool
    found = [entry for claim in records.claims for entry in _tested(claim, records, cells, pool)]
    if goes_on := standing(searches(records.searches)):
        found = [replace(entry, waiting=goes_on) for entry in found]
    worst, best = _corrected(found, 1.0), _corrected(found, 0.0)
    return [
        entry if entry.verdict == other.verdict else _waits_for_others(entry)
        for entry, other in zip(worst, best, strict=True)
    ]


def _waits_for_others(entry: Judged) -> Judged:
    waits = replace(entry, waiting="it depends on a claim that waits", p_holm=None, p_equivalence_holm=None)
    return replace(waits, verdict=_verdict(waits))


def _corrected(found: Sequence[Judged], unknown: float) -> list[Judged]:
    """Return claims with corrected p-values and verdicts; the p-value of one that waits is ``unknown``."""
    tests = [entry.pairing.test if entry.pairing else None for entry in found]
    p_values = [test.p_value if test else math.nan for test in tests]
    equivalences = [math.nan if entry.p_equivalence is None else entry.p_equivalence for entry in found]
    p_holm, e_holm = (
        st.holm_of_known([None if e.waiting else p for e, p in zip(found, values, strict=True)], unknown)
        for values in (p_values, equivalences)
    )
    corrected = [
        replace(entry, p_holm=p, p_equivalence_holm=e)
        for entry, p, e in zip(found, p_holm, e_holm, strict=True)
    ]
    return [replace(entry, verdict=_verdict(entry)) for entry in corrected]


def names(judged: Sequence[Judged]) -> list[str]:
    """Return what each claim compares, with the facts in which the claims of one report differ."""
    facts = [(entry.claim.at, *(entry.cell.place if entry.cell else [""] * 4)) for entry in judged]
    varying = [i for i in range(5) if len({fact[i] for fact in facts if fact[i]}) > 1]
    return [
        ", ".join(filter(None, [f"{entry.claim.arm} over {entry.claim.over}", *(fact[i] for i in varying)]))
        for entry, fact in zip(judged, facts, strict=True)
    ]


def verdicts(judged: Iterable[Judged]) -> dict[PairKey, str]:
    """Return the verdict of each pair of cells, by their identities.

    Of several declarations of a pair the first one that could be tested counts: at equal operations and at
    equal epochs, say, where one of the two is not so.
    """
    found: dict[PairKey, str] = {}
    for entry in judged:
        if entry.cell is not None and entry.pairing is not None:
            pair = entry.cell.identity, entry.pairing.against.identity
            if pair not in found or _is_open(found[pair]) > _is_open(entry.verdict):
                found[pair] = entry.verdict
    return found


def _is_open(verdict: str) -> bool:
    return verdict.startswith((st.NO_CLAIM, st.NOT_YET))


def verdict_of(cell: Cell, known: Mapping[PairKey, str]) -> str:
    """Return what a table says of a cell's gain: the verdict of its claim, else that it is exploratory."""
    if cell.pairing is None:
        return ""
    return known.get((cell.identity, cell.pairing.against.identity), st.EXPLORATORY)


def _tested(claim: Claim, records: Records, cells: Sequence[Cell], pool: Pool) -> list[Judged]:
    """Return a claim at each grid point of its arm, tested, but without correction and verdict."""
    found = []
    others = [cell for cell in cells if cell.arm == claim.over]
    for cell in cells:
        if cell.arm != claim.arm or not all(
            same_value(key, axis(cell, key), value) for key, value in claim.where.items()
        ):
            continue
        fitting = best_partners(cell, others)
        if len(fitting) != 1:
            found.append(Judged(claim, "" if fitting else f"no run of {claim.over} that fits", cell))
            continue
        against = fitting[0]
        own, theirs = (_all_trials(one, pool) for one in (cell, against))
        pairing = compare(against, own, theirs)
        differences = st.differences(accuracies(own), accuracies(theirs))
        equivalence = st.equivalence(list(differences.values()), claim.margin)
        ours, other = cell.mean_of("train_flops"), against.mean_of("train_flops")
        operations = ours / other if ours and other else None
        waiting = _waiting(records, ((cell, own), (against, theirs)))
        found.append(Judged(claim, waiting, cell, pairing, operations, p_equivalence=equivalence))
    found += [Judged(claim, _no_run(claim.arm, point)) for point in _without_run(claim, records, cells)]
    return found or [Judged(claim, _no_run(claim.arm, {}))]


def _no_run(arm: str, point: Point) -> str:
    return f"no run of {arm}" + "".join(f", {axis} = {plain(value)}" for axis, value in point.items())


def _without_run(claim: Claim, records: Records, cells: Sequence[Cell]) -> list[Point]:
    """Return the grid points of a claim that no cell has, of the profiles that have runs."""
    found: list[Point] = []
    own = [cell for cell in cells if cell.arm == claim.arm]
    for profile in dict.fromkeys(records.trials["profile"]):
        for point in records.declared.points.get((profile, claim.arm), ()):
            named = [key for key in claim.where if key in point]
            meant = all(same_value(key, point[key], claim.where[key]) for key in named)
            if meant and point not in found and not any(_is_at(cell, point) for cell in own):
                found.append(point)
    return found


def _is_at(cell: Cell, point: Point) -> bool:
    """Return whether a cell is at a grid point of the file; at all of them where nothing is known of it.

    A start and the checksum of a network's own code are not compared: the file has neither as recorded.
    """
    config = dict(cell.runs.config)
    if isinstance(network := config.get("network"), Mapping):
        config["network"] = {key: value for key, value in network.items() if key != "source"}
    return not config or all(
        key == "start" or same_value(key, axis(cell, key), value) or has_values(config, {key: value})
        for key, value in point.items()
    )


def _all_trials(cell: Cell, pool: Pool) -> Mapping[int, Trial]:
    """Return the trials by seed of a cell, over all experiments that have it."""
    return pool.get(cell.identity) or {trial["seed"]: trial for trial in cell.trials}


def _waiting(records: Records, sides: Sequence[tuple[Cell, Mapping[int, Trial]]]) -> str:
    """Return how many seeds of a pair are through, ``3 of 8 seeds``; "" where all are.

    The seeds of an arm are those that the experiment file declares and those that an index has, of any
    experiment of the report. A run that diverged is through.
    """
    wanted, through = [], []
    for cell, trials in sides:
        profiles = {trial["profile"] for trial in cell.trials}
        declared = [
            records.declared.seeds.get((profile, cell.arm or ""), frozenset()) for profile in profiles
        ]
        wanted.append(set(trials).union(*declared))
        through.append({seed for seed, trial in trials.items() if trial["status"] not in UNFINISHED})
    of_both = set.intersection(*wanted)
    done = of_both.intersection(*through)
    return "" if done == of_both else f"{len(done)} of {plural(len(of_both), 'seed')}"


def _verdict(entry: Judged) -> str:
    cell, pairing = entry.cell, entry.pairing
    if entry.waiting:
        return f"{st.NOT_YET}: {entry.waiting}"
    if cell is None or pairing is None:
        return f"{st.NO_CLAIM}: several rows of {entry.claim.over} fit"
    obstacle = _obstacle(entry.claim, cell, pairing, entry.operations)
    corrected = entry.p_holm, entry.p_equivalence_holm
    return st.verdict_on_claim(pairing.gain.interval, pairing.test, *corrected, obstacle)


def _obstacle(claim: Claim, cell: Cell, pairing: Pairing, operations: float | None) -> str:
    """Return why no claim can be made on a pair, or ""."""
    against = pairing.against
    if pairing.lost:
        return f"{pairing.lost} pair{'s' * (pairing.lost > 1)} lost to diverged runs"
    if cell.kept or against.kept:
        return "a branch was never removed"
    if cell.at_chance and against.at_chance:
        return "both arms are at chance"
    if claim.at == EQUAL_EPOCHS:
        ours, theirs = cell.facts.epochs, against.facts.epochs
        return f"{ours} epochs against {theirs}" if ours != theirs else ""
    if operations is None:
        return "" if pairing.test is None else "the operations were not recorded"
    if abs(operations - 1) > TOLERANCE:
        return f"{operations:.2f} times the operations of {claim.over}"
    return ""
