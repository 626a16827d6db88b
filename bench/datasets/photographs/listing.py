"""Which photographs a folder holds, by class and in a fixed order, before any is decoded. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.datasets import checksums
from bench.datasets.photographs.decode import MAX_FILE, SUFFIXES, BadImage, file_bytes
from bench.datasets.photographs.shards import PARTS, content_digest
from bench.errors import InputError
from bench.text import clean

TEST_FOLDERS = ("val", "test")


class Item(NamedTuple):
    """An image: its class, the name it goes by in messages, and its file, or its place in an archive."""

    label: int
    name: str
    path: Path
    offset: int | None = None
    length: int = 0

    def bytes(self) -> bytes:
        """Return its bytes; raises ``BadImage``."""
        if self.offset is None:
            return file_bytes(self.path)
        if self.length > MAX_FILE:
            raise BadImage(f"{self.length:,} bytes")
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.length)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from None
        if len(data) != self.length:
            raise BadImage("the archive ends within it")
        return data


@dataclass(frozen=True)
class Listing:
    """Class names and the images of ``train`` and ``test``, sorted by class and name."""

    classes: Sequence[str]
    parts: Mapping[str, Sequence[Item]]

    @property
    def images(self) -> list[Item]:
        """All images, the training ones first."""
        return [item for part in PARTS for item in self.parts[part]]

    def signature(self) -> str:
        """Return what changes when a file's name, size or time does; reads no image."""
        total = hashlib.sha256()
        for item in self.images:
            if item.offset is None:
                status = item.path.stat()
                line = f"{item.label} {item.name} {status.st_size} {status.st_mtime_ns}"
            else:
                line = f"{item.label} {item.name} {item.offset} {item.length}"
            total.update(line.encode(errors="surrogateescape") + b"\0")
        return total.hexdigest()

    def content(self) -> str:
        """Return the digest of classes, labels and every file's bytes; raises ``InputError`` for an unreadable one."""

        def digests(part: str) -> Iterator[tuple[int, bytes]]:
            for item in self.parts[part]:
                try:
                    yield item.label, hashlib.sha256(item.bytes()).digest()
                except BadImage as error:
                    raise InputError(f"{clean(item.path)}: {error}") from None

        return content_digest(self.classes, {part: digests(part) for part in PARTS})

    def checksum(self, root: Path) -> str:
        """Return ``content()``, remembered by the files' names, sizes and times under ``root``."""
        return checksums.of_many(root, self.signature(), self.content)


def test_folder(root: Path) -> Path | None:
    """Return the folder of the test images: ``val``, else ``test``."""
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted; hidden ones are none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )
    except OSError as error:
        raise InputError(f"{clean(folder)} cannot be read: {error.strerror or error}") from None


def image_files(folder: Path) -> list[str]:
    """Return the names of the image files in ``folder``, by what they end in, sorted; hidden ones are none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES)
                and not entry.name.startswith(".")
                and entry.is_file()
            )
    except OSError as error:
        raise InputError(f"{clean(folder)} cannot be read: {error.strerror or error}") from None


def of_classes(folder: Path, classes: Sequence[str]) -> list[Item]:
    """Return the images of ``folder/CLASS/*``; raises ``InputError`` naming the classes without any."""
    items = [
        Item(label, f"{folder.name}/{name}/{file}", folder / name / file)
        for label, name in enumerate(classes)
        for file in image_files(folder / name)
    ]
    filled = {item.label for item in items}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise InputError(f"{clean(folder)}: no images in {_few(empty)}")
    return items


def of_tree(root: Path) -> Listing:
    """Return the images of ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (or ``test``); raises ``InputError``."""
    tests = test_folder(root)
    if not (root / "train").is_dir() or tests is None:
        raise InputError(
            f"{clean(root)}: expected the folders train/CLASS/ and val/CLASS/ (or test/CLASS/) of images"
        )
    classes, others = class_folders(root / "train"), class_folders(tests)
    if len(classes) < 2:
        raise InputError(f"{clean(root / 'train')}: {len(classes)} folders of classes; at least 2 are needed")
    if classes != others:
        missing, extra = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
        found = [f"without {_few(missing)}"] * bool(missing) + [f"with {_few(extra)} besides"] * bool(extra)
        raise InputError(
            f"{clean(root)}: train has {len(classes)} classes, {tests.name} {len(others)}: {', '.join(found)}"
        )
    return Listing(
        classes, {"train": of_classes(root / "train", classes), "test": of_classes(tests, classes)}
    )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 60) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
