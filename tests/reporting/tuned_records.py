"""Hand-made records of a tuned ablation, whole or half finished, like those of ``tuned_factor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.experiments.overrides import assign
from tests.reporting.fake_records import SUM, Results

RATES, TUNING_SEEDS, SEEDS = (0.002, 0.004, 0.008), (100, 101), (10, 11, 12, 13, 14)
HOLDOUT = 1084
PLAIN: tuple[str, Mapping[str, Any], Mapping[str, Any]] = ("Plain", {"kind": "plain"}, {})
Point = tuple[str, Mapping[str, Any], Mapping[str, Any]]  # arm, strategy, values of its axes


def product(arm: str, strategy: Mapping[str, Any], rows: tuple[str, Sequence], columns: tuple[str, Sequence]):
    """Return the points of an arm over two axes of the grid."""
    (first, ones), (second, others) = rows, columns
    return [(arm, strategy, {first: one, second: other}) for one in ones for other in others]


KINDS, ENDS = ("cosine", "linear", "constant"), (0.25, 0.5, 0.8)
MERGES = ("sum", "difference", "concat", "preactivation")
ABLATIONS: dict[str, list[Point]] = {
    "factor": [
        PLAIN,
        *product("EXP-Net (sum)", SUM, ("strategy.factor.kind", KINDS), ("strategy.factor.until", ENDS)),
    ],
    "merge": [
        PLAIN,
        *product("EXP-Net", SUM, ("strategy.merge", MERGES), ("strategy.factor.until", (0.25, 0.5, 0.8))),
    ],
    "branch": [
        PLAIN,
        *product(
            "EXP-Net (kernel, batch norm)",
            SUM,
            ("strategy.kernel", (1, 3)),
            ("strategy.batch_norm", (True, False)),
        ),
        *[
            (
                "EXP-Net (concat, width of the branch)",
                {**SUM, "merge": "concat"},
                {"strategy.width_ratio": ratio},
            )
            for ratio in (0.5, 1.0)
        ],
        ("EXP-Net (first half of the layers)", {**SUM, "layers": ["conv2", "conv3"]}, {}),
        ("EXP-Net (second half of the layers)", {**SUM, "layers": ["conv4", "conv5", "conv6"]}, {}),
    ],
}


def accuracy(number: int, seed: int) -> float:
    """Return the test accuracy of the final run of a point, in percent: no two points have one mean."""
    return 70.0 + 0.7 * number + 0.4 * ((seed * 7 + number) % 5)


def chosen_rate(number: int) -> float:
    """Return the rate that the search of a point chooses."""
    return RATES[number % len(RATES)]


def record(
    results: Results, name: str, points: Sequence[Point], ended: Mapping[int, int] | None = None
) -> None:
    """Record an experiment; the runs of a point that is named in ``ended`` are not all through.

    ``ended`` maps the position of a point to the number of runs that are through: tuning trials first, then
    final runs, which begin when all tuning trials are through.
    """
    arms = dict.fromkeys(arm for arm, _, _ in points)
    text = 'title = "Ablation, tuned"\n' + "".join(
        f'[[arms]]\nname = "{arm}"\n' + ('baseline = "Plain"\n' if arm != "Plain" else "") for arm in arms
    )
    results.experiment(name, text)
    lines: list[dict[str, Any]] = []
    tuning = len(RATES) * len(TUNING_SEEDS)
    for number, (arm, strategy, grid) in enumerate(points):
        through = (ended or {}).get(number, tuning + len(SEEDS))
        config: dict[str, Any] = {"strategy": {**strategy}}
        if isinstance(strategy.get("factor"), Mapping):
            config["strategy"]["factor"] = dict(strategy["factor"])
        for path, value in grid.items():
            assign(config, tuple(path.split(".")), value)
        lines += _search(results, name, number, (arm, grid, config), through)
        if through >= tuning:
            rate = {"learning_rate": {"kind": "constant", "initial": chosen_rate(number)}}
            baseline = None if arm == "Plain" else "Plain"
            for i, seed in enumerate(SEEDS):
                curve = [30.0, accuracy(number, seed)] if i < through - tuning else None
                kept = {"baseline": baseline, "grid": dict(grid), "seed": seed, "epochs": 2}
                results.trial(name, arm, curve, **kept, **config, **rate)
    results.tuning_lines[name] = lines


def _search(
    results: Results, name: str, number: int, point: tuple[str, Mapping, Mapping], through: int
) -> list[dict[str, Any]]:
    arm, grid, config = point
    lines = []
    for i, rate in enumerate(RATES):
        trials, scores = {}, []
        for j, seed in enumerate(TUNING_SEEDS):
            score = 80.0 - 2.0 * abs(RATES.index(chosen_rate(number)) - i) + 0.5 * j
            ended = i * len(TUNING_SEEDS) + j < through
            trials[str(seed)] = results.trial(
                name,
                None,
                [score] if ended else None,
                role="tuning",
                grid=dict(grid),
                seed=seed,
                epochs=1,
                holdout=HOLDOUT,
                evaluate_test=False,
                summary={"final_val_acc": score, "final_test_acc": None},
                learning_rate={"kind": "constant", "initial": rate},
                **config,
            )
            scores.append(score)
        known = through >= len(RATES) * len(TUNING_SEEDS)  # the runner had no time to write more
        lines.append(
            {
                "profile": None,
                "arm": arm,
                "grid": {"bits": "1/1", "width": 0.25, **grid},
                "configuration": {"learning_rate.initial": rate},
                "trials": trials,
                "accuracies": scores if known else [],
                "mean": sum(scores) / len(scores) if known else None,
                "dropped_at": None,
                "operations": None,
                "seconds": 20.0,
                "sampler": "grid",
                "chosen": known and rate == chosen_rate(number),
            }
        )
    return lines
