"""The samplers of configurations: functions of the file, and for Optuna of the scores, never of time.

Every sampler draws in the whole space, in the order of the file, and an arm takes the part that reaches it:
so two arms try the same learning rates. All configurations of an arm are different.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bench.errors import InputError
from bench.experiments.tuning_table import Dimension, Tuning
from bench.tuning.space import QUARTER, Configuration, key, levels, projected, rounded, value_at, widened

MAX_EXTENSIONS = 4  # widenings of one side of a range
DRAWS = 64  # points drawn for each configuration wanted, at most: a small discrete space has no more of them
DIAGONAL = 8  # points of a grid's diagonal for each configuration wanted, before those of its product


def configurations(tuning: Tuning, reached: Sequence[str], effort: int) -> list[dict[str, Any]]:
    """Return the configurations that an arm tries, in order; ``reached`` are the dotted fields that it has.

    There are ``effort`` of them, fewer where the arm's part of the space has no more (all of them are tried
    then). An arm that no dimension reaches has the one empty configuration.
    """
    points = _grid(tuning.space, reached, effort) if tuning.sampler == "grid" else _sobol(tuning)
    return _distinct(points, reached, effort)


def extension(
    tuning: Tuning, reached: Sequence[str], effort: int, edge: tuple[str, str], times: int
) -> list[dict[str, Any]]:
    """Return the further configurations for the ``times``-th widening of a range, equal for every arm.

    A grid gains one level; else the range grows by a quarter of its width, with a quarter of the effort in
    that quarter.

    Args:
        tuning: The table of the experiment file.
        reached: The fields that the arm has.
        effort: The number of configurations before the first widening.
        edge: The field, and "low" or "high".
        times: 1 for the first widening.

    Returns:
        No configurations where the arm lacks the field, or where the range cannot grow.
    """
    name, side = edge
    if name not in reached:
        return []
    grid = tuning.sampler == "grid"
    part = 1 / max(1, effort - 1) if grid else QUARTER
    space = []
    for dimension in tuning.space:
        if dimension.name == name:
            grown = widened(dimension, side, times, part)
            if grown is None:
                return []
            end = grown.values[-1 if side == "high" else 0]
            dimension = Dimension(dimension.path, "list", (end,)) if grid else grown  # noqa: PLW2901
        space.append(dimension)
    if grid:  # the other fields of the new level go on cycling
        count = effort - 1 + times if side == "high" else -times
        axes = [(d.name, levels(d, effort)) for d in space if d.name in reached]
        return [_diagonal(axes, count)]
    offset = DRAWS * MAX_EXTENSIONS * (side == "high") + DRAWS * times
    return _distinct(_sobol(tuning, space, skip=offset), reached, math.ceil(effort * QUARTER))


def further(
    tuning: Tuning, reached: Sequence[str], effort: int, tried: Sequence[Configuration]
) -> list[dict[str, Any]]:
    """Return as many configurations as ``extension`` does, for an arm without the field that is widened.

    They are the next points of the arm's own space that were not ``tried``; fewer where there are no more.
    """
    count = 1 if tuning.sampler == "grid" else math.ceil(effort * QUARTER)
    known = {key(configuration) for configuration in tried}
    drawn = _distinct(_sobol(tuning), reached, len(known) + count)
    return [configuration for configuration in drawn if key(configuration) not in known][:count]


def _distinct(points: Iterable[Configuration], reached: Sequence[str], count: int) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for point in itertools.islice(points, DRAWS * count):
        configuration = projected(point, reached)
        found.setdefault(key(configuration), configuration)
        if len(found) == count:
            break
    return list(found.values())


def _sobol(
    tuning: Tuning, space: Sequence[Dimension] | None = None, skip: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield points of the scrambled Sobol sequence (Owen 1998) of the space, seeded by the space."""
    from scipy.stats import qmc

    space = tuning.space if space is None else space
    sequence = qmc.Sobol(len(space), scramble=True, rng=tuning.seed)
    if skip:
        sequence.fast_forward(skip)
    while True:
        for point in sequence.random(16):
            yield {d.name: value_at(d, float(u)) for d, u in zip(space, point, strict=True)}


def _grid(space: Sequence[Dimension], reached: Sequence[str], effort: int) -> Iterator[dict[str, Any]]:
    """Yield the points of a grid: the full product where the effort suffices, else a diagonal through it.

    A list gives its values, a range ``effort`` of them. On the diagonal the first field takes one level
    after the other and every further field cycles through its levels, each with a stride of its own. Where
    the diagonal comes back to itself, the points of the product that are left follow it.
    """
    axes = [(d.name, levels(d, effort)) for d in space if d.name in reached]
    if math.prod(len(values) for _, values in axes) > effort:
        for count in range(DIAGONAL * effort):
            yield _diagonal(axes, count)
    for point in itertools.product(*(values for _, values in axes)):
        yield dict(zip((name for name, _ in axes), point, strict=True))


def _diagonal(axes: Sequence[tuple[str, Sequence[Any]]], count: int) -> dict[str, Any]:
    """Return configuration ``count`` of the diagonal.

    Field number k has the first stride from k + 1 that reaches all of its levels. When it and the fields
    before it have taken all combinations that they reach together, it begins one level further, so that
    combinations do not come again.
    """
    found, period = {}, 1
    for number, (name, values) in enumerate(axes):
        stride = next(s for s in itertools.count(number + 1) if math.gcd(s, len(values)) == 1)
        period = math.lcm(period, len(values))
        shift = count // period if number else 0
        found[name] = values[(count * stride + shift) % len(values)]
    return found


def optuna_next(
    tuning: Tuning, reached: Sequence[str], told: Sequence[tuple[Configuration, float | None]]
) -> dict[str, Any]:
    """Return Optuna's next configuration (tree-structured Parzen estimator) after the scores ``told``.

    The sampler is seeded and gets the whole history in its order, so the configuration depends on the scores
    alone. A score of None (the runs diverged) is told as a failure.
    """
    try:
        import optuna
    except ImportError:
        raise InputError(
            "tuning.sampler: 'optuna' needs the package optuna (pip install progressive-bench[optuna])"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=tuning.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = {d.name: _distribution(optuna, d) for d in tuning.space if d.name in reached}
    for _, score in told:
        trial = study.ask(space)
        if score is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, score)
    found = study.ask(space).params
    return {d.name: _plain(d, found[d.name]) for d in tuning.space if d.name in reached}


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    low, high = dimension.values[0], dimension.values[-1]
    if dimension.kind == "list":  # by number: values may be tables, which Optuna does not take
        return optuna.distributions.CategoricalDistribution(list(range(len(dimension.values))))
    if dimension.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=dimension.kind == "log")


def _plain(dimension: Dimension, value: Any) -> Any:
    if dimension.kind == "list":
        return dimension.values[value]
    return rounded(value) if isinstance(value, float) else value
