"""Groups of runs -> table cells, in stages of values: runs, facts, numbers, published values, pairing.

``grouping`` makes the runs, this module the facts and numbers, ``pairing`` adds the gain over the baseline
and ``assembly`` puts the stages together. No stage changes an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import InputError
from bench.experiments.config import parse_bits
from bench.experiments.labels import label, plain
from bench.experiments.overrides import flatten, has_values
from bench.reporting import statistics as st
from bench.reporting.grouping import Runs, Trial, canonical, group
from bench.reporting.records import Records
from bench.reporting.targets import Match
from bench.reporting.tuned import Searched, searches
from bench.text import clean

UNFINISHED = ("failed", "missing", "unfinished", "running", "damaged")


@dataclass(frozen=True)
class Comparison:
    """A published row, and what our number says of it."""

    match: Match
    verdict: st.Verdict


@dataclass(frozen=True)
class Facts:
    """What the configuration of a cell is called. None: not known.

    ``train_images`` are those of one epoch, ``images`` all that were processed in training.
    """

    dataset: str
    network: str
    quantizer: str
    strategy: str
    width: float | None
    bits: tuple[int, int, int] | None
    epochs: int | None
    batch_size: int | None
    precision: str | None
    train_images: int | None
    images: int | None


@dataclass(frozen=True)
class Numbers:
    """The accuracies of a cell in percent, over its finished runs.

    ``values`` holds the deployed network's accuracy by seed. ``expanded`` is the accuracy of networks whose
    branch was never removed: they have no deployed accuracy. ``test_set`` is Wilson's interval of a single
    network, given where ``accuracy`` has no interval.
    """

    values: Mapping[int, float]
    accuracy: st.Interval
    expanded: st.Interval
    top5: st.Interval
    selected: st.Interval
    best: st.Interval
    test_set: tuple[float, float] | None


@dataclass(frozen=True)
class Pairing:
    """A cell against the cell of its baseline.

    ``gain`` is in points, ``test`` the exact test of the same differences, ``ratio`` that of the seeds'
    standard deviations. ``lost`` counts wanted pairs one of which diverged: the remaining pairs are then a
    selection.
    """

    against: Cell
    gain: st.Gain
    test: st.SignFlip | None
    ratio: st.DeviationRatio
    lost: int


@dataclass(frozen=True)
class Cell:
    """One row of the tables.

    ``settings`` is what tells the row from others of its arm, ``search`` the search that chose its
    configuration: None for a row whose hyper-parameters stand in the experiment file, untuned.
    """

    runs: Runs
    facts: Facts
    numbers: Numbers
    settings: str = ""
    flags: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    pairing: Pairing | None = None
    search: Searched | None = None

    @property
    def arm(self) -> str | None:
        """The name of the arm; None for a teacher or a start that is no arm's run."""
        return self.runs.arm

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials that the experiment asks for here, whatever became of them."""
        return self.runs.trials

    @property
    def label(self) -> str:
        """The arm with what tells this row from others of it."""
        name = self.arm if self.arm is not None else f"({self.runs.role})"
        return f"{name}, {self.settings}" if self.settings else name

    @property
    def bits_label(self) -> str:
        """``W/A``, with ``/G`` where gradients are quantized."""
        bits = self.facts.bits
        return "" if bits is None else "/".join(map(str, bits if bits[2] != 32 else bits[:2]))

    @property
    def bits_text(self) -> str:
        """``W/A 1/2``, or "" where the bits are not known."""
        return f"W/A {self.bits_label}" if self.facts.bits else ""

    @property
    def width_label(self) -> str:
        """``0.25``, or "" where the width is not known."""
        return "" if self.facts.width is None else f"{self.facts.width:g}"

    @property
    def width_text(self) -> str:
        """``width 0.25``, or "" where the width is not known."""
        return f"width {self.width_label}" if self.width_label else ""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Data set, network, width and bits in words."""
        return self.facts.dataset, self.facts.network, self.width_text, self.bits_text

    @property
    def kept(self) -> bool:
        """Whether the branch was never removed, so that the accuracy is an upper bound."""
        return any(trial["kept"] for trial in self.runs.done)

    @property
    def at_chance(self) -> bool:
        """Whether every finished run answers without regard to the image."""
        done = self.runs.done
        return bool(done) and all("at_chance" in trial["flags"] for trial in done)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of all runs, sorted."""
        return tuple(sorted({str(trial["device"]) for trial in self.trials if trial["device"]}))

    @property
    def identity(self) -> tuple[str, tuple[str, ...], int]:
        """Configuration without seeds, data, and how often both were there before in the experiment.

        Equal for the same cell of two experiments.
        """
        return canonical(self.runs.config), self.runs.data, self.runs.again

    def mean_of(self, column: str) -> float | None:
        """Return the mean of a recorded number over the finished runs."""
        numbers = [trial[column] for trial in self.runs.done if trial[column] is not None]
        return sum(numbers) / len(numbers) if numbers else None


def described_cells(records: Records) -> list[Cell]:
    """Return the cells of an experiment with facts, numbers and flags: not yet compared, not yet paired."""
    groups = group(records)
    facts = [_facts(runs) for runs in groups]
    found = searches(records.searches)
    return [
        Cell(
            runs,
            fact,
            _numbers(runs),
            settings,
            (*runs.notes, *_flags(runs)),
            search=next((search for search in found if _chosen_by(search, runs)), None),
        )
        for runs, fact, settings in zip(groups, facts, _settings(groups, facts), strict=True)
    ]


def whole_number(value: Any) -> int | None:
    """Return a whole number, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# -- facts ---------------------------------------------------------------------------------------------------


def _facts(runs: Runs) -> Facts:
    get = runs.config.get if runs.config else runs.grid.get
    width, precision = get("width"), get("precision")
    try:
        bits = parse_bits(get("bits"))
    except InputError:
        bits = None
    batch_size = whole_number(get("batch_size"))
    train_images = images = None
    for trial in runs.done:
        if trial["step"] and trial["epochs_done"] and batch_size:
            images = int(trial["step"]) * batch_size
            train_images = images // int(trial["epochs_done"])
            break
    return Facts(
        dataset=label("datasets", get("dataset")),
        network=label("networks", get("network")),
        quantizer=label("quantizers", get("quantizer")),
        strategy=label("strategies", get("strategy")),
        width=float(width) if isinstance(width, int | float) and 0 < width < 1e9 else None,
        bits=bits,
        epochs=whole_number(get("epochs")),
        batch_size=batch_size,
        precision=precision if isinstance(precision, str) else None,
        train_images=train_images,
        images=images,
    )


_HAVE_COLUMNS = {"dataset", "network", "width", "bits", "epochs", "batch_size"}


def _settings(groups: Sequence[Runs], facts: Sequence[Facts]) -> list[str]:
    """Return what tells each group from others of its arm: axes without a column, and other differences."""
    settings = []
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (runs, fact) in enumerate(zip(groups, facts, strict=True)):
        axes = {key: value for key, value in runs.grid.items() if key not in _HAVE_COLUMNS}
        settings.append(
            ", ".join(f"{key.split('.')[-1]} {_axis_text(value)}" for key, value in sorted(axes.items()))
        )
        place = (runs.arm, runs.role, fact.dataset, fact.network, fact.width, fact.bits, fact.epochs)
        alike.setdefault((*place, fact.batch_size, settings[i]), []).append(i)
    for same in alike.values():
        if len(same) < 2:
            continue
        flat = [flatten(dict(groups[i].config)) for i in same]
        keys = sorted({key for f in flat for key in f})
        varying = [key for key in keys if len({canonical(f.get(key)) for f in flat}) > 1]
        for i, f in zip(same, flat, strict=True):
            extra = ", ".join(f"{key} {plain(f.get(key))}" for key in varying[:4])
            settings[i] = ", ".join(filter(None, [settings[i], extra]))
    return settings


def _axis_text(value: Any) -> str:
    """Return the value of a grid axis for people; a table is a factor."""
    return label("factors", value) if isinstance(value, Mapping) else plain(value)


def _chosen_by(search: Searched, runs: Runs) -> bool:
    """Return whether these runs are those of the configuration that a search chose."""
    if search.chosen is None or not searched_at(search, runs):
        return False
    if not runs.config:  # nothing is recorded yet: the index asks for the chosen configuration
        return True
    return has_values(runs.config, search.chosen.configuration)


def searched_at(search: Searched, runs: Runs) -> bool:
    """Return whether a search is that of the arm, the grid point and a profile of these runs."""
    same_point = search.arm == runs.arm and canonical(search.grid) == canonical(runs.grid)
    return same_point and search.profile in {trial["profile"] for trial in runs.trials}


# -- numbers -------------------------------------------------------------------------------------------------


def _numbers(runs: Runs) -> Numbers:
    done = runs.done

    def interval(column: str) -> st.Interval:
        return st.mean_interval([float(trial[column]) for trial in done if trial[column] is not None])

    accuracy = interval("accuracy")
    counted = [trial for trial in done if trial["seen"]]
    test_set = None
    if accuracy.mean is not None and accuracy.low is None and counted:
        test_set = st.wilson(int(counted[0]["correct"]), int(counted[0]["seen"]))
    return Numbers(
        values={t["seed"]: float(t["accuracy"]) for t in done if t["accuracy"] is not None},
        accuracy=accuracy,
        expanded=interval("expanded"),
        top5=interval("top5"),
        selected=interval("selected"),
        best=interval("best"),
        test_set=test_set,
    )


def _flags(runs: Runs) -> Iterator[str]:
    for status in ("diverged", *UNFINISHED):
        hit = [trial for trial in runs.trials if trial["status"] == status]
        if hit:
            reasons = list(dict.fromkeys(trial["reason"] for trial in hit if trial["reason"]))
            why = f": {'; '.join(_first_two(reasons))}" if reasons else ""
            yield f"{len(hit)} {status} ({_seeds(hit)}{why})"
    chance = [trial for trial in runs.trials if "at_chance" in trial["flags"]]
    if chance:
        kept = any(trial["kept"] for trial in chance)
        yield f"at chance{' without its branch' if kept else ''} ({_seeds(chance)})"
    yield from sorted({flag for trial in runs.trials for flag in trial["flags"] if flag != "at_chance"})
    warnings = list(dict.fromkeys(warning for trial in runs.trials for warning in trial["warnings"]))
    yield from (f"warning: {warning}" for warning in _first_two(warnings))
    if any(trial["kept"] for trial in runs.done):
        yield "branch never removed: an upper bound"
    if any(trial["other_hardware"] for trial in runs.trials):
        yield "resumed on other hardware"
    yield from _mixed(runs)


def _first_two(texts: Sequence[str]) -> list[str]:
    """Return the first two texts, shortened, and how many more there are: the table of runs has all."""
    more = len(texts) - 2
    return [*(clean(text, 100) for text in texts[:2]), *([f"{more} more, see the runs"] if more > 0 else [])]


def _seeds(trials: Sequence[Trial]) -> str:
    return f"seed{'s' * (len(trials) > 1)} {', '.join(str(trial['seed']) for trial in trials)}"


def _mixed(runs: Runs) -> Iterator[str]:
    """Name what differs between the runs that were averaged: code revision, versions, device."""
    done = runs.done
    commits = sorted({str(t["commit"])[:10] + ("+" if t["dirty"] else "") for t in done})
    if len(commits) > 1:
        yield f"runs of {len(commits)} code revisions: {', '.join(commits)}"
    elif any(t["dirty"] for t in done):
        yield "code with uncommitted changes"
    for package in sorted({package for t in done for package in t["versions"]}):
        versions = sorted({str(t["versions"].get(package, "?")) for t in done})
        if len(versions) > 1:
            yield f"runs of several versions of {package}: {', '.join(versions)}"
    devices = sorted({str(t["device"]) for t in done if t["device"]})
    if len(devices) > 1:
        yield f"runs on several devices: {', '.join(devices)}"
