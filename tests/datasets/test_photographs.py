"""Photographs, JPEGs made here: folders, ImageNet's archives, shards, reading, augmentation.

Tests that take the slice of real photographs find it in ``$BENCH_DATA/imagenette-sub``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from bench import datasets
from bench.cli.main import main
from bench.datasets import manage
from bench.datasets.imagefolder import IMAGEFOLDER
from bench.datasets.imagenet import DEVKIT, SOLUTION, TRAIN_TAR, VAL_TAR, ImageNet, Published
from bench.datasets.photographs import crops, decode, shards
from bench.datasets.photographs import images as photographs
from bench.datasets.photographs.prepare import Settings, prepare
from bench.datasets.streamed_batches import PhotographData
from bench.errors import InputError
from bench.experiments import catalog
from bench.experiments.identity import identity
from bench.randomness import combine, key_of, permutation, sample_bits
from bench.records.store import Store
from bench.training.job import Job
from bench.training.trial import comparable, run_trial
from tests.configs import make_config

OWN = {"kind": "imagefolder", "name": "own"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(number: int, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    """Return a smooth picture of its own, (width, height) given or of many sizes."""
    generator = np.random.default_rng(number)
    width, height = size or (24 + 5 * (number % 7), 24 + 3 * (number % 11))
    small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(number: int, kind: str = "JPEG", **keywords) -> bytes:
    out = io.BytesIO()
    picture(number, **keywords).save(out, kind, quality=92)
    return out.getvalue()


def tree(root: Path, train: int = 6, test: int = 3, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    """Write a folder of classes: JPEGs, among them a CMYK one, a grey one, and a PNG that is called .JPEG."""
    number = 0
    for part, count in (("train", train), ("val", test)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                data = jpeg(
                    number, **({} if i else {"mode": "CMYK"} if name == classes[0] else {"mode": "L"})
                )
                if (name, i) == (classes[1], 1):
                    data = jpeg(number, "PNG")
                (root / part / name / f"{i:03d}.JPEG").write_bytes(data)
                number += 1
    return root


def prepared(data_dir: Path, form: str = "jpeg", **keywords) -> shards.Manifest:
    how = Settings(form, 352 if form == "raw" else None, **keywords)
    folder = IMAGEFOLDER.shards_folder(OWN, data_dir)
    return prepare(
        "own", lambda: IMAGEFOLDER.listing(OWN, data_dir), folder, how, lambda _: True, lambda _: None
    )


def config(**fields):
    own = {"dataset": OWN, "network": "resnet20", "epochs": 3, "batch_size": 4, "train_size": None}
    return make_config(
        **{**own, "augmentation": "random_resized_crop", "normalization": "divide_255", **fields}
    )


def batches(data_dir: Path, size: int = 16, worker: tuple[int, int] = (0, 1), **fields) -> PhotographData:
    cfg = config(**fields)
    return datasets.make_data(datasets.load(cfg.dataset, data_dir), cfg, size, "cpu", worker)


# --- decoding -----------------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_rgb():
    plain = picture(1)
    for mode in ("RGB", "L", "CMYK"):
        found = decode.pixels(jpeg(1, mode=mode))
        expected = np.asarray(plain.convert(mode).convert("RGB"))
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).mean() < 6, mode
    for mode in ("RGB", "RGBA", "P", "LA"):
        out = io.BytesIO()
        plain.convert(mode).save(out, "PNG")
        assert np.array_equal(
            decode.pixels(out.getvalue()), np.asarray(plain.convert(mode).convert("RGB"))
        ), mode


def test_bytes_that_are_no_photograph_are_refused():
    whole = jpeg(1, size=(200, 200))
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    gif = io.BytesIO()
    picture(1).save(gif, "GIF")
    cases = {
        b"": "empty",
        whole[: len(whole) // 2]: "truncated",
        b"hello" * 100: "not an image",
        bomb.getvalue(): "pixels",
        gif.getvalue(): "not an image",
        whole[:100]: "[Tt]runcated",
    }
    for data, words in cases.items():
        with pytest.raises(decode.BadImage, match=words):
            decode.pixels(data)


def test_the_stored_size_keeps_the_ratio_and_never_enlarges():
    assert decode.stored_size(500, 375, 352) == (469, 352)  # 469.33
    assert decode.stored_size(375, 500, 352) == (352, 469)
    assert decode.stored_size(300, 200, 352) == (300, 200)
    assert decode.stored_size(300, 201, None) == (300, 201)
    assert decode.stored_size(7, 5, 3) == (4, 3)  # 4.2


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_lies(tmp_path):
    tree(tmp_path / "own")
    loaded = datasets.load(OWN, tmp_path)
    assert loaded.num_classes == 3
    assert loaded.y_train.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    for part, images in (("train", loaded.train), ("val", loaded.test)):
        files = sorted((tmp_path / "own" / part).glob("*/*"))
        assert len(files) == len(images.index)
        for number, file in enumerate(files):
            expected = np.asarray(Image.open(file).convert("RGB"))
            assert np.array_equal(images.read(number), expected)
            assert np.array_equal(images.read(number, 3, 9), expected[3:9])
            assert images.index[number]["sums"].tolist() == expected.astype(int).sum((0, 1)).tolist()
            assert (
                images.index[number]["squares"].tolist() == (expected.astype(int) ** 2).sum((0, 1)).tolist()
            )
    facts = catalog.facts(OWN, tmp_path)
    assert (facts.num_classes, facts.train_count, facts.test_count) == (3, 18, 9)


def test_identity_follows_content_and_not_where_or_when(tmp_path):
    tree(tmp_path / "a" / "own")
    tree(tmp_path / "b" / "own")
    first = catalog.checksum(OWN, tmp_path / "a")
    assert first == catalog.checksum(OWN, tmp_path / "b")
    victim = tmp_path / "b" / "own" / "train" / "cat" / "002.JPEG"
    victim.write_bytes(jpeg(77))
    assert catalog.checksum(OWN, tmp_path / "b") != first
    (tmp_path / "a" / "own" / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "own" / "train" / ".hidden").mkdir()
    assert catalog.checksum(OWN, tmp_path / "a") == first
    with pytest.raises(InputError, match="not the one this was started with"):
        datasets.load(OWN, tmp_path / "b", first)


def test_the_checksum_is_computed_once(tmp_path, monkeypatch):
    from bench.datasets.photographs.listing import Item

    tree(tmp_path / "own")
    first = catalog.checksum(OWN, tmp_path)
    monkeypatch.setattr(Item, "bytes", lambda self: pytest.fail("read again"))
    assert catalog.checksum(OWN, tmp_path) == first


def test_bytes_changed_unnoticed_are_found_when_loading(tmp_path):
    tree(tmp_path / "own")
    catalog.checksum(OWN, tmp_path)
    victim = tmp_path / "own" / "train" / "cat" / "002.JPEG"
    status, data = victim.stat(), bytearray(victim.read_bytes())
    data[-10] ^= 1
    victim.write_bytes(data)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match="changed although"):
        datasets.load(OWN, tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda root: (root / "val").rename(root / "elsewhere"),
            r"expected the folders train/CLASS/ and val/CLASS/",
        ),
        (lambda root: (root / "val" / "cat").rename(root / "val" / "dog"), "without cat, with dog besides"),
        (lambda root: (root / "train" / "dog").mkdir(), "train has 4 classes, val 3: without dog"),
        (lambda root: [p.unlink() for p in (root / "val" / "bee").iterdir()], "val: no images in bee"),
    ],
)
def test_a_tree_of_another_form_is_refused(tmp_path, damage, words):
    damage(tree(tmp_path / "own"))
    with pytest.raises(InputError, match=words):
        datasets.load(OWN, tmp_path)
    assert catalog.checksum(OWN, tmp_path) is None
    with pytest.raises(InputError, match=words):
        catalog.require(OWN, tmp_path)


def test_what_is_absent_or_outside_is_refused(tmp_path):
    tree(tmp_path / "own")
    with pytest.raises(InputError, match="Such folders there: imagefolder:own"):
        datasets.load({"kind": "imagefolder", "name": "other"}, tmp_path)
    for name in ("../own", "/etc", "a/../../b", "x\0y"):
        with pytest.raises(InputError, match="not a name inside"):
            datasets.load({"kind": "imagefolder", "name": name}, tmp_path)


def test_corrupt_images_of_a_folder_are_named_and_counted(tmp_path):
    root = tree(tmp_path / "own")
    (root / "train" / "ant" / "001.JPEG").write_bytes(b"")
    whole = root / "train" / "bee" / "003.JPEG"
    whole.write_bytes(whole.read_bytes()[:-200])
    (root / "train" / "cat" / "004.JPEG").write_bytes(b"no image at all")
    with pytest.raises(InputError) as error:
        datasets.load(OWN, tmp_path)
    text = str(error.value)
    assert "3 corrupt images" in text and "--max-corrupt" in text
    for name in (
        "train/ant/001.JPEG: an empty file",
        "train/bee/003.JPEG",
        "train/cat/004.JPEG: not an image",
    ):
        assert name in text
    with pytest.raises(InputError, match=r"001.JPEG is corrupt"):
        manage.verify("imagefolder:own", tmp_path)


def test_a_folder_too_large_for_memory_is_to_be_prepared(tmp_path, monkeypatch):
    tree(tmp_path / "own")
    monkeypatch.setattr("bench.datasets.imagefolder.FOLDER_BYTES", 1000)
    with pytest.raises(InputError, match="bench data prepare imagefolder:own"):
        datasets.load(OWN, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "RESIDENT_BYTES", 1000)
    with pytest.raises(InputError, match="more than the 9"):
        datasets.load(OWN, tmp_path)


# --- preparation --------------------------------------------------------------------------------------------


def test_jpeg_shards_hold_the_same_data_under_the_same_identity(tmp_path):
    tree(tmp_path / "own")
    before, identity = datasets.load(OWN, tmp_path), catalog.checksum(OWN, tmp_path)
    manifest = prepared(tmp_path)
    assert catalog.checksum(OWN, tmp_path) == identity == manifest.checksum
    for resident in (1 << 30, 0):
        after = shards.load(manifest, resident)
        assert isinstance(after.train, photographs.InMemory) == bool(resident)
        for name in ("train", "test"):
            old, new = getattr(before, name), getattr(after, name)
            for field in ("height", "width", "label", "sums", "squares"):
                assert np.array_equal(old.index[field], new.index[field])
            for number in range(len(old.index)):
                assert np.array_equal(old.read(number), new.read(number))
                assert np.array_equal(old.read(number)[2:7], new.read(number, 2, 7))
        assert np.array_equal(before.mean_sum, after.mean_sum)
    assert sorted(path.name for path in manifest.folder.iterdir()) == sorted(
        ["manifest.json", *manifest.files]
    )
    assert shards.problems(manifest) == []


def test_verify_and_prepare_say_what_changed_since_and_what_is_in_both_parts(tmp_path):
    root = tree(tmp_path / "own")

    def said(thorough):
        return " ".join(IMAGEFOLDER.remarks(OWN, tmp_path, thorough))

    first, there = sorted((root / "train/ant").iterdir()), sorted((root / "val/bee").iterdir())[0]
    assert said(True) == ""
    before = there.read_bytes()
    there.write_bytes(first[0].read_bytes())
    both = "1 of 9 test images are training images as well"
    assert f"{both}: val/bee/{there.name}" in said(True)
    prepared(tmp_path)
    assert said(False) == both
    there.write_bytes(before)
    changed = "the 27 images in own.shards are read; the folder, with {} images, has changed since"
    assert changed.format(27) in said(True)
    first[1].unlink()
    assert changed.format(26) in said(False)


def test_raw_shards_are_what_pillow_decodes_at_the_stored_size(tmp_path):
    root = tree(tmp_path / "own")
    how = Settings("raw", 30)
    folder = IMAGEFOLDER.shards_folder(OWN, tmp_path)
    manifest = prepare(
        "own", lambda: IMAGEFOLDER.listing(OWN, tmp_path), folder, how, lambda _: True, lambda _: None
    )
    loaded = datasets.load(OWN, tmp_path)
    smaller = 0
    for number, file in enumerate(sorted(root.glob("train/*/*"))):
        image = Image.open(file).convert("RGB")
        if min(image.size) > 30:
            smaller += 1
            scale = 30 / min(image.size)
            image = image.resize([int(side * scale + 0.5) for side in image.size], Image.Resampling.BICUBIC)
        assert np.array_equal(loaded.train.read(number), np.asarray(image))
    assert smaller > 3
    # no image's bytes are in the manifest, but every shard's checksum is, and so in the identity
    text = (folder / "manifest.json").read_text()
    document = {key: value for key, value in manifest.document().items() if key != "remarks"}
    assert manifest.checksum == "sha256:" + hashlib.sha256(shards.canonical_json(document)).hexdigest()
    assert "sha256:" + hashlib.sha256((folder / "train-00000.bin").read_bytes()).hexdigest() in text


def test_the_mean_image_is_of_central_squares(tmp_path):
    root = tree(tmp_path / "own")
    loaded = datasets.load(OWN, tmp_path)
    total = np.zeros((256, 256, 3))
    for file in sorted(root.glob("train/*/*")):
        image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        side = min(image.shape[1:])
        top, left = ((extent - side) / 2 for extent in image.shape[1:])
        box = (left, top, left + side, top + side)
        total += np.asarray(
            Image.open(file).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR, box=box)
        )
    assert np.array_equal(loaded.mean_sum, total)


def test_several_shards_and_corrupt_images_leave_no_gap(tmp_path, monkeypatch):
    root = tree(tmp_path / "own")
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 4)
    for name in ("ant/001.JPEG", "bee/003.JPEG", "cat/005.JPEG"):
        (root / "train" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"3 corrupt images: train/ant/001.JPEG.*At most 2 may be left out"):
        prepared(tmp_path, max_corrupt=2)
    manifest = prepared(tmp_path, max_corrupt=3)  # goes on with the shards that are there
    assert manifest.counts == {"train": 15, "test": 9}
    assert [name for name, _ in manifest.corrupt] == [
        "train/ant/001.JPEG",
        "train/bee/003.JPEG",
        "train/cat/005.JPEG",
    ]
    assert manifest.shards("train") == [f"train-{n:05d}.bin" for n in range(4)]
    loaded = datasets.load(OWN, tmp_path)
    good = [file for file in sorted(root.glob("train/*/*")) if file.stat().st_size]
    for number, file in enumerate(good):
        assert np.array_equal(loaded.train.read(number), np.asarray(Image.open(file).convert("RGB")))
    assert catalog.facts(OWN, tmp_path).train_count == 15
    assert shards.problems(manifest) == []


def test_a_preparation_killed_before_its_plan_was_written_begins_anew(tmp_path):
    tree(tmp_path / "own")
    folder = tmp_path / "own.shards"
    folder.mkdir()
    for name in (".plan.json.1-0a.tmp", ".lock"):
        (folder / name).write_bytes(b"{")
    made = prepared(tmp_path, "raw")
    assert made.folder == folder and {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *made.files,
    }


def test_what_killed_preparations_left_half_written_is_removed(tmp_path, monkeypatch):
    tree(tmp_path / "own")
    with monkeypatch.context() as patched:
        patched.setattr("bench.datasets.photographs.prepare._remove_parts", lambda folder: None)
        folder = prepared(tmp_path, "raw").folder
    (folder / "manifest.json").unlink()
    for name in (".train.index.1-0a.tmp", ".train-00000.note.1-0a.tmp", "train-00000.tmp"):
        (folder / name).write_bytes(b"half")
    made = prepared(tmp_path, "raw")
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *made.files}


SLOW = """
import sys, time
from pathlib import Path
from bench.datasets.photographs import prepare, shards
shards.IMAGES_PER_SHARD = 4
from bench.datasets.imagefolder import IMAGEFOLDER
own, data = {"name": "own"}, Path(sys.argv[1])
lines = int(sys.argv[2])  # after so many the process waits to be killed; 0: it goes on to the end
def say(text):
    global lines
    print(text, flush=True)
    lines -= 1
    if lines == 0:
        time.sleep(600)
prepare.prepare("own", lambda: IMAGEFOLDER.listing(own, data), IMAGEFOLDER.shards_folder(own, data),
                prepare.Settings("raw", 30), lambda text: True, say)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    for name in ("whole", "killed"):
        tree(tmp_path / name / "own")
        for path in sorted((tmp_path / name / "own").rglob("*")):
            os.utime(path, (1e9, 1e9))
    command = [sys.executable, "-c", SLOW]
    subprocess.run([*command, str(tmp_path / "whole"), "0"], check=True, capture_output=True)
    folder, kills = tmp_path / "killed" / "own.shards", 0
    for lines in (2, 3, 3):
        stops = [*command, str(tmp_path / "killed"), str(lines)]
        child = subprocess.Popen(stops, stdout=subprocess.PIPE, text=True)
        for _ in range(lines):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += not (folder / "manifest.json").exists()
    assert kills == 3
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.bin")}
    assert len(kept) >= 2
    time.sleep(0.02)
    subprocess.run([*command, str(tmp_path / "killed"), "0"], check=True, capture_output=True)
    for path in (tmp_path / "whole" / "own.shards").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in folder.iterdir()} == {
        p.name for p in (tmp_path / "whole" / "own.shards").iterdir()
    }
    assert all(
        (folder / name).stat().st_mtime_ns == changed for name, changed in kept.items()
    )  # not written twice


def test_a_preparation_begun_otherwise_is_not_mixed(tmp_path, monkeypatch):
    root = tree(tmp_path / "own")
    monkeypatch.setattr(
        "bench.datasets.photographs.prepare._write_file",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")),
    )
    with pytest.raises(InputError, match="No space left"):
        prepared(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"begun otherwise \(form, short_side changed\)"):
        prepared(tmp_path, "raw")
    victim = root / "train" / "ant" / "000.JPEG"
    victim.write_bytes(jpeg(99))
    with pytest.raises(InputError, match=r"begun otherwise \(source changed\)"):
        prepared(tmp_path)


def test_prepared_already_is_said_and_another_form_refused(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path)
    assert prepared(tmp_path) == manifest
    with pytest.raises(InputError, match="prepared already, as JPEG shards; delete it"):
        prepared(tmp_path, "raw")


def test_someone_elses_folder_is_left_alone(tmp_path):
    tree(tmp_path / "own")
    (tmp_path / "own.shards").mkdir()
    (tmp_path / "own.shards" / "precious").write_text("x")
    with pytest.raises(InputError, match="is no preparation"):
        prepared(tmp_path)


# --- damaged shards -----------------------------------------------------------------------------------------


def test_shards_cut_short_missing_or_changed(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path, "raw")
    shard = manifest.folder / "train-00000.bin"
    data = shard.read_bytes()
    identity = catalog.checksum(OWN, tmp_path)
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"train-00000.bin has .* bytes of"):
        datasets.load(OWN, tmp_path)
    assert catalog.checksum(OWN, tmp_path) is None
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00000.bin is missing"):
        datasets.load(OWN, tmp_path)
    shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(InputError, match=r"train-00000.bin is corrupt"):
        manage.verify("imagefolder:own", tmp_path)
    shard.write_bytes(data)
    assert "intact" in manage.verify("imagefolder:own", tmp_path)
    assert catalog.checksum(OWN, tmp_path) == identity
    loaded = datasets.load(OWN, tmp_path)
    shard.write_bytes(data[:100])
    with pytest.raises(InputError, match="cut short"):
        loaded.train.read(len(loaded.train.index) - 1)
    index = manifest.folder / "train.index"
    index.write_bytes(index.read_bytes()[:-1] + b"\1")
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"train.index is corrupt"):
        datasets.load(OWN, tmp_path)


def rewrite(manifest: shards.Manifest, name: str, data: bytes) -> None:
    """Write a file and a manifest that agrees with it, as someone who means harm would."""
    (manifest.folder / name).write_bytes(data)
    document = manifest.document()
    document["files"][name] = [len(data), "sha256:" + hashlib.sha256(data).hexdigest()]
    (manifest.folder / "manifest.json").write_bytes(shards.canonical_json(document))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", 3),
        ("height", 0),
        ("width", 2**31),
        ("height", 70_000),
        ("offset", 2**63),
        ("length", 5),
        ("shard", 1),
    ],
)
def test_records_that_lie_are_refused_before_memory_is_taken(tmp_path, field, value):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path, "raw")
    index = np.fromfile(manifest.folder / "train.index", dtype=photographs.RECORD)
    index[field][2] = value
    rewrite(manifest, "train.index", index.tobytes())
    with pytest.raises(InputError, match="a record is out of range"):
        datasets.load(OWN, tmp_path)


def test_an_image_larger_than_its_record_is_refused(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path)
    index = np.fromfile(manifest.folder / "train.index", dtype=photographs.RECORD)
    index["height"][2] -= 1
    rewrite(manifest, "train.index", index.tobytes())
    loaded = shards.load(shards.read_manifest(manifest.folder), 0)
    with pytest.raises(InputError, match="in the index"):
        loaded.train.read(2)


def test_manifests_of_any_content_are_refused_with_a_message(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path)
    path, good = manifest.folder / "manifest.json", manifest.document()
    changes = [
        {"schema": 1},
        {"remarks": 3},
        {"form": "pickle"},
        {"counts": {"train": -1, "test": 9}},
        {"counts": {"train": 2**40, "test": 9}},
        {"counts": {"train": 2**31, "test": 9}},
        {"counts": {"train": 18.0, "test": 9}},
        {"classes": ["one"]},
        {"classes": 3},
        {"files": {**good["files"], "../../escape": [1, "x"]}},
        {"files": {**good["files"], "mean.bin": [2**60, "x"]}},
        {"files": {**good["files"], "train.index": [1, "x"]}},
        {"files": {name: pair for name, pair in good["files"].items() if name != "mean.bin"}},
        {"files": []},
        {"short_side": "x"},
    ]
    texts = [json.dumps({**good, **change}) for change in changes]
    texts += [json.dumps({k: v for k, v in good.items() if k != gone}) for gone in good]
    texts += ["", "[]", "null", "[" * 100_000, "\0", "1e999"]
    for text in texts:
        path.write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json is damaged"):
            shards.read_manifest(manifest.folder)
        with pytest.raises(InputError, match=r"manifest\.json"):
            datasets.load(OWN, tmp_path)
        with pytest.raises(InputError, match=r"manifest\.json"):
            manage.verify("imagefolder:own", tmp_path)
        assert "incomplete" in manage.list_text(tmp_path)


def test_content_of_other_images_is_found_by_verify(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path)
    (manifest.folder / "manifest.json").write_bytes(
        shards.canonical_json({**manifest.document(), "content": "images:" + 64 * "0"})
    )
    with pytest.raises(InputError, match="content is not that of the shards"):
        manage.verify("imagefolder:own", tmp_path)


# --- the commands -------------------------------------------------------------------------------------------


def test_prepare_announces_and_asks(tmp_path, capsys, monkeypatch):
    tree(tmp_path / "own")
    command = [
        "data",
        "prepare",
        "imagefolder:own",
        "--data",
        str(tmp_path),
        "--form",
        "raw",
        "--short-side",
        "24",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "18 training and 9 test images of 3 classes" in out and "about 0." in out and "--yes" in err
    assert not (tmp_path / "own.shards").exists()
    terminal = io.StringIO("n\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(command) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert main([*command, "--yes"]) == 0
    assert "27 images ready" in capsys.readouterr().out
    assert main(["data", "list", "--data", str(tmp_path)]) == 0
    assert "imagefolder:own  ready" in capsys.readouterr().out


def test_prepare_refuses_what_makes_no_sense(tmp_path, capsys):
    tree(tmp_path / "own")
    for arguments, words in (
        (["imagefolder:own", "--short-side", "200"], "only with --form raw"),
        (["imagefolder:own", "--form", "lmdb"], "expected jpeg or raw"),
        (["imagefolder:own", "--form", "raw", "--short-side", "5000"], "expected 8 to 4096"),
        (["cifar10"], "is read as it is"),
        (["imagefolder:none"], "expected the folders"),
        (["imagenet"], "image-net.org"),
        ([], "which data set"),
    ):
        assert main(["data", "prepare", *arguments, "--data", str(tmp_path), "--yes"]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot download"):
        manage.fetch("imagefolder:gone", tmp_path)


# --- ImageNet -----------------------------------------------------------------------------------------------

SYNSETS = ("n01440764", "n01443537", "n02102040")
IMAGENET = {"kind": "imagenet"}


def add(archive: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def archive(path: Path | None, members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as stream:
        for name, data in members.items():
            add(stream, name, data)
    if path is not None:
        path.write_bytes(out.getvalue())
    return out.getvalue()


def official(root: Path) -> ImageNet:
    """Write a tiny ImageNet in the official archives: 3 classes of 4 images, 6 validation images."""
    root.mkdir(parents=True)
    train = {s: {f"{s}_{i}.JPEG": jpeg(10 * n + i) for i in range(4)} for n, s in enumerate(SYNSETS)}
    archive(root / TRAIN_TAR, {f"{s}.tar": archive(None, train[s]) for s in reversed(SYNSETS)})
    archive(root / VAL_TAR, {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in range(6, 0, -1)})
    # the devkit numbers classes in an order of its own: 1 is the last synset
    synsets = np.array(
        [(i + 1, s) for i, s in enumerate(reversed(SYNSETS))], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = b"\n".join(b"%d" % (1 + i % 3) for i in range(6))
    with tarfile.open(root / DEVKIT, "w:gz") as stream:
        add(stream, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
        add(stream, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
    md5 = hashlib.md5((root / DEVKIT).read_bytes()).hexdigest()
    return ImageNet(Published(classes=3, train=12, test=6, devkit_md5=md5))


def test_imagenet_from_the_official_archives(tmp_path, monkeypatch):
    source = official(tmp_path / "imagenet")
    listing = source.listing({}, tmp_path)
    assert list(listing.classes) == list(SYNSETS)
    assert [item.label for item in listing.parts["train"]] == [0] * 4 + [1] * 4 + [2] * 4
    assert [item.label for item in listing.parts["test"]] == [2, 1, 0, 2, 1, 0]
    for number, item in enumerate(listing.parts["train"]):
        assert item.bytes() == jpeg(10 * (number // 4) + number % 4)
    for number, item in enumerate(listing.parts["test"]):
        assert item.bytes() == jpeg(101 + number)
    monkeypatch.setattr("bench.datasets.imagenet.IMAGENET", source)
    with pytest.raises(InputError, match="bench data prepare imagenet"):
        datasets.load(IMAGENET, tmp_path)
    assert catalog.checksum(IMAGENET, tmp_path) is None
    manage.prepare(
        "imagenet", tmp_path, form="jpeg", short_side=None, max_corrupt=0, yes=True, say=lambda _: None
    )
    loaded = datasets.load(IMAGENET, tmp_path)
    assert loaded.y_test.tolist() == [2, 1, 0, 2, 1, 0]
    assert np.array_equal(loaded.test.read(3), decode.pixels(jpeg(104)))
    assert "intact" in manage.verify("imagenet", tmp_path)
    assert catalog.facts(IMAGENET, tmp_path).train_count == 12


def test_imagenet_from_folders_is_the_same_data(tmp_path):
    source = official(tmp_path / "imagenet")
    expected = source.listing({}, tmp_path).content()
    other = tmp_path / "other" / "imagenet"
    for n, synset in enumerate(SYNSETS):
        for part in ("train", "val"):
            (other / part / synset).mkdir(parents=True)
        for i in range(4):
            (other / "train" / synset / f"{synset}_{i}.JPEG").write_bytes(jpeg(10 * n + i))
    for i in range(1, 7):
        (other / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(jpeg(100 + i))
    with pytest.raises(InputError, match="half sorted"):
        source.listing({}, tmp_path / "other")
    for synset in SYNSETS:
        (other / "val" / synset).rmdir()
    with pytest.raises(InputError, match=f"put {DEVKIT} or {SOLUTION}"):
        source.listing({}, tmp_path / "other")
    with (other / SOLUTION).open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ImageId", "PredictionString"])
        for i, label in enumerate([2, 1, 0, 2, 1, 0], 1):
            rows.writerow([f"ILSVRC2012_val_{i:08d}", f"{SYNSETS[label]} 1 2 3 4 {SYNSETS[label]} 5 6 7 8 "])
    assert source.listing({}, tmp_path / "other").content() == expected


def corrupted(root: Path, change) -> None:
    data = (root / TRAIN_TAR).read_bytes()
    (root / TRAIN_TAR).write_bytes(change(data))


def folders(root: Path, count: int, packed: bool = False) -> None:
    for synset in SYNSETS[:count]:
        (root / "train" / synset).mkdir(parents=True)
        (root / "train" / synset / f"{synset}_1.JPEG").write_bytes(jpeg(1))
    if packed:
        (root / "train" / f"{SYNSETS[-1]}.tar").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / VAL_TAR).unlink(), f"{VAL_TAR} .* missing"),
        (lambda root: (root / DEVKIT).unlink(), "nothing says which class"),
        (lambda root: (root / DEVKIT).write_bytes(b"x"), "MD5"),
        (lambda root: corrupted(root, lambda data: data[: len(data) // 2]), "cut short"),
        (
            lambda root: corrupted(root, lambda data: data[:20480].rstrip(b"\0")),
            "cut short|archives of classes",
        ),
        (lambda root: corrupted(root, lambda data: b""), "cut short"),
        (lambda root: corrupted(root, lambda data: os.urandom(20_480)), "not a tar archive"),
        (
            lambda root: corrupted(root, lambda data: archive(None, {"n01440764.tar": b"x"})),
            "1 archives of classes of 3",
        ),
        (
            lambda root: corrupted(root, lambda data: archive(None, {"../../n01440764.tar": b""})),
            "unexpected member",
        ),
        (
            lambda root: corrupted(
                root, lambda data: archive(None, {f"{s}.tar": b"x" * 700 for s in SYNSETS})
            ),
            "tar archive",
        ),
        (lambda root: folders(root, 2), "2 folders of classes .* of 3"),
        (lambda root: folders(root, 3), "3 training images of 12"),
        (lambda root: folders(root, 2, packed=True), "half extracted: 1 archives"),
        (
            lambda root: archive(root / VAL_TAR, {"ILSVRC2012_val_00000001.JPEG": b""}),
            "1 validation images of 6",
        ),
        (
            lambda root: archive(
                root / TRAIN_TAR, {f"{s}.tar": archive(None, {f"/etc/{s}_1.JPEG": b""}) for s in SYNSETS}
            ),
            "unexpected member",
        ),
    ],
)
def test_imagenet_that_is_not_whole(tmp_path, damage, words):
    source = official(tmp_path / "imagenet")
    damage(tmp_path / "imagenet")
    with pytest.raises(InputError, match=words):
        source.listing({}, tmp_path)


def test_links_in_archives_are_refused(tmp_path):
    source = official(tmp_path / "imagenet")
    with tarfile.open(tmp_path / "imagenet" / TRAIN_TAR, "w") as stream:
        add(stream, f"{SYNSETS[0]}.tar", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    with pytest.raises(InputError, match="no plain file"):
        source.listing({}, tmp_path)


# --- augmentation -------------------------------------------------------------------------------------------


def draws(count: int, many: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, (count, many), dtype=np.int64)


def test_random_resized_crop_draws_area_and_ratio_as_published():
    count = 20_000
    heights, widths = np.full(count, 1000), np.full(count, 1000)
    window = crops.resized_crop(heights, widths, draws(count, crops.RESIZED_CROP_DRAWS), 224)
    area, ratio = window.height * window.width / 1e6, window.width / window.height
    assert area.min() > 0.079 and area.max() <= 1.0 and ratio.min() > 0.74 and ratio.max() < 1.35
    # accepted tries alone: by the same rule from NumPy's own generator
    generator = np.random.default_rng(5)
    a, r = (
        generator.uniform(0.08, 1, 200_000),
        np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), 200_000)),
    )
    fits = (a * r <= 1) & (a / r <= 1)
    for found, expected in ((area, a[fits]), (np.log(ratio), np.log(r[fits]))):
        for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert np.quantile(found, quantile) == pytest.approx(np.quantile(expected, quantile), abs=0.02)
    for start, side in ((window.top, window.height), (window.left, window.width)):
        assert (start >= 0).all() and (start + side <= 1000).all()
        free = side < 900
        assert np.mean(start[free] / (1000 - side[free])) == pytest.approx(0.5, abs=0.02)
    assert window.flip.mean() == pytest.approx(0.5, abs=0.02)


def test_random_resized_crop_step_by_step_as_torchvision_says():
    heights, widths = np.array([300, 224, 40, 500]), np.array([200, 350, 400, 500])
    values = draws(4, crops.RESIZED_CROP_DRAWS, 3)
    window = crops.resized_crop(heights, widths, values, 64)
    for i in range(4):
        height, width = int(heights[i]), int(widths[i])
        u = [(int(v) + 0.5) / 2**32 for v in values[i]]
        for k in range(10):
            area = height * width * (0.08 + 0.92 * u[k])
            ratio = (4 / 3) ** (2 * u[10 + k] - 1)
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                top, left = int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1))
                break
        else:  # the third image is ten times wider than high
            w, h = round(height * 4 / 3), height
            top, left = (height - h) // 2, (width - w) // 2
        assert (window.top[i], window.left[i], window.height[i], window.width[i]) == (top, left, h, w)
        assert window.flip[i] == (u[22] > 0.5)


def test_cut_and_resize_are_torchs_and_pillows(tmp_path):
    image = np.asarray(picture(3, size=(90, 70)))
    for top, left, height, width, size in ((5, 7, 40, 60, 32), (0, 0, 70, 90, 96), (10, 10, 20, 20, 20)):
        cut = image[top : top + height, left : left + width]
        found = crops.resized(cut, size, size, 0, 0, size, False).numpy().astype(int)
        by_pillow = Image.fromarray(image).crop((left, top, left + width, top + height))
        by_pillow = np.asarray(by_pillow.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        whole = torch.from_numpy(image.copy()).permute(2, 0, 1)
        by_torch = tv.resized_crop(
            whole, top, left, height, width, [size, size], InterpolationMode.BILINEAR, True
        )
        assert np.abs(found - by_pillow).max() <= 1
        assert np.abs(found - by_torch.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def cubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize with the cubic kernel of a = -0.75 at half-pixel centres, pixel by pixel, in float64."""

    def kernel(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def matrix(source: int, target: int) -> np.ndarray:
        result = np.zeros((target, source))
        for i in range(target):
            centre = (i + 0.5) * source / target - 0.5
            for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                result[i, min(max(j, 0), source - 1)] += kernel(centre - j)
        return result

    rows, columns = matrix(image.shape[0], height), matrix(image.shape[1], width)
    exact = np.stack([rows @ image[..., channel].astype(float) @ columns.T for channel in range(3)], axis=-1)
    return np.clip(np.rint(exact), 0, 255)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 420), (250, 230), (200, 180)])
def test_the_released_augmentation_step_by_step(width, height):
    """A NumPy reading of the released steps.

    The short side becomes 224..308 at random, width and height are jittered by 0.85..1.15 (never beyond the
    source, at least 224), cubic, then a random crop of 224 and a flip.
    """
    image = np.asarray(picture(8, size=(width, height)))
    values = draws(3, crops.JITTER_DRAWS, width)
    window = crops.scale_jitter(np.full(3, height), np.full(3, width), values, 224)
    for i in range(3):
        u = [(int(v) + 0.5) / 2**32 for v in values[i]]
        short = 224 + int(u[0] * 85)
        scale = short / min(width, height)
        new_width = int(max(224, min(width, scale * (0.85 + 0.3 * u[1]) * width)))
        new_height = int(max(224, min(height, scale * (0.85 + 0.3 * u[2]) * height)))
        expected = cubic(image, new_height, new_width)
        top, left = int(u[3] * (new_height - 223)), int(u[4] * (new_width - 223))
        expected = expected[top : top + 224, left : left + 224]
        if u[5] >= 0.5:
            expected = expected[:, ::-1]
        place = [int(field[i]) for field in window]
        assert place[:6] == [0, 0, height, width, new_height, new_width]
        found = crops.resized(image, *place[4:8], 224, True)
        found = found.flip(1) if place[8] else found
        difference = np.abs(found.numpy() - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # ties of rounding


def test_the_released_augmentation_draws_its_whole_range():
    count = 20_000
    window = crops.scale_jitter(
        np.full(count, 5000), np.full(count, 5000), draws(count, crops.JITTER_DRAWS), 224
    )
    for side in (window.to_height, window.to_width):
        assert side.min() == 224 and 340 <= side.max() <= 354  # 308 * 1.15 = 354.2
    ratio = window.to_width / window.to_height
    assert 0.739 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.353
    assert (window.row <= window.to_height - 224).all() and (window.column <= window.to_width - 224).all()
    small = crops.scale_jitter(
        np.full(count, 128), np.full(count, 128), draws(count, crops.JITTER_DRAWS), 128
    )
    assert set(small.to_height.tolist()) == {128}  # never enlarged


def test_the_test_view_is_256_to_224(tmp_path):
    for width, height in ((500, 375), (300, 420), (224, 224)):
        image = np.asarray(picture(4, size=(width, height)))
        place = [int(field[0]) for field in crops.view(np.array([height]), np.array([width]), 224)]
        found = crops.resized(image, *place[4:8], 224, False).numpy().astype(int)
        scale = 256 / min(width, height)
        size = [int(side * scale + 0.5) for side in (width, height)]
        small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - 224) // 2 for side in size)
        assert (
            np.abs(found - np.asarray(small.crop((left, top, left + 224, top + 224))).astype(int)).max() <= 1
        )


# --- batches ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    tree(root / "own")
    return root


@pytest.mark.parametrize(
    "augmentation", ["none", "random_resized_crop", "scale_jitter", "scale_jitter_released"]
)
def test_a_batch_is_a_function_of_seed_and_step(folder, augmentation):
    straight = batches(folder, augmentation=augmentation)
    taken = [straight.train_batch(step) for step in range(6)]
    assert straight.steps_per_epoch == 4
    jumping = batches(folder, augmentation=augmentation)
    for step in (5, 0, 3, 4):
        images, labels = jumping.train_batch(step)
        assert torch.equal(images, taken[step][0]) and torch.equal(labels, taken[step][1])
        again = jumping.prepare(*jumping.inputs(step), torch.tensor(step))
        assert torch.equal(again[0], images) and torch.equal(again[1], labels)
    images, labels = taken[0]
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)
    other = batches(folder, augmentation=augmentation, seed=1)
    assert not torch.equal(other.train_batch(0)[0], images)
    seen = torch.cat([straight.indices(step) for step in range(4)])
    assert len(set(seen.tolist())) == 16
    assert torch.equal(seen, permutation(18, key_of(0, "order", 0))[:16])


def test_the_pixels_of_a_batch_are_those_of_its_windows(folder):
    data = batches(folder)
    loaded = datasets.load(OWN, folder)
    images, labels = data.train_batch(5)
    numbers = data.indices(5).tolist()
    values = sample_bits(
        combine(key_of(0, "augmentation", "random_resized_crop"), 5), torch.arange(4), (23,)
    ).numpy()
    for i, number in enumerate(numbers):
        whole = loaded.train.read(number)
        window = crops.resized_crop(*(np.array([side]) for side in whole.shape[:2]), values[i : i + 1], 16)
        top, left, height, width, *_, flip = (int(field[0]) for field in window)
        cut = Image.fromarray(whole).crop((left, top, left + width, top + height))
        expected = np.asarray(cut.resize((16, 16), Image.Resampling.BILINEAR)).astype(np.float64)
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(images[i].permute(1, 2, 0).numpy() * 255 - expected).max() < 1.001
        assert labels[i] == loaded.y_train[number]


def test_ranks_share_the_batch_of_one_process(folder):
    whole = batches(folder)
    parts = [batches(folder, worker=(rank, 2)) for rank in range(2)]
    for step in (0, 4):
        for which in (0, 1):
            together = torch.cat([part.train_batch(step)[which] for part in parts])
            assert torch.equal(together, whole.train_batch(step)[which])
    tests = [list(part.test_batches(4)) for part in parts]
    expected = list(whole.test_batches(4))
    assert [len(part) for part in tests] == [2, 1]
    assert torch.equal(tests[0][1][0], expected[2][0]) and torch.equal(tests[1][0][0], expected[1][0])


def test_test_holdout_and_estimation_batches(folder):
    data = batches(folder, holdout=5, train_size=8)
    assert (data.train_count, data.holdout_count, data.test_count, data.num_classes) == (8, 5, 9, 3)
    first, second = (list(data.test_batches(4)) for _ in range(2))
    assert [len(labels) for _, labels in first] == [4, 4, 1]
    assert torch.cat([labels for _, labels in first]).tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True)
    )  # the second time they are kept
    assert torch.equal(next(iter(batches(folder).test_batches(4)))[0], first[0][0])
    holdout = torch.cat([images for images, _ in data.holdout_batches(2)])
    train = torch.cat([images for images, _ in data.estimation_batches(2, 4)])
    assert len(holdout) == 5 and len(train) == 8
    assert not any(torch.equal(a, b) for a in holdout for b in train)
    assert list(batches(folder).holdout_batches(2)) == []
    assert len(list(data.estimation_batches(5, 4))) == 5


def test_normalizations(folder):
    loaded = datasets.load(OWN, folder)
    pixels = torch.cat([x for x, _ in batches(folder, augmentation="none").test_batches(9)]).mul(255).round()
    halves = torch.cat([x for x, _ in batches(folder, normalization="divide_256").test_batches(9)])
    assert torch.allclose(halves, pixels / 256)
    everything = [loaded.train.read(i).reshape(-1, 3).astype(float) for i in range(18)]
    mean, deviation = np.concatenate(everything).mean(0), np.concatenate(everything).std(0)
    found = torch.cat([x for x, _ in batches(folder, normalization="standardize").test_batches(9)])
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    part = batches(folder, normalization="standardize", train_size=8)
    chosen = np.concatenate([everything[i] for i in part._chosen])
    found = torch.cat([x for x, _ in part.test_batches(9)])
    expected = (pixels - torch.tensor(chosen.mean(0))[:, None, None]) / torch.tensor(chosen.std(0))[
        :, None, None
    ]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    # at 224 the mean image's central part is taken as it is
    view = next(iter(batches(folder, 224, normalization="divide_255").test_batches(2)))[0].mul(255).round()
    found = next(iter(batches(folder, 224, normalization="pixel_mean").test_batches(2)))[0]
    square = torch.from_numpy(loaded.mean_sum.astype(float) / 18)[16:240, 16:240].permute(2, 0, 1)
    assert torch.allclose(found.double(), (view - square) / 255, atol=1e-6)


def test_augmentations_go_with_their_kind_of_images():
    with pytest.raises(InputError, match="augmentation: 'svhn' is not for photographs"):
        config(augmentation="svhn")
    with pytest.raises(InputError, match="augmentation: 'scale_jitter' is not for images of one size"):
        config(dataset="cifar10", augmentation="scale_jitter")
    with pytest.raises(InputError, match="normalization: 'pixel_mean' is for photographs"):
        config(dataset="cifar10", augmentation="none", normalization="pixel_mean")
    assert config(dataset="imagefolder:own").dataset == OWN


def test_a_failing_read_reaches_the_training_loop(tmp_path):
    tree(tmp_path / "own")
    manifest = prepared(tmp_path, "raw")
    data = batches(tmp_path)
    (manifest.folder / "train-00000.bin").write_bytes(b"")
    with pytest.raises(InputError, match="cut short"):
        data.train_batch(0)


# --- end to end, and the real slice -------------------------------------------------------------------------


def trained(config, trial_id: str, place: Path, data_dir: Path) -> list[dict]:
    """Train in ``place``, interrupted after an epoch; return the epochs' lines without clocks."""
    store, steps = Store(place), iter(range(100))
    for stop in (lambda: next(steps) == 3, lambda: False):
        outcome = run_trial(Job(config, trial_id, {}, store, data_dir, "cpu", stop=stop))
    assert outcome == "done"
    return [comparable(line) for line in store.epochs(trial_id)]


def test_the_record_is_the_same_from_a_folder_from_memory_and_streamed(tmp_path, monkeypatch):
    tree(tmp_path / "own")
    cfg = config(
        batch_size=6, epochs=2, width=0.125, normalization="pixel_mean", quantizer="dorefa", bits="1/2"
    )
    identities, lines = [], []
    for way in ("folder", "memory", "streamed", "raw"):
        if way == "memory":
            prepared(tmp_path)
        elif way == "streamed":
            monkeypatch.setattr(shards, "RESIDENT_BYTES", 0)
        elif way == "raw":
            shutil.rmtree(tmp_path / "own.shards")
            prepared(tmp_path, "raw")
        identities.append(identity(cfg, catalog.checksum(OWN, tmp_path)))
        lines.append(trained(cfg, identities[-1], tmp_path / way, tmp_path))
    assert (
        identities[0] == identities[1] == identities[2] != identities[3]
    )  # raw pixels depend on the decoder
    assert len(lines[0]) == 2
    assert lines[0] == lines[1] == lines[2] == lines[3]


@pytest.fixture
def slice_of_imagenet(tmp_path):
    data = os.environ.get("BENCH_DATA")
    if not data or not (Path(data) / "imagenette-sub").is_dir():
        pytest.skip("set BENCH_DATA to a folder with imagenette-sub")
    return Path(data)


def test_the_real_slice_raw_is_what_pillow_decodes(slice_of_imagenet, tmp_path):
    options = {"name": "imagenette-sub"}
    listing = IMAGEFOLDER.listing(options, slice_of_imagenet)
    assert {part: len(items) for part, items in listing.parts.items()} == {"train": 2200, "test": 500}
    few = type(listing)(listing.classes, {part: items[::25] for part, items in listing.parts.items()})
    manifest = prepare(
        "slice", lambda: few, tmp_path / "s", Settings("raw", 200), lambda _: True, lambda _: None
    )
    loaded = shards.load(manifest)
    for part, images in (("train", loaded.train), ("test", loaded.test)):
        for number, item in enumerate(few.parts[part]):
            image = Image.open(item.path).convert("RGB")
            scale = 200 / min(image.size)
            size = [int(side * scale + 0.5) for side in image.size]
            assert np.array_equal(
                images.read(number), np.asarray(image.resize(size, Image.Resampling.BICUBIC))
            )
