"""The subset of SVHN, built from the official files: the bytes that the records name, and photographs.

Test data are MATLAB files made here. With ``$BENCH_DATA/svhn_subset.npz`` they hold its digits, so that the
file built must have the known checksum.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bench import datasets
from bench.cli.main import main
from bench.datasets import svhn, svhn_subset
from bench.datasets.batch_rows import chosen_images
from bench.datasets.sources import PublishedFile
from bench.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def official(folder: Path, monkeypatch, **parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Write MATLAB files as SVHN has them (the digit 0 is called 10), taken here for the published ones."""
    files = dict(svhn.FILES)
    for split, (images, labels) in parts.items():
        path = folder / svhn.FILES[split].path
        named = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": named})
        data = path.read_bytes()
        files[split] = PublishedFile(path.name, hashlib.md5(data).hexdigest(), len(data))
    monkeypatch.setattr(svhn, "FILES", files)


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, count)


def test_the_file_built_is_the_one_that_the_records_name(tmp_path, real_data, monkeypatch, capsys):
    known = real_data / "svhn_subset.npz"
    if not known.is_file():
        pytest.skip("set BENCH_DATA to a folder with svhn_subset.npz")
    with np.load(known) as file:
        parts = {name: file[name] for name in file.files}
    (x_more, y_more), cut = digits(50, 1), svhn_subset.TRAINED_ON
    x_test = np.concatenate([parts["x_train"][:cut], parts["x_test"], x_more])
    y_test = np.concatenate([parts["y_train"][:cut], parts["y_test"], y_more])
    x_train = np.concatenate([parts["x_train"][cut:], x_more])
    y_train = np.concatenate([parts["y_train"][cut:], y_more])
    official(tmp_path, monkeypatch, train=(x_train, y_train), test=(x_test, y_test))
    for _ in range(2):  # the second time the file is there
        assert main(["data", "prepare", "svhn_subset", "--data", str(tmp_path)]) == 0
        assert "svhn_subset.npz" in capsys.readouterr().out
    assert (tmp_path / "svhn_subset.npz").read_bytes() == known.read_bytes()
    loaded = datasets.load({"kind": "npz", "name": "svhn_subset"}, tmp_path)
    assert np.array_equal(loaded.groups, svhn_subset.photographs())


def test_other_digits_are_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"train_32x32\.mat, test_32x32\.mat are missing"):
        svhn_subset.build(tmp_path)
    official(tmp_path, monkeypatch, train=digits(1100, 2), test=digits(100, 3))
    with pytest.raises(InputError, match="1,100 and 100 digits are too few"):
        svhn_subset.build(tmp_path)
    official(tmp_path, monkeypatch, test=digits(10_000, 3))
    with pytest.raises(InputError, match="what was built has the checksum"):
        svhn_subset.build(tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    (tmp_path / "svhn_subset.npz").write_bytes(b"mine")
    with pytest.raises(InputError, match="is another file"):
        svhn_subset.build(tmp_path)
    assert (tmp_path / "svhn_subset.npz").read_bytes() == b"mine"


def test_photographs_are_runs_of_neighbours():
    photographs = svhn_subset.photographs()
    assert photographs.shape == (svhn_subset.TRAINED_ON + svhn_subset.TRAINING_DIGITS,)
    assert set(np.diff(photographs).tolist()) == {0, 1}
    assert photographs[svhn_subset.TRAINED_ON] == photographs[svhn_subset.TRAINED_ON - 1] + 1
    assert photographs[-1] == 4530 and np.bincount(photographs).max() == 5


@pytest.mark.parametrize("holdout", [1, 100, 1084, 4000])
def test_a_held_out_part_takes_whole_photographs(holdout):
    groups = svhn_subset.photographs()
    total = len(groups)
    train, aside = chosen_images(total, total - holdout, holdout, groups)
    assert len(aside) == holdout and len(train) == total - holdout
    assert np.array_equal(np.sort(np.concatenate([train, aside])), np.arange(total))
    assert not set(groups[train]) & set(groups[aside])
    fewer, same = chosen_images(total, 500, holdout, groups)
    assert np.array_equal(same, aside) and set(fewer) <= set(train)
    # by image, as where photographs are not known, nearly every second photograph would be split
    train, aside = chosen_images(total, total - holdout, holdout)
    assert holdout < 100 or set(groups[train]) & set(groups[aside])


def test_groups_that_cannot_be_made_up_are_an_error():
    assert chosen_images(8, 6, 2, np.arange(8) // 2)[1].tolist() in ([0, 1], [2, 3], [4, 5], [6, 7])
    with pytest.raises(InputError, match=r"holdout: 3 images cannot be made up of whole groups .* 2 can"):
        chosen_images(8, 5, 3, np.arange(8) // 2)


def test_an_npz_file_may_say_which_images_belong_together(tmp_path):
    x, y = digits(12, 4)
    y = np.arange(12) % 4
    parts = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    np.savez(tmp_path / "mine.npz", **parts, group_train=np.arange(12) // 3 * 7)
    loaded = datasets.load({"kind": "npz", "name": "mine"}, tmp_path)
    assert loaded.groups.tolist() == [0] * 3 + [7] * 3 + [14] * 3 + [21] * 3
    np.savez(tmp_path / "mine.npz", **parts, group_train=np.arange(11))
    with pytest.raises(InputError, match=r"group_train has the shape \(11,\)"):
        datasets.load({"kind": "npz", "name": "mine"}, tmp_path)
