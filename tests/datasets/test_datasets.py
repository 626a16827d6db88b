"""Sources of images: what they read, what they refuse, where they look, what `bench data` says."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import urllib.error
import urllib.request
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bench import datasets
from bench.datasets import checksums, cifar, digits, manage, svhn
from bench.datasets.sources import Download, PublishedFile
from bench.errors import InputError
from bench.experiments import catalog
from bench.machine import folders

NPZ = {"kind": "npz", "name": "mine"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep the user's cache out of the tests."""
    folder = str(tmp_path_factory.mktemp("cache"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, folder)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def good(**changes) -> dict[str, np.ndarray]:
    parts = {
        "x_train": images(12, 6, 5, 3),
        "y_train": np.arange(12) % 4,
        "x_test": images(5, 6, 5, 3, seed=1),
        "y_test": np.arange(5) % 4,
    }
    return {key: value for key, value in {**parts, **changes}.items() if value is not None}


def save(folder: Path, **parts) -> Path:
    path = folder / "mine.npz"
    np.savez_compressed(path, **parts)
    return path


def refusal(dataset, folder) -> str:
    with pytest.raises(InputError) as caught:
        datasets.load(dataset, folder)
    return str(caught.value)


# ---- npz ----


def test_npz_is_read_as_written(tmp_path):
    parts = good()
    save(tmp_path, **parts)
    arrays = datasets.load(NPZ, tmp_path)
    for key, value in parts.items():
        assert np.array_equal(getattr(arrays, key), value)
    assert (arrays.num_classes, arrays.y_train.dtype, arrays.x_train.dtype) == (4, np.int64, np.uint8)


@pytest.mark.parametrize("label_type", [np.uint8, np.int16, ">i4", np.uint64])
def test_npz_reads_grey_uncompressed_fortran_and_any_integer_labels(tmp_path, label_type):
    parts = good(x_train=np.asfortranarray(images(12, 6, 5)), x_test=images(5, 6, 5))
    parts = {key: value.astype(label_type) if key[0] == "y" else value for key, value in parts.items()}
    np.savez(tmp_path / "mine.npz", **parts, remark=np.array(["ignored"]))
    assert "npz:mine: 1 other arrays are not read: remark" in manage.list_text(tmp_path)
    arrays = datasets.load({"kind": "npz", "name": "mine.npz"}, tmp_path)
    assert np.array_equal(arrays.x_train[..., 0], parts["x_train"])
    assert np.array_equal(arrays.y_train, parts["y_train"].astype(np.int64))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"y_test": None}, "y_test missing"),
        ({"x_train": None, "y_train": None, "images": images(3, 4, 4)}, "x_train, y_train missing; it holds"),
        ({"x_train": images(12, 6, 5, 3) / np.float32(255)}, "x_train is float32; expected uint8"),
        ({"x_test": images(5, 6, 5, 3).astype(np.int64)}, "x_test is int64; expected uint8"),
        ({"x_train": images(12, 6, 5, 3).astype(np.uint16) * 257}, "x_train is uint16; expected uint8"),
        ({"x_train": images(12, 6, 5, 3).view(np.int8)}, "x_train is int8; expected uint8"),
        ({"x_train": images(12, 6, 5, 3) > 127}, "x_train is bool; expected uint8"),
        ({"y_train": np.arange(12) % 4 > 1}, "y_train is bool; expected integer"),
        ({"y_train": np.arange(12) * 1.0}, "y_train is float64; expected integer"),
        ({"y_train": np.array([b"a"] * 12)}, "y_train is |S1; expected integer"),
        ({"x_train": np.array([{"a": 1}] * 12, dtype=object)}, "x_train holds Python objects"),
        ({"x_train": images(12, 30)}, "x_train has the shape (12, 30)"),
        ({"x_train": images(12, 6, 5, 4)}, "x_train has the shape (12, 6, 5, 4)"),
        ({"x_train": images(0, 6, 5, 3)}, "no images"),
        ({"x_train": images(2, 2000, 5, 3)}, "sides up to 1024"),
        ({"x_test": images(5, 7, 5, 3)}, "of x_test (7, 5, 3)"),
        ({"y_train": np.arange(11) % 4}, "12 images, y_train 11 labels"),
        ({"y_train": np.arange(12).reshape(12, 1) % 4}, "y_train has the shape (12, 1); expected (N,)"),
        ({"y_train": np.arange(12) % 4 - 1}, "y_train has labels from -1"),
        ({"y_train": np.arange(12) % 4 * 2}, "absent: 1, 3, 5"),
        ({"y_train": np.arange(12) % 4 + 1}, "absent: 0"),
        ({"y_train": np.full(12, 2**62)}, "expected 0 to classes - 1"),
        ({"y_train": np.zeros(12, dtype=int), "y_test": np.zeros(5, dtype=int)}, "absent: all but 0"),
        ({"y_test": np.arange(5)}, "y_test has the label 4"),
        ({"y_test": np.arange(5) - 4}, "y_test has labels from -4"),
    ],
)
def test_npz_refuses_what_is_not_a_data_set(tmp_path, changes, expected):
    path = save(tmp_path, **good(**changes))
    message = refusal(NPZ, tmp_path)
    assert expected in message and str(path) in message


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def packed(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (header("(99999999999, 32, 32, 3)"), "too many"),
        (header("(1000000, 1000, 1000, 3)") + b"\0" * 64, "64 bytes for an array of 3,000,000,000,000"),
        (header("(12, 99999, 99999, 3)"), "sides up to 1024"),
        (header("(-12, 6, 5, 3)"), "no images"),
        (header("(12, 6, -5, 3)"), "has the shape"),
        (header("(12, 6, 5, 3)") + bytes(12 * 6 * 5 * 3 + 1), "for an array of 1,080"),
        (header("(12, 6, 5, 3)") + bytes(1000), "for an array of 1,080"),
        (header("(12, 6, 5, 3)", "|O") + bytes(8), "Python objects"),
        (header("(12, 6, 5, 3"), "corrupt"),
        (header("12"), "corrupt"),
        (header("__import__('os').abort()"), "corrupt"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100, "not a plain array"),
        (b"\x80\x04K\x01.", "corrupt"),
        (b"", "corrupt"),
    ],
)
def test_npz_checks_headers_before_memory_is_taken(tmp_path, content, expected):
    buffers = {}
    for key, value in good().items():
        np.save(buffers.setdefault(key, io.BytesIO()), value)
    packed(tmp_path / "mine.npz", **{key: b.getvalue() for key, b in buffers.items()} | {"x_train": content})
    assert expected in refusal(NPZ, tmp_path)


def test_verify_names_test_images_that_are_training_images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    test = np.concatenate([x[20:], x[3:5]])
    y = np.arange(20) % 2
    np.savez(tmp_path / "own.npz", x_train=x[:20], y_train=y, x_test=test, y_test=np.arange(12) % 2)
    said = manage.verify("npz:own", tmp_path)
    assert "2 of 12 test images are training images as well: x_test[10], x_test[11]" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_train": np.zeros((4, 8, 8, 3), np.float32)}, r"x_train is float32 .4, 8, 8, 3.; expected uint8"),
        ({"x_train": np.zeros((4, 3, 8, 8), np.uint8)}, r"x_train is uint8 .4, 3, 8, 8.; expected uint8"),
        ({"x_test": np.zeros((4, 8, 9, 3), np.uint8)}, "x_test .*expected uint8 .'N', 8, 8, 3"),
        ({"y_test": np.array([0, 1, 2, 1])}, "y_test .*from 0 to 1"),
        ({"y_train": np.array([0, 1, 0], np.int64)}, "y_train is int64 .3,.; expected int64 .4,"),
        ({"y_train": np.array([0.0, 1.0, 0.0, 1.0])}, "y_train is float64"),
        ({"groups": np.arange(3)}, "groups is .3,.; expected .4,"),
    ],
)
def test_a_source_of_the_users_own_returns_what_is_trained_on(monkeypatch, tmp_path, change, words):
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1], np.int64)
    fields = {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "num_classes": 2}
    monkeypatch.setattr(digits.DIGITS, "load", lambda *_: datasets.Arrays(**{**fields, **change}))
    with pytest.raises(InputError, match=f"data set 'digits': {words}"):
        datasets.load({"kind": "digits"}, tmp_path)


def test_npz_refuses_a_decompression_bomb(tmp_path):
    """600 MB of zeros in 0.6 MB: consistent headers, but images do not shrink a thousandfold."""
    count = 200_000
    with zipfile.ZipFile(tmp_path / "mine.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x_train.npy", "w", force_zip64=True) as member:
            member.write(header(f"({count}, 32, 32, 3)"))
            for _ in range(count // 1000):
                member.write(bytes(1000 * 3072))
        for key, content in (("y_train", bytes(count)), ("x_test", bytes(3072)), ("y_test", bytes(1))):
            shape = {"y_train": f"({count},)", "x_test": "(1, 32, 32, 3)", "y_test": "(1,)"}[key]
            archive.writestr(f"{key}.npy", header(shape) + content)
    tracemalloc.start()
    try:
        assert "images do not shrink so" in refusal(NPZ, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_npz_refuses_more_than_the_memory(tmp_path, monkeypatch):
    save(tmp_path, **good())
    monkeypatch.setattr("bench.datasets.npz.memory_bytes", lambda: 1000)
    assert "more than this machine's memory" in refusal(NPZ, tmp_path)


def test_npz_damaged_anywhere_is_refused_or_equal(tmp_path):
    """Cut short at any place, or with any byte changed: one clear message, or the same arrays."""
    parts = good()
    path = save(tmp_path, **parts)
    whole = path.read_bytes()
    generator, refusals = random.Random(0), []
    for trial in range(300):
        if trial % 2:
            place = generator.randrange(len(whole))
            damaged = (
                whole[:place] + bytes([whole[place] ^ (1 << generator.randrange(8))]) + whole[place + 1 :]
            )
        else:
            damaged = whole[: generator.randrange(len(whole))]
        path.write_bytes(damaged)
        os.utime(path, ns=(trial, trial))
        try:
            arrays = datasets.load(NPZ, tmp_path)
        except InputError as error:
            refusals.append(str(error))
        else:
            assert all(np.array_equal(getattr(arrays, key), value) for key, value in parts.items())
    assert len(refusals) > 150 and all(str(path) in message for message in refusals)


@pytest.mark.parametrize(
    "name",
    [
        "../mine",
        "a/../../mine",
        "/etc/passwd",
        "C:mine",
        "\\\\host\\mine",
        "a\0b",
        "",
        "a" * 300,
        "..",
        "a\nb",
        "é\u202e",
    ],
)
def test_npz_names_stay_inside_the_data_folder(tmp_path, name):
    inside = tmp_path / "data"
    inside.mkdir()
    save(tmp_path, **good())
    dataset = {"kind": "npz", "name": name}
    assert "not a name inside the data folder" in refusal(dataset, inside)
    with pytest.raises(InputError, match="not a name inside"):
        catalog.checksum(dataset, inside)


def test_npz_in_a_subfolder(tmp_path):
    (tmp_path / "sub").mkdir()
    save(tmp_path / "sub", **good())
    assert datasets.load({"kind": "npz", "name": "sub/mine"}, tmp_path).num_classes == 4


@pytest.mark.parametrize(
    "content", [b"", b"not a zip file at all", os.urandom(5000), b"PK\x05\x06" + b"\xff" * 18]
)
def test_npz_that_is_rubbish(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    assert str(tmp_path / "mine.npz") in refusal(NPZ, tmp_path)


def test_npz_that_is_absent_or_a_folder(tmp_path):
    save(tmp_path, **good())
    message = refusal({"kind": "npz", "name": "other"}, tmp_path)
    assert str(tmp_path / "other.npz") in message and "bench data fetch" in message and "npz:mine" in message
    (tmp_path / "folder.npz").mkdir()
    assert "no file" in refusal({"kind": "npz", "name": "folder"}, tmp_path)
    assert catalog.checksum({"kind": "npz", "name": "other"}, tmp_path) is None


def test_real_npz(real_data):
    if not (real_data / "svhn_subset.npz").is_file():
        pytest.skip(f"no svhn_subset.npz in {real_data}")
    arrays = datasets.load({"kind": "npz", "name": "svhn_subset"}, real_data)
    with np.load(real_data / "svhn_subset.npz", allow_pickle=False) as whole:
        assert all(np.array_equal(getattr(arrays, key), whole[key]) for key in whole)
    assert arrays.x_train.shape == (9084, 32, 32, 3) and arrays.num_classes == 10


# ---- checksums of files ----


def test_checksum_of_a_file_is_computed_once(tmp_path, monkeypatch):
    path = save(tmp_path, **good())
    expected = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert catalog.checksum(NPZ, tmp_path) == expected
    monkeypatch.setattr(checksums, "compute", lambda stream: pytest.fail("computed again"))
    assert catalog.checksum(NPZ, tmp_path) == expected
    monkeypatch.undo()


def test_checksum_follows_the_file(tmp_path):
    path = save(tmp_path, **good())
    before = catalog.checksum(NPZ, tmp_path)
    save(tmp_path, **good(x_test=images(5, 6, 5, 3, seed=9)))
    os.utime(path, ns=(1, 1))
    assert catalog.checksum(NPZ, tmp_path) != before
    with pytest.raises(InputError, match="not the one this was started with"):
        datasets.load(NPZ, tmp_path, before)


def test_a_change_that_hides_its_time_is_noticed_at_load(tmp_path):
    np.savez(tmp_path / "mine.npz", **good())
    path = tmp_path / "mine.npz"
    before, status = catalog.checksum(NPZ, tmp_path), path.stat()
    np.savez(path, **good(x_test=images(5, 6, 5, 3, seed=9)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert catalog.checksum(NPZ, tmp_path) == before  # size and time are all it looks at
    assert "changed although its size and time did not" in refusal(NPZ, tmp_path)
    assert catalog.checksum(NPZ, tmp_path) != before
    datasets.load(NPZ, tmp_path)


def test_checksums_work_without_a_usable_cache(tmp_path, monkeypatch):
    save(tmp_path, **good())
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert catalog.checksum(NPZ, tmp_path) == catalog.checksum(NPZ, tmp_path) is not None
    datasets.load(NPZ, tmp_path)


# ---- digits ----


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    arrays = datasets.load({"kind": "digits"}, tmp_path)
    facts = catalog.facts({"kind": "digits"}, tmp_path)
    assert (len(arrays.x_train), len(arrays.x_test)) == (facts.train_count, facts.test_count) == (1195, 602)
    assert arrays.x_train.shape[1:] == (8, 8, 1) and arrays.x_train.max() == 255
    grey, labels = load_digits(return_X_y=True)
    for digit in range(10):
        rows = np.floor(grey[labels == digit] * 255 / 16 + 0.5).reshape(-1, 8, 8, 1)
        cut = len(rows) * 2 // 3
        assert np.array_equal(arrays.x_train[arrays.y_train == digit], rows[:cut])
        assert np.array_equal(arrays.x_test[arrays.y_test == digit], rows[cut:])
    assert digits.digest(arrays) == catalog.checksum({"kind": "digits"}, tmp_path)


def test_changed_digits_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "CHECKSUM", "sha256:other")
    assert "not the ones known here" in refusal({"kind": "digits"}, tmp_path)


# ---- CIFAR ----


def cifar_files(folder: Path, kind: str = "cifar10", protocol: int = 2) -> dict[str, dict]:
    """Write files of CIFAR's form, 4 images each; return their contents by name."""
    names = [Path(file.path) for file in getattr(cifar, kind.upper()).files({})]
    contents = {}
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        labels = [(3 * number + i) % 10 for i in range(4)]
        content = {
            "data": images(4, 3072, seed=number),
            "labels": labels,
            "fine_labels": [90 + x for x in labels],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
        contents[name.name] = content
    return contents


def trust(monkeypatch, folder: Path, kind: str = "cifar10") -> None:
    """Let the table of published checksums be that of the files in ``folder``."""
    source = getattr(cifar, kind.upper())
    known = [
        PublishedFile(f.path, md5(folder / f.path), (folder / f.path).stat().st_size)
        for f in source.files({})
    ]
    monkeypatch.setattr(source, "train", tuple(known[:-1]))
    monkeypatch.setattr(source, "test", known[-1])


@pytest.mark.parametrize(
    ("kind", "key", "classes"), [("cifar10", "labels", 10), ("cifar100", "fine_labels", 100)]
)
def test_cifar_planes_become_pixels(tmp_path, monkeypatch, kind, key, classes):
    contents = cifar_files(tmp_path, kind)
    trust(monkeypatch, tmp_path, kind)
    arrays = datasets.load({"kind": kind}, tmp_path)
    *train, test = contents.values()
    flat = np.concatenate([part["data"] for part in train])
    assert arrays.x_train.shape == (len(flat), 32, 32, 3) and arrays.num_classes == classes
    for n, row, column, channel in [(0, 0, 0, 0), (1, 5, 7, 1), (len(flat) - 1, 31, 30, 2), (2, 31, 0, 0)]:
        assert arrays.x_train[n, row, column, channel] == flat[n, channel * 1024 + row * 32 + column]
    assert arrays.y_train.tolist() == [label for part in train for label in part[key]]
    assert arrays.y_test.tolist() == test[key]


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_cifar_pickles_are_not_loaded_before_their_checksum(tmp_path, monkeypatch):
    cifar_files(tmp_path)
    trust(monkeypatch, tmp_path)
    file = tmp_path / "cifar-10-batches-py/data_batch_3"
    size = file.stat().st_size
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    file.write_bytes(trap + bytes(size - len(trap)))
    message = refusal({"kind": "cifar10"}, tmp_path)
    assert str(file) in message and "corrupt: MD5" in message and "bench data fetch cifar10" in message
    assert not (tmp_path / "sprung").exists()
    trust(monkeypatch, tmp_path)  # even with the right checksum nothing but arrays is made
    assert "it asks for" in refusal({"kind": "cifar10"}, tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_missing_and_short_files_are_named(tmp_path, monkeypatch):
    message = refusal({"kind": "cifar10"}, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message and "bench data fetch cifar10 --data" in message
    cifar_files(tmp_path)
    trust(monkeypatch, tmp_path)
    assert catalog.checksum({"kind": "cifar10"}, tmp_path).startswith("md5s:")
    file = tmp_path / "cifar-10-batches-py/test_batch"
    file.write_bytes(file.read_bytes()[:-1])
    assert catalog.checksum({"kind": "cifar10"}, tmp_path) is None
    assert f"{file} is corrupt" in refusal({"kind": "cifar10"}, tmp_path)
    with pytest.raises(InputError, match="test_batch is corrupt"):
        catalog.require({"kind": "cifar10"}, tmp_path)
    file.unlink()
    assert "test_batch is missing" in refusal({"kind": "cifar10"}, tmp_path)


def test_tables_are_torchvisions():
    """Addresses, names and checksums, so that either finds what the other downloaded."""
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN

    for source, theirs in ((cifar.CIFAR10, CIFAR10), (cifar.CIFAR100, CIFAR100)):
        (archive,) = source.downloads({})
        assert (archive.url, archive.filename, archive.md5) == (theirs.url, theirs.filename, theirs.tgz_md5)
        expected = [
            (f"{theirs.base_folder}/{name}", md5) for name, md5 in theirs.train_list + theirs.test_list
        ]
        assert [(file.path, file.md5) for file in source.files({})] == expected
    for download, split in zip(svhn.SVHN.downloads({"extra": True}), ("train", "extra", "test"), strict=True):
        assert [download.url, download.filename, download.md5] == SVHN.split_list[split]


def test_real_cifar10_is_torchvisions(real_data):
    if catalog.checksum({"kind": "cifar10"}, real_data) is None:
        pytest.skip(f"no CIFAR-10 in {real_data}")
    from torchvision.datasets import CIFAR10

    arrays = datasets.load({"kind": "cifar10"}, real_data)
    facts = catalog.facts({"kind": "cifar10"}, real_data)
    assert (len(arrays.x_train), len(arrays.x_test)) == (facts.train_count, facts.test_count)
    theirs = CIFAR10(real_data, train=False)
    assert np.array_equal(arrays.x_test, theirs.data) and arrays.y_test.tolist() == theirs.targets
    assert np.bincount(arrays.y_train).tolist() == [5000] * 10


# ---- SVHN ----


def svhn_files(folder: Path, monkeypatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    import scipy.io

    parts, table = {}, {}
    for seed, (split, count) in enumerate([("train", 6), ("extra", 9), ("test", 4)]):
        x, y = images(count, 32, 32, 3, seed=seed), np.arange(count) % 10 + 1
        path = folder / svhn.FILES[split].path
        scipy.io.savemat(
            path, {"X": x.transpose(1, 2, 3, 0), "y": y.reshape(-1, 1).astype(np.uint8)}, do_compression=True
        )
        parts[split] = x, y % 10
        table[split] = PublishedFile(path.name, md5(path), path.stat().st_size)
    monkeypatch.setattr(svhn, "FILES", table)
    return parts


@pytest.mark.parametrize("extra", [False, True])
def test_svhn(tmp_path, monkeypatch, extra):
    parts = svhn_files(tmp_path, monkeypatch)
    arrays = datasets.load({"kind": "svhn", "extra": extra}, tmp_path)
    train = [parts["train"], parts["extra"]] if extra else [parts["train"]]
    assert np.array_equal(arrays.x_train, np.concatenate([x for x, _ in train]))
    assert np.array_equal(arrays.y_train, np.concatenate([y for _, y in train]))
    assert np.array_equal(arrays.x_test, parts["test"][0]) and np.array_equal(arrays.y_test, parts["test"][1])


def test_svhn_with_and_without_extra_are_two_data_sets(tmp_path, monkeypatch):
    svhn_files(tmp_path, monkeypatch)
    plain, extra = {"kind": "svhn", "extra": False}, {"kind": "svhn", "extra": True}
    assert catalog.checksum(plain, tmp_path) != catalog.checksum(extra, tmp_path)
    assert catalog.facts(plain, tmp_path).train_count == 73_257
    assert catalog.facts(extra, tmp_path).train_count == 604_388  # the paper's, 4,721 steps of 128
    assert catalog.training_count(604_388, batch_size=128) // 128 == 4721
    (tmp_path / "extra_32x32.mat").unlink()
    assert catalog.checksum(plain, tmp_path) and catalog.checksum(extra, tmp_path) is None
    assert "bench data fetch svhn_extra" in refusal(extra, tmp_path)


def test_corrupt_svhn_is_named(tmp_path, monkeypatch):
    svhn_files(tmp_path, monkeypatch)
    path = tmp_path / "test_32x32.mat"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path} is corrupt: MD5" in refusal({"kind": "svhn"}, tmp_path)
    # and where the checksum is right but the content is not:
    monkeypatch.setitem(svhn.FILES, "test", PublishedFile(path.name, md5(path), len(content)))
    with pytest.raises(InputError, match=r"test_32x32\.mat"):
        datasets.load({"kind": "svhn"}, tmp_path)


# ---- the data folder, and what needs no torch ----


def test_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH_DATA", raising=False)
    assert folders.resolve_data_dir(None) == folders.cache_folder() / "data"
    monkeypatch.setenv("BENCH_DATA", "")
    assert folders.resolve_data_dir(None) == folders.cache_folder() / "data"
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    assert folders.resolve_data_dir(None) == tmp_path
    assert folders.resolve_data_dir(tmp_path / "not yet there") == tmp_path / "not yet there"
    monkeypatch.chdir(tmp_path)
    assert folders.resolve_data_dir("here") == tmp_path / "here"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--data: .*is a file"):
        folders.resolve_data_dir(tmp_path / "file")
    with pytest.raises(InputError, match="not a usable path"):
        folders.resolve_data_dir("a\0b")


@pytest.mark.skipif(sys.platform != "linux", reason="the folder differs by platform")
def test_cache_folder_follows_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.cache_folder().parent == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.cache_folder().parent == tmp_path / ".cache"


def test_catalog_imports_nothing_heavy(tmp_path):
    save(tmp_path, **good())
    code = (
        "import sys; from pathlib import Path; from bench.datasets import manage\n"
        "from bench.experiments import catalog\n"
        "folder = Path(sys.argv[1])\n"
        "for kind in ('cifar10', 'cifar100', 'svhn', 'digits'):\n"
        "    catalog.checksum({'kind': kind}, folder); catalog.facts({'kind': kind}, folder)\n"
        "catalog.checksum({'kind': 'npz', 'name': 'mine'}, folder)\n"
        "assert 'numpy' not in sys.modules\n"
        "manage.list_text(folder)\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_npz_facts_are_read_from_the_file(tmp_path):
    save(tmp_path, **good())
    facts = catalog.facts(NPZ, tmp_path)
    assert (facts.num_classes, facts.train_count, facts.test_count, facts.image_size) == (4, 12, 5, 6)
    assert catalog.facts({"kind": "npz", "name": "other"}, tmp_path).train_count is None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"batch_size": 101}, "batch_size: 101"),
        ({"batch_size": 4, "holdout": 100}, "holdout: 100"),
        ({"batch_size": 4, "train_size": 101}, "train_size: 101"),
        ({"batch_size": 4, "train_size": 60, "holdout": 41}, "train_size + holdout: 60 + 41"),
        ({"batch_size": 51, "train_size": 50}, "batch_size: 51"),
    ],
)
def test_too_few_images(asked, expected):
    with pytest.raises(InputError) as caught:
        catalog.training_count(100, name="cifar10", **asked)
    assert expected in str(caught.value) and "cifar10" in str(caught.value)


def test_enough_images():
    assert catalog.training_count(100, batch_size=100) == 100
    assert catalog.training_count(100, batch_size=10, holdout=30) == 70
    assert catalog.training_count(100, batch_size=10, train_size=60, holdout=40) == 60


# ---- bench data ----


def test_list_says_what_is_there(tmp_path, monkeypatch):
    cifar_files(tmp_path)
    trust(monkeypatch, tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python/train").write_bytes(b"cut short")
    save(tmp_path, **good())
    (tmp_path / "bad.npz").write_bytes(b"rubbish")
    text = manage.list_text(tmp_path)
    state = {line.split()[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 4}
    assert state["cifar10"] == state["digits"] == state["npz:mine"] == "ready"
    assert (
        state["svhn"] == state["svhn_extra"] == "missing"
        and state["cifar100"] == state["npz:bad"] == "incomplete"
    )
    assert str(tmp_path) in text and "604,388" in text and str(tmp_path / "bad.npz") in text
    assert manage.list_text(tmp_path / "nowhere")


def test_verify_names_each_corrupt_file(tmp_path, monkeypatch):
    cifar_files(tmp_path)
    trust(monkeypatch, tmp_path)
    save(tmp_path, **good())
    assert "cifar10: intact, 6 files checked" in manage.verify("cifar10", tmp_path)
    report = manage.verify(None, tmp_path)
    assert "npz:mine: intact" in report and "svhn: not there" in report and "digits: intact" in report
    for name in ("data_batch_2", "test_batch"):
        path = tmp_path / "cifar-10-batches-py" / name
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    path = tmp_path / "mine.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError) as caught:
        manage.verify(None, tmp_path)
    message = str(caught.value)
    assert all(name in message for name in ("data_batch_2", "test_batch", "mine.npz", "digits: intact"))
    assert "data_batch_1" not in message
    with pytest.raises(InputError, match="not in"):
        manage.verify("svhn", tmp_path)
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        manage.verify("cifar-10", tmp_path)


def test_verify_takes_svhn_without_extra_for_what_it_is(tmp_path, monkeypatch):
    svhn_files(tmp_path, monkeypatch)
    (tmp_path / "extra_32x32.mat").unlink()
    assert "svhn_extra: not there" in manage.verify(None, tmp_path)
    with pytest.raises(InputError, match=r"extra_32x32\.mat"):
        manage.verify("svhn_extra", tmp_path)


@pytest.fixture
def site(tmp_path):
    """A folder, and the address under which a server on this machine offers it."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_fetch_downloads_checks_and_unpacks(tmp_path, monkeypatch, site):
    (original, address), target = site, tmp_path / "data"
    cifar_files(original)
    trust(monkeypatch, original)
    archive = original / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(original / "cifar-10-batches-py", "cifar-10-batches-py")
    offered = Download(address + archive.name, archive.name, md5(archive), unpack=True)
    monkeypatch.setattr(cifar.CIFAR10, "archive", offered)
    assert "ready" in manage.fetch("cifar10", target)
    assert datasets.load({"kind": "cifar10"}, target).num_classes == 10
    damaged = target / "cifar-10-batches-py/data_batch_1"
    damaged.write_bytes(b"damaged")
    assert "ready" in manage.fetch("cifar10", target)
    assert damaged.stat().st_size > 1000
    archive.unlink()
    assert "ready" in manage.fetch("cifar10", target)  # all there: nothing is asked for


def test_fetch_refuses_what_does_not_match(tmp_path, monkeypatch, site):
    original, address = site
    svhn_files(original, monkeypatch)
    (original / "test_32x32.mat").write_bytes(b"something else")
    monkeypatch.setattr(svhn, "_SITE", address)
    with pytest.raises(InputError, match="could not be downloaded"):
        manage.fetch("svhn", tmp_path / "data")
    assert catalog.checksum({"kind": "svhn"}, tmp_path / "data") is None


def test_fetch_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    from bench.datasets import download

    def offline(*_, **__):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with pytest.raises(InputError) as caught:
        manage.fetch("svhn_extra", tmp_path)
    message = str(caught.value)
    assert "name resolution" in message
    for name in ("train", "extra", "test"):
        assert str(tmp_path / f"{name}_32x32.mat") in message and svhn.FILES[name].md5 in message


def test_fetch_of_what_cannot_be_fetched(tmp_path):
    assert "nothing to download" in manage.fetch("digits", tmp_path)
    with pytest.raises(InputError, match="cannot download"):
        manage.fetch("npz:mine", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be downloaded"):
        manage.fetch("svhn", tmp_path / "file")
