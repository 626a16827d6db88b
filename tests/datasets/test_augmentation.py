"""Resizing, augmentation, order and batches against readings of the text in NumPy, float64 and uint8."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import datasets
from bench.datasets import augmentation
from bench.datasets.batch_rows import chosen_images
from bench.datasets.device_batches import DeviceData
from bench.datasets.resize import Bilinear
from bench.datasets.sources import Arrays
from bench.errors import InputError
from bench.experiments.config import Recipe
from bench.randomness import combine, key_of, sample_bits


def photographs(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images with black, white, grey and smooth ones among them."""
    x = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    x[0], x[1], x[2] = 0, 255, 128
    x[3] = np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None]
    return x


def arrays(train: int = 50, test: int = 11, size: int = 32, channels: int = 3) -> Arrays:
    shape = (size, size, channels)
    x_test = photographs(test, *shape, seed=1)
    return Arrays(photographs(train, *shape), np.arange(train) % 10, x_test, np.arange(test) % 10, 10)


def config(**fields) -> SimpleNamespace:
    """What the pipeline reads of a trial's configuration."""
    own = {"dataset": {"kind": "digits"}, "seed": fields.pop("seed", 0)}
    recipe = Recipe(epochs=2, batch_size=fields.pop("batch_size", 8), **fields)
    return SimpleNamespace(**dict(recipe), **own)


def draws(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    values = torch.randint(0, 2**32, (count, columns), generator=torch.Generator().manual_seed(seed))
    values[:2] = torch.tensor([[0], [2**32 - 1]])  # both ends
    return values


# ---- the text, read in NumPy ----


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with half-pixel centres, an axis at a time, in float64: (H, W, C) -> (size, size, C)."""

    def matrix(n: int) -> np.ndarray:
        weights = np.zeros((size, n))
        for i in range(size):
            position = min(max((i + 0.5) * n / size - 0.5, 0.0), n - 1.0)
            low = math.floor(position)
            weights[i, low] += 1 - (position - low)
            weights[i, min(low + 1, n - 1)] += position - low
        return weights

    return np.einsum(
        "ih,hwc,jw->ijc",
        matrix(image.shape[0]),
        image.astype(np.float64),
        matrix(image.shape[1]),
        optimize=True,
    )


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Clip to 0..255 and truncate.

    The rounding of float64 at an exact integer must not take a whole level.
    """
    return np.clip(x + 1e-9, 0, 255).astype(np.uint8)


def svhn_text(image: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Brightness +-30, then contrast x[0.5, 1.5] about each channel's mean, each clipped and truncated."""
    image = to_uint8(image.astype(np.float64) + (-30 + 60 * (h[0] / 2**32)))
    factor = 0.5 + (h[1] >> 17) / 2**15
    mean = image.astype(np.float64).mean(axis=(0, 1), keepdims=True)
    return to_uint8((image - mean) * factor + mean)


def crop_flip_text(image: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Pad 4, crop at random, mirror half of them."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    row, column = (int(9 * (int(v) / 2**32)) for v in h[:2])
    cropped = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return cropped[:, ::-1] if h[2] >= 2**31 else cropped


# ---- resizing ----


@pytest.mark.parametrize(
    ("source", "size"), [(32, 40), (8, 40), (8, 32), (28, 40), (32, 224), (40, 32), (33, 40), (5, 300)]
)
def test_resize_is_bilinear(source, size):
    x = photographs(5, source, source, 3)
    bilinear = Bilinear(source, source, size, 3)
    ours = bilinear.sums(torch.from_numpy(x)).double() / bilinear.denominator
    text = np.stack([resized(image, size) for image in x])
    assert np.abs(ours.numpy() - text).max() < 1e-10
    nchw = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    torchs = F.interpolate(nchw, (size, size), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    assert (ours - torchs).abs().max() < 1e-9


@pytest.mark.parametrize(("source", "size"), [(32, 40), (8, 40), (20, 40)])
def test_resize_rounds_halves_up(source, size):
    x = photographs(20, source, source, 3)
    ours = Bilinear(source, source, size, 3).to_uint8(torch.from_numpy(x)).numpy()
    text = np.floor(np.stack([resized(image, size) for image in x]) + 0.5 + 1e-9)
    assert np.array_equal(ours, text)


def test_resize_of_oblong_images_and_grey():
    x = photographs(5, 6, 9, 1)
    ours = Bilinear(6, 9, 14, 1).sums(torch.from_numpy(x)).double() / Bilinear(6, 9, 14, 1).denominator
    assert np.abs(ours.numpy() - np.stack([resized(image, 14) for image in x])).max() < 1e-10


def test_resize_sums_are_exact_integers():
    """So no order of summation, fused or not, can change them."""
    bilinear = Bilinear(32, 32, 40, 3)
    assert bilinear.dtype == torch.float32 and bilinear.denominator == 100
    sums = bilinear.sums(torch.from_numpy(photographs(9, 32, 32, 3)))
    assert torch.equal(sums, sums.round()) and sums.max() <= 255 * 100


# ---- brightness and contrast ----


def test_svhn_augmentation_is_the_text():
    x, h = photographs(64, 40, 40, 3), draws(64, 2)
    ours = augmentation.svhn(torch.from_numpy(x), h).numpy()
    text = np.stack([svhn_text(image, row) for image, row in zip(x, h.numpy(), strict=True)])
    assert np.array_equal(ours, text)
    rounded = np.stack([np.rint(ours[i]) for i in range(64)])
    assert np.array_equal(rounded, ours)


@pytest.mark.parametrize("size", [1, 7, 300])  # 300: sums beyond the integers of float32
def test_svhn_augmentation_at_other_sizes(size):
    x, h = np.random.default_rng(2).integers(0, 256, (5, size, size, 3), dtype=np.uint8), draws(5, 2, seed=3)
    x[0] = 255
    ours = augmentation.svhn(torch.from_numpy(x), h).numpy()
    assert np.array_equal(
        ours, np.stack([svhn_text(image, row) for image, row in zip(x, h.numpy(), strict=True)])
    )


def test_svhn_augmentation_at_the_edge_of_truncation():
    """Some values of many small images fall just below an integer, where sloppy rounding would tip them."""
    count = 40_000
    x = np.random.default_rng(4).integers(0, 256, (count, 3, 3, 1), dtype=np.uint8)
    h = sample_bits(key_of(4, "test"), torch.arange(count), (2,))
    b, r = (column[:, None, None, None] for column in h.numpy().T)
    text = to_uint8(x.astype(np.float64) + (-30 + 60 * (b / 2**32))).astype(np.float64)
    mean = text.mean(axis=(1, 2), keepdims=True)
    text = to_uint8((text - mean) * (0.5 + (r >> 17) / 2**15) + mean)
    assert np.array_equal(augmentation.svhn(torch.from_numpy(x), h).numpy(), text)


def test_brightness_truncates_and_clips():
    """A single level, with a contrast that then changes nothing: p + b, clipped and cut to an integer."""
    h = torch.stack([torch.arange(0, 2**32, 2**25), torch.full((128,), 2**31)], 1)
    for level in (0, 17, 128, 250):
        ours = augmentation.svhn(torch.full((128, 4, 4, 3), level, dtype=torch.uint8), h)[:, 0, 0, 0]
        expected = [math.trunc(min(max(level - 30 + 60 * (v / 2**32), 0), 255)) for v in h[:, 0].tolist()]
        assert ours.tolist() == expected


def test_contrast_truncates_by_hand():
    """Of 10 and 20, mean 15: r = 0.5 gives 12.5 and 17.5 (12, 17), r about 1.5 gives 7.5 and 22.5 (7, 22)."""
    image = torch.tensor([10, 20], dtype=torch.uint8).view(1, 1, 2, 1).repeat(2, 2, 1, 3)
    image[:, :, :, 2] = 77
    none = 2**31  # a brightness of 0
    ours = augmentation.svhn(image, torch.tensor([[none, 0], [none, 2**32 - 1]]))
    assert ours[0, 0, :, 0].tolist() == [12, 17] and ours[1, 0, :, 0].tolist() == [7, 22]
    assert (ours[:, :, :, 2] == 77).all()  # about each channel's own mean


def test_svhn_draws_cover_the_ranges():
    count = 4000
    h = sample_bits(key_of(0, "test"), torch.arange(count), (2,))
    flat = augmentation.svhn(torch.full((count, 2, 2, 1), 100, dtype=torch.uint8), h)[:, 0, 0, 0] - 100
    assert sorted(set(flat.tolist())) == list(range(-30, 30))
    assert abs(flat.mean().item() + 0.5) < 1.0  # uniform in [-30, 30), cut down
    pair = torch.tensor([100, 140], dtype=torch.uint8).view(1, 1, 2, 1).expand(count, 1, 2, 1)
    x = augmentation.svhn(pair, h)
    spread = (x[:, 0, 1] - x[:, 0, 0])[:, 0] / 40
    assert spread.min() <= 0.55 and spread.max() >= 1.45 and abs(spread.mean() - 1) < 0.03


# ---- crop and flip ----


def test_crop_flip_is_the_text():
    x, h = photographs(64, 32, 32, 3), draws(64, 3)
    ours = augmentation.crop_flip(torch.from_numpy(x), h)
    assert ours.dtype == torch.uint8
    text = np.stack([crop_flip_text(image, row) for image, row in zip(x, h.numpy(), strict=True)])
    assert np.array_equal(ours.numpy(), text)


def test_crop_flip_of_oblong_images():
    x, h = photographs(9, 5, 12, 3), draws(9, 3)
    ours = augmentation.crop_flip(torch.from_numpy(x), h).numpy()
    assert np.array_equal(
        ours, np.stack([crop_flip_text(image, row) for image, row in zip(x, h.numpy(), strict=True)])
    )


def test_crop_flip_draws_are_uniform():
    """One marked pixel in the middle shows where each image went: 9 x 9 places, half mirrored."""
    count = 8100
    x = torch.zeros(count, 17, 17, 1, dtype=torch.uint8)
    x[:, 8, 8] = 1
    x[:, 8, 9] = 2
    y = augmentation.crop_flip(x, sample_bits(key_of(0, "test"), torch.arange(count), (3,)))
    where = (y == 1).flatten(1).to(torch.int64).argmax(1)
    counts = np.bincount(where.numpy(), minlength=17 * 17)
    assert (counts > 0).sum() == 81
    chi = ((counts[counts > 0] - 100.0) ** 2 / 100).sum()
    assert 40 < chi < 140  # 80 degrees of freedom
    mirrored = (y.flatten(1).gather(1, (where - 1)[:, None]) == 2).float().mean()
    assert abs(mirrored - 0.5) < 0.03


# ---- batches ----


def expected_batch(
    data: Arrays, cfg: SimpleNamespace, step: int, size: int, indices: np.ndarray
) -> np.ndarray:
    """The whole pipeline in NumPy: (B, 3, size, size) float64."""
    x = np.repeat(data.x_train, 3, axis=3) if data.x_train.shape[3] == 1 else data.x_train
    columns = {"svhn": 2, "crop_flip": 3, "none": 1}[cfg.augmentation]
    key = combine(key_of(cfg.seed, "augmentation", cfg.augmentation), step)
    h = sample_bits(key, torch.arange(len(indices)), (columns,)).numpy()
    batch = x[indices]
    if cfg.augmentation != "crop_flip" and x.shape[1] != size:
        batch = np.stack([np.floor(resized(image, size) + 0.5 + 1e-9) for image in batch]).astype(np.uint8)
    text = {"svhn": svhn_text, "crop_flip": crop_flip_text, "none": lambda image, _: image}[cfg.augmentation]
    batch = np.stack([text(image, row) for image, row in zip(batch, h, strict=True)]).astype(np.float64)
    if cfg.normalization == "standardize":
        batch = (batch - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    else:
        batch = batch / {"divide_256": 256, "divide_255": 255}[cfg.normalization]
    if cfg.augmentation == "crop_flip":
        batch = np.stack([resized(image, size) for image in batch])
    return batch.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("normalization", ["divide_256", "divide_255", "standardize"])
@pytest.mark.parametrize("kind", ["none", "svhn", "crop_flip"])
@pytest.mark.parametrize(("source", "channels", "size"), [(32, 3, 40), (32, 3, 32), (8, 1, 40)])
def test_batches_are_the_text(kind, normalization, source, channels, size):
    data = arrays(40, size=source, channels=channels)
    cfg = config(augmentation=kind, normalization=normalization, seed=3)
    device_data = DeviceData(data, cfg, size, "cpu")
    for step in (0, 7):
        x, y = device_data.train_batch(step)
        indices = device_data.indices(step).numpy()
        assert x.shape == (8, 3, size, size) and x.dtype == torch.float32 and y.dtype == torch.int64
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(y.numpy(), data.y_train[indices])
        text = expected_batch(data, cfg, step, size, indices)
        tolerance = 0 if normalization == "divide_256" and kind != "crop_flip" else 2e-6
        assert np.abs(x.numpy() - text).max() <= tolerance


@pytest.mark.parametrize("kind", ["svhn", "crop_flip"])
def test_real_images(real_data, kind):
    if not (real_data / "svhn_subset.npz").is_file():
        pytest.skip(f"no svhn_subset.npz in {real_data}")
    data = datasets.load({"kind": "npz", "name": "svhn_subset"}, real_data)
    data = Arrays(data.x_train[:300], data.y_train[:300], data.x_test[:60], data.y_test[:60], 10)
    cfg = config(augmentation=kind, batch_size=64)
    device_data = DeviceData(data, cfg, 40, "cpu")
    x, _ = device_data.train_batch(5)
    text = expected_batch(data, cfg, 5, 40, device_data.indices(5).numpy())
    assert np.abs(x.numpy() - text).max() <= (0 if kind == "svhn" else 2e-6)
    tests = torch.cat([x for x, _ in device_data.test_batches(16)])
    text = np.stack([resized(image, 40) for image in data.x_test]).transpose(0, 3, 1, 2)
    text = np.floor(text + 0.5 + 1e-9) if kind == "svhn" else text
    assert np.abs(tests.numpy() - text / 256).max() < 2e-6


@pytest.mark.slow
def test_compiled_batches_are_the_eager_ones():
    data = [
        DeviceData(arrays(), config(augmentation=kind, normalization="standardize"), 40, "cpu")
        for kind in ("svhn", "crop_flip")
    ]

    @torch.compile(fullgraph=True)
    def prepare(indices, step):
        return [part.prepare(indices, step) for part in data]

    for step in (0, 9):
        for (x, y), part in zip(prepare(data[0].indices(step), torch.tensor(step)), data, strict=True):
            eager, labels = part.train_batch(step)
            assert torch.equal(eager, x) and torch.equal(labels, y)


def test_every_epoch_is_a_new_order_of_all_images():
    data = DeviceData(arrays(50), config(batch_size=8), 32, "cpu")
    assert data.steps_per_epoch == 6 and data.train_count == 50
    orders = []
    for epoch in range(3):
        seen = torch.cat([data.indices(epoch * 6 + step) for step in range(6)]).tolist()
        assert len(set(seen)) == 48
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    everything = DeviceData(arrays(50), config(batch_size=10), 32, "cpu")
    assert sorted(torch.cat([everything.indices(step) for step in range(5)]).tolist()) == list(range(50))


def test_any_step_in_any_order_gives_the_same_batch():
    """What a resume needs: nothing is remembered from the steps before."""
    data, cfg = arrays(), config(augmentation="svhn")
    straight = DeviceData(data, cfg, 40, "cpu")
    batches = [straight.train_batch(step) for step in range(14)]
    for step in (13, 0, 6, 5, 13):
        x, y = DeviceData(data, cfg, 40, "cpu").train_batch(step)
        assert torch.equal(x, batches[step][0]) and torch.equal(y, batches[step][1])
        again, _ = straight.train_batch(step)
        assert torch.equal(again, batches[step][0])
    list(straight.test_batches(4)), list(straight.estimation_batches(3, 8))
    assert torch.equal(straight.train_batch(2)[0], batches[2][0])


def test_arms_of_one_seed_share_batches_and_seeds_do_not():
    """Whatever an arm changes that is not data, images, their order and augmentation are the same."""
    data = arrays()
    one = DeviceData(data, config(augmentation="svhn", seed=1), 40, "cpu")
    other = DeviceData(data, config(augmentation="svhn", seed=1, learning_rate=0.1, holdout=0), 40, "cpu")
    stranger = DeviceData(data, config(augmentation="svhn", seed=2), 40, "cpu")
    plain = DeviceData(data, config(seed=1), 40, "cpu")
    for step in (0, 8):
        assert torch.equal(one.train_batch(step)[0], other.train_batch(step)[0])
        assert not torch.equal(one.train_batch(step)[0], stranger.train_batch(step)[0])
        assert torch.equal(
            one.train_batch(step)[1], plain.train_batch(step)[1]
        )  # order without augmentation, too


def test_augmentation_differs_by_step_and_sample():
    x = np.tile(photographs(5, 32, 32, 3)[4:], (16, 1, 1, 1))  # one image, sixteen times
    data = Arrays(x, np.zeros(16, dtype=np.int64), x[:4], np.zeros(4, dtype=np.int64), 10)
    for kind in ("svhn", "crop_flip"):
        batches = DeviceData(data, config(augmentation=kind, batch_size=16), 32, "cpu")
        first, second = batches.train_batch(0)[0], batches.train_batch(1)[0]
        assert len(torch.unique(first, dim=0)) > 12
        assert not torch.equal(first, second)


def test_batches_survive_their_use():
    """A consumer that overwrites its batch changes no stored image."""
    data = DeviceData(arrays(size=40), config(), 40, "cpu")
    before = data.train_batch(0)[0].clone(), next(data.test_batches(4))[0].clone()
    data.train_batch(0)[0].zero_(), next(data.test_batches(4))[0].zero_()
    assert torch.equal(before[0], data.train_batch(0)[0]) and torch.equal(
        before[1], next(data.test_batches(4))[0]
    )


# ---- parts of the training set ----


def test_holdout_is_disjoint_from_training_and_complete():
    for total, count, holdout in [(100, 70, 30), (100, 50, 20), (100, 100, 0), (7, 1, 6)]:
        train, aside = chosen_images(total, count, holdout)
        assert (len(train), len(aside)) == (count, holdout)
        assert not set(train) & set(aside) and set(train) | set(aside) <= set(range(total))
    assert np.array_equal(chosen_images(100, 100, 0)[0], np.arange(100))


def test_parts_do_not_depend_on_each_other_or_on_the_seed():
    assert np.array_equal(chosen_images(100, 50, 20)[1], chosen_images(100, 80, 20)[1])
    assert np.array_equal(chosen_images(100, 50, 20)[0], chosen_images(100, 50, 0)[0])
    assert set(chosen_images(100, 30, 0)[0]) < set(chosen_images(100, 50, 0)[0])
    labels = []
    for seed in (0, 5):
        data = DeviceData(arrays(100), config(train_size=40, holdout=16, seed=seed, batch_size=10), 32, "cpu")
        assert (data.train_count, data.holdout_count, data.steps_per_epoch) == (40, 16, 4)
        aside = torch.cat([x for x, _ in data.holdout_batches(7)])
        trained = torch.cat([data.train_batch(step)[0] for step in range(4)])
        labels.append((aside, trained[torch.argsort(trained.sum((1, 2, 3)))]))
        assert len(torch.unique(torch.cat([aside, trained]), dim=0)) == 56  # no image in both, none twice
    assert torch.equal(labels[0][0], labels[1][0]) and torch.equal(labels[0][1], labels[1][1])


def test_holdout_images_carry_their_labels():
    data = arrays(60)
    batches = DeviceData(data, config(holdout=20), 32, "cpu").holdout_batches(6)
    _, aside = chosen_images(60, 40, 20)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert np.array_equal(x.numpy(), (data.x_train[aside] / 256).transpose(0, 3, 1, 2).astype(np.float32))
    assert np.array_equal(y.numpy(), data.y_train[aside])
    assert list(DeviceData(data, config(), 32, "cpu").holdout_batches(6)) == []


def test_standardize_uses_the_images_trained_on_alone():
    data = arrays(60)
    kept, _ = chosen_images(60, 24, 20)
    cfg = config(normalization="standardize", train_size=24, holdout=20)
    x = torch.cat([x for x, _ in DeviceData(data, cfg, 32, "cpu").estimation_batches(3, 8)]).double()
    assert x.mean((0, 2, 3)).abs().max() < 1e-6 and (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    tests = torch.cat([x for x, _ in DeviceData(data, cfg, 32, "cpu").test_batches(5)]).numpy()
    pixels = data.x_train[kept].astype(np.float64)
    text = (data.x_test - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    assert np.abs(tests - text.transpose(0, 3, 1, 2)).max() < 2e-6


def test_standardize_of_a_single_colour_is_finite():
    x = np.full((9, 8, 8, 3), 200, dtype=np.uint8)
    data = Arrays(x, np.arange(9) % 2, x, np.arange(9) % 2, 2)
    batch, _ = DeviceData(data, config(normalization="standardize"), 8, "cpu").train_batch(0)
    assert torch.equal(batch, torch.zeros_like(batch))


def test_test_batches_cover_the_test_set_once():
    data = arrays(test=11)
    batches = list(DeviceData(data, config(augmentation="svhn"), 32, "cpu").test_batches(4))
    assert [len(x) for x, _ in batches] == [4, 4, 3]
    x, y = (torch.cat(part).numpy() for part in zip(*batches, strict=True))
    assert np.array_equal(x, (data.x_test / 256).transpose(0, 3, 1, 2).astype(np.float32))
    assert np.array_equal(y, data.y_test)


def test_estimation_batches_are_training_images_as_they_are():
    data = arrays(20)
    device_data = DeviceData(data, config(augmentation="svhn", batch_size=8), 32, "cpu")
    batches = list(device_data.estimation_batches(5, 8))  # 40 images of 20: each twice
    assert [len(x) for x, _ in batches] == [8] * 5
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    assert np.array_equal(np.bincount(y.numpy()), 2 * np.bincount(data.y_train))
    assert torch.equal(x[:20], x[20:]) and len(torch.unique(x[:20], dim=0)) == 20
    assert torch.equal(x * 256, (x * 256).round())


def test_too_large_a_batch_is_refused():
    with pytest.raises(InputError, match="batch_size: 51 is more than the 50 images"):
        DeviceData(arrays(50), config(batch_size=51), 32, "cpu")
    with pytest.raises(InputError, match="train_size"):
        DeviceData(arrays(50), config(train_size=60), 32, "cpu")
