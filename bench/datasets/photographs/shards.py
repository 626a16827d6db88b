"""Prepared photographs: large sequential files on disk, JPEG (the source's bytes) or raw (uint8 at a stored short side).

A folder of shards holds ``manifest.json``; of ``train`` and of ``test`` an index of fixed-size records
(``train.index``, see ``photographs.RECORD``) and shards ``train-00000.bin`` ... of 2,048 images each, one after the other
without anything between; and ``mean.bin``, the sum of the training images' central squares. File names are never read
from a file. What the manifest says is checked before memory is taken: sizes of all files, and the checksums of the small
ones, when the folder is opened; those of the shards by ``bench data verify``. No torch, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.datasets import checksums
from bench.datasets.photographs import decode
from bench.datasets.photographs.images import MEAN_SIDE, RECORD, InMemory, Photographs, in_threads
from bench.errors import InputError
from bench.text import clean

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 2  # 2: transparency, 16 bits and orientation are part of an image's digest
FORMS = ("jpeg", "raw")
IMAGES_PER_SHARD = 2048
PARTS = ("train", "test")
MEAN_BYTES = 4 * 3 * MEAN_SIDE**2
MAX_MANIFEST = 64 << 20
# What decoded takes no more than this lies in memory; more is decoded as it is needed.
RESIDENT_BYTES = 2 << 30


def shard_name(part: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{part}-{number:05d}.bin"


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says, its types checked; ``files`` maps names to (bytes, "sha256:...")."""

    folder: Path
    form: str
    short_side: int | None
    classes: tuple[str, ...]
    content: str  # the digest of the source's images and labels (see ``content_digest``)
    decoder: str
    corrupt: tuple[tuple[str, str], ...]
    counts: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]
    remarks: tuple[str, ...] = ()  # what of the source was not read, counted and named

    @property
    def checksum(self) -> str:
        """What stands for the data in a trial's identity.

        Of JPEG shards the content's digest, which the folder they were made of has too: the pixels are the same. Of raw
        ones the digest of the manifest, and so of every pixel.
        """
        if self.form == "jpeg":
            return self.content
        document = self.document()
        del document["remarks"]  # what was not read changes no pixel
        return "sha256:" + hashlib.sha256(encode(document)).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return the content of ``manifest.json``."""
        return {
            "schema": SCHEMA,
            "form": self.form,
            "short_side": self.short_side,
            "classes": list(self.classes),
            "content": self.content,
            "decoder": self.decoder,
            "corrupt": [list(pair) for pair in self.corrupt],
            "counts": dict(self.counts),
            "files": {name: list(pair) for name, pair in self.files.items()},
            "remarks": list(self.remarks),
        }

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def shards(self, part: str) -> list[str]:
        """Return the names of a part's shards."""
        return [shard_name(part, n) for n in range(-(-self.counts[part] // IMAGES_PER_SHARD))]


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document as canonical JSON."""
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()


def content_digest(classes: Iterable[str], parts: Mapping[str, Iterable[tuple[int, bytes]]]) -> str:
    """Return the digest of class names and, of both parts in order, each image's label and the SHA-256 of its bytes."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for part in PARTS:
        total.update(part.encode())
        for label, digest in parts[part]:
            total.update(int(label).to_bytes(4, "little") + digest)
    return "images:" + total.hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of prepared images, None where there is none; raises ``InputError`` where it is damaged."""
    path = folder / "manifest.json"
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        if len(data) > MAX_MANIFEST:
            raise ValueError("too long")
        return _checked(folder, json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path} is damaged, or was not written by `bench data prepare` of this version: {clean(reason, 160)}"
        ) from None


def _checked(folder: Path, document: Any) -> Manifest:
    """Return the manifest of a document; raises ``ValueError`` and the like."""

    def expect(value: Any, kind: type, what: str) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{what}: expected {kind.__name__}")
        return value

    def number(value: Any, what: str, high: int, low: int = 0) -> int:
        if not low <= expect(value, int, what) <= high:
            raise ValueError(f"{what}: {value} is not from {low} to {high}")
        return value

    expect(document, dict, "the file")
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema: expected {SCHEMA}")
    if document["form"] not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}")
    short = document["short_side"]
    counts = {part: number(document["counts"][part], f"counts.{part}", 1 << 31, 1) for part in PARTS}
    classes = tuple(expect(name, str, "classes") for name in expect(document["classes"], list, "classes"))
    number(len(classes), "number of classes", 1 << 20, 2)
    files = {}
    for name, pair in expect(document["files"], dict, "files").items():
        size, digest = expect(pair, list, f"files.{name}")
        files[name] = number(size, f"files.{name}", 1 << 50), expect(digest, str, f"files.{name}")
    manifest = Manifest(
        folder,
        document["form"],
        None if short is None else number(short, "short_side", decode.MAX_SIDE, 1),
        classes,
        expect(document["content"], str, "content"),
        expect(document["decoder"], str, "decoder"),
        tuple((str(name), str(reason)) for name, reason in expect(document["corrupt"], list, "corrupt")),
        counts,
        files,
        tuple(expect(line, str, "remarks") for line in expect(document["remarks"], list, "remarks")),
    )
    named = {"mean.bin", *(f"{part}.index" for part in PARTS)}
    for part in PARTS:
        number(-(-counts[part] // IMAGES_PER_SHARD), "number of shards", len(files))
        named |= set(manifest.shards(part))
    if set(files) != named:
        raise ValueError(f"files: expected {len(named)} by their names, found {len(files)}")
    expected = {"mean.bin": MEAN_BYTES, **{f"{part}.index": RECORD.itemsize * counts[part] for part in PARTS}}
    for name, size in expected.items():
        if files[name][0] != size:
            raise ValueError(f"files.{name}: expected {size} bytes")
    return manifest


def size_problem(manifest: Manifest) -> str | None:
    """Return what is wrong with presence and sizes of the files, or None; quick."""
    wrong = []
    for name, (size, _) in manifest.files.items():
        try:
            found: int | None = (manifest.folder / name).stat().st_size
        except OSError:
            found = None
        if found != size:
            wrong.append(f"{name} is missing" if found is None else f"{name} has {found:,} bytes of {size:,}")
    if not wrong:
        return None
    more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return (
        f"{manifest.folder} is damaged: {', '.join(wrong[:5])}{more}. Delete the folder and prepare it again."
    )


def problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with the files, every byte of them checked, a line each."""
    found = []
    for name, (size, digest) in manifest.files.items():
        path = manifest.folder / name
        try:
            with path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != size:
                    found.append(
                        f"{path} is cut short or too long: {os.fstat(stream.fileno()).st_size:,} of {size:,}"
                    )
                elif checksums.compute(stream) != digest:
                    found.append(f"{path} is corrupt: its checksum is not the manifest's")
        except OSError as error:
            found.append(f"{path} cannot be read: {error.strerror or error}")
    if not found:
        indices = {part: read_index(manifest, part) for part in PARTS}
        if manifest.form == "jpeg":
            digests = {part: _digests(manifest, part, indices[part]) for part in PARTS}
            if content_digest(manifest.classes, digests) != manifest.content:
                found.append(f"{manifest.folder / 'manifest.json'}: content is not that of the shards")
    return found


def _digests(manifest: Manifest, part: str, index: np.ndarray) -> Iterable[tuple[int, bytes]]:
    images = Shards(manifest, part, index)
    for number, record in enumerate(index):
        data = images.encoded(number)
        images.check_size(number, partial(decode.size, data))
        yield int(record["label"]), decode.digest(data)


def _small(manifest: Manifest, name: str) -> bytes:
    """Return the bytes of an index or the mean, its checksum compared; its size was checked with the manifest."""
    size, digest = manifest.files[name]
    path = manifest.folder / name
    try:
        with path.open("rb") as stream:
            data = stream.read(size + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"{path} is corrupt: its checksum is not the manifest's; prepare the data set again")
    return data


def read_index(manifest: Manifest, part: str) -> np.ndarray:
    """Return a part's records (N,), every one checked against the shards; raises ``InputError``."""
    index = np.frombuffer(_small(manifest, f"{part}.index"), dtype=RECORD)
    wide = {
        name: index[name].astype(np.int64)
        for name in ("shard", "offset", "length", "height", "width", "label")
    }
    pixels = wide["height"] * wide["width"]
    ends = np.array([manifest.files[name][0] for name in manifest.shards(part)])
    good = (
        (index["shard"] == np.arange(len(index)) // IMAGES_PER_SHARD).all()
        and (wide["label"] < len(manifest.classes)).all()
        and (pixels > 0).all()
        and (pixels <= decode.MAX_PIXELS).all()
        and max(wide["height"].max(), wide["width"].max()) <= decode.MAX_SIDE
        and (wide["offset"] >= 0).all()
        and (wide["offset"] + wide["length"] <= ends[wide["shard"]]).all()
        and (manifest.form == "jpeg" or (wide["length"] == 3 * pixels).all())
    )
    if not good:
        raise InputError(f"{manifest.folder / f'{part}.index'} is damaged: a record is out of range")
    return index


class Shards:
    """The images of a part, read where they lie, each read on its own; from any number of threads at once."""

    def __init__(self, manifest: Manifest, part: str, index: np.ndarray) -> None:
        self.index = index
        self.raw = manifest.form == "raw"
        self.paths = [manifest.folder / name for name in manifest.shards(part)]
        self.files: dict[int, int] = {}

    def encoded(self, number: int) -> bytes:
        """Return the bytes of an image as they are stored."""
        record = self.index[number]
        return self._bytes(int(record["shard"]), int(record["offset"]), int(record["length"])).tobytes()

    def read(self, number: int, top: int = 0, bottom: int | None = None) -> np.ndarray:
        """Return rows of an image (see ``Images``); of a raw one nothing else is read. Raises ``InputError``."""
        record = self.index[number]
        height, width = int(record["height"]), int(record["width"])
        bottom = height if bottom is None else bottom
        if self.raw:
            start = int(record["offset"]) + 3 * width * top
            data = self._bytes(int(record["shard"]), start, 3 * width * (bottom - top))
            return data.reshape(bottom - top, width, 3)
        image: Image | None = None

        def size() -> tuple[int, int]:
            nonlocal image
            image = decode.rgb(self.encoded(number))
            return image.size

        self.check_size(number, size)
        return np.asarray(image)[top:bottom]

    def check_size(self, number: int, size: Callable[[], tuple[int, int]]) -> None:
        """Compare an image's (width, height), which ``size`` returns, with the index; raises ``InputError``."""
        record = self.index[number]
        try:
            found = size()
            if found != (record["width"], record["height"]):
                raise decode.BadImage(
                    f"its size is {found}, {record['width']} x {record['height']} in the index"
                )
        except decode.BadImage as error:
            raise InputError(f"{self.paths[int(record['shard'])]}: image {number}: {error}") from None

    def _bytes(self, shard: int, offset: int, length: int) -> np.ndarray:
        path, data = self.paths[shard], np.empty(length, dtype=np.uint8)
        try:
            if shard not in self.files:
                # two threads may both open it: the second's descriptor is closed again
                opened = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                if self.files.setdefault(shard, opened) != opened:
                    os.close(opened)
            found = os.preadv(self.files[shard], [data.data], offset)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        if found != length:
            raise InputError(f"{path} is cut short: {found:,} of {length:,} bytes at {offset:,}")
        return data

    def __del__(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])


def _in_memory(shards: Shards) -> InMemory:
    """Return the images decoded, end to end in memory."""
    index = shards.index.copy()
    index["length"] = 3 * index["height"] * index["width"]
    ends = np.cumsum(index["length"].astype(np.int64))
    index["offset"] = ends - index["length"]
    images = InMemory(index, np.empty(ends[-1], dtype=np.uint8))

    def fill(number: int) -> None:
        images.read(number)[...] = shards.read(number)

    for _ in in_threads(fill, range(len(index))):
        pass
    return images


def load(manifest: Manifest, resident_bytes: int | None = None) -> Photographs:
    """Return prepared photographs; raises ``InputError`` for damaged files.

    JPEG shards whose images decoded take up to ``resident_bytes`` (``RESIDENT_BYTES``) are decoded into memory at once;
    others, and raw ones, which the system's cache serves as fast, stay on disk.
    """
    problem = size_problem(manifest)
    if problem:
        raise InputError(problem)
    mean_sum = np.frombuffer(_small(manifest, "mean.bin"), dtype="<u4").reshape(MEAN_SIDE, MEAN_SIDE, 3)
    parts: dict[str, Shards | InMemory] = {}
    left = RESIDENT_BYTES if resident_bytes is None else resident_bytes
    for part in PARTS:
        shards = Shards(manifest, part, read_index(manifest, part))
        size = int((3 * shards.index["height"].astype(np.int64) * shards.index["width"]).sum())
        parts[part] = shards
        if manifest.form == "jpeg" and size <= left:
            left -= size
            parts[part] = _in_memory(shards)
    return Photographs(parts["train"], parts["test"], len(manifest.classes), mean_sum.astype(np.uint64))
