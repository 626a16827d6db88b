"""The common part of ``imagefolder`` and ``imagenet``: photographs read from files or from shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.datasets.loaded import Photographs
from bench.datasets.photographs import decode, shards
from bench.datasets.photographs.decode import BadImage, pixels
from bench.datasets.photographs.images import (
    MEAN_SIDE,
    RECORD,
    InMemory,
    central_square,
    corrupt_text,
    in_threads,
    measured,
)
from bench.datasets.photographs.listing import Item, Listing, left_out_text, repeated, several_frames
from bench.datasets.sources import Facts, Source
from bench.errors import InputError
from bench.text import clean, command

if TYPE_CHECKING:
    from PIL.Image import Image


class PhotographSource(Source):
    """A source of photographs that ``bench data prepare`` can write as shards; subclasses list the images."""

    fetchable = False

    def root(self, options: Mapping[str, Any], data_dir: Path) -> Path:
        """Return the folder of the images, there or not; raises ``InputError`` for a name outside."""
        raise NotImplementedError

    def shards_folder(self, options: Mapping[str, Any], data_dir: Path) -> Path:
        """Return the folder of the shards, there or not."""
        root = self.root(options, data_dir)
        return root.with_name(root.name + ".shards")

    def listing(self, options: Mapping[str, Any], data_dir: Path) -> Listing:
        """Return the images that ``prepare`` reads; raises ``InputError``."""
        raise NotImplementedError

    def manifest(self, options: Mapping[str, Any], data_dir: Path) -> shards.Manifest | None:
        """Return the manifest of the shards, None without shards; raises ``InputError`` for a damaged one."""
        return shards.read_manifest(self.shards_folder(options, data_dir))

    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts:
        facts = super().facts(options, data_dir)
        manifest = self.manifest(options, data_dir)
        if manifest is None:
            return facts
        train, test = (manifest.counts[part] for part in shards.PARTS)
        return replace(facts, num_classes=len(manifest.classes), train_count=train, test_count=test)

    def problem(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        try:
            manifest = self.manifest(options, data_dir)
        except InputError as error:
            return str(error)
        return self.unprepared(options, data_dir) if manifest is None else shards.size_problem(manifest)

    def unprepared(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        """Return why the source cannot be loaded without shards, or None."""
        raise NotImplementedError

    def remedy(self, options: Mapping[str, Any], data_dir: Path) -> str:
        """Return a sentence with the command that prepares the source."""
        words = "data", "prepare", self.label(options), "--data", data_dir
        return f"`{clean(command(*words))}` writes it as shards."

    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        if self.problem(options, data_dir):
            return None
        manifest = self.manifest(options, data_dir)
        if manifest is not None:
            return manifest.checksum
        return self.listing(options, data_dir).checksum(self.root(options, data_dir))

    def load(self, options: Mapping[str, Any], data_dir: Path) -> Photographs:
        self.require(options, data_dir)
        manifest = self.manifest(options, data_dir)
        if manifest is not None:
            return shards.load(manifest)
        images = self.listing(options, data_dir)
        known, found = images.checksum(self.root(options, data_dir)), images.content()
        if known != found:
            raise InputError(
                f"{clean(self.root(options, data_dir))} changed although sizes and times of its files did "
                f"not: checksum {found}, before {known}. If that was meant, touch a file and "
                "run the command again."
            )
        try:
            train, mean_sum = _part(images.parts["train"], shards.RESIDENT_BYTES)
            left = shards.RESIDENT_BYTES - sum(each.nbytes for each in train.pixels)
            test, _ = _part(images.parts["test"], left)
        except InputError as error:
            words = "data", "prepare", self.label(options), "--data", data_dir, "--max-corrupt", "N"
            remedy = clean(command(*words))
            raise InputError(
                f"data set '{self.label(options)}': {error}. `{remedy}` leaves up to N out."
            ) from None
        return Photographs(train, test, len(images.classes), mean_sum)

    def verify(self, options: Mapping[str, Any], data_dir: Path) -> list[str]:
        problem = self.problem(options, data_dir)
        if problem:
            return [problem]
        manifest = self.manifest(options, data_dir)
        if manifest is not None:
            try:
                return shards.problems(manifest)
            except InputError as error:
                return [str(error)]
        return list(filter(None, in_threads(_examined, self.listing(options, data_dir).images)))

    def begun(self, options: Mapping[str, Any], data_dir: Path) -> bool:
        root = self.root(options, data_dir)
        return root.exists() or self.shards_folder(options, data_dir).exists()

    def remarks(self, options: Mapping[str, Any], data_dir: Path, thorough: bool = False) -> list[str]:
        """Return which files of the folder are left out.

        ``thorough`` opens every image: it counts frames, and test images that are training images as well.
        """
        try:
            manifest = self.manifest(options, data_dir)
            if manifest is not None:
                return list(manifest.remarks)
            images = self.listing(options, data_dir)
        except InputError:
            return []
        lines = [left_out_text(images.left_out)]
        if thorough:
            seen = {part: list(in_threads(_seen, images.parts[part])) for part in shards.PARTS}
            several = [name for part in seen.values() for name, frames, _ in part if frames > 1]
            digests = {part: [digest for _, _, digest in rows if digest] for part, rows in seen.items()}
            names = [name for name, _, digest in seen["test"] if digest]
            lines += [several_frames(several), repeated(digests["train"], digests["test"], names)]
        return [line for line in lines if line]

    def fetch(self, options: Mapping[str, Any], data_dir: Path) -> None:
        problem = self.problem(options, data_dir)
        if problem:
            raise InputError(f"{problem} `bench data fetch` cannot download it.")

    def paths(self, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        """Return the files of the shards; without shards the files of the images."""
        try:
            manifest = self.manifest(options, data_dir)
            if manifest is not None:
                return [manifest.folder / name for name in ("manifest.json", *manifest.files)]
            return sorted({item.path for item in self.listing(options, data_dir).images})
        except InputError:
            return [self.shards_folder(options, data_dir) / "manifest.json"]


def _examined(item: Item) -> str | None:
    try:
        pixels(item.bytes())
    except BadImage as error:
        return f"{clean(item.path)} is corrupt: {error}"
    return None


def _seen(item: Item) -> tuple[str, int, bytes]:
    """Return name, number of frames and digest of an image; 0 and no digest for a bad one."""
    try:
        data = item.bytes()
        return item.name, decode.frames(data), decode.digest(data)
    except BadImage:
        return item.name, 0, b""


def _part(items: Sequence[Item], limit: int) -> tuple[InMemory, np.ndarray]:
    """Return images decoded into memory, and the sum of their central squares.

    Raises ``InputError`` that names and counts the corrupt ones, or where all take more than ``limit`` bytes.
    """
    index = np.zeros(len(items), dtype=RECORD)
    index["label"] = [item.label for item in items]
    pixels: list[np.ndarray] = []
    corrupt: list[tuple[str, str]] = []
    mean_sum = np.zeros((MEAN_SIDE, MEAN_SIDE, 3), dtype=np.uint64)
    taken = 0
    for number, result in enumerate(in_threads(_measured, items)):
        if isinstance(result, BadImage):
            corrupt.append((items[number].name, str(result)))
            continue
        image, (sums, squares), square = result
        index["sums"][number], index["squares"][number] = sums, squares
        index["width"][number], index["height"][number] = image.size
        mean_sum += square
        taken += 3 * image.width * image.height
        if taken > limit:
            raise InputError(
                f"decoded, its images take more than the {limit / 2**30:g} GiB that are read into memory"
            )
        pixels.append(np.asarray(image))
    if corrupt:
        raise InputError(corrupt_text(corrupt))
    return InMemory(index, pixels), mean_sum


def _measured(item: Item) -> tuple[Image, tuple[list[int], list[int]], np.ndarray] | BadImage:
    try:
        image = decode.rgb(item.bytes())
    except BadImage as error:
        return error
    return image, measured(image), central_square(image)
