"""Texts about a search: both phases of an experiment, what they cost, and what was chosen."""

from __future__ import annotations

from dataclasses import replace

from bench.experiments.labels import values_text
from bench.experiments.trials import Experiment, Trial
from bench.text import inert, percent, plural, table
from bench.tuning.choice import mean
from bench.tuning.phases import Standing, expected_rungs, trained_epochs
from bench.tuning.search import Search, progress_text


def choices_text(standing: Standing) -> str:
    """Return where a search stands and a table of its points: configurations tried and the one chosen."""
    rows = []
    for search in standing.points:
        point, chosen = search.point, search.chosen
        through = sum(bool(tried.accuracies) for tried in search.tried)
        found, score = "not yet chosen", ""
        if chosen is not None:
            found = values_text(chosen.configuration) or "nothing tuned"
            score = percent(mean(chosen.accuracies))
            if chosen.dropped is not None:  # all that were trained further diverged
                score += f" after epoch {chosen.dropped}"
        elif standing.finished:
            found = "none: every configuration diverged"
        rows.append([point.arm, values_text(point.grid), f"{through} of {len(search.tried)}", found, score])
    widened = [
        inert(f"{name} was widened {plural(times, 'time')} at its {side} end, for every arm that has it")
        for (name, side), times in standing.widened.items()
    ]
    head = ["arm", "grid point", "tried", "chosen", "held out"]
    return "\n".join([progress_text(standing), *widened, table(head, rows, right=(4,))])


def phases_text(search: Search, standing: Standing) -> str:
    """Return both phases: how many configurations and trials each arm has, and how they are chosen."""
    tuning, rows = search.tuning, []
    trials = final = 0
    for point in search.points:
        steps = expected_rungs(tuning, point, search.efforts[point.key])
        rungs = ", ".join(f"{rung.count} to epoch {rung.epoch}" for rung in steps)
        fields = ", ".join(point.reached) or "nothing"
        trials, final = trials + steps[0].count, final + len(point.lines)
        seeds, finals = str(len(tuning.seeds)), str(len(point.lines))
        rows.append([point.arm, values_text(point.grid), fields, rungs, seeds, finals])
    head = ["arm", "grid point", "tuned", "configurations", "seeds", "final trials"]
    seeds = ", ".join(map(str, tuning.seeds))
    widened = "a range grows at an edge where a best one lies, for every arm alike" if tuning.extend else ""
    lines = [
        f"Phase 1, tuning: {plural(trials * len(tuning.seeds), 'trial')}, seeds {seeds}, "
        f"{tuning.holdout} training images held out, no test image read",
        ", ".join(filter(None, (f"  sampler {tuning.sampler}, scheduler {tuning.scheduler}", widened))),
        f"Phase 2: {plural(final, 'final trial')} with the values chosen, on all training images",
        "",
        table(head, rows, right=(4, 5)),
        "",
        progress_text(standing) if not standing.choices else choices_text(standing),
    ]
    return "\n".join(lines)


def phase_costs(search: Search) -> list[tuple[str, Experiment, dict[str, float]]]:
    """Return for each phase a title, an experiment of its trials, and the shares of epochs trained.

    Both phases are taken to train the file's own configurations on all training images: a learning rate
    costs nothing, other values are not known before they are chosen, and held-out images make tuning trials
    a little shorter. The shares go by the id of a trial.
    """
    tuned: list[Trial] = []
    shares: dict[str, float] = {}
    final: dict[str, Trial] = {}
    for point in search.points:
        final |= {line.trial.id or str(id(line)): line.trial for line in point.lines}
        steps = expected_rungs(search.tuning, point, search.efforts[point.key])
        for _ in range(steps[0].count * len(search.tuning.seeds)):
            name = f"tuning {len(tuned)}"
            tuned.append(Trial(name, point.config))
            shares[name] = trained_epochs(steps) / (steps[0].count * point.config.epochs)
    widened = ", widenings not counted" if search.tuning.extend else ""
    return [
        (f"Phase 1, tuning{widened}. ", replace(search.experiment, trials=tuple(tuned)), shares),
        ("Phase 2, final trials. ", replace(search.experiment, trials=tuple(final.values())), {}),
    ]
