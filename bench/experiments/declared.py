"""What an experiment file declares for its claims: the seeds and grid points of its arms, by profile.

Nothing is expanded to trials: no network of a user's own is imported. What is wrong in the file is left out.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.experiments.arms import PlannedArm
from bench.experiments.axes import MAX_TRIALS
from bench.experiments.file import ExperimentFile, read_file
from bench.experiments.resolve import stack_fields
from bench.experiments.toml_files import Problems

SEED = ("seed",)
Key = tuple[str | None, str]  # profile (None: without one) and name of the arm
Point = Mapping[str, Any]  # the values of axes as the file has them, by dotted name


@dataclass(frozen=True)
class Declared:
    """Seeds and grid points of arms.

    ``seeds`` are those of the file's grids: an arm whose grids name none is left out. ``points`` are the
    grid points without their seed, of the arms that a profile runs; an arm without axes has one empty point.
    """

    seeds: Mapping[Key, frozenset[int]] = field(default_factory=dict)
    points: Mapping[Key, tuple[Point, ...]] = field(default_factory=dict)


def declared(document: Mapping[str, Any]) -> Declared:
    """Return what a parsed experiment file declares."""
    seeds: dict[Key, frozenset[int]] = {}
    points: dict[Key, tuple[Point, ...]] = {}
    profiles = document.get("profiles")
    for profile in (None, *(profiles if isinstance(profiles, dict) else ())):
        file = read_file(document, Problems(""), profile)
        for arm in file.arms:
            for axis in arm.axes:
                if axis.path == SEED and axis.where != "seed":  # "seed": the default of one seed
                    seeds[profile, arm.name] = frozenset(s for s in axis.values if isinstance(s, int))
            if not file.profile.only or arm.name in file.profile.only:
                points[profile, arm.name] = tuple(_points(file, arm))
    return Declared(seeds, points)


def _points(file: ExperimentFile, arm: PlannedArm) -> Iterator[Point]:
    """Yield the different grid points of an arm; of axes that do not reach the arm there is no value."""
    values = [axis.values[:1] if axis.path == SEED else axis.values for axis in arm.axes]
    if math.prod(map(len, values)) > MAX_TRIALS:
        return
    seen = set()
    for point in itertools.product(*values):
        applied = stack_fields(file, arm, point, {}).applied
        pairs = zip(arm.axes, point, strict=True)
        found = {axis.name: value for axis, value in pairs if axis.path in applied and axis.path != SEED}
        text = json.dumps(found, sort_keys=True, default=str)
        if text not in seen:
            seen.add(text)
            yield found
