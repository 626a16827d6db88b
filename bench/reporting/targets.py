"""Published numbers: reading them, finding the rows that a cell of ours is to be held against.

A table is a CSV file in ``published/``; ``names.toml`` beside it says which of our data sets, networks,
quantizers and strategies its names stand for. Every matching row is kept, with its kind; none are averaged.
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
    """One published accuracy, in percent. Bits are as printed; ``bits`` gives them as numbers where they are."""

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
        """(weight, activation, gradient) bits; ternary is 2 (as experiment files write it), None is unknown."""
        return _number(self.w_bits), _number(self.a_bits), _number(self.g_bits)


@dataclass(frozen=True)
class Names:
    """The translations of ``names.toml``, lists of tables as in the file."""

    datasets: tuple[Mapping[str, Any], ...] = ()
    networks: tuple[Mapping[str, Any], ...] = ()
    methods: tuple[Mapping[str, Any], ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """A published row for a cell, with why its number cannot be compared (empty: it can) and remarks."""

    row: Row
    not_comparable: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def _number(bits: str | None) -> int | None:
    if bits == "t":
        return 2
    return int(bits) if bits is not None and bits.isascii() and bits.isdigit() else None


def shipped() -> Path:
    """Return the folder of the published numbers: inside the installed package, or in a clone of the
    repository.
    """
    installed = Path(__file__).parent / "published"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "paper_tables" / "published"


def find_table(name: str, folders: Iterable[Path]) -> Path:
    """Return the file of the table called ``name`` in the first of ``folders`` that has it, else in the
    shipped folder.

    Raises ``InputError`` naming the tables there are.
    """
    places = [*folders, shipped()]
    known = {path.stem for place in places if place.is_dir() for path in place.glob("*.csv")}
    if name not in known:  # also keeps names with slashes from leaving the folders
        raise InputError(
            f"targets: no published table is called '{clean(name)}'.{nearest(name, known)} Known: {', '.join(sorted(known))}."
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


def _row(
    path: Path, line: int, values: dict[str, str], defaults: Mapping[str, Any], problems: list[str]
) -> Row | None:
    before = len(problems)

    def wrong(column: str, expected: str) -> None:
        problems.append(
            f"{path}, line {line}, column {column}: {clean(values[column], 60)!r} is not {expected}"
        )

    def real(column: str, low: float, high: float, expected: str) -> float | None:
        try:
            value = (
                float(values[column])
                if re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", values[column])
                else math.nan
            )
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            wrong(column, expected)
            return None
        return value

    for column in ("dataset", "network", "method", "source"):
        if not values[column]:
            problems.append(f"{path}, line {line}, column {column}: empty")
    for column in ("w_bits", "a_bits", "g_bits"):
        empty = not values.get(column)
        if (empty and column != "g_bits") or not (empty or re.fullmatch(_BITS, values[column], re.ASCII)):
            wrong(column, "a number of bits, 't', 'mixed', '?' or a range such as '1-8'")
    accuracy = real("accuracy_pct", 0, 100, "an accuracy in percent, 0 to 100")
    width = real("width", 1e-6, 1e6, "a width multiplier above 0") if values.get("width") else None
    error = (
        real("reading_error_pct", 0, 100, "an error in percent") if values.get("reading_error_pct") else None
    )
    if values["metric"] not in METRICS:
        wrong("metric", f"one of {', '.join(METRICS)}")
    kind = (
        values.get("kind")
        or defaults.get("kinds", {}).get(values["method"])
        or defaults.get("kind", "original")
    )
    if kind not in KINDS:
        values["kind"] = kind
        wrong("kind", f"one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
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
    """Read ``names.toml`` of each of ``folders`` (where there is one) and of the shipped folder; first come
    first.

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


def _options_agree(ours: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(ours.get(key) == value for key, value in wanted.items())


def _choice(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {"kind": value}


def matches(
    config: Mapping[str, Any],
    bits: tuple[int, int, int],
    rows: Iterable[Row],
    names: Names,
    published: Mapping[str, Any] | None = None,
    train_images: int | None = None,
    images: int | None = None,
) -> list[Match]:
    """Return the published rows for a trial's configuration, in the order of the tables.

    ``published`` is the arm's own ``{table, method}``: then only its rows count, and what else differs
    (another data set, say) is listed in ``not_comparable`` instead of hiding the row. ``train_images`` are
    those of one epoch and ``images`` all that were processed; None where unknown.
    """
    dataset, network = _choice(config, "dataset"), _choice(config, "network")
    quantizer, strategy = _choice(config, "quantizer"), _choice(config, "strategy")
    explicit = dict(published or {})
    result = []
    for row in rows:
        if explicit and (explicit.get("table", row.table), explicit.get("method", row.method)) != (
            row.table,
            row.method,
        ):
            continue
        w, a, g = row.bits
        if (w, a) != bits[:2] or (g is not None and g != bits[2] and not explicit):
            continue
        where = next((entry for entry in names.networks if row.network in entry["published"]), None)
        width = row.width if row.width is not None else float((where or {}).get("width", 1.0))
        if not math.isclose(width, float(config.get("width", 1.0)), rel_tol=1e-9):
            continue
        same_network = (
            where is not None
            and where["kind"] == network.get("kind")
            and _options_agree(network, where.get("options", {}))
        )
        source = next((entry for entry in names.datasets if row.dataset in entry["published"]), None)
        same_data = source is not None and source["kind"] == dataset.get("kind")
        same_method = any(
            row.method in entry["published"]
            and entry.get("table", row.table) == row.table
            and quantizer.get("kind") in entry["quantizer"]
            and strategy.get("kind") in entry["strategy"]
            and _options_agree(quantizer, entry.get("options", {}))
            for entry in names.methods
        )
        if not explicit and not (same_network and same_data and same_method):
            continue
        reasons = []
        if not same_network:
            reasons.append(f"another network ({row.network})")
        if not same_data:
            reasons.append(f"another data set ({row.dataset})")
        elif source is not None:
            reasons.extend(_short_of(config, source, train_images, images))
        if g is not None and g != bits[2]:
            reasons.append(f"{g} gradient bits")
        if isinstance(strategy.get("factor"), Mapping) and strategy["factor"].get("keep"):
            reasons.append("our branch was never removed")
        remarks = [where["note"]] if where is not None and where.get("note") else []
        if not same_method:
            remarks.append("the arm names this method; the quantizer or strategy has another name here")
        result.append(Match(row, tuple(reasons), tuple(remarks)))
    return result


def _short_of(
    config: Mapping[str, Any], source: Mapping[str, Any], train_images: int | None, images: int | None
) -> list[str]:
    """Return in what a run falls short of the published budget; a tenth less is let pass (held-out images,
    dropped batches).
    """
    reasons = []
    if config.get("train_size") is not None:
        reasons.append(f"subset of {config['train_size']:,} training images")
    elif train_images is not None and train_images < 0.9 * source.get("train_images", 0):
        reasons.append(f"{train_images:,} of {source['train_images']:,} training images")
    if images is None:
        reasons.append("unknown budget")
    elif images < 0.9 * source.get("images", 0):
        reasons.append(f"short budget: {images:,} images processed of {source['images']:,}")
    return reasons
