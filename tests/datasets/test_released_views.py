"""The released scripts' views of images, against what those scripts computed (tests/golden/released, see its README).

The AlexNet examples: target sizes, test views and crop offsets. The SVHN images: OpenCV's resize from 32 to 40 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.datasets.photographs import crops
from bench.datasets.resize import OpenCVBilinear
from bench.errors import InputError
from bench.experiments.config import make_config
from bench.experiments.identity import identity

GOLDEN = Path(__file__).parents[1] / "golden" / "released"


@pytest.fixture(scope="module")
def examples():
    return json.loads((GOLDEN / "alexnet.json").read_text(encoding="utf-8"))["augmentation"]


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def test_target_sizes_are_the_released_ones(examples):
    rows = examples["size_examples"]
    factors = np.stack([column(rows, "scale_x"), column(rows, "scale_y")], axis=1)
    height, width = crops.jittered_size(
        column(rows, "height"), column(rows, "width"), column(rows, "short"), factors, 224
    )
    assert height.tolist() == column(rows, "to_height").tolist()
    assert width.tolist() == column(rows, "to_width").tolist()


def test_test_views_are_the_released_ones(examples):
    rows = examples["test_view_examples"]
    window = crops.view_released(column(rows, "height"), column(rows, "width"), 224)
    for name, found in (
        ("to_height", window.to_height),
        ("to_width", window.to_width),
        ("crop_row", window.row),
        ("crop_column", window.column),
    ):
        assert found.tolist() == column(rows, name).tolist(), name


def test_draws_reach_every_released_value_and_no_other(examples):
    count = 20_000
    draws = np.random.default_rng(0).integers(0, 2**32, (count, crops.JITTER_DRAWS), dtype=np.int64)
    # an image so large that nothing is limited, with factors of 1: the target's short side is the short side drawn
    draws[:, 1:3] = 2**31
    large = np.full(count, 5000)
    window = crops.scale_jitter_released(large, large, draws, 224)
    short = examples["short_side"]
    assert set(window.to_height.tolist()) == set(range(short["from"], short["below"]))
    for spare, seen in examples["crop_offsets_seen_by_spare_pixels"].items():
        side = np.full(count, 224 + int(spare))  # an image of this size is never enlarged
        window = crops.scale_jitter_released(side, side, np.where(draws == 2**31, 2**32 - 1, draws), 224)
        full = window.to_height == 224 + int(spare)
        assert full.any() and sorted(set(window.row[full].tolist())) == seen
        assert sorted(set(window.column[window.to_width == 224 + int(spare)].tolist())) == seen


def test_the_opencv_resize_is_opencvs_bit_for_bit():
    with np.load(GOLDEN / "preprocess.npz") as golden:
        raw, expected = torch.from_numpy(golden["raw"]), torch.from_numpy(golden["resized"])
    assert torch.equal(OpenCVBilinear(32, 32, 40, 3).to_uint8(raw), expected)


def test_the_opencv_resize_is_a_recipe_field_left_out_where_it_is_exact():
    fields = {"dataset": "svhn", "network": "svhn_convnet", "epochs": 1, "batch_size": 8}
    exact = make_config(fields)
    assert identity(exact, "x") == identity(make_config({**fields, "resize": "exact"}), "x")
    assert identity(exact, "x") != identity(make_config({**fields, "resize": "opencv"}), "x")
    with pytest.raises(InputError, match="resize: 'opencv' does not go with augmentation 'crop_flip'"):
        make_config({**fields, "resize": "opencv", "augmentation": "crop_flip"})
