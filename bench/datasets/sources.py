"""The base classes of sources of images, also for sources whose files have published checksums. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bench.datasets.checksums import md5
from bench.datasets.loaded import Arrays, Loaded
from bench.errors import InputError, readable
from bench.experiments.catalog import Facts
from bench.text import clean, command

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 20


def described(value: Any) -> str:
    """Return a short description of an array, or of another value in its place, for a message."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None or dtype is None else f"{str(dtype)[:40]} {str(shape)[:80]}"


def checked_labels(labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Return labels as int64 (N,).

    Raises ``ValueError`` unless they are ``count`` whole numbers from 0 to classes - 1.
    """
    import numpy as np

    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"expected {count} whole numbers as labels, not {described(labels)}")
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    return labels.astype(np.int64)


class Source:
    """A source of images. ``options`` are the options of its registry entry, ``data_dir`` the data folder.

    A source subclasses this and names itself in its module's ``ENTRIES``: the factory is the instance.
    """

    kind: str
    fetchable = True  # whether ``fetch`` can download it

    def labels(self, data_dir: Path) -> dict[str, dict[str, Any]]:
        """Return the names of the source's data sets in ``bench data``, each with its options."""
        return {self.kind: {}}

    def label(self, options: Mapping[str, Any]) -> str:
        """Return the name of the data set with these options in ``bench data``."""
        return self.kind

    def facts(self, options: Mapping[str, Any], data_dir: Path) -> Facts:
        """Return the facts that are known without reading the images; quick."""
        from bench import registry

        known = registry.get("datasets", self.kind).facts
        return Facts(**{name: known.get(name) for name in Facts.__dataclass_fields__})

    def problem(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        """Return why the data cannot be loaded (absent files, wrong sizes), or None; quick."""
        return None

    def require(self, options: Mapping[str, Any], data_dir: Path) -> None:
        """Raise ``InputError`` with what ``problem`` finds."""
        problem = self.problem(options, data_dir)
        if problem:
            raise InputError(problem)

    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        """Return the checksum that stands for the data in a trial's identity; None for absent data."""
        raise NotImplementedError

    def load(self, options: Mapping[str, Any], data_dir: Path) -> Loaded:
        """Return the images, every byte of the files checked; raises ``InputError``."""
        raise NotImplementedError

    def remarks(self, options: Mapping[str, Any], data_dir: Path, thorough: bool = False) -> list[str]:
        """Return remarks on files that are not read; ``thorough`` opens the images, which takes long."""
        return []

    def begun(self, options: Mapping[str, Any], data_dir: Path) -> bool:
        """Return whether any file of the data set is on disk."""
        return any(path.exists() for path in self.paths(options, data_dir))

    def verify(self, options: Mapping[str, Any], data_dir: Path) -> list[str]:
        """Check every file that is on disk; return the faults, a line each."""
        try:
            self.load(options, data_dir)
        except InputError as error:
            return [str(error)]
        return []

    def fetch(self, options: Mapping[str, Any], data_dir: Path) -> None:
        """Download the missing files; raises ``InputError`` where a download is not possible."""

    def paths(self, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        """Return the files of the data set, there or not: none of a data set that is computed."""
        return []


@dataclass(frozen=True)
class PublishedFile:
    """A file that is read, with its published MD5 and, where known, its size in bytes."""

    path: str
    md5: str
    size: int | None = None


@dataclass(frozen=True)
class Download:
    """A download: its address, its name in the data folder, its MD5, and whether it is an archive."""

    url: str
    filename: str
    md5: str
    unpack: bool = False


class PublishedSource(Source):
    """A source whose files are known by published checksums; subclasses list them and ``read`` them."""

    def files(self, options: Mapping[str, Any]) -> Sequence[PublishedFile]:
        """Return the files that are read."""
        raise NotImplementedError

    def downloads(self, options: Mapping[str, Any]) -> Sequence[Download]:
        """Return the downloads of ``fetch``."""
        raise NotImplementedError

    def read(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        """Read the files, each only after its checksum matched (``opened``)."""
        raise NotImplementedError

    def paths(self, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
        return [data_dir / file.path for file in self.files(options)]

    def problem(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        files = self.files(options)
        missing = [file.path for file in files if not (data_dir / file.path).is_file()]
        remedy = f"`{command('data', 'fetch', self.label(options), '--data', data_dir)}` downloads it."
        if missing:
            return (
                f"data set '{self.label(options)}' is not in {data_dir}: {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing. {remedy}"
            )
        for file in files:
            size = (data_dir / file.path).stat().st_size
            if file.size is not None and size != file.size:
                return f"{data_dir / file.path} is corrupt: {size} bytes, published {file.size}. {remedy}"
        return None

    def checksum(self, options: Mapping[str, Any], data_dir: Path) -> str | None:
        if self.problem(options, data_dir):
            return None
        listing = "\n".join(f"{file.md5}  {Path(file.path).name}" for file in self.files(options))
        return "md5s:" + hashlib.sha256(listing.encode()).hexdigest()

    def load(self, options: Mapping[str, Any], data_dir: Path) -> Arrays:
        self.require(options, data_dir)
        return self.read(options, data_dir)

    def verify(self, options: Mapping[str, Any], data_dir: Path) -> list[str]:
        problem = self.problem(options, data_dir)
        problems = [problem] if problem else []
        for file in self.files(options):
            if (data_dir / file.path).is_file():
                try:
                    self.opened(file, data_dir, options).close()
                except InputError as error:
                    if not any(str(data_dir / file.path) in known for known in problems):
                        problems.append(str(error))
        return problems

    def opened(self, file: PublishedFile, data_dir: Path, options: Mapping[str, Any]) -> BinaryIO:
        """Return the checked file, open at its start; raises ``InputError`` naming a corrupt file."""
        path = data_dir / file.path
        with readable(path):
            stream = path.open("rb")
            found = md5(stream)
            stream.seek(0)
        if found != file.md5:
            stream.close()
            raise InputError(
                f"{path} is corrupt: MD5 {found}, published {file.md5}. "
                f"`{command('data', 'fetch', self.label(options), '--data', data_dir)}` replaces it."
            )
        return stream

    @contextlib.contextmanager
    def reading(self, file: PublishedFile, data_dir: Path, options: Mapping[str, Any]) -> Iterator[BinaryIO]:
        """Open the checked file for a reader; whatever error the reader raises becomes ``InputError``."""
        path = data_dir / file.path
        with self.opened(file, data_dir, options) as stream:
            try:
                yield stream
            except MemoryError as error:
                raise InputError(f"{path}: reading it takes more memory than there is ({error})") from None
            except Exception as error:  # bytes of another format give wrong types, absurd shapes and more
                reason = str(error) or type(error).__name__
                raise InputError(f"{path} is not a file of {self.kind}: {clean(reason, 200)}") from None

    def fetch(self, options: Mapping[str, Any], data_dir: Path) -> None:
        """Download missing and damaged files (``bench.datasets.download``); intact files are kept."""
        from bench.datasets.download import download

        if not self.verify(options, data_dir):
            return
        downloads = self.downloads(options)
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            for item in downloads:
                download(item.url, data_dir / item.filename, item.md5)
                if item.unpack:
                    shutil.unpack_archive(data_dir / item.filename, data_dir, filter="data")
        except (OSError, shutil.ReadError, tarfile.TarError, EOFError, InputError) as error:
            by_hand = "\n".join(
                f"  {item.url} as {data_dir / item.filename} (MD5 {item.md5})" for item in downloads
            )
            kept = [item.filename for item in downloads if (data_dir / f"{item.filename}.part").is_file()]
            begun = (
                f" What has arrived of {', '.join(kept)} is kept: the same command goes on." if kept else ""
            )
            raise InputError(
                f"data set '{self.label(options)}' could not be downloaded: {error}.{begun}\n"
                f"Where there is no network, put these files there by hand and run the command "
                f"again:\n{by_hand}"
            ) from None
        problems = self.verify(options, data_dir)
        if problems:
            raise InputError("\n".join(problems))
