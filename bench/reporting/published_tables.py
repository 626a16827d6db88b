"""The tables of published numbers.

A table is a CSV file in ``published/``. The file ``names.toml`` beside it says which of our data sets,
networks, quantizers and strategies the names of the tables stand for.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import InputError, nearest, shown
from bench.experiments.toml_files import parse_toml, read_text
from bench.text import clean

NEEDED = ("dataset", "network", "method", "w_bits", "a_bits", "metric", "accuracy_pct", "source")
OPTIONAL = ("width", "g_bits", "kind", "reading_error_pct", "source_location", "arxiv_id", "note")
KINDS = ("original", "rerun_by_other_paper", "reproduction", "quoted", "superseded")
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


@dataclass(frozen=True)
class Names:
    """The translations of ``names.toml``, lists of tables as in the file."""

    datasets: tuple[Mapping[str, Any], ...] = ()
    networks: tuple[Mapping[str, Any], ...] = ()
    methods: tuple[Mapping[str, Any], ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict)


def _number(bits: str | None) -> int | None:
    if bits == "t":
        return 2
    return int(bits) if bits is not None and bits.isascii() and bits.isdigit() else None


def shipped() -> Path:
    """Return the folder of the published numbers, of the installed package or of the repository."""
    installed = Path(__file__).parent / "published"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "paper_tables" / "published"


def find_table(name: str, folders: Iterable[Path]) -> Path:
    """Return the file of the table ``name``: in the first of ``folders`` that has it, else the shipped one.

    Raises ``InputError`` naming the tables there are.
    """
    places = [*folders, shipped()]
    known = {path.stem for place in places if place.is_dir() for path in place.glob("*.csv")}
    if name not in known:  # also keeps names with slashes from leaving the folders
        raise InputError(
            f"targets: no published table is called '{clean(name)}'.{nearest(name, known)} Known: "
            f"{', '.join(sorted(known))}."
        )
    return next(place / f"{name}.csv" for place in places if (place / f"{name}.csv").is_file())


def load_table(path: Path, names: Names | None = None) -> list[Row]:
    """Read a table of published numbers.

    Raises ``InputError`` naming the file, and the line and column of each of the first few problems.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if data is None:
        raise InputError(
            f"{path}: larger than {_LARGEST // 2**20} MiB, which no table of published numbers is"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text") from None
    if "\0" in text:
        raise InputError(
            f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: not text (a NUL character)"
        )
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    if not lines:
        raise InputError(f"{path}: empty; expected a header with {', '.join(NEEDED)}")
    header = [cell.strip() for cell in lines[0][1]]
    problems = _header_problems(path, header)
    defaults = (names or Names()).tables.get(path.stem, {})
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
    """The cells of one line of a table; what is wrong with them goes to ``problems``."""

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
    path: Path, line: int, values: dict[str, str], defaults: Mapping[str, Any], problems: list[str]
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
    kind = values.get("kind") or defaults.get("kinds", {}).get(values["method"])
    kind = kind or defaults.get("kind", "original")
    if kind not in KINDS:
        values["kind"] = kind
        cells.wrong("kind", f"one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    if len(problems) > before or accuracy is None:
        return None
    return Row(
        table=path.stem,
        line=line,
        dataset=values["dataset"],
        network=values["network"],
        method=values["method"],
        width=width,
        w_bits=values["w_bits"],
        a_bits=values["a_bits"],
        g_bits=values.get("g_bits") or None,
        metric=values["metric"],
        accuracy=accuracy,
        kind=kind,
        reading_error=error,
        source=values["source"],
        source_location=values.get("source_location", ""),
        arxiv_id=values.get("arxiv_id", ""),
        note=values.get("note", ""),
    )


_ENTRY_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "datasets": {"published": (list,), "kind": (str,), "train_images": (int,), "images": (int,)},
    "networks": {
        "published": (list,),
        "kind": (str,),
        "options": (dict,),
        "width": (int, float),
        "note": (str,),
    },
    "methods": {
        "published": (list,),
        "quantizer": (list,),
        "strategy": (list,),
        "options": (dict,),
        "table": (str,),
    },
}


def load_names(folders: Iterable[Path] = ()) -> Names:
    """Read ``names.toml`` of ``folders``, where they have one, and of the shipped folder, in this order.

    Raises ``InputError`` naming the file and the key.
    """
    found: dict[str, list[Mapping[str, Any]]] = {key: [] for key in _ENTRY_KEYS}
    tables: dict[str, Any] = {}
    for path in [folder / "names.toml" for folder in [*folders, shipped()]]:
        if not path.is_file():
            continue
        content = parse_toml(read_text(path), path)
        for key, value in content.items():
            if key == "tables":
                if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
                    raise InputError(f"{path}: tables: expected [tables.NAME]")
                for name, table in value.items():
                    _check_table(f"{path}: tables.{clean(name, 60)}", table)
                    tables.setdefault(name, table)
                continue
            if key not in _ENTRY_KEYS:
                raise InputError(
                    f"{path}: unknown key '{clean(key)}'.{nearest(key, [*_ENTRY_KEYS, 'tables'])}"
                )
            if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
                raise InputError(f"{path}: {key}: expected [[{key}]]")
            for number, entry in enumerate(value, 1):
                _check_entry(path, key, number, entry)
            found[key].extend(value)
    return Names(tuple(found["datasets"]), tuple(found["networks"]), tuple(found["methods"]), tables)


def _check_table(where: str, table: Mapping[str, Any]) -> None:
    """Raise ``InputError`` unless a table's defaults are its ``kind`` and the ``kinds`` of methods."""
    for key in table:
        if key not in ("kind", "kinds"):
            raise InputError(f"{where}: unknown key '{clean(key, 60)}'.{nearest(key, ('kind', 'kinds'))}")
    kinds = table.get("kinds", {})
    if not isinstance(kinds, dict):
        raise InputError(f"{where}.kinds: expected a table")
    given = [("kind", table["kind"])] if "kind" in table else []
    for key, kind in [*given, *((f"kinds.{clean(method, 60)}", kind) for method, kind in kinds.items())]:
        if kind not in KINDS:
            hint = nearest(kind, KINDS) if isinstance(kind, str) else ""
            raise InputError(f"{where}.{key}: {shown(kind)} is not one of {', '.join(KINDS)}.{hint}")


def _check_entry(path: Path, group: str, number: int, entry: Mapping[str, Any]) -> None:
    keys = _ENTRY_KEYS[group]
    where = f"{path}: {group}, entry {number}"
    for key, value in entry.items():
        if key not in keys:
            raise InputError(f"{where}: unknown key '{clean(key)}'.{nearest(key, keys)}")
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise InputError(f"{where}: {key}: expected {keys[key][0].__name__}, not {shown(value)}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise InputError(f"{where}: {key}: expected a list of names")
    for key in ("published", "quantizer", "strategy") if group == "methods" else ("published", "kind"):
        if key not in entry:
            raise InputError(f"{where}: {key} is missing")
