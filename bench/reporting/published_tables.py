"""The tables of published numbers.

A table is a CSV file in ``published/``. The file ``names.toml`` beside it says which of our data sets,
networks, quantizers and strategies the names of the tables stand for.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import InputError, nearest, readable
from bench.experiments.config import field_error
from bench.experiments.toml_files import parse_toml, read_text
from bench.text import clean

NEEDED = ("dataset", "network", "method", "w_bits", "a_bits", "metric", "accuracy_pct", "source")
OPTIONAL = ("width", "g_bits", "kind", "reading_error_pct", "source_location", "arxiv_id", "note")
Kind = Literal["original", "rerun_by_other_paper", "reproduction", "quoted", "superseded"]
KINDS = get_args(Kind)
METRICS = ("top1", "top5")
_BITS = r"[0-9]{1,2}(-[0-9]{1,2})?|t|mixed|\?"
_LARGEST = 16 * 2**20  # bytes of a table


@dataclass(frozen=True)
class Row:
    """One published accuracy in percent, with bits as printed; ``bits`` gives them as numbers."""

    table: str
    line: int
    dataset: str
    network: str
    method: str
    width: float | None
    w_bits: str
    a_bits: str
    g_bits: str | None
    metric: str
    accuracy: float
    kind: str
    reading_error: float | None
    source: str
    source_location: str
    arxiv_id: str
    note: str

    @property
    def bits(self) -> tuple[int | None, int | None, int | None]:
        """Weight, activation and gradient bits; ternary is 2, as in experiment files, and None is unknown."""
        return _number(self.w_bits), _number(self.a_bits), _number(self.g_bits)


class _Table(BaseModel):
    """A table of ``names.toml``; the head of the shipped file says what each key means."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DatasetName(_Table):
    """A data set of ours, its published names and budget: images of an epoch, images processed in all."""

    published: list[str]
    kind: str
    train_images: int = 0
    images: int = 0


class NetworkName(_Table):
    """A network of ours with these options, its published names, and the width that the names fix."""

    published: list[str]
    kind: str
    options: dict[str, Any] = {}
    width: float = 1.0
    note: str = ""


class MethodName(_Table):
    """Quantizers and strategies of ours, any of them, and their published names, perhaps of one table."""

    published: list[str]
    quantizer: list[str]
    strategy: list[str]
    options: dict[str, Any] = {}
    table: str | None = None


class TableDefaults(_Table):
    """The kinds of the rows of a table that has no column ``kind``: of all rows, and of single methods."""

    kind: Kind = "original"
    kinds: dict[str, Kind] = {}


@dataclass(frozen=True)
class Names:
    """The translations of all files ``names.toml``; an earlier entry counts before a later one."""

    datasets: list[DatasetName] = field(default_factory=list)
    networks: list[NetworkName] = field(default_factory=list)
    methods: list[MethodName] = field(default_factory=list)
    tables: dict[str, TableDefaults] = field(default_factory=dict)


def _number(bits: str | None) -> int | None:
    if bits == "t":
        return 2
    return int(bits) if bits is not None and bits.isascii() and bits.isdigit() else None


def shipped() -> Path:
    """Return the folder of the published numbers, of the installed package or of the repository."""
    installed = Path(__file__).parent / "published"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "paper_tables" / "published"


def find_table(name: str, folders: Iterable[Path]) -> Path:
    """Return the file of the table ``name`` in the first folder that has it, else the shipped one."""
    places = [*folders, shipped()]
    known = {path.stem for place in places if place.is_dir() for path in place.glob("*.csv")}
    if name not in known:  # also keeps names with slashes from leaving the folders
        raise InputError(
            f"targets: no published table is called '{clean(name)}'.{nearest(name, known)} Known: "
            f"{', '.join(sorted(known))}."
        )
    return next(place / f"{name}.csv" for place in places if (place / f"{name}.csv").is_file())


def load_table(path: Path, names: Names | None = None) -> list[Row]:
    """Read a published table; ``InputError`` names file, line and column of the first few problems."""
    lines = _lines(path)
    if not lines:
        raise InputError(f"{path}: empty; expected a header with {', '.join(NEEDED)}")
    header = [cell.strip() for cell in lines[0][1]]
    problems = _header_problems(path, header)
    defaults = (names or Names()).tables.get(path.stem, TableDefaults())
    rows = []
    if not problems:
        for line, cells in lines[1:]:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problems.append(
                    f"{path}, line {line}: {len(cells)} columns, but the header has {len(header)}"
                )
                continue
            values = {key: cell.strip() for key, cell in zip(header, cells, strict=True)}
            rows.append(_row(path, line, values, defaults, problems))
    if problems:
        more = f"\n{path}: and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise InputError("\n".join(problems[:10]) + more)
    return [row for row in rows if row is not None]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file with the numbers of their lines."""
    with readable(path):
        if path.stat().st_size > _LARGEST:
            raise InputError(
                f"{path}: larger than {_LARGEST // 2**20} MiB, which no table of published numbers is"
            )
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text") from None
    before, nul, _ = text.partition("\0")
    if nul:
        raise InputError(f"{path}, line {before.count(chr(10)) + 1}: not text (a NUL character)")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _header_problems(path: Path, header: Sequence[str]) -> list[str]:
    known = NEEDED + OPTIONAL
    problems = [f"{path}, line 1: column '{key}' is missing" for key in NEEDED if key not in header]
    for key in dict.fromkeys(header):
        if key not in known:
            problems.append(f"{path}, line 1: unknown column '{clean(key, 60)}'.{nearest(key, known)}")
        elif header.count(key) > 1:
            problems.append(f"{path}, line 1: column '{key}' stands there {header.count(key)} times")
    return problems


@dataclass
class _Cells:
    """The cells of one line of a table; faults of the cells go to ``problems``."""

    where: str
    values: dict[str, str]
    problems: list[str]

    def wrong(self, column: str, expected: str) -> None:
        shown = clean(self.values[column], 60)
        self.problems.append(f"{self.where}, column {column}: {shown!r} is not {expected}")

    def real(self, column: str, low: float, high: float, expected: str) -> float | None:
        """Return a number from ``low`` to ``high``; None where the cell is empty or wrong."""
        text = self.values.get(column)
        if not text:
            return None
        try:
            value = float(text) if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text) else math.nan
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        self.wrong(column, expected)
        return None


def _row(
    path: Path, line: int, values: dict[str, str], defaults: TableDefaults, problems: list[str]
) -> Row | None:
    """Return a line of a table; None where ``problems`` have grown."""
    before, cells = len(problems), _Cells(f"{path}, line {line}", values, problems)
    for column in ("dataset", "network", "method", "source"):
        if not values[column]:
            problems.append(f"{path}, line {line}, column {column}: empty")
    for column in ("w_bits", "a_bits", "g_bits"):
        empty = not values.get(column)
        if (empty and column != "g_bits") or not (empty or re.fullmatch(_BITS, values[column], re.ASCII)):
            cells.wrong(column, "a number of bits, 't', 'mixed', '?' or a range such as '1-8'")
    accuracy = cells.real("accuracy_pct", 0, 100, "an accuracy in percent, 0 to 100")
    if not values["accuracy_pct"]:
        cells.wrong("accuracy_pct", "an accuracy in percent, 0 to 100")
    width = cells.real("width", 1e-6, 1e6, "a width multiplier above 0")
    error = cells.real("reading_error_pct", 0, 100, "an error in percent")
    if values["metric"] not in METRICS:
        cells.wrong("metric", f"one of {', '.join(METRICS)}")
    kind = values.get("kind") or defaults.kinds.get(values["method"], defaults.kind)
    if kind not in KINDS:
        values["kind"] = kind
        cells.wrong("kind", f"one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if len(problems) > before or accuracy is None:
        return None
    columns: dict[str, Any] = {key: values.get(key, "") for key in (*NEEDED, *OPTIONAL)}
    del columns["accuracy_pct"], columns["reading_error_pct"]
    columns |= {"width": width, "accuracy": accuracy, "reading_error": error, "kind": kind}
    return Row(path.stem, line, **{**columns, "g_bits": values.get("g_bits") or None})


_GROUPS: dict[str, type[BaseModel]] = {
    "datasets": DatasetName,
    "networks": NetworkName,
    "methods": MethodName,
}


def load_names(folders: Iterable[Path] = ()) -> Names:
    """Read ``names.toml`` of ``folders`` and the shipped one; ``InputError`` names file and key."""
    names = Names()
    for path in [folder / "names.toml" for folder in [*folders, shipped()]]:
        for key, value in (parse_toml(read_text(path), path) if path.is_file() else {}).items():
            if key == "tables":
                if not isinstance(value, dict):
                    raise InputError(f"{path}: tables: expected [tables.NAME]")
                for name, table in value.items():
                    checked = _validated(TableDefaults, table, f"{path}: tables.{clean(name, 60)}")
                    names.tables.setdefault(name, checked)
            elif key in _GROUPS:
                if not isinstance(value, list):
                    raise InputError(f"{path}: {key}: expected [[{key}]]")
                for number, entry in enumerate(value, 1):
                    checked = _validated(_GROUPS[key], entry, f"{path}: {key}, entry {number}")
                    getattr(names, key).append(checked)
            else:
                raise InputError(f"{path}: unknown key '{clean(key)}'.{nearest(key, [*_GROUPS, 'tables'])}")
    return names


def _validated(model: type[BaseModel], table: Any, where: str) -> Any:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        found = str(field_error(error, model.model_fields)).splitlines()
        lines = (clean(f"{where}: {line}", 600) for line in found)
        raise InputError("\n".join(lines)) from None
