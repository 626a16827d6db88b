"""``bench data prepare``: photographs written once as large sequential shards (``shards``).

A shard is written under a temporary name, flushed and renamed, then its part of the index; so a preparation
killed at any instant goes on at the first shard that is not there whole. The manifest is written last. No
torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.datasets.photographs import decode, shards
from bench.datasets.photographs.decode import BadImage
from bench.datasets.photographs.images import (
    MEAN_SIDE,
    RECORD,
    central_square,
    corrupt_text,
    in_threads,
    measured,
)
from bench.datasets.photographs.listing import Item, Listing, left_out_text, repeated, several_frames
from bench.datasets.photographs.shards import MEAN_BYTES, PARTS, Manifest
from bench.errors import InputError
from bench.records.files import write_atomic
from bench.records.locks import sync_folder
from bench.text import clean, data_size, inert, say

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 256  # images whose headers are read to estimate the size
ENOUGH = 100  # corrupt images beyond those allowed at which a shard is given up: before, they are counted
SHORT_SIDE = 352  # the largest side that the released augmentation asks for: 308 times 1.15, in whole blocks


@dataclass(frozen=True)
class Settings:
    """How a data set is to be prepared; ``short_side`` has a meaning for ``raw`` alone."""

    form: str = "jpeg"
    short_side: int | None = None
    max_corrupt: int = 0


def settings(form: str, short_side: int | None, max_corrupt: int) -> Settings:
    """Return checked settings with the default short side; raises ``InputError``."""
    if form not in shards.FORMS:
        raise InputError(f"--form {form!r}: expected {' or '.join(shards.FORMS)}")
    if form == "jpeg" and short_side is not None:
        raise InputError(
            "--short-side has a meaning only with --form raw: JPEG shards keep the files as they are"
        )
    if short_side is not None and not 8 <= short_side <= 4096:
        raise InputError(f"--short-side {short_side}: expected 8 to 4096 pixels")
    if max_corrupt < 0:
        raise InputError(f"--max-corrupt {max_corrupt}: expected 0 or more")
    return Settings(form, (short_side or SHORT_SIDE) if form == "raw" else None, max_corrupt)


def estimate(listing: Listing, how: Settings) -> int:
    """Return about how many bytes the shards will take, from the sizes or headers of a few hundred images."""
    images = listing.images
    chosen = [images[i * len(images) // min(SAMPLES, len(images))] for i in range(min(SAMPLES, len(images)))]
    total, count = 0, 0
    for item in chosen:
        with contextlib.suppress(BadImage):
            data = item.bytes()
            size = decode.stored_size(*decode.size(data), how.short_side)
            total += 3 * size[0] * size[1] if how.form == "raw" else len(data)
            count += 1
    return total * len(images) // max(count, 1)


def prepare(
    name: str,
    listing: Callable[[], Listing],
    folder: Path,
    how: Settings,
    confirm: Callable[[str], bool],
    say: Callable[[str], None],
) -> Manifest:
    """Write ``folder``, or go on writing it; return its manifest, at once where the folder is complete.

    Args:
        name: The name of the data set in messages.
        listing: Lists the images.
        folder: The folder of the shards.
        how: Form, short side and tolerance.
        confirm: Is told the size before anything is written; returns whether to go on.
        say: Is told how it goes on.

    Raises:
        InputError: ``confirm`` answers no, images are corrupt beyond ``how.max_corrupt``, the folder was
            begun otherwise, or the disk has no room.
    """
    done = shards.read_manifest(folder)
    if done is not None:
        _check_finished(done, name, folder, how)
        if len(done.corrupt) > how.max_corrupt:
            say(f"{name} was prepared without {len(done.corrupt)} corrupt images")
        _remove_parts(folder)
        return done
    say(f"listing the images of {name}")
    images = listing()
    plan = _plan(images, how)
    begun = _begun(folder, plan)
    needed = estimate(images, how)
    already = sum(path.stat().st_size for path in folder.glob("*.bin")) if begun else 0
    counts = {part: len(images.parts[part]) for part in PARTS}
    question = (
        f"{name}: {counts['train']:,} training and {counts['test']:,} test images "
        f"of {len(images.classes):,} classes, "
        f"{_form(how.form, how.short_side)}: about {data_size(needed)} in {clean(folder)}"
        + (f", {data_size(already)} of it written" if already else "")
        + left_out_text(images.left_out, "; ")
    )
    if not confirm(question):
        raise InputError(f"nothing was written; {name} takes about {data_size(needed)}")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed - already > free:
        raise InputError(
            f"{clean(folder)}: about {data_size(needed - already)} to write, {data_size(free)} free"
        )
    with _locked(folder):
        if not begun:
            write_atomic(folder / "plan.json", shards.canonical_json(plan), "--data")
        try:
            return _write(folder, images, how, say)
        except OSError as error:
            raise InputError(f"{clean(folder)} cannot be written: {error.strerror or error}") from None


def _plan(images: Listing, how: Settings) -> dict[str, Any]:
    """Return what must be the same for a preparation to go on."""
    return {
        "form": how.form,
        "short_side": how.short_side,
        "decoder": decoder(),
        "source": images.signature(),
        "images_per_shard": shards.IMAGES_PER_SHARD,
    }


def _check_finished(done: Manifest, name: str, folder: Path, how: Settings) -> None:
    """Raise ``InputError`` where finished shards are damaged, or were prepared in another form."""
    problem = shards.size_problem(done)
    if problem:
        raise InputError(problem)
    if (done.form, done.short_side) != (how.form, how.short_side):
        raise InputError(
            f"{clean(folder)} holds {name} prepared already, as {_form(done.form, done.short_side)}; "
            f"delete it to prepare it as {_form(how.form, how.short_side)}"
        )


def decoder() -> str:
    """Return the name and version of the decoder, which decides the last bit of raw pixels."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo') or 'none'}"


def _form(form: str, short_side: int | None) -> str:
    return "JPEG shards" if form == "jpeg" else f"raw shards with a short side of at most {short_side}"


def _begun(folder: Path, plan: dict[str, Any]) -> bool:
    """Return whether ``folder`` was begun with this plan; ``InputError`` where it was begun otherwise."""
    try:
        known = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = folder.iterdir() if folder.exists() else ()
        if any(path.name != ".lock" and not _half_written(path) for path in found):
            raise InputError(f"{clean(folder)} is there and is no preparation: move it away") from None
        return False
    except (OSError, ValueError, RecursionError):
        known = None
    if known != plan:
        changed = ", ".join(key for key in plan if not isinstance(known, dict) or known.get(key) != plan[key])
        raise InputError(
            f"{clean(folder)} was begun otherwise ({changed} changed): "
            "go on as it was begun, or delete it to begin anew"
        )
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises ``InputError`` where another process prepares it."""
    with (folder / ".lock").open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{clean(folder)} is being prepared by another process") from None
        yield


class _Note(NamedTuple):
    """The facts of a finished shard in ``train-00000.note`` until all are written: JSON, then arrays."""

    begin: int  # position of the shard's first image in the listing
    next: int  # position of the first image behind it
    size: int
    sha256: str
    corrupt: list[tuple[str, str]]
    frames: list[str]  # images with several frames
    records: np.ndarray  # ``RECORD`` (N,)
    hashes: np.ndarray  # of the images, uint8 (N, 32)
    mean: np.ndarray  # the sum of central squares, uint32

    def write(self, path: Path) -> None:
        arrays = b"".join(part.tobytes() for part in (self.records, self.hashes, self.mean))
        write_atomic(path, json.dumps([len(self.records), *self[:6]]).encode() + b"\n" + arrays, "--data")

    @classmethod
    def read(cls, target: Path, position: int) -> _Note | None:
        """Return the note of the whole shard that begins at ``position``; None without either."""
        try:
            line, _, data = target.with_suffix(".note").read_bytes().partition(b"\n")
            count, begin, after, size, sha256, corrupt, frames = json.loads(line)
            ends = np.cumsum([RECORD.itemsize * count, 32 * count, MEAN_BYTES])
            if len(data) != ends[-1]:
                return None
            records = np.frombuffer(data[: ends[0]], dtype=RECORD)
            hashes = np.frombuffer(data[ends[0] : ends[1]], dtype=np.uint8).reshape(-1, 32)
            mean = np.frombuffer(data[ends[1] :], dtype="<u4").reshape(MEAN_SIDE, MEAN_SIDE, 3)
            note = cls(begin, after, size, sha256, corrupt, frames, records, hashes, mean)
            whole = note.begin == position and (not note.size or target.stat().st_size == note.size)
            return note if whole else None
        except (OSError, ValueError, TypeError):
            return None


def _write(folder: Path, images: Listing, how: Settings, say: Callable[[str], None]) -> Manifest:
    corrupt: list[tuple[str, str]] = []
    frames: list[str] = []
    files: dict[str, tuple[int, str]] = {}
    counts, digests = {}, {}
    mean = np.zeros((MEAN_SIDE, MEAN_SIDE, 3), dtype=np.uint64)
    total, done = len(images.images), 0
    for part in PARTS:
        # Corrupt images leave no gap: a shard takes the next good ones, so image i lies in shard i / 2048.
        items, number, position = images.parts[part], 0, 0
        notes: list[_Note] = []
        while position < len(items):
            target = folder / shards.shard_name(part, number)
            note = _Note.read(target, position)
            if note is None:
                note = _write_shard(target, part, items, position, how)
                say(f"{target.name}: {done + note.next - position:,} of {total:,} images")
            done += note.next - position
            position = note.next
            notes.append(note)
            corrupt += [(name, reason) for name, reason in note.corrupt]
            frames += note.frames
            if len(corrupt) > how.max_corrupt:
                raise InputError(_too_many(corrupt, how.max_corrupt))
            if note.size:
                files[target.name] = note.size, note.sha256
            number += 1
        index = np.concatenate([note.records for note in notes])
        read = set(index["label"].tolist())
        absent = [name for label, name in enumerate(images.classes) if label not in read]
        if absent:
            raise InputError(
                f"{part}: no image that can be read in {', '.join(clean(n, 60) for n in absent[:5])}"
            )
        counts[part] = len(index)
        hashes = np.concatenate([note.hashes for note in notes])
        digests[part] = [
            (label, row.tobytes()) for label, row in zip(index["label"].tolist(), hashes, strict=True)
        ]
        if part == "train":
            mean += sum(note.mean for note in notes)
        _write_file(folder / f"{part}.index", index.tobytes(), files)
    _write_file(folder / "mean.bin", mean.astype("<u4").tobytes(), files)
    train, test = ([digest for _, digest in digests[part]] for part in PARTS)
    remarks = left_out_text(images.left_out), several_frames(frames), repeated(train, test)
    manifest = Manifest(
        schema=shards.SCHEMA,  # type: ignore[call-arg]  # the name in the file
        form=how.form,  # type: ignore[arg-type]
        short_side=how.short_side,
        classes=tuple(images.classes),
        content=shards.content_digest(images.classes, digests),
        decoder=decoder(),
        corrupt=tuple(corrupt),
        counts=counts,
        files=files,
        remarks=tuple(line for line in remarks if line),
    ).at(folder)
    write_atomic(folder / "manifest.json", shards.canonical_json(manifest.document()), "--data")
    _remove_parts(folder)
    return manifest


def _too_many(corrupt: Sequence[tuple[str, str]], allowed: int) -> str:
    return (
        f"{corrupt_text(corrupt)}. At most {allowed} may be left out (--max-corrupt N); "
        "replace them, or raise it and run the command again"
    )


class _Stored(NamedTuple):
    """An image in the form that a shard stores."""

    data: bytes
    digest: bytes
    image: Image
    several_frames: bool


def _stored(item: Item, how: Settings) -> _Stored | BadImage:
    try:
        data = item.bytes()
        image = decode.rgb(data, how.short_side)
        kept = image.tobytes() if how.form == "raw" else data
        return _Stored(kept, decode.digest(data), image, decode.frames(data) > 1)
    except BadImage as error:
        return error


def _write_shard(target: Path, part: str, items: Sequence[Item], position: int, how: Settings) -> _Note:
    """Write the shard of the next ``IMAGES_PER_SHARD`` good images from ``position``, then its note."""
    shard = int(target.stem.rpartition("-")[2])
    records: list[tuple] = []
    hashes: list[bytes] = []
    corrupt: list[tuple[str, str]] = []
    frames: list[str] = []
    mean = np.zeros((MEAN_SIDE, MEAN_SIDE, 3), dtype="<u4")
    digest, offset, begin = hashlib.sha256(), 0, position
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        while len(records) < shards.IMAGES_PER_SHARD and position < len(items):
            batch = items[position : position + min(256, shards.IMAGES_PER_SHARD - len(records))]
            position += len(batch)
            for item, result in zip(batch, in_threads(partial(_stored, how=how), batch), strict=True):
                if isinstance(result, BadImage):
                    corrupt.append((item.name, str(result)))
                    if len(corrupt) > how.max_corrupt + ENOUGH:
                        raise InputError(_too_many(corrupt, how.max_corrupt))
                    continue
                kept, image = result.data, result.image
                stream.write(kept)
                digest.update(kept)
                records.append(
                    (shard, offset, len(kept), image.height, image.width, item.label, *measured(image))
                )
                hashes.append(result.digest)
                frames += [item.name] * result.several_frames
                offset += len(kept)
                if part == "train":
                    mean += central_square(image)
        stream.flush()
        os.fsync(stream.fileno())
    if records:
        os.replace(temporary, target)
        sync_folder(target.parent)
    else:
        temporary.unlink()
    array = np.array(records, dtype=RECORD)
    bytes_of_hashes = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 32)
    sha256 = "sha256:" + digest.hexdigest()
    note = _Note(begin, position, offset, sha256, corrupt, frames, array, bytes_of_hashes, mean)
    note.write(target.with_suffix(".note"))
    return note


def _write_file(path: Path, data: bytes, files: dict[str, tuple[int, str]]) -> None:
    write_atomic(path, data, "--data")
    files[path.name] = len(data), "sha256:" + hashlib.sha256(data).hexdigest()


def _remove_parts(folder: Path) -> None:
    """Remove the files that only a running preparation needs, and half-written files of killed ones."""
    obsolete = [path for path in folder.iterdir() if path.suffix == ".note" or _half_written(path)]
    for path in (*obsolete, folder / "plan.json", folder / ".lock"):
        path.unlink(missing_ok=True)


def _half_written(path: Path) -> bool:
    """Return whether the file is a temporary one, which its writer renames when it is whole."""
    return path.suffix == ".tmp"


def ask(text: str, yes: bool) -> bool:
    """Print ``text`` and ask whether to go on, unless ``yes``; ``InputError`` without a terminal."""
    say(inert(text))
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("not confirmed: there is no terminal to ask on; --yes goes on without asking")
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
