"""Photographs of the user's own in folders of classes: ``imagefolder:NAME``.

NAME is a folder in the data folder with ``train/CLASS/`` and ``val/CLASS/`` (or ``test/CLASS/``). The same
images are read as by ``torchvision.datasets.ImageFolder``, also from folders below a class. Other files are
counted and named (``photographs.listing``). ``photographs.decode`` describes the decoding of each kind of
image. Up to 1 GiB of files is read without preparation. ``bench data prepare`` writes shards into
NAME.shards, which are then read instead of the files. A held-out part is chosen by file, since nothing says
which files belong together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.datasets.photographs import listing, shards
from bench.datasets.photographs.listing import Listing
from bench.datasets.photographs.source import PhotographSource
from bench.datasets.sources import Facts
from bench.errors import InputError
from bench.machine.folders import acceptable, inside
from bench.text import clean

ENTRIES = [
    {
        "name": "imagefolder",
        "factory": "IMAGEFOLDER",
        "help": "your photographs: imagefolder:NAME reads NAME/train/CLASS/* and NAME/val/CLASS/*",
        "options": {"name": {"type": "str", "help": "the folder's name, relative to the data folder"}},
        "augmentations": ["none", "random_resized_crop", "scale_jitter", "scale_jitter_released"],
        "default_recipe": "imagenette",
    }
]

FOLDER_BYTES = 1 << 30  # up to so many bytes of files are read without preparation


class _ImageFolder(PhotographSource):
    kind = "imagefolder"

    def labels(self, data_dir: Path) -> dict[str, dict[str, Any]]:
        if not data_dir.is_dir():
            return {}
        names = {
            name.removesuffix(".shards")
            for name in listing.class_folders(data_dir)
            if (data_dir / name / "manifest.json").is_file()
            or (data_dir / name / "train").is_dir()
            or listing.test_folder(data_dir / name)
        }
        return {
            f"imagefolder:{name}": {"name": name} for name in sorted(names - {"imagenet"}) if acceptable(name)
        }

    def label(self, options: Mapping[str, Any]) -> str:
        return f"imagefolder:{options['name']}"

    def root(self, options: Mapping[str, Any], data_dir: Path) -> Path:
        return data_dir / inside("imagefolder", str(options["name"]))

    def listing(self, options: Mapping[str, Any], data_dir: Path) -> Listing:
        return listing.of_tree(self.root(options, data_dir))

    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts:
        facts = super().facts(options, data_dir)
        if facts.train_count is not None or self.problem(options, data_dir):
            return facts
        images = self.listing(options, data_dir)
        train, test = (len(images.parts[part]) for part in shards.PARTS)
        return replace(facts, num_classes=len(images.classes), train_count=train, test_count=test)

    def unprepared(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        root = self.root(options, data_dir)
        if not root.is_dir():
            others = ", ".join(self.labels(data_dir)) or "none"
            return (
                f"data set '{self.label(options)}' is not in {clean(data_dir)}: there is no folder "
                f"{clean(root)}. It is a folder of yours; put it there, or name the data folder with --data. "
                f"Such folders there: {others}."
            )
        try:
            images = self.listing(options, data_dir).images
        except InputError as error:
            return str(error)
        size = sum(item.path.stat().st_size for item in images)
        if size > FOLDER_BYTES:
            return (
                f"{clean(root)}: {size / 2**30:.1f} GiB of files are too many to read at once. "
                + self.remedy(options, data_dir)
            )
        return None

    def remarks(self, options: Mapping[str, Any], data_dir: Path, thorough: bool = False) -> list[str]:
        lines = super().remarks(options, data_dir, thorough)
        with contextlib.suppress(InputError):
            manifest = self.manifest(options, data_dir)
            if manifest is not None and self.root(options, data_dir).is_dir():
                images = self.listing(options, data_dir)
                read, there = sum(manifest.counts.values()), len(images.images)
                changed = there != read + len(manifest.corrupt) or [*images.classes] != [*manifest.classes]
                if thorough and not (changed or manifest.corrupt):
                    changed = images.content() != manifest.content
                if changed:
                    lines.append(
                        f"the {read:,} images in {clean(manifest.folder.name)} are read; the folder, with "
                        f"{there:,} images, has changed since: delete the shards and prepare them again"
                    )
        return lines


IMAGEFOLDER = _ImageFolder()
