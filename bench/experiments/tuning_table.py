"""``[tuning]``: how the hyper-parameters of an experiment's arms are chosen, on equal terms.

Every arm is tuned at every grid point over the same space, with the same number of configurations and the
same seeds. A dimension of the space reaches the arms that have its option: ``"strategy.factor.until"``
leaves an arm without a factor alone, and such an arm spends the whole effort on the dimensions that it has.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.errors import InputError, nearest, shown
from bench.experiments.config import check_field
from bench.experiments.options import CHOICES
from bench.experiments.overrides import AxisPath, reaches
from bench.experiments.toml_files import SETTABLE, Problems, read_table

# fields that say what is compared, or on which images: not hyper-parameters
FORBIDDEN = (
    "seed",
    "epochs",
    "dataset",
    "train_size",
    "holdout",
    "evaluate_test",
    "evaluate_every",
    "recipe",
    "network",
    "width",
    "bits",
    "precision",
    "start",
)
METHODS = ("quantizer", "strategy")  # their options can be tuned, what they are cannot
MAX_EFFORT = 4096


@dataclass(frozen=True)
class Dimension:
    """A tuned field. ``kind`` is log, linear, int (``values`` are the range's ends) or list (all values)."""

    path: AxisPath
    kind: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(self.path)

    @property
    def ranged(self) -> bool:
        """Whether the dimension is a range, which can be widened."""
        return self.kind != "list"


@dataclass(frozen=True)
class Tuning:
    """A checked table ``[tuning]``.

    ``holdout`` is the number of training images kept for choosing. ``effort`` is the number of
    configurations of each arm at each grid point; with ``equal_operations`` it is that of the arm whose
    training costs most, and cheaper arms have as many as the same number of training operations pays for.
    ``reduction`` is the factor of successive halving.
    """

    holdout: int
    seeds: tuple[int, ...]
    effort: int
    space: tuple[Dimension, ...]
    equal_operations: bool = False
    sampler: str = "quasirandom"
    scheduler: str = "none"
    reduction: int = 3
    extend: bool = False

    @property
    def seed(self) -> int:
        """The sampler's seed, a hash of the space: two files with one space try the same configurations."""
        table = [[d.name, d.kind, list(d.values)] for d in self.space]
        text = json.dumps(table, separators=(",", ":"), allow_nan=False)
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


_Whole = int  # inside the class below, ``int`` is its field


class _Range(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    log: list[float] | None = None
    linear: list[float] | None = None
    int: list[_Whole] | None = None


class _Operations(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    operations: Literal["equal"]
    configurations: int = Field(ge=1, le=MAX_EFFORT)


class _Halving(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["none", "halving", "asha"]
    reduction: int = Field(3, ge=2, le=16)


class TuningTable(BaseModel):
    """The keys of ``[tuning]``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    holdout: int = Field(ge=1, description="training images kept for choosing")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        min_length=1, max_length=1000, description="seeds of the tuning trials, never a seed of the grid"
    )
    effort: int | dict[str, Any] = Field(description="configurations of each arm at each grid point")
    sampler: Literal["quasirandom", "grid", "optuna"] = Field(
        "quasirandom", description="where the configurations come from"
    )
    scheduler: dict[str, Any] = Field(
        {"kind": "none"},
        description='which trials stop early: "none", "halving", "asha", { kind = ..., reduction = N }',
    )
    extend: bool = Field(False, description="widen a range at whose edge the best configuration lies")
    space: dict[str, Any] = Field(min_length=1, description="the tuned fields by dotted path")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _scheduler(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("effort", mode="before")
    @classmethod
    def _effort(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_EFFORT:
            raise ValueError(
                f"effort: expected a whole number from 1 to {MAX_EFFORT} or "
                f'{{ operations = "equal", configurations = N }}, not {shown(value)}'
            )
        return value


def reached_dimensions(space: Sequence[Dimension], fields: Mapping[str, Any]) -> list[Dimension]:
    """Return the dimensions that a trial with these fields has; beside a tuned optimizer those of each."""
    if any(d.path == ("optimizer",) for d in space):
        fields = {name: value for name, value in fields.items() if name != "optimizer"}
    return [d for d in space if reaches(fields, d.path)]


def read_tuning(table: Mapping[str, Any], problems: Problems) -> Tuning | None:
    """Return the checked table ``[tuning]``; None where anything is wrong, which goes to ``problems``."""
    before = len(problems.lines)
    read = read_table(TuningTable, table, "tuning.", problems)
    if read is None:
        return None
    effort, equal = read.effort, False
    if isinstance(effort, dict):
        operations = read_table(_Operations, effort, "tuning.effort.", problems)
        effort, equal = (operations.configurations, True) if operations else (1, False)
    assert isinstance(effort, int)
    halving = read_table(_Halving, read.scheduler, "tuning.scheduler.", problems)
    if halving is not None and halving.kind == "asha" and len(read.seeds) > 1:
        problems.add("tuning.seeds", "'asha' stops single trials: it goes with one tuning seed")
    if len(set(read.seeds)) < len(read.seeds):
        problems.add("tuning.seeds", "a seed stands there twice")
    space = tuple(filter(None, (_noted_dimension(*item, problems) for item in flattened(read.space))))
    names = [d.name for d in space]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.add(f"tuning.space.{name}", "the field is given twice")
    for outer, inner in itertools.permutations(space, 2):
        if inner.path != outer.path and inner.path[: len(outer.path)] == outer.path:
            problems.add(f"tuning.space.{inner.name}", f"'{outer.name}', which is tuned too, replaces it")
    if read.sampler == "optuna" and halving is not None and halving.kind != "none":
        problems.add(
            "tuning.scheduler",
            "'optuna' learns from trials that were trained to the end: 'none' goes with it",
        )
    if read.extend and space and not any(d.ranged for d in space):
        problems.add("tuning.extend", "there is no range to widen: every field of the space is a list")
    if len(problems.lines) > before or halving is None:
        return None
    return Tuning(
        read.holdout,
        tuple(read.seeds),
        effort,
        space,
        equal,
        read.sampler,
        halving.kind,
        halving.reduction,
        read.extend,
    )


def flattened(space: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield dotted path and specification; ``a.b = ...`` and ``"a.b" = ...`` are the same field."""
    for key, value in space.items():
        if isinstance(value, dict) and value and not value.keys() & _Range.model_fields.keys():
            for inner, spec in flattened(value):
                yield f"{key}.{inner}", spec
        else:
            yield key, value


def _noted_dimension(name: str, spec: Any, problems: Problems) -> Dimension | None:
    """Return one dimension of the space, None after noting what is wrong with it."""
    try:
        return _dimension(name, spec, problems)
    except InputError as error:
        problems.add(f"tuning.space.{name}", str(error))
        return None


def _dimension(name: str, spec: Any, problems: Problems) -> Dimension | None:
    """Return one dimension of the space, None for a table with wrong keys, which are noted.

    Raises ``InputError``, which does not name the key, for everything else.
    """
    path = tuple(part.strip() for part in name.split("."))
    if path[0] not in SETTABLE:
        raise InputError(f"no field is called {shown(path[0])}.{nearest(path[0], SETTABLE)}")
    if path[0] in FORBIDDEN or (path[0] in METHODS and path[1:] in ((), ("kind",))):
        raise InputError(f"'{name}' is no hyper-parameter and cannot be tuned")
    if path[0] == "strategy" and set(path[2:3]) & {*FORBIDDEN, *METHODS}:
        raise InputError(f"'{path[2]}' of a further network is no hyper-parameter and cannot be tuned")
    if len(path) > 1 and path[0] not in CHOICES:
        raise InputError(f"'{path[0]}' has no options")
    if isinstance(spec, list):
        return _list(path, spec)
    if isinstance(spec, dict):
        read = read_table(_Range, spec, f"tuning.space.{name}.", problems)
        return None if read is None else _range(path, read)
    raise InputError(
        "expected a list, { log = [low, high] }, { linear = [low, high] } or { int = [low, high] }, "
        f"not {shown(spec)}"
    )


def _list(path: AxisPath, values: list[Any]) -> Dimension:
    if not values:
        raise InputError("the list is empty")
    try:
        texts = [json.dumps(value, sort_keys=True, allow_nan=False) for value in values]
    except (TypeError, ValueError):  # a date; NaN or infinity
        raise InputError("expected text, finite numbers, true or false, lists or tables of them") from None
    if len(set(texts)) < len(texts):
        raise InputError("the list holds a value twice")
    if len(path) == 1:
        for value in values:
            check_field(path[0], value)
    return Dimension(path, "list", tuple(values))


def _range(path: AxisPath, spec: _Range) -> Dimension:
    given = {kind: ends for kind, ends in spec.model_dump().items() if ends is not None}
    if len(given) != 1:
        raise InputError("expected exactly one of log, linear and int")
    ((kind, ends),) = given.items()
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise InputError(f"{kind}: expected [low, high] with low below high, not {shown(ends)}")
    if kind == "log" and not ends[0] > 0:
        raise InputError(f"log: {shown(ends[0])} must be above 0")
    if kind != "int":
        ends = [float(end) for end in ends]
    if not math.isfinite(ends[1] - ends[0]):
        raise InputError(f"{kind}: the range is too wide")
    return Dimension(path, kind, tuple(ends))
