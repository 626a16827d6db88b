"""``bench data import``: images in other formats become a data set of the user's own.

- A folder of Parquet files with images, as Hugging Face's ``datasets`` writes them, becomes
  ``imagefolder:NAME``. The encoded images are not changed.
- ``torchvision:CLASS``, a data set of torchvision by the name of its class, becomes ``npz:NAME`` where all
  images have one size, otherwise ``imagefolder:NAME`` with PNG files.

The new data set has a checksum of its own, and the original is not needed again.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from bench.datasets.photographs.decode import SUFFIXES
from bench.errors import InputError, nearest
from bench.machine.folders import acceptable
from bench.text import clean

TORCHVISION = "torchvision:"
_SPLITS = {"train": ("train",), "test": ("test", "validation", "val", "valid", "dev")}
_NUMBER = re.compile(r"(?P<number>\d+)-of-(?P<count>\d+)")  # in the name of a file: 00000-of-00004
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "PPM": ".ppm", "TIFF": ".tif", "WEBP": ".webp"}


def import_images(source: str, name: str | None, data_dir: Path, label: str | None = None) -> str:
    """Import images and return a line that describes the new data set.

    ``source`` is a folder with Parquet files, or ``torchvision:CLASS``; the new ``name`` is by default that
    of the folder or class, in small letters. ``label`` names the column of the labels where several could be
    it. Raises ``InputError`` where there are no such images, or a data set of this name exists already.
    """
    kind = source.removeprefix(TORCHVISION)
    name = name or re.sub(r"[^a-z0-9_.-]+", "-", Path(kind).resolve().name.lower())
    if not acceptable(name) or "/" in name:
        raise InputError(f"--as {name[:80]!r}: letters, digits and _ . - make a name")
    for there in (data_dir / name, data_dir / f"{name}.npz", data_dir / f"{name}.shards"):
        if there.exists():
            raise InputError(f"{there}: exists already; give another name with --as")
    data_dir.mkdir(parents=True, exist_ok=True)
    if source.startswith(TORCHVISION):
        return _from_torchvision(kind, name, data_dir)
    return _from_parquet(Path(source), name, data_dir, label)


# -- Parquet -------------------------------------------------------------------------------------------------


def _from_parquet(folder: Path, name: str, data_dir: Path, label: str | None) -> str:
    files = _split_files(folder)
    paths = [path for split in files.values() for path in split]
    image, labels, names = columns = _columns(_schema(paths[0]), folder, label)
    for path in paths:
        if _columns(_schema(path), folder, label) != columns:
            raise InputError(f"{clean(path)}: other columns, or classes, than {clean(paths[0])}")
    known: dict[str, Any] = {}

    def class_folder(value: Any) -> str:
        name = _class_folder(value, names, folder)
        first = known.setdefault(name.casefold(), value)
        if first != value:
            raise InputError(
                f"{clean(folder)}: the labels {clean(first, 60)!r} and {clean(value, 60)!r} would share the "
                f"folder {name}; give them names that differ in more than case and punctuation"
            )
        return name

    def encoded(split: str) -> Iterator[_Encoded]:
        for number, (data, value) in enumerate(_rows(files[split], image, labels)):
            suffix = _suffix(data, f"{folder}: {split}, row {number}")
            yield class_folder(value), suffix, data

    return _write_folder(name, data_dir, {split: encoded(split) for split in files})


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise InputError(f"{clean(path)}: cannot be read ({clean(error, 200)})") from None


_Encoded = tuple[str, str, bytes]  # the folder of the class, the suffix of the file, the bytes of the file


def _write_folder(name: str, data_dir: Path, parts: Mapping[str, Iterable[_Encoded]]) -> str:
    """Write ``imagefolder:NAME`` from the encoded images of its parts; return the line about it."""
    counts = dict.fromkeys(parts, 0)
    with _complete(data_dir / name) as folder:
        for split, images in parts.items():
            for number, (class_folder, suffix, data) in enumerate(images):
                where = folder / split / class_folder
                where.mkdir(parents=True, exist_ok=True)
                (where / f"{number:08d}{suffix}").write_bytes(data)
                counts[split] += 1
    return _summary(f"imagefolder:{name}", counts, data_dir)


@contextlib.contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """Yield the path to write to; it becomes ``target`` after the block, or is removed by an error in it."""
    part = target.with_name(f".part-{target.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with contextlib.suppress(OSError):
            part.unlink()


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of training and of test images by their names (``train-00000-...``)."""
    if not folder.is_dir():
        raise InputError(
            f"{clean(folder)}: there is no such folder; expected one of Parquet files, or torchvision:CLASS"
        )
    found = sorted(folder.rglob("*.parquet"))
    if not found and all((folder / part).is_dir() for part in ("train", "val")):
        raise InputError(
            f"{clean(folder)}: a folder of classes needs no import: put it into the data folder, and call it "
            f"imagefolder:{clean(folder.name)}"
        )
    chosen = {}
    for split, words in _SPLITS.items():
        for word in words:
            files = [path for path in found if re.match(rf"{word}(?![a-z])", path.name.lower())]
            if files:
                _check_whole(folder, files)
                chosen[split] = files
                break
        else:
            known = ", ".join(path.name for path in found[:5]) or "none"
            raise InputError(
                f"{clean(folder)}: no file of {split} images; expected {words[0]}-*.parquet. "
                f"Parquet files there: {clean(known)}."
            )
    return chosen


def _check_whole(folder: Path, files: list[Path]) -> None:
    """Raise where the files of a part are not those of one data set, or not all of them."""
    sets = sorted({(path.parent, re.sub(r"[-_.]?\d+(-of-\d+.*)?$", "", path.stem)) for path in files})
    if len(sets) > 1:
        first, second = (clean((parent / name).relative_to(folder)) for parent, name in sets[:2])
        raise InputError(
            f"{clean(folder)}: images of {len(sets)} data sets, {first}* and {second}*; give a folder of one"
        )
    numbers = [(int(m["number"]), int(m["count"])) for m in map(_NUMBER.search, (p.name for p in files)) if m]
    if numbers and sorted(numbers) != [(number, numbers[0][1]) for number in range(numbers[0][1])]:
        raise InputError(
            f"{clean(files[0].parent)}: {len(files)} files of {numbers[0][1]} ({clean(files[0].name)} and so "
            "on); some are missing, or there twice"
        )


def _columns(schema: Any, folder: Path, label: str | None) -> tuple[str, str, list[str] | None]:
    """Return (column of the images, column of the labels, names of the classes or None)."""
    features = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):  # a file of another program, or a damaged note
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    typed = {name: what.get("_type") for name, what in features.items() if isinstance(what, Mapping)}
    images = [name for name, kind in typed.items() if kind == "Image"] or [
        name for name in schema.names if name in ("image", "img")
    ]
    labels = [name for name, kind in typed.items() if kind == "ClassLabel"] or [
        name for name in schema.names if name in ("label", "labels")
    ]
    if label is not None:
        if label not in schema.names:
            raise InputError(f"--label {label!r}: no such column.{nearest(label, schema.names)}")
        labels = [label]
    for what, columns in (("images", images), ("labels", labels)):
        if len(columns) != 1:
            raise InputError(
                f"{clean(folder)}: {len(columns)} columns of {what} among {clean(', '.join(schema.names))}"
                + ("; choose one with --label" if what == "labels" else "")
            )
    names = features.get(labels[0], {}).get("names")
    return images[0], labels[0], list(map(str, names)) if isinstance(names, list) else None


def _rows(paths: list[Path], image: str, label: str) -> Iterator[tuple[bytes, Any]]:
    """Yield the encoded image and the label of each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256, columns=[image, label]):
                    for row in batch.to_pylist():
                        data = row[image]["bytes"] if isinstance(row[image], dict) else row[image]
                        if not isinstance(data, bytes):
                            raise InputError(f"{clean(path)}: a row has no bytes of an image in '{image}'")
                        yield data, row[label]
        except (pa.ArrowException, KeyError) as error:
            raise InputError(f"{clean(path)}: cannot be read ({clean(error, 200)})") from None


def _class_folder(value: Any, names: list[str] | None, folder: Path) -> str:
    """Return the name of a class's folder: its number, which keeps the order of classes, and its name."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        named = f"-{names[value]}" if names is not None and value < len(names) else ""
        return f"{value:04d}{re.sub(r'[^A-Za-z0-9_.-]+', '_', named)}"[:100]
    if isinstance(value, str) and value.strip():
        return re.sub(r"[^\w-]+", "_", value)[:60]  # letters of all languages
    raise InputError(f"{clean(folder)}: a label is {value!r}; expected a number from 0, or text")


def _suffix(data: bytes, where: str) -> str:
    """Return the suffix of an encoded image, which is not decoded here: training checks the image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG of several frames
            found = _SUFFIX.get(kind or "", "")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        found = ""
    if found not in SUFFIXES:
        raise InputError(f"{clean(where)}: is no image of a format that is read ({', '.join(_SUFFIX)})")
    return found


# -- torchvision ---------------------------------------------------------------------------------------------


def _from_torchvision(kind: str, name: str, data_dir: Path) -> str:
    """Download a data set of torchvision and keep its unchanged images in torchvision's order."""
    import numpy as np
    from torchvision import datasets

    known = {each for each in datasets.__all__ if _split_argument(getattr(datasets, each)) is not None}
    if kind not in known:
        raise InputError(
            f"torchvision:{kind[:80]}: no such data set of images with a training and a test part."
            f"{nearest(kind, known)} Known: {', '.join(sorted(known))}."
        )
    maker = getattr(datasets, kind)
    by_flag = _split_argument(maker) == "train"
    downloads = data_dir / ".torchvision"
    parts = {}
    for split in _SPLITS:
        chosen: dict[str, Any] = {"train": split == "train"} if by_flag else {"split": split}
        try:
            parts[split] = maker(str(downloads), download=True, **chosen)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"torchvision:{kind}: the {split} part cannot be had: {clean(error, 300)}"
            ) from None
    looks = {(image.size, image.mode) for part in parts.values() for image, _ in _pairs(part, kind)}
    modes = {mode for _, mode in looks}
    counts = {split: len(part) for split, part in parts.items()}
    if len({size for size, _ in looks}) == 1 and modes <= {"1", "L", "RGB"}:
        arrays, mode = {}, "RGB" if "RGB" in modes else "L"
        for split, part in parts.items():
            rows = [(np.asarray(image.convert(mode)), label) for image, label in _pairs(part, kind)]
            arrays[f"x_{split}"] = np.stack([pixels for pixels, _ in rows])
            arrays[f"y_{split}"] = np.asarray([label for _, label in rows], dtype=np.int64)
        with _complete(data_dir / f"{name}.npz") as path:
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        return _summary(f"npz:{name}", counts, data_dir)

    def encoded(part: Any) -> Iterator[_Encoded]:
        for image, label in _pairs(part, kind):
            png = io.BytesIO()
            image.save(png, "PNG")
            yield _class_folder(label, getattr(part, "classes", None), data_dir), ".png", png.getvalue()

    return _write_folder(name, data_dir, {split: encoded(part) for split, part in parts.items()})


def _pairs(part: Any, kind: str) -> Iterator[tuple[Any, int]]:
    """Yield image and class of each item; raises ``InputError`` for items of another kind."""
    from PIL.Image import Image

    for item in part:
        image, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(image, Image) or not isinstance(label, Integral) or isinstance(label, bool):
            found = f"({type(image).__name__}, {type(label).__name__})"
            raise InputError(
                f"torchvision:{kind}: an item is {found}; expected an image and the number of its class"
            )
        yield image, int(label)


def _split_argument(maker: Any) -> str | None:
    """Return the argument by which a class of torchvision chooses a part: "train", "split", or None."""
    if not inspect.isclass(maker):
        return None
    parameters = inspect.signature(maker.__init__).parameters
    if "download" not in parameters or "root" not in parameters:
        return None
    return next((name for name in ("train", "split") if name in parameters), None)


def _summary(label: str, counts: Mapping[str, int], data_dir: Path) -> str:
    return f"{label}: {counts['train']:,} training and {counts['test']:,} test images, ready in {data_dir}"
