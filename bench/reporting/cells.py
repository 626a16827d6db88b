"""Trials -> table cells: runs that differ in the seed alone, their statistics, and each cell's gain over its baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench import registry
from bench.errors import InputError
from bench.experiments.config import parse_bits
from bench.reporting import statistics as st
from bench.reporting.records import Records
from bench.reporting.targets import Match, Names, Row, matches

UNFINISHED = ("failed", "missing", "unfinished", "running", "damaged")
_COMPARED = {"quantizer", "strategy", "bits", "seed"}  # in what an arm and its baseline may always differ


@dataclass(frozen=True)
class Comparison:
    """A published row, and what our number says of it."""

    match: Match
    verdict: st.Verdict


@dataclass
class Cell:
    """Runs of one arm at one grid point, budget and data, which differ in the seed alone."""

    arm: str | None
    baseline: str | None
    role: str | None
    order: int
    grid: dict[str, Any]
    config: dict[str, Any]
    trials: list[dict[str, Any]]
    settings: str = ""  # what else tells this row from others of the arm
    dataset: str = ""
    network: str = ""
    quantizer: str = ""
    strategy: str = ""
    width: float | None = None
    bits: tuple[int, int, int] | None = None
    epochs: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    train_images: int | None = None  # of an epoch
    images: int | None = None  # processed in all
    values: dict[int, float] = field(default_factory=dict)
    kept: bool = False
    accuracy: st.Interval = field(default_factory=lambda: st.mean_interval([]))
    top5: st.Interval = field(default_factory=lambda: st.mean_interval([]))
    selected: st.Interval = field(default_factory=lambda: st.mean_interval([]))
    best: st.Interval = field(default_factory=lambda: st.mean_interval([]))
    test_set: tuple[float, float] | None = (
        None  # Wilson interval of a single network, where there is no other
    )
    against: Cell | None = None
    gain: st.Gain | None = None
    adjusted: float | None = None
    lost: int = 0
    claim: str = ""
    flags: list[str] = field(default_factory=list)
    devices: tuple[str, ...] = ()
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The arm with what tells this row from others of it."""
        name = self.arm if self.arm is not None else f"({self.role})"
        return f"{name}, {self.settings}" if self.settings else name

    @property
    def bits_label(self) -> str:
        """``W/A``, with ``/G`` where gradients are quantized."""
        if self.bits is None:
            return ""
        return "/".join(map(str, self.bits if self.bits[2] != 32 else self.bits[:2]))

    @property
    def wanted(self) -> int:
        """How many runs the experiment asks for here."""
        return len(self.trials)

    def mean_of(self, column: str) -> float | None:
        """Return the mean of a recorded number over the finished runs."""
        numbers = [t[column] for t in self.trials if t["status"] == "done" and t[column] is not None]
        return sum(numbers) / len(numbers) if numbers else None


def label(group: str, choice: Any) -> str:
    """Return ``kind(option=value, ...)`` with the options at their defaults left out; ``npz:NAME`` for prepared data."""
    if not isinstance(choice, Mapping):
        return "" if choice is None else str(choice)
    kind = str(choice.get("kind", ""))
    entry = registry.find(group, kind)
    options = entry.options if entry else {}
    shown = []
    for key, value in choice.items():
        spec = options.get(key, {})
        if key == "kind" or ("default" in spec and spec["default"] == value) or (value is None and not spec):
            continue
        if spec.get("shown") is False:
            continue
        if group == "datasets" and kind == "npz" and key == "name":
            kind = f"npz:{value}"
        elif spec.get("type") == "factor" or (isinstance(value, Mapping) and key == "factor"):
            shown.append(label("factors", value))
        elif isinstance(value, Mapping):  # a whole configuration, of a teacher or a start
            inner = label("networks", value.get("network"))
            shown.append(f"{key} {inner}" if inner else key)
        elif isinstance(value, list):
            shown.append(f"{key} {' '.join(map(str, value))}")
        elif key in ("merge", "scheme", "what"):
            shown.append(str(value))
        elif value is True:
            shown.append(str(key))
        else:
            shown.append(f"{key} {_plain(value)}")
    return f"{kind} ({', '.join(shown)})" if shown else kind


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_seeds(item) for key, item in value.items() if key != "seed"}
    return [_without_seeds(item) for item in value] if isinstance(value, list) else value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def make_cells(records: Records) -> list[Cell]:
    """Group the trials into cells, with their statistics, gains and flags; in table order.

    Two trials share a cell if they are of one arm, one grid point, one configuration but for the seed, and one data
    checksum. A seed that would stand there twice (the same configuration under another identity: a registry entry was
    revised) opens another row.
    """
    cells = _grouped(records)
    for cell in cells:
        _describe(cell)
    _tell_apart(cells)
    for cell in cells:
        _summarize(cell)
    _pair(cells)
    return sorted(cells, key=_position)


def _position(cell: Cell) -> tuple:
    return (
        cell.arm is None,
        cell.dataset,
        cell.network,
        cell.epochs or 0,
        cell.batch_size or 0,
        _whole(cell.config.get("train_size")) or 0,
        cell.width or 0.0,
        cell.bits or (99, 99, 99),
        cell.order,
        cell.settings,
        cell.role or "",
    )


def _grouped(records: Records) -> list[Cell]:
    order = {arm: i for i, arm in enumerate(records.arms)}
    groups: dict[tuple, Cell] = {}
    unknown = []
    rows: list[dict[str, Any]] = records.trials.to_dict("records")  # type: ignore[assignment]
    for row in sorted(rows, key=lambda row: row["data"] is None):
        for key, value in row.items():  # pandas turns an absent number into NaN
            if isinstance(value, float) and math.isnan(value):
                row[key] = None
        if row["config"] is None:
            unknown.append(row)
            continue
        place = (row["arm"], row["role"], _canonical(row["grid"]))
        budget = (*place, _canonical(_without_seeds(row["config"])), row["data"])
        if row["data"] is None:  # never begun: it belongs to the runs that differ in the seed alone
            budget = next((key[:5] for key in groups if key[:4] == budget[:4]), budget)
        again = 0
        while (*budget, again) in groups and any(
            t["seed"] == row["seed"] for t in groups[(*budget, again)].trials
        ):
            again += 1
        cell = groups.setdefault(
            (*budget, again),
            Cell(
                row["arm"],
                row["baseline"],
                row["role"],
                order.get(row["arm"], len(order)),
                row["grid"],
                _without_seeds(row["config"]),
                [],
            ),
        )
        cell.trials.append(row)
        if again and not cell.flags:
            cell.flags.append("the same configuration under another identity: data or code was revised")
    _join_unknown(groups, unknown, order)
    by_place: dict[tuple, list[Cell]] = {}
    for cell in groups.values():
        cell.trials.sort(key=lambda t: (t["seed"] if isinstance(t["seed"], int) else 0, str(t["id"])))
        if cell.config:
            alike = (cell.arm, cell.role, _canonical(cell.grid), _canonical(cell.config))
            by_place.setdefault(alike, []).append(cell)
    for same in by_place.values():
        sums = {t["data"] for cell in same for t in cell.trials if t["data"] is not None}
        if len(sums) > 1:
            for cell in same:
                sums = {str(t["data"]).strip('"')[:12] for t in cell.trials if t["data"] is not None}
                cell.flags.append(f"data {', '.join(sorted(sums))}: another row has other data")
    return list(groups.values())


def _join_unknown(
    groups: dict[tuple, Cell], unknown: Iterable[dict[str, Any]], order: Mapping[Any, int]
) -> None:
    """Put trials without any record into the one cell of their arm and grid point, or, at several budgets, into their own."""
    for row in unknown:
        place = (row["arm"], row["role"], _canonical(row["grid"]))
        found = [
            c for k, c in groups.items() if k[:3] == place and all(t["seed"] != row["seed"] for t in c.trials)
        ]
        if len(found) == 1:
            found[0].trials.append(row)
            continue
        config = _presumed(row, groups.values())
        cell = groups.setdefault(
            (*place, _canonical(config), None, 0),
            Cell(
                row["arm"],
                row["baseline"],
                row["role"],
                order.get(row["arm"], len(order)),
                row["grid"],
                config,
                [],
            ),
        )
        cell.trials.append(row)


def _presumed(row: Mapping[str, Any], cells: Iterable[Cell]) -> dict[str, Any]:
    """Return the configuration of a trial without any record: its arm's, where that is one but for width and bits."""
    if row["arm"] is None or not set(row["grid"]) <= {"width", "bits"}:
        return {}
    free = {key: row["grid"][key] for key in row["grid"]}
    try:
        if "bits" in free:
            free["bits"] = "/".join(map(str, parse_bits(free["bits"])))
    except InputError:
        return {}
    found = {}
    for cell in cells:
        if cell.arm == row["arm"] and cell.config:
            config = {**cell.config, **free}
            found[_canonical(config)] = config
    return next(iter(found.values())) if len(found) == 1 else {}


def _describe(cell: Cell) -> None:
    config, grid = cell.config, cell.grid
    get = {**grid, **config}.get if not config else config.get
    cell.dataset = label("datasets", get("dataset"))
    cell.network = label("networks", get("network"))
    cell.quantizer = label("quantizers", get("quantizer"))
    cell.strategy = label("strategies", get("strategy"))
    width = get("width")
    cell.width = float(width) if isinstance(width, int | float) and 0 < width < 1e9 else None
    try:
        cell.bits = parse_bits(get("bits"))
    except InputError:
        cell.bits = None
    cell.epochs, cell.batch_size = _whole(get("epochs")), _whole(get("batch_size"))
    cell.precision = get("precision") if isinstance(get("precision"), str) else None
    for trial in cell.trials:
        if trial["status"] == "done" and trial["step"] and trial["epochs_done"] and cell.batch_size:
            cell.images = int(trial["step"]) * cell.batch_size
            cell.train_images = cell.images // int(trial["epochs_done"])
            break


_SHOWN = {"dataset", "network", "width", "bits", "epochs", "batch_size"}


def _tell_apart(cells: Sequence[Cell]) -> None:
    """Fill in ``settings``: grid axes without a column of their own, and whatever else differs within an arm."""
    by_arm: dict[tuple, list[Cell]] = {}
    for cell in cells:
        axes = {key: value for key, value in cell.grid.items() if key not in _SHOWN}
        cell.settings = ", ".join(
            f"{key.split('.')[-1]} {_plain(value) if not isinstance(value, Mapping) else label('factors', value)}"
            for key, value in sorted(axes.items())
        )
        key = (
            cell.arm,
            cell.role,
            cell.dataset,
            cell.network,
            cell.width,
            cell.bits,
            cell.epochs,
            cell.batch_size,
        )
        by_arm.setdefault((*key, cell.settings), []).append(cell)
    for same in by_arm.values():
        if len(same) < 2:
            continue
        flat = [flatten(cell.config) for cell in same]
        keys = sorted({key for f in flat for key in f})
        varying = [key for key in keys if len({_canonical(f.get(key)) for f in flat}) > 1]
        for cell, f in zip(same, flat, strict=True):
            extra = ", ".join(f"{key} {_plain(f.get(key))}" for key in varying[:4])
            if extra:
                cell.settings = ", ".join(filter(None, [cell.settings, extra]))


def _summarize(cell: Cell) -> None:
    done = [t for t in cell.trials if t["status"] == "done"]
    cell.values = {t["seed"]: float(t["accuracy"]) for t in done}
    cell.accuracy = st.mean_interval(list(cell.values.values()))
    for column in ("top5", "selected", "best"):
        setattr(cell, column, st.mean_interval([float(t[column]) for t in done if t[column] is not None]))
    counted = [t for t in done if t["seen"]]
    if cell.accuracy.mean is not None and cell.accuracy.low is None and counted and not done[0]["kept"]:
        cell.test_set = st.wilson(int(counted[0]["correct"]), int(counted[0]["seen"]))
    cell.kept = any(t["kept"] for t in done)
    cell.devices = tuple(sorted({str(t["device"]) for t in cell.trials if t["device"]}))
    cell.flags.extend(_flags(cell))


def _flags(cell: Cell) -> list[str]:
    flags = []
    for status in ("diverged", *UNFINISHED):
        hit = [t for t in cell.trials if t["status"] == status]
        if hit:
            reasons = dict.fromkeys(t["reason"] for t in hit if t["reason"])
            why = f": {'; '.join(reason[:100] for reason in list(reasons)[:2])}" if reasons else ""
            flags.append(f"{len(hit)} {status} (seed{'s' * (len(hit) > 1)} {_seeds(hit)}{why})")
    chance = [t for t in cell.trials if "at_chance" in t["flags"]]
    if chance:
        flags.append(f"at chance (seed{'s' * (len(chance) > 1)} {_seeds(chance)})")
    others = sorted({flag for t in cell.trials for flag in t["flags"] if flag != "at_chance"})
    flags.extend(others)
    warnings = list(dict.fromkeys(warning for t in cell.trials for warning in t["warnings"]))
    flags.extend(f"warning: {warning[:100]}" for warning in warnings[:2])
    if cell.kept:
        flags.append("branch never removed: an upper bound")
    if any(t["other_hardware"] for t in cell.trials):
        flags.append("resumed on other hardware")
    return [*flags, *_mixed(cell)]


def _seeds(trials: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(t["seed"]) for t in trials)


def _mixed(cell: Cell) -> list[str]:
    """Name what differs between the runs that were averaged: code revision, versions, device."""
    done = [t for t in cell.trials if t["status"] == "done"]
    mixed = []
    commits = sorted({str(t["commit"])[:10] + ("+" if t["dirty"] else "") for t in done})
    if len(commits) > 1:
        mixed.append(f"runs of {len(commits)} code revisions: {', '.join(commits)}")
    elif any(t["dirty"] for t in done):
        mixed.append("code with uncommitted changes")
    for package in sorted({package for t in done for package in t["versions"]}):
        versions = sorted({str(t["versions"].get(package, "?")) for t in done})
        if len(versions) > 1:
            mixed.append(f"runs of several versions of {package}: {', '.join(versions)}")
    devices = sorted({str(t["device"]) for t in done if t["device"]})
    if len(devices) > 1:
        mixed.append(f"runs on several devices: {', '.join(devices)}")
    return mixed


# -- gains -----------------------------------------------------------------------------------------------------------


def _axis(cell: Cell, key: str) -> Any:
    """Return a cell's value on a grid axis: from its grid, else from its configuration; in one spelling."""
    value = cell.grid.get(key)
    if value is None:
        value = cell.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if key == "bits":
        try:
            return parse_bits(value)
        except InputError:
            return value
    if isinstance(value, Mapping) and set(value) == {"kind"}:
        return value["kind"]
    return value


def _differences(cell: Cell, other: Cell) -> list[str]:
    """Return the keys in which two configurations differ, but for those an arm and its baseline may differ in."""
    if not cell.config or not other.config:
        return []
    keys = sorted((set(cell.config) | set(other.config)) - _COMPARED)
    different = [key for key in keys if cell.config.get(key) != other.config.get(key)]
    data = {t["data"] for t in cell.trials if t["data"]}, {t["data"] for t in other.trials if t["data"]}
    return [*different, *(["data"] if all(data) and data[0] != data[1] else [])]


def _pair(cells: Sequence[Cell]) -> None:
    """Find each cell's baseline, and compute gains, corrected p-values and claims over the experiment."""
    by_arm: dict[str | None, list[Cell]] = {}
    by_run: dict[tuple[str | None, str], tuple[Cell, dict[str, Any]]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, []).append(cell)
        by_run.update({(cell.arm, t["id"]): (cell, t) for t in cell.trials if t["id"]})
    for cell in cells:
        if cell.arm is None or cell.baseline is None:
            continue
        recorded = {
            t["seed"]: by_run[cell.baseline, t["baseline_id"]]
            for t in cell.trials
            if (cell.baseline, t["baseline_id"]) in by_run
        }
        if recorded:
            rows = list({id(row): row for row, _ in recorded.values()}.values())
            if len(rows) > 1:
                cell.flags.append(f"paired with runs of {len(rows)} rows of its baseline")
            partners = {seed: partner for seed, (_, partner) in recorded.items()}
            _gain(cell, rows[0], partners)
            continue
        candidates = [
            other
            for other in by_arm.get(cell.baseline, [])
            if other.precision == cell.precision
            and all(_axis(other, key) == _axis(cell, key) for key in other.grid)
        ]
        ranked = sorted(candidates, key=lambda other: len(_differences(cell, other)))
        if not ranked:
            cell.flags.append("no run of its baseline to pair with")
        elif len(ranked) > 1 and len(_differences(cell, ranked[0])) == len(_differences(cell, ranked[1])):
            cell.flags.append(f"{len(ranked)} rows of its baseline fit: no gain")
        else:
            _gain(cell, ranked[0], {t["seed"]: t for t in ranked[0].trials})
    tested = [cell for cell in cells if cell.gain is not None and cell.gain.p_value is not None]
    adjusted = st.holm([cell.gain.p_value for cell in tested])  # type: ignore[union-attr, misc]
    for cell, p in zip(tested, adjusted, strict=True):
        cell.adjusted = p
    for cell in cells:
        if cell.gain is not None:
            cell.claim = st.claim(cell.gain, cell.adjusted, cell.lost)


def _gain(cell: Cell, against: Cell, partners: Mapping[int, Mapping[str, Any]]) -> None:
    """Fill in a cell's gain over the baseline's runs ``partners``, by seed, and say in what else the two differ."""
    cell.against = against
    theirs = {seed: float(t["accuracy"]) for seed, t in partners.items() if t["status"] == "done"}
    cell.gain = st.paired_gain(cell.values, theirs)
    own = {t["seed"]: t["status"] for t in cell.trials}
    cell.lost = sum("diverged" in (own[seed], t["status"]) for seed, t in partners.items() if seed in own)
    for key in _differences(cell, against):
        ours, other = cell.config.get(key), against.config.get(key)
        plain = not isinstance(ours, Mapping) and key != "data"
        told = f" ({_plain(ours)}, baseline {_plain(other)})" if plain else ""
        cell.flags.append(f"differs from its baseline in {key}{told}")


def compare_published(
    cells: Sequence[Cell], records: Records, tables: Mapping[str, Sequence[Row]], names: Names
) -> None:
    """Fill in each cell's ``comparisons`` from the published tables, by name."""
    for cell in cells:
        if cell.arm is None or cell.bits is None or not cell.config:
            continue
        published = records.published.get(cell.arm)
        wanted = [published["table"]] if published and published.get("table") in tables else records.targets
        rows = [row for name in wanted for row in tables.get(name, ())]
        for match in matches(cell.config, cell.bits, rows, names, published, cell.train_images, cell.images):
            ours = cell.accuracy if match.row.metric == "top1" else cell.top5
            reasons = list(match.not_comparable)
            if cell.images is None and not cell.values:
                reasons = [r for r in reasons if r != "unknown budget"]
            word = (
                st.Verdict("inconclusive", "no finished run")
                if ours.mean is None and not reasons
                else st.verdict(ours, match.row.accuracy, match.row.kind, reasons)
            )
            cell.comparisons.append(Comparison(match, word))


# -- convergence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convergence:
    """How a cell's runs came to where they ended; times by ``statistics.time_to``, missing where nothing was recorded."""

    cell: Cell
    threshold: float | None
    epochs_deployed: st.TimeTo
    epochs_held: st.TimeTo
    epochs_trained: st.TimeTo
    seconds_deployed: st.TimeTo
    seconds_trained: st.TimeTo
    mean_curve: st.Interval
    dip: st.Interval
    recovery: st.TimeTo


def convergence(cell: Cell, epochs: Mapping[str, pd.DataFrame]) -> Convergence:
    """Return the convergence of a cell; ``epochs`` maps a trial's id to its epochs in order.

    The threshold is the baseline's (``statistics.common_threshold`` of its mean final accuracy), so that an arm and
    its baseline are timed to the same accuracy. Diverged runs count as runs that never reached it.
    """
    reference = cell.against if cell.against is not None and cell.against.accuracy.mean is not None else cell
    threshold = None if reference.accuracy.mean is None else st.common_threshold(reference.accuracy.mean)
    times: dict[str, list[float | None]] = {
        key: [] for key in ("deployed", "held", "trained", "s_deployed", "s_trained")
    }
    curve, dips, recoveries = [], [], []
    for trial in cell.trials:
        if trial["status"] not in ("done", "diverged") or trial["id"] not in epochs or threshold is None:
            continue
        lines = epochs[trial["id"]]
        deployed = _optional(lines["test_acc"])
        expanded = _optional(lines["test_acc_expanded"])
        trained = [e if e is not None else d for e, d in zip(expanded, deployed, strict=True)]
        seconds = [float(s) for s in lines["seconds"].astype(float).fillna(0.0).cumsum()]
        whole = trial["status"] == "done"
        for name, index in (
            ("deployed", st.first_reached(deployed, threshold)),
            ("held", st.held_from(deployed, threshold) if whole else None),
            ("trained", st.first_reached(trained, threshold)),
        ):
            times[name].append(None if index is None else float(index + 1))
            if name != "held":
                times[f"s_{name}"].append(None if index is None else seconds[index])
        known = [d for d in deployed if d is not None]
        if whole and known:
            curve.append(sum(known) / len(known))
        gone = st.removal(_optional(lines["factor"]), deployed, expanded)
        if gone is not None and whole:
            dips.append(gone.dip)
            recoveries.append(None if gone.recovery is None else float(gone.recovery))
    return Convergence(
        cell,
        threshold,
        st.time_to(times["deployed"]),
        st.time_to(times["held"]),
        st.time_to(times["trained"]),
        st.time_to(times["s_deployed"]),
        st.time_to(times["s_trained"]),
        st.mean_interval(curve),
        st.mean_interval(dips),
        st.time_to(recoveries),
    )


def _optional(column: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in column]
