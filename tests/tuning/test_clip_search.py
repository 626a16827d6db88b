"""The search of CLIP-Q's share of clipped weights: who has it, what its trials are, whether it is found."""

from __future__ import annotations

import pytest

from bench.experiments.expand import load_experiment
from bench.experiments.tuning_table import Dimension, Tuning
from bench.tuning import samplers
from bench.tuning.points import Trials, find_points

CLIP = "quantizer.clip"
TEXT = """
title = "CLIP-Q, its share searched"
[defaults]
dataset = "digits"
network = "svhn_convnet"
epochs = 2
bits = "2/2"
[grid]
seed = [0]
[[arms]]
name = "DoReFa-Net"
quantizer = "dorefa"
[[arms]]
name = "CLIP-Q"
quantizer = { kind = "clipq", clip = 0.4 }
[tuning]
holdout = 64
seeds = [100]
effort = 3
sampler = "grid"
[tuning.space]
"quantizer.clip" = { linear = [0.0, 0.8] }
"learning_rate.initial" = [1e-3, 2e-3, 4e-3]
"""


def test_the_share_is_a_field_of_the_arms_with_this_quantizer_alone(tmp_path):
    file = tmp_path / "clip.toml"
    file.write_text(TEXT)
    experiment = load_experiment(file, data_dir=tmp_path)
    plain, clipped = find_points(experiment)
    assert plain.reached == ("learning_rate.initial",) and clipped.reached == (CLIP, "learning_rate.initial")
    tried = samplers.configurations(experiment.tuning, clipped.reached, 3)
    assert {round(one[CLIP], 6) for one in tried} == {0.0, 0.4, 0.8}
    trials = Trials(experiment)
    found = [trials.tuning(clipped, one, 100).config for one in tried]
    assert [config.quantizer["clip"] for config in found] == [one[CLIP] for one in tried]
    assert all(config.holdout == 64 and not config.evaluate_test for config in found)


def test_optuna_comes_close_to_the_best_share():
    pytest.importorskip("optuna")
    space = (Dimension(("quantizer", "clip"), "linear", (0.0, 0.8)),)
    tuning = Tuning(holdout=8, seeds=(100,), effort=24, space=space, sampler="optuna")
    told: list = []
    for _ in range(24):
        point = samplers.optuna_next(tuning, (CLIP,), told)
        told.append((point, 80.0 - 50.0 * (point[CLIP] - 0.3) ** 2))
    best = max(told, key=lambda one: one[1])[0][CLIP]
    early, late = ([abs(point[CLIP] - 0.3) for point, _ in part] for part in (told[:10], told[10:]))
    assert abs(best - 0.3) < 0.03 and sum(late) / 14 < sum(early) / 10
