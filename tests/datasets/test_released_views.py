"""The released scripts' views of images against the suite's (tests/golden/released, see its README).

The AlexNet examples: target sizes, test views and crop offsets. The SVHN images: OpenCV's resize from 32 to
40 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import datasets
from bench.datasets.device_batches import DeviceData
from bench.datasets.photographs import crops
from bench.datasets.resize import OpenCVBilinear
from bench.errors import InputError
from bench.experiments.config import make_config
from bench.experiments.identity import identity
from bench.randomness import combine, key_of, sample_bits

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
    # the image is so large that nothing is limited, and the factors are 1: the target is the side drawn
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


def test_the_released_views_reach_the_batches(tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (50, 37 + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / part / name / f"{i}.png")
    fields = {"dataset": "imagefolder:own", "network": "resnet20", "epochs": 1, "batch_size": 8}
    config = make_config({**fields, "augmentation": "scale_jitter_released", "normalization": "divide_255"})
    images = datasets.load(config.dataset, tmp_path)
    data = datasets.make_data(images, config, 32, "cpu")
    sizes = images.test.index["height"].astype(np.int64), images.test.index["width"].astype(np.int64)
    for window, (found, _) in zip(
        np.stack(crops.view_released(*sizes, 32), 1).tolist(), data.test_batches(1), strict=True
    ):
        pixels = images.test.read(0 if window[3] == 37 else 1)
        expected = crops.resized(pixels, *window[4:8], 32, True)
        assert torch.equal(found[0].permute(1, 2, 0).mul(255).round().to(torch.uint8), expected)
    draws = sample_bits(
        combine(key_of(0, "augmentation", "scale_jitter_released"), 0), torch.arange(8), (crops.JITTER_DRAWS,)
    ).numpy()
    numbers = data.indices(0).numpy()
    sizes = tuple(images.train.index[side][numbers].astype(np.int64) for side in ("height", "width"))
    found = data.train_batch(0)[0].permute(0, 2, 3, 1).mul(255).round().to(torch.uint8)
    for i, window in enumerate(np.stack(crops.scale_jitter_released(*sizes, draws, 32), 1).tolist()):
        expected = crops.resized(images.train.read(int(numbers[i])), *window[4:8], 32, True)
        assert torch.equal(found[i], expected.flip(1) if window[8] else expected)


def test_the_opencv_resize_reaches_the_batches():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) % 10
    fields = {"dataset": "svhn", "network": "svhn_convnet", "epochs": 1, "batch_size": 8}
    data = DeviceData(
        datasets.Arrays(pixels, labels, pixels, labels, 10),
        make_config({**fields, "resize": "opencv"}),
        40,
        "cpu",
    )
    found = torch.cat([images for images, _ in data.test_batches(8)]).permute(0, 2, 3, 1).mul(256)
    assert torch.equal(
        found.to(torch.uint8), OpenCVBilinear(32, 32, 40, 3).to_uint8(torch.from_numpy(pixels))
    )
