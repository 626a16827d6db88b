"""Prepared photographs in large files: JPEG (the source's bytes) or raw (uint8 at a stored short side).

A folder of shards holds ``manifest.json``; for ``train`` and for ``test`` an index of fixed-size records
(``train.index``, see ``images.RECORD``) and shards ``train-00000.bin`` ... of 2,048 images each, one after
the other without anything between; and ``mean.bin``, the sum of the training images' central squares. No file
name is ever read from a file. What the manifest says is checked before memory is taken: the sizes of all
files and the checksums of the small ones when the folder is opened; the checksums of the shards by ``bench
data verify``. No torch, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from bench.datasets import checksums
from bench.datasets.loaded import Photographs
from bench.datasets.photographs import decode
from bench.datasets.photographs.images import MEAN_SIDE, RECORD, InMemory, in_threads
from bench.errors import InputError, readable
from bench.text import clean

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA: Literal[2] = 2  # 2: transparency, 16 bits and orientation are part of an image's digest
FORMS = ("jpeg", "raw")
IMAGES_PER_SHARD = 2048
PARTS = ("train", "test")
MEAN_BYTES = 4 * 3 * MEAN_SIDE**2
MAX_MANIFEST = 64 << 20
RESIDENT_BYTES = 2 << 30  # images that take no more, decoded, are kept in memory


def shard_name(part: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{part}-{number:05d}.bin"


class Manifest(BaseModel):
    """The content of ``manifest.json``, checked; ``files`` maps names to (bytes, "sha256:...")."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    _folder: Path = PrivateAttr(default=Path())

    version: Annotated[Literal[2], Field(alias="schema")]  # ``SCHEMA``
    form: Literal["jpeg", "raw"]
    short_side: Annotated[int, Field(ge=1, le=decode.MAX_SIDE)] | None
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=1 << 20)]
    content: str  # the digest of the source's images and labels (see ``content_digest``)
    decoder: str
    corrupt: tuple[tuple[str, str], ...]
    counts: dict[str, Annotated[int, Field(ge=1, le=1 << 31)]]
    files: dict[str, tuple[Annotated[int, Field(ge=0, le=1 << 50)], str]]
    remarks: tuple[str, ...]  # what of the source was not read, counted and named

    @model_validator(mode="after")
    def _files_fit(self) -> Manifest:
        if set(self.counts) != set(PARTS):
            raise ValueError(f"counts: expected {' and '.join(PARTS)}")
        if max(self.counts.values()) > len(self.files) * IMAGES_PER_SHARD:
            raise ValueError("counts: more images than the shards hold")
        sizes = {f"{part}.index": RECORD.itemsize * self.counts[part] for part in PARTS} | {
            "mean.bin": MEAN_BYTES
        }
        named = {*sizes, *(name for part in PARTS for name in self.shards(part))}
        if set(self.files) != named:
            raise ValueError(f"files: expected {len(named)} by their names, found {len(self.files)}")
        for name, size in sizes.items():
            if self.files[name][0] != size:
                raise ValueError(f"files.{name}: expected {size} bytes")
        return self

    @property
    def folder(self) -> Path:
        """The folder that holds the shards."""
        return self._folder

    @property
    def checksum(self) -> str:
        """The checksum of the data in a trial's identity.

        For JPEG shards the digest of the content, which the folder that they were made of has too: the pixels
        are the same. For raw shards the digest of the manifest, and so of every pixel; what was not read
        changes no pixel.
        """
        if self.form == "jpeg":
            return self.content
        document = self.document()
        del document["remarks"]
        return "sha256:" + hashlib.sha256(canonical_json(document)).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return the content of ``manifest.json``."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def shards(self, part: str) -> list[str]:
        """Return the names of a part's shards."""
        return [shard_name(part, n) for n in range(-(-self.counts[part] // IMAGES_PER_SHARD))]

    def at(self, folder: Path) -> Manifest:
        """Set ``folder``, and return the manifest."""
        self._folder = folder
        return self


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return a document as canonical JSON."""
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()


def content_digest(classes: Iterable[str], parts: Mapping[str, Iterable[tuple[int, bytes]]]) -> str:
    """Return the digest of the class names and of each image's label and digest, part by part."""
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for part in PARTS:
        total.update(part.encode())
        for label, digest in parts[part]:
            total.update(int(label).to_bytes(4, "little") + digest)
    return "images:" + total.hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of prepared images, None without one; raises ``InputError`` if damaged."""
    path = folder / "manifest.json"
    with readable(path):
        if not path.exists():
            return None
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    try:
        if len(data) > MAX_MANIFEST:
            raise ValueError("too long")
        return Manifest.model_validate_json(data).at(folder)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        reason = str(error)
    raise InputError(
        f"{path} is damaged, or was not written by `bench data prepare` of this version: {clean(reason, 160)}"
    )


def size_problem(manifest: Manifest) -> str | None:
    """Return which files are missing or have another size, or None; quick."""
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
    """Return which files are damaged, a line each, after a check of every byte."""
    found = []
    for name, (size, digest) in manifest.files.items():
        path = manifest.folder / name
        try:
            with path.open("rb") as stream:
                if (there := os.fstat(stream.fileno()).st_size) != size:
                    found.append(f"{path} is cut short or too long: {there:,} of {size:,}")
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


def _checked_bytes(manifest: Manifest, name: str) -> bytes:
    """Return the bytes of an index or of the mean; the checksum is compared, the size was before."""
    size, digest = manifest.files[name]
    path = manifest.folder / name
    with readable(path), path.open("rb") as stream:
        data = stream.read(size + 1)
    if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"{path} is corrupt: its checksum is not the manifest's; prepare the data set again")
    return data


def read_index(manifest: Manifest, part: str) -> np.ndarray:
    """Return a part's records (N,), every one checked against the shards; raises ``InputError``."""
    index = np.frombuffer(_checked_bytes(manifest, f"{part}.index"), dtype=RECORD)
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
    """The images of a part, each read from disk on its own, from any number of threads at once."""

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
        """Return rows of an image (see ``Images``); of a raw one nothing else is read.

        Raises ``InputError``.
        """
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
        """Compare an image's (width, height), which ``size`` returns, with the index.

        Raises ``InputError``.
        """
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
        with readable(path):
            if shard not in self.files:
                # two threads may both open it: the second's descriptor is closed again
                opened = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                if self.files.setdefault(shard, opened) != opened:
                    os.close(opened)
            found = os.preadv(self.files[shard], [data.data], offset)
        if found != length:
            raise InputError(f"{path} is cut short: {found:,} of {length:,} bytes at {offset:,}")
        return data

    def __del__(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])


def load(manifest: Manifest, resident_bytes: int | None = None) -> Photographs:
    """Return prepared photographs; raises ``InputError`` for damaged files.

    JPEG shards whose images decoded take up to ``resident_bytes`` (``RESIDENT_BYTES``) are decoded into
    memory at once; others, and raw ones, which the system's cache serves as fast, stay on disk.
    """
    problem = size_problem(manifest)
    if problem:
        raise InputError(problem)
    mean_sum = np.frombuffer(_checked_bytes(manifest, "mean.bin"), dtype="<u4").reshape(
        MEAN_SIDE, MEAN_SIDE, 3
    )
    parts: dict[str, Shards | InMemory] = {}
    left = RESIDENT_BYTES if resident_bytes is None else resident_bytes
    for part in PARTS:
        shards = Shards(manifest, part, read_index(manifest, part))
        size = int((3 * shards.index["height"].astype(np.int64) * shards.index["width"]).sum())
        parts[part] = shards
        if manifest.form == "jpeg" and size <= left:
            left -= size
            parts[part] = InMemory(shards.index, list(in_threads(shards.read, range(len(shards.index)))))
    return Photographs(parts["train"], parts["test"], len(manifest.classes), mean_sum.astype(np.uint64))
