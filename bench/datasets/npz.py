"""A data set of the user's own: ``npz:NAME`` is the file NAME.npz of ``numpy.savez_compressed``.

``x_train`` and ``x_test`` are uint8, (N, H, W), (N, H, W, 1) or (N, H, W, 3); ``y_train`` and ``y_test`` are
integers (N,) from 0 to classes - 1, each class among the training labels. ``group_train``, integers (N,), is
optional: training images with the same number belong together (one photograph, patient or writer), and a
held-out part never splits them. Other arrays in the file are not read; ``bench data list`` names them.

The file is not trusted: nothing is unpickled, and types, shapes and sizes are checked in the headers before
memory is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bench.datasets import checksums, svhn_subset
from bench.datasets.sources import CHUNK, Arrays, Facts, Source
from bench.errors import InputError, readable
from bench.machine.devices import memory_bytes
from bench.machine.folders import acceptable, inside
from bench.text import clean, command

if TYPE_CHECKING:
    import numpy as np

ENTRIES = [
    {
        "name": "npz",
        "factory": "NPZ",
        "help": "your own images: npz:NAME reads NAME.npz (x_train, y_train, x_test, y_test)",
        "options": {
            "name": {"type": "str", "help": "the file's name without .npz, relative to the data folder"}
        },
        "default_recipe": "svhn_subset",
    }
]

KEYS = ("x_train", "y_train", "x_test", "y_test")
GROUPS = "group_train"
MAX_SIDE = 1024
MAX_BYTES = 64 << 30
# Compression shrinks photographs to a half, drawings to a tenth; a deflate bomb shrinks to a thousandth.
MAX_RATIO = 200
SMALL = 64 << 20  # an array of fewer bytes does no harm, whatever its compression


@dataclass(frozen=True)
class _Header:
    """The header of an archive member: dtype and shape of its array, and where the array starts."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int
    bytes: int


class _NPZ(Source):
    kind = "npz"
    fetchable = False

    def labels(self, data_dir: Path) -> dict[str, dict[str, Any]]:
        found = sorted(path.stem for path in data_dir.glob("*.npz")) if data_dir.is_dir() else []
        return {f"npz:{name}": {"name": name} for name in found if acceptable(name)}

    def label(self, options: Mapping[str, Any]) -> str:
        return f"npz:{options['name']}"

    def paths(self, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        return [self.path(options, data_dir)]

    def path(self, options: Mapping[str, Any], data_dir: Path) -> Path:
        """Return the file; raises ``InputError`` for a name that would lead out of the data folder."""
        name = inside("npz", str(options["name"]))
        return data_dir / (name if name.endswith(".npz") else name + ".npz")

    def problem(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        path = self.path(options, data_dir)
        if path.is_file():
            return None
        others = ", ".join(self.labels(data_dir)) or "none"
        subset = path.name == f"{svhn_subset.NAME}.npz"
        prepare = command("data", "prepare", svhn_subset.NAME, "--data", data_dir)
        remedy = f"`{prepare}` builds it from SVHN's files; or " if subset else ""
        return (
            f"data set '{self.label(options)}' is not in {data_dir}: there is no file {path}. "
            f"It is a file of yours, which `bench data fetch` cannot download; {remedy}put it there, "
            f"or name the folder with --data. "
            f"Such files there: {others}."
        )

    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        path = self.path(options, data_dir)
        return checksums.of_file(path) if path.is_file() else None

    def remarks(self, options: Mapping[str, Any], data_dir: Path, thorough: bool = False) -> list[str]:
        path = self.path(options, data_dir)
        try:
            with _opened(path) as stream, _archive(path, stream) as archive:
                others = sorted(set(archive.namelist()) - {f"{key}.npy" for key in (*KEYS, GROUPS)})
        except InputError:
            return []
        shown = [clean(name.removesuffix(".npy"), 40) for name in others[:5]] + ["..."] * (len(others) > 5)
        lines = [f"{len(others):,} other arrays are not read: {', '.join(shown)}"] if others else []
        if thorough:
            from bench.datasets.photographs.listing import repeated

            with contextlib.suppress(InputError):
                arrays = self.load(options, data_dir)
                parts = arrays.x_train, arrays.x_test
                train, test = ([hashlib.sha256(image).digest() for image in part] for part in parts)
                lines.append(repeated(train, test, [f"x_test[{n}]" for n in range(len(test))]))
        return [line for line in lines if line]

    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts:
        facts = super().facts(options, data_dir)
        if self.problem(options, data_dir):
            return facts
        path = self.path(options, data_dir)
        with _opened(path) as stream, _archive(path, stream) as archive:
            headers = _headers(path, archive)
            labels = _read(path, archive, "y_train", headers["y_train"])
        count, *size = headers["x_train"].shape
        classes = int(labels.max()) + 1
        return replace(
            facts,
            num_classes=classes,
            train_count=count,
            test_count=headers["x_test"].shape[0],
            image_size=max(size[:2]),
        )

    def fetch(self, options: Mapping[str, Any], data_dir: Path) -> None:
        self.require(options, data_dir)

    def load(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        self.require(options, data_dir)
        path = self.path(options, data_dir)
        with _opened(path) as stream:
            checksum = checksums.check(path, stream)
            stream.seek(0)
            with _archive(path, stream) as archive:
                headers = _headers(path, archive)
                found = {key: _read(path, archive, key, header) for key, header in headers.items()}
        groups = found.pop(GROUPS, None)
        if checksum == svhn_subset.CHECKSUM:
            groups = svhn_subset.photographs()
        return replace(_arrays(path, found), groups=groups)


NPZ = _NPZ()


def _opened(path: Path) -> BinaryIO:
    with readable(path):
        return path.open("rb")


def _archive(path: Path, stream: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, NotImplementedError) as error:
        raise InputError(f"{path} is not an npz archive, or it is cut short: {error}") from None


def _headers(path: Path, archive: zipfile.ZipFile) -> dict[str, _Header]:
    """Return the checked headers of the four arrays; nothing larger than a header is read."""
    members = archive.infolist()
    names = [member.filename for member in members]
    missing = [key for key in KEYS if f"{key}.npy" not in names]
    if missing:
        there = ", ".join(name.removesuffix(".npy")[:40] for name in names[:8]) or "nothing"
        raise InputError(
            f"{path}: {', '.join(missing)} missing; it holds {there}; expected {', '.join(KEYS)}"
        )
    keys = (*KEYS, GROUPS) if f"{GROUPS}.npy" in names else KEYS
    if any(names.count(f"{key}.npy") > 1 for key in keys):
        raise InputError(f"{path}: an array is in it twice")
    headers = {key: _header(path, archive, key) for key in keys}
    total = sum(header.bytes for header in headers.values())
    packed = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
    if total > min(MAX_BYTES, memory_bytes() or MAX_BYTES):
        raise InputError(
            f"{path}: it unpacks to {total:,} bytes, more than this machine's memory or the limit"
        )
    if total > SMALL and total > MAX_RATIO * packed:
        raise InputError(
            f"{path}: {packed:,} bytes that unpack to {total:,}: images do not shrink so, it is refused"
        )
    for part in ("train", "test"):
        images, labels = headers[f"x_{part}"].shape, headers[f"y_{part}"].shape
        if images[0] != labels[0]:
            raise InputError(f"{path}: x_{part} has {images[0]} images, y_{part} {labels[0]} labels")
    if GROUPS in headers and headers[GROUPS].shape != headers["y_train"].shape:
        raise InputError(
            f"{path}: {GROUPS} has the shape {headers[GROUPS].shape}, y_train {headers['y_train'].shape}"
        )
    if headers["x_train"].shape[1:] != headers["x_test"].shape[1:]:
        raise InputError(
            f"{path}: images of x_train are {headers['x_train'].shape[1:]}, "
            f"of x_test {headers['x_test'].shape[1:]}"
        )
    return headers


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> _Header:
    import numpy as np

    member = archive.getinfo(f"{key}.npy")
    where = f"{path}: {key}"
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: encrypted or packed in a way that numpy does not write")
    try:
        with archive.open(member) as stream:
            # Version 1.0 has headers of at most 64 KiB; 2.0 and 3.0 are for records, which images are not.
            if np.lib.format.read_magic(stream) != (1, 0):
                raise InputError(f"{where}: not a plain array")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            offset = stream.tell()
    except InputError:
        raise
    except Exception as error:  # numpy's parser raises various errors for bytes that are no header
        raise InputError(f"{where} is corrupt: {error}") from None
    images = key.startswith("x_")
    if dtype.hasobject:
        raise InputError(
            f"{where} holds Python objects, which are never read; "
            f"expected {'uint8' if images else 'integers'}"
        )
    if images and dtype != np.uint8:
        raise InputError(f"{where} is {dtype}; expected uint8 pixels 0..255")
    if not images and dtype.kind not in "iu":
        raise InputError(f"{where} is {dtype}; expected integer labels")
    sides = shape[1:3]
    if images and not (
        len(shape) in (3, 4)
        and all(1 <= side <= MAX_SIDE for side in sides)
        and shape[3:] in ((), (1,), (3,))
    ):
        expected = f"(N, H, W), (N, H, W, 1) or (N, H, W, 3) with sides up to {MAX_SIDE}"
        raise InputError(f"{where} has the shape {_short_shape(shape)}; expected {expected}")
    if not images and len(shape) != 1:
        raise InputError(f"{where} has the shape {_short_shape(shape)}; expected (N,)")
    if not 1 <= shape[0] < 2**31:
        raise InputError(f"{where} has the shape {_short_shape(shape)}: no images, or too many")
    size = math.prod(shape, start=dtype.itemsize)
    if member.file_size != offset + size:
        raise InputError(f"{where} is corrupt: {member.file_size - offset:,} bytes for an array of {size:,}")
    return _Header(shape, dtype, fortran, offset, size)


_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError)


def _short_shape(shape: tuple[int, ...]) -> str:
    text = str(shape[:6])
    return text if len(shape) <= 6 and len(text) < 80 else text[:80] + "..."


def _read(path: Path, archive: zipfile.ZipFile, key: str, header: _Header) -> np.ndarray:
    """Return one array; only the bytes that its header announced are read, and the CRC is checked."""
    import numpy as np

    buffer = np.empty(header.bytes, dtype=np.uint8)
    try:
        with archive.open(f"{key}.npy") as stream:
            stream.read(header.offset)
            done = 0
            while done < header.bytes:
                block = stream.read(min(CHUNK, header.bytes - done))
                if not block:
                    raise EOFError("it ends early")
                buffer[done : done + len(block)] = np.frombuffer(block, dtype=np.uint8)
                done += len(block)
            stream.read(1)  # reads to the end, where the archive compares the CRC
    except (EOFError, *_BROKEN) as error:
        raise InputError(f"{path}: {key} is corrupt: {error}") from None
    array = buffer.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
    return np.ascontiguousarray(array)


def _arrays(path: Path, found: Mapping[str, np.ndarray]) -> Arrays:
    """Check the labels and return the arrays in their final form; raises ``InputError``."""
    import numpy as np

    train, test = found["y_train"], found["y_test"]
    for key, labels in (("y_train", train), ("y_test", test)):
        if labels.min() < 0 or labels.max() >= len(train):
            raise InputError(
                f"{path}: {key} has labels from {labels.min()} to {labels.max()}; expected 0 to classes - 1"
            )
    classes = int(train.max()) + 1
    counts = np.bincount(train.astype(np.int64), minlength=classes)
    if classes < 2 or not counts.all():
        absent = ", ".join(map(str, np.flatnonzero(counts == 0)[:8])) or "all but 0"
        raise InputError(
            f"{path}: y_train must hold every class from 0 to {max(classes - 1, 1)}; absent: {absent}"
        )
    if test.max() >= classes:
        raise InputError(
            f"{path}: y_test has the label {test.max()}, which is not among the {classes} of y_train"
        )
    images = {key: x if x.ndim == 4 else x[..., None] for key, x in found.items() if key.startswith("x_")}
    return Arrays(images["x_train"], train.astype(np.int64), images["x_test"], test.astype(np.int64), classes)
