"""The photographs of a folder, by class and in a fixed order, and the files left out. No torch.

What is read is what ``torchvision.datasets.ImageFolder`` reads: files with one of its suffixes, in the folder
of a class and in the folders below it, links followed, in the same order. Hidden files and folders
(``.name``), which ImageFolder would read, are left out. Every file that is left out is named with the reason.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.datasets import checksums
from bench.datasets.photographs import decode
from bench.datasets.photographs.decode import MAX_FILE, SUFFIXES, BadImage, file_bytes
from bench.datasets.photographs.shards import PARTS, content_digest
from bench.errors import InputError, readable
from bench.text import clean

TEST_FOLDERS = ("val", "test")
HIDDEN = "hidden"
DANGLING = "a link that leads nowhere"
OTHER_SUFFIX = f"none of the suffixes {' '.join(SUFFIXES)}"
CYCLE = "a link to a folder that it lies in"
NO_CLASS = "beside the folders of classes, not in one"
NO_FILE = "not a file"
SHOWN = 5  # names in a message, for each reason
_VERSION = 2  # raised when ``decode.digest`` or ``Listing.content`` changes: cached checksums become void


class Item(NamedTuple):
    """An image: its class, its name in messages, and its file, or its place in an archive."""

    label: int
    name: str
    path: Path
    offset: int | None = None
    length: int = 0

    def bytes(self) -> bytes:
        """Return the encoded image; raises ``BadImage``."""
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


class LeftOut(NamedTuple):
    """A file or folder that is not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """Class names, the images of ``train`` and ``test`` sorted by class and name, and the files left out."""

    classes: Sequence[str]
    parts: Mapping[str, Sequence[Item]]
    left_out: Sequence[LeftOut] = ()

    @property
    def images(self) -> list[Item]:
        """All images, the training images first."""
        return [item for part in PARTS for item in self.parts[part]]

    def signature(self) -> str:
        """Return a digest that changes when a file's name, size or time of change does; no image is read."""
        total = hashlib.sha256(b"%d\0" % _VERSION)
        for item in self.images:
            if item.offset is None:
                status = item.path.stat()
                line = f"{item.label} {item.name} {status.st_size} {status.st_mtime_ns}"
            else:
                line = f"{item.label} {item.name} {item.offset} {item.length}"
            total.update(line.encode(errors="surrogateescape") + b"\0")
        return total.hexdigest()

    def content(self) -> str:
        """Return the digest of classes, labels and images; ``InputError`` for an unreadable file."""

        def digests(part: str) -> Iterator[tuple[int, bytes]]:
            for item in self.parts[part]:
                try:
                    yield item.label, decode.digest(item.bytes())
                except BadImage as error:
                    raise InputError(f"{clean(item.path)}: {error}") from None

        return content_digest(self.classes, {part: digests(part) for part in PARTS})

    def checksum(self, root: Path) -> str:
        """Return ``content()``, remembered by the files' names, sizes and times under ``root``."""
        return checksums.of_many(root, self.signature(), self.content)


def test_folder(root: Path) -> Path | None:
    """Return the folder of the test images: ``val``, else ``test``, None where neither is there."""
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in ``folder``, without hidden ones; raises ``InputError``."""
    return [entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def image_files(folder: Path, left_out: list[LeftOut] | None = None) -> list[str]:
    """Return the sorted image files of ``folder`` itself; its other files are added to ``left_out``."""
    names = []
    for entry in _entries(folder):
        if not entry.is_dir():
            reason = _reason(entry)
            if reason is None:
                names.append(entry.name)
            elif left_out is not None:
                left_out.append(LeftOut(f"{folder.name}/{entry.name}", reason))
    return names


def of_classes(folder: Path, classes: Sequence[str], left_out: list[LeftOut]) -> list[Item]:
    """Return the images below ``folder/CLASS`` and note the rest; ``InputError`` for empty classes."""
    for entry in _entries(folder):
        if not entry.is_dir():
            dangling = entry.is_symlink() and not os.path.exists(entry.path)
            left_out.append(LeftOut(f"{folder.name}/{entry.name}", DANGLING if dangling else NO_CLASS))
        elif entry.name not in classes:
            left_out.append(
                LeftOut(f"{folder.name}/{entry.name}/", HIDDEN if entry.name[0] == "." else NO_CLASS)
            )
    items: list[Item] = []
    empty = []
    for label, name in enumerate(classes):
        found = [
            Item(label, f"{folder.name}/{file.relative_to(folder).as_posix()}", file)
            for _, files in sorted(_tree(folder / name, folder, left_out))
            for file in files
        ]
        items += found
        empty += [name] * (not found)
    if empty:
        raise InputError(
            f"{clean(folder)}: no images in {_listed(empty)}{left_out_text(left_out, '; left out: ')}"
        )
    return items


def of_tree(root: Path) -> Listing:
    """Return the images of ``root/train/CLASS`` and ``root/val/CLASS``; raises ``InputError``."""
    problem = form_problem(root)
    tests = test_folder(root)
    if problem or tests is None:
        raise InputError(problem)
    classes, others = class_folders(root / "train"), class_folders(tests)
    if len(classes) < 2:
        raise InputError(f"{clean(root / 'train')}: {len(classes)} folders of classes; at least 2 are needed")
    if classes != others:
        missing, extra = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
        found = [f"without {_listed(missing)}"] * bool(missing)
        found += [f"with {_listed(extra)} besides"] * bool(extra)
        raise InputError(
            f"{clean(root)}: train has {len(classes)} classes, {tests.name} {len(others)}: {', '.join(found)}"
        )
    left_out = [
        LeftOut(entry.name + "/", f"beside train/ and {tests.name}/")
        for entry in _entries(root)
        if entry.is_dir() and entry.name not in ("train", tests.name)
    ]
    parts = {
        "train": of_classes(root / "train", classes, left_out),
        "test": of_classes(tests, classes, left_out),
    }
    return Listing(classes, parts, left_out)


def form_problem(root: Path) -> str | None:
    """Return what ``root`` lacks to be a folder of photographs, train/ or val/, or None."""
    missing = [] if (root / "train").is_dir() else ["train/CLASS/"]
    missing += [] if test_folder(root) else ["val/CLASS/ (or test/CLASS/)"]
    if not missing:
        return None
    return (
        f"{clean(root)}: expected the folders train/CLASS/ and val/CLASS/ (or test/CLASS/) of images; "
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there"
    )


def left_out_text(left_out: Sequence[LeftOut], before: str = "") -> str:
    """Return how many files are left out, by reason, the first few named; ``""`` where none are."""
    parts = []
    for reason, count in Counter(each.reason for each in left_out).items():
        names = _listed([each.name for each in left_out if each.reason == reason])
        parts.append(f"{count:,} left out ({reason}): {names}")
    return before + "; ".join(parts) if parts else ""


def repeated(train: Iterable[bytes], test: Sequence[bytes], names: Sequence[str] = ()) -> str:
    """Return a line on the test images, given by digests, that are training images as well, or ``""``."""
    known = set(train)
    found = [place for place, digest in enumerate(test) if digest in known]
    if not found:
        return ""
    line = f"{len(found):,} of {len(test):,} test images are training images as well"
    return line + (f": {_listed([names[place] for place in found])}" if names else "")


def several_frames(names: Sequence[str]) -> str:
    """Return a line on the images of which only the first frame or page is read, or ``""``."""
    return (
        f"{len(names):,} with several frames or pages, the first is read: {_listed(names)}" if names else ""
    )


def _tree(
    folder: Path, top: Path, left_out: list[LeftOut], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[Path]]]:
    """Yield (path, its image files sorted) for ``folder`` and every folder below it."""

    def leave(entry: os.DirEntry, reason: str) -> None:
        name = f"{top.name}/{Path(entry.path).relative_to(top).as_posix()}"
        left_out.append(LeftOut(name + "/" * entry.is_dir(), reason))

    files = []
    above = (*above, os.path.realpath(folder))
    for entry in _entries(folder):
        if not entry.is_dir():
            reason = _reason(entry)
            if reason is None:
                files.append(Path(entry.path))
            else:
                leave(entry, reason)
        elif entry.name.startswith("."):
            leave(entry, HIDDEN)
        elif os.path.realpath(entry.path) in above:
            leave(entry, CYCLE)
        else:
            yield from _tree(Path(entry.path), top, left_out, above)
    yield str(folder), files


def _reason(entry: os.DirEntry) -> str | None:
    """Return why an entry that is no folder is not read, or None for an image file."""
    if entry.name.startswith("."):
        return HIDDEN
    if entry.is_symlink() and not os.path.exists(entry.path):
        return DANGLING
    if not entry.is_file():
        return NO_FILE
    return None if entry.name.lower().endswith(SUFFIXES) else OTHER_SUFFIX


def _entries(folder: Path) -> list[os.DirEntry]:
    with readable(clean(folder)), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 60) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
