"""ImageNet, ILSVRC-2012 (Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 1409.0575).

A download needs an account at image-net.org. ``bench data prepare imagenet`` reads the files in the folder
``imagenet`` of the data folder and writes shards into ``imagenet.shards``; training reads the shards. The
files are

- ``ILSVRC2012_img_train.tar``, or the folder ``train`` with 1,000 folders named by synset;
- ``ILSVRC2012_img_val.tar``, or the folder ``val``. The class of an image is the folder of ``val``, named by
  synset, that it lies in. For images without such folders, ``ILSVRC2012_devkit_t12.tar.gz`` or Kaggle's
  ``LOC_val_solution.csv`` gives the classes.

Archives are read without unpacking. Names in an archive are compared with the official names and never become
paths. Classes are numbered in the order of their synsets, as in other software.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bench.datasets.photographs.listing import Item, LeftOut, Listing, class_folders, image_files, of_classes
from bench.datasets.photographs.source import PhotographSource
from bench.errors import InputError
from bench.text import clean, command

ENTRIES = [
    {
        "name": "imagenet",
        "factory": "IMAGENET",
        "help": "ImageNet (ILSVRC-2012): 1,281,167 + 50,000 photographs in 1,000 classes, prepared as shards",
        "title": "ImageNet Large Scale Visual Recognition Challenge (Russakovsky et al., 2014)",
        "arxiv": "1409.0575",
        "augmentations": ["none", "random_resized_crop", "scale_jitter", "scale_jitter_released"],
        "num_classes": 1000,
        "train_count": 1_281_167,
        "test_count": 50_000,
        "default_recipe": "imagenet_resnet",
    }
]

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, SOLUTION = "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"
_SYNSET = re.compile(r"n\d{8}")
_IMAGE = re.compile(r"(n\d{8})_\d{1,9}\.JPEG")
_VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_MAX_READ = 64 << 20  # bytes of a file that is read whole; the official devkit has files under 2 MB


@dataclass(frozen=True)
class Published:
    """The published numbers of classes and images, and the MD5 of the devkit, which numbers the classes."""

    classes: int = 1000
    train: int = 1_281_167
    test: int = 50_000
    devkit_md5: str = "fa75699e90414af021442c21a62c3abf"


class ImageNet(PhotographSource):
    """The data set in any of its official forms."""

    kind = "imagenet"

    def __init__(self, published: Published | None = None) -> None:
        self.published = published or Published()

    def root(self, options: Mapping[str, Any], data_dir: Path) -> Path:
        return data_dir / "imagenet"

    def unprepared(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        missing = _missing(self.root(options, data_dir), data_dir)
        if missing:
            return f"data set 'imagenet' is not in {clean(data_dir)}: {missing}"
        return f"data set 'imagenet' is not prepared. {self.remedy(options, data_dir)}"

    def paths(self, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        if self.shards_folder(options, data_dir).is_dir():
            return super().paths(options, data_dir)
        return [self.root(options, data_dir) / name for name in (TRAIN_TAR, VAL_TAR)]

    def listing(self, options: Mapping[str, Any], data_dir: Path) -> Listing:
        root, published = self.root(options, data_dir), self.published
        missing = _missing(root, data_dir)
        if missing:
            raise InputError(missing)
        left_out: list[LeftOut] = []
        if (root / "train").is_dir():
            classes, train = self._train_folders(root / "train", left_out)
        else:
            classes, train = self._train_archive(root / TRAIN_TAR)
        _check_count(root, "training images", len(train), published.train)
        test = (
            self._val_folder(root, classes, left_out)
            if (root / "val").is_dir()
            else self._val_archive(root, classes)
        )
        _check_count(root, "validation images", len(test), published.test)
        return Listing(classes, {"train": train, "test": test}, left_out)

    def _train_folders(self, folder: Path, left_out: list[LeftOut]) -> tuple[list[str], list[Item]]:
        classes = [name for name in class_folders(folder) if _SYNSET.fullmatch(name)]
        packed = sorted(path.name for path in folder.glob("n*.tar"))
        if packed:
            raise InputError(
                f"{clean(folder)} is half extracted: {len(packed):,} archives of classes are still packed "
                f"({packed[0]}, ...). Unpack them, or delete the folder and let {TRAIN_TAR} be read as it is."
            )
        if len(classes) != self.published.classes:
            raise InputError(
                f"{clean(folder)} holds {len(classes):,} folders of classes (n01440764, ...) of "
                f"{self.published.classes:,}: half extracted?"
            )
        return classes, of_classes(folder, classes, left_out)

    def _train_archive(self, path: Path) -> tuple[list[str], list[Item]]:
        inner: dict[str, tuple[int, int]] = {}
        for name, offset, length in _members(path):
            match = re.fullmatch(r"(n\d{8})\.tar", name)
            if not match or match[1] in inner:
                raise InputError(
                    f"{clean(path)}: unexpected member {clean(name, 80)!r}; expected n01440764.tar, ..."
                )
            inner[match[1]] = offset, length
        if len(inner) != self.published.classes:
            raise InputError(
                f"{clean(path)} holds {len(inner):,} archives of classes of {self.published.classes:,}: "
                "cut short?"
            )
        classes, items = sorted(inner), []
        for label, synset in enumerate(classes):
            found = []
            for name, offset, length in _members(path, *inner[synset]):
                match = _IMAGE.fullmatch(name)
                if not match or match[1] != synset:
                    raise InputError(f"{clean(path)}: {synset}.tar: unexpected member {clean(name, 80)!r}")
                found.append(Item(label, f"train/{synset}/{name}", path, offset, length))
            items += sorted(found, key=lambda item: item.name)
        return classes, items

    def _val_folder(self, root: Path, classes: Sequence[str], left_out: list[LeftOut]) -> list[Item]:
        folder = root / "val"
        folders = class_folders(folder)
        if folders:
            if folders != list(classes):
                raise InputError(
                    f"{clean(folder)} holds {len(folders):,} folders of classes, "
                    f"train {len(classes):,}, or others"
                )
            if image_files(folder):
                raise InputError(f"{clean(folder)} is half sorted: images lie beside the folders of classes")
            return of_classes(folder, classes, left_out)
        names = image_files(folder, left_out)
        labels = self._labels(root, classes, len(names))
        return [Item(labels[_number(folder, name)], f"val/{name}", folder / name) for name in names]

    def _val_archive(self, root: Path, classes: Sequence[str]) -> list[Item]:
        path = root / VAL_TAR
        members = sorted(_members(path))
        labels = self._labels(root, classes, len(members))
        return [
            Item(labels[_number(path, name)], f"val/{name}", path, offset, length)
            for name, offset, length in members
        ]

    def _labels(self, root: Path, classes: Sequence[str], count: int) -> dict[int, int]:
        """Return the class of each validation image by its number, from 1."""
        _check_count(root, "validation images", count, self.published.test)
        if (root / SOLUTION).is_file():
            synsets = _solution(root / SOLUTION)
        elif (root / DEVKIT).is_file():
            synsets = _devkit(root / DEVKIT, self.published.devkit_md5)
        else:
            raise InputError(
                f"{clean(root)}: nothing says which class each validation image shows: "
                f"put {DEVKIT} or {SOLUTION} there, or the images into folders named by synset"
            )
        label = {synset: number for number, synset in enumerate(classes)}
        wrong = sorted({synset for synset in synsets.values() if synset not in label})
        if wrong or set(synsets) != set(range(1, count + 1)):
            reason = f"{len(synsets):,} images of {count:,}"
            if wrong:
                reason = f"{clean(wrong[0], 40)} is no training class"
            raise InputError(f"{clean(root)}: the classes of the validation images do not fit: {reason}")
        return {number: label[synset] for number, synset in synsets.items()}


def _missing(root: Path, data_dir: Path) -> str | None:
    """Return a sentence about the official files that are missing, or None."""
    missing = []
    for archive, folder in ((TRAIN_TAR, "train"), (VAL_TAR, "val")):
        if not (root / folder).is_dir() and not (root / archive).is_file():
            missing.append(f"{archive} (or the folder {folder})")
    if not missing:
        return None
    prepare = command("data", "prepare", "imagenet", "--data", data_dir)
    return (
        f"{' and '.join(missing)} missing in {clean(root)}. They come from image-net.org, "
        f"to those who have an account there; then `{prepare}` writes them as shards."
    )


def _check_count(root: Path, what: str, found: int, expected: int) -> None:
    if found != expected:
        hint = (
            "something is cut short or half extracted" if found < expected else "there is something else, too"
        )
        raise InputError(f"{clean(root)}: {found:,} {what} of {expected:,}: {hint}")


def _number(where: Path, name: str) -> int:
    match = _VAL.fullmatch(name)
    if not match or int(match[1]) < 1:
        raise InputError(
            f"{clean(where)}: unexpected {clean(name, 80)!r}; expected ILSVRC2012_val_00000001.JPEG, ..."
        )
    return int(match[1])


class _FilePart:
    """A part of an open file, with what ``tarfile`` asks of a file."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self.stream, self.start, self.length, self.place = stream, start, length, 0

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> None:
        self.place = max(0, place)

    def read(self, size: int) -> bytes:
        left = min(max(0, self.length - self.place), _MAX_READ)  # a header of more bytes is not a header
        self.stream.seek(self.start + self.place)
        data = self.stream.read(min(size, left))
        self.place += len(data)
        return data


def _members(path: Path, start: int = 0, length: int | None = None) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset in the file, length) of the files in a tar archive, or in an archive within it.

    Nothing is unpacked. Raises ``InputError`` where the archive is damaged, ends early, or holds anything but
    files and folders, for instance links.
    """
    try:
        with path.open("rb") as stream:
            length = path.stat().st_size - start if length is None else length
            part: Any = _FilePart(stream, start, length)
            with tarfile.open(fileobj=part, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # there are 1.28 million of them
                    if member.isdir():
                        continue
                    if not member.isreg() or member.issparse():
                        raise InputError(f"{clean(path)}: {clean(member.name, 80)!r} is no plain file")
                    if member.offset_data + member.size > length:
                        raise InputError(f"{clean(path)} is cut short within {clean(member.name, 80)!r}")
                    yield member.name.removeprefix("./"), start + member.offset_data, member.size
                end = archive.offset
            stream.seek(start + end)
            if end + 2 * tarfile.BLOCKSIZE > length or stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise InputError(f"{clean(path)} is cut short: it has no end")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{clean(path)} is not a tar archive, or it is cut short: {clean(error, 120)}"
        ) from None


def _solution(path: Path) -> dict[int, str]:
    """Return each validation image's synset by its number, from Kaggle's ``ImageId,PredictionString``."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        return {
            _number(path, f"{row[0]}.JPEG"): row[1].split()[0]
            for row in rows[1:]
            if row and _SYNSET.match(row[1])
        }
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(
            f"{clean(path)} is not Kaggle's table of the validation images: {clean(error, 120)}"
        ) from None


def _devkit(path: Path, md5: str) -> dict[int, str]:
    """Return the synset of each validation image by its number, from the devkit once its MD5 matched."""
    import scipy.io

    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_READ else b""
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise InputError(f"{clean(path)} is corrupt: MD5 {found}, published {md5}")
        texts = {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if (
                    name in ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
                    and member.size <= _MAX_READ
                ):
                    content = archive.extractfile(member)
                    texts[name] = content.read() if content else b""
        numbers = texts["ILSVRC2012_validation_ground_truth.txt"].split()
        rows = scipy.io.loadmat(io.BytesIO(texts["meta.mat"]), squeeze_me=True)["synsets"]
        synsets = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        return {place: synsets[int(number)] for place, number in enumerate(numbers, 1)}
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{clean(path)} is not the devkit: {clean(error, 120)}") from None


IMAGENET = ImageNet()
