"""The declared claims of experiments, tested on all seeds of each pair of arms, with one verdict a pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.experiments.claims import EQUAL_EPOCHS, Claim, same_value
from bench.reporting import statistics as st
from bench.reporting.cells import UNFINISHED, Cell, Pairing
from bench.reporting.pairing import axis, best_partners, compare
from bench.text import plural

TOLERANCE = 0.05  # how far the operations of two arms may be apart "at equal operations"
PairKey = tuple[object, object]  # the identities of two cells


@dataclass(frozen=True)
class Judged:
    """A declared claim at one grid point.

    ``cell`` and ``pairing`` are None where no run fits the claim. ``operations`` is the ratio of the training
    operations, the arm's over those of the arm that it is compared with. The p-values with ``_holm`` are
    corrected over all claims of the experiment.
    """

    claim: Claim
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


def seeds_of_all(cells: Iterable[Cell]) -> dict[object, dict[int, float]]:
    """Return the accuracies by seed of each cell identity, over all experiments that have it.

    An identity with two runs of one seed is left out: data or code was revised between the two, and each cell
    keeps to its own runs.
    """
    pool: dict[object, dict[int, float]] = {}
    runs: dict[object, dict[int, object]] = {}
    revised = set()
    for cell in cells:
        pool.setdefault(cell.identity, {}).update(cell.numbers.values)
        known = runs.setdefault(cell.identity, {})
        if any(known.setdefault(trial["seed"], trial["id"]) != trial["id"] for trial in cell.runs.done):
            revised.add(cell.identity)
    return {identity: values for identity, values in pool.items() if identity not in revised}


def judge(
    claims: Sequence[Claim],
    cells: Sequence[Cell],
    pool: Mapping[object, Mapping[int, float]] | None = None,
    unfinished: str = "",
) -> list[Judged]:
    """Return the declared claims of an experiment with their verdicts, in their order.

    A claim covers each grid point that its pair of arms has, and each of them is one test of the family that
    Holm's correction runs over. A claim is tested on all seeds of its pair, which ``pool`` has:
    ``seeds_of_all`` of every experiment of the report. ``unfinished`` is what the experiment as a whole still
    waits for, or "": there is no verdict before, since neither the number of pairs nor that of the tests is
    the declared one.
    """
    pool = seeds_of_all(cells) if pool is None else pool
    found = [entry for claim in claims for entry in _tested(claim, cells, pool)]
    tests = [entry.pairing.test if entry.pairing is not None else None for entry in found]
    p_holm = st.holm_of_known([test.p_value if test else None for test in tests])
    e_holm = st.holm_of_known([entry.p_equivalence for entry in found])
    judged = []
    for entry, p, e in zip(found, p_holm, e_holm, strict=True):
        corrected = replace(entry, p_holm=p, p_equivalence_holm=e)
        judged.append(replace(corrected, verdict=_verdict(corrected, unfinished)))
    return judged


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
            if pair not in found or found[pair].startswith("no claim") > entry.verdict.startswith("no claim"):
                found[pair] = entry.verdict
    return found


def verdict_of(cell: Cell, known: Mapping[PairKey, str]) -> str:
    """Return what a table says of a cell's gain: the verdict of its claim, else that it is exploratory."""
    if cell.pairing is None:
        return ""
    return known.get((cell.identity, cell.pairing.against.identity), st.EXPLORATORY)


def _tested(claim: Claim, cells: Sequence[Cell], pool: Mapping[object, Mapping[int, float]]) -> list[Judged]:
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
            found.append(Judged(claim, cell))
            continue
        against = fitting[0]
        own, theirs = (pool.get(one.identity, one.numbers.values) for one in (cell, against))
        pairing = compare(cell, against, own, theirs, {trial["seed"]: trial for trial in against.trials})
        equivalence = st.equivalence(list(st.differences(own, theirs).values()), claim.margin)
        ours, other = cell.mean_of("train_flops"), against.mean_of("train_flops")
        operations = ours / other if ours and other else None
        found.append(Judged(claim, cell, pairing, operations, p_equivalence=equivalence))
    return found or [Judged(claim)]


def _verdict(entry: Judged, unfinished: str) -> str:
    cell, pairing = entry.cell, entry.pairing
    if cell is None:
        return "no claim: no run of this pair of arms"
    if pairing is None:
        return f"no claim: no single row of {entry.claim.over} fits"
    obstacle = (
        unfinished or _waiting(cell, pairing) or _obstacle(entry.claim, cell, pairing, entry.operations)
    )
    corrected = entry.p_holm, entry.p_equivalence_holm
    return st.verdict_on_claim(pairing.gain.interval, pairing.test, *corrected, obstacle)


def _waiting(cell: Cell, pairing: Pairing) -> str:
    """Return how many of the runs of a claim are still to be done, or ""."""
    wanted = [trial for side in (cell, pairing.against) for trial in side.trials]
    waiting = sum(trial["status"] in UNFINISHED for trial in wanted)
    return f"{waiting} of {plural(len(wanted), 'run')} not finished" if waiting else ""


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
