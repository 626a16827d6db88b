"""Schedules: pure functions of the global step, for the progressive factor f(t) and for the learning rate.

Progress is ``step / total_steps`` for steps 0 .. total_steps - 1; an epoch is ``step / steps_per_epoch``.
Nothing is counted or remembered, so a resumed trial reads the same values. Times are fractions of the
training (``until``, ``at``) or epochs (``until_epochs``, ``at_epochs``): a schedule in fractions keeps its
shape when the budget changes. Plain floats, no torch.
"""

from bench.schedules.checks import never_removed, no_step_behind, problems
from bench.schedules.values import factor_value, learning_rate_value

__all__ = ["factor_value", "learning_rate_value", "never_removed", "no_step_behind", "problems"]
