"""Fill pages of prose with numbers of the report: ``python -m docs.tools.quote PAGE... [--check]``.

A page holds places that are invisible when rendered, each between a comment that says what is quoted and
``<!--/-->``:

``<!--= svhn_subset gain; arm=EXP-Net (sum); width=0.25 -->...<!--/-->``
    one value of the one row of that experiment's tables that has these values in these columns;
``<!--table gains svhn_subset; width=0.25 -->...<!--/-->``
    a Markdown table of the rows that have them (``TABLES``).

What stands between is replaced by what ``paper_tables`` says; ``--check`` changes nothing and exits with 1
where a page differs. So no number of the prose is typed, and none can be older than the records.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from bench.errors import InputError, nearest
from bench.records.files import write_atomic
from docs.tools import markdown

_PLACE = re.compile(r"<!--(=|table )\s*(.*?)\s*-->(.*?)<!--/-->", re.DOTALL)
Rows = list[dict[str, str]]


# -- numbers for reading -------------------------------------------------------------------------------------


def _number(text: str, form: str = ".1f") -> str:
    """Return a number for reading; what rounds to zero has no sign."""
    if not text:
        return "–"
    shown = format(float(text), form)
    return shown.lstrip("+-") if float(shown) == 0 else shown


def _ends(row: Mapping[str, str], name: str) -> str:
    """Return ``61.9 ± 7.8``: a mean over seeds and half its interval."""
    if not row[name]:
        return "–"
    half = (float(row[f"{name}_high"]) - float(row[f"{name}_low"])) / 2 if row[f"{name}_low"] else None
    return _number(row[name]) + (f" ± {half:.1f}" if half is not None else f" (n = {row['n']})")


def _accuracy(row: Mapping[str, str]) -> str:
    """Return the accuracy of the deployed network."""
    return _ends(row, "accuracy")


def _gain(row: Mapping[str, str]) -> str:
    """Return ``+15.1 [+1.3, +28.9]``: the mean paired gain and its interval."""
    if not row["gain"]:
        return "–"
    low, high = row["gain_low"], row["gain_high"]
    mean = _number(row["gain"], "+.1f")
    return (
        f"{mean} [{_number(low, '+.1f')}, {_number(high, '+.1f')}]" if low else f"{mean} ({row['gain_note']})"
    )


def _by_seed(row: Mapping[str, str]) -> list[str]:
    """Return the accuracies of the seeds, in percent."""
    return [pair.split(":")[1] for pair in row["accuracy_by_seed"].split()]


def _dip(row: Mapping[str, str]) -> str:
    """Return the dip at removal, points: mean and half its interval."""
    if not row["dip"]:
        return "–"
    half = f" ± {(float(row['dip_high']) - float(row['dip_low'])) / 2:.1f}" if row["dip_low"] else ""
    return _number(row["dip"], "+.1f") + half


def _reached(row: Mapping[str, str], name: str) -> str:
    """Return the median time to the threshold, ``not reached``, or the median with the share of runs."""
    count, n = int(float(row[f"{name}_reached"] or 0)), int(float(row["n"]))
    if not count:
        return f"not reached (0/{n})"
    if not row[name]:
        return f"median not reached ({count}/{n})"
    return _number(row[name], ".0f") + (f" ({count}/{n})" if count < n else "")


def _p(row: Mapping[str, str], name: str = "p_holm") -> str:
    if not row[name]:
        return "–"
    return f"{float(row[name]):.3f}" if float(row[name]) >= 0.001 else "< 0.001"


def _spread(row: Mapping[str, str]) -> str:
    """Return ``0.55 [0.30, 1.02]``: the seeds' spread over the baseline's, and its interval."""
    ends = (row["spread_ratio"], row["spread_ratio_low"], row["spread_ratio_high"])
    mean, low, high = (_number(end, ".2f") for end in ends)
    return f"{mean} [{low}, {high}]"


VALUES: dict[str, tuple[str, Callable[[Mapping[str, str]], str]]] = {
    "accuracy": ("accuracy", _accuracy),
    "mean": ("accuracy", lambda row: _number(row["accuracy"])),
    "gain": ("accuracy", _gain),
    "mean_gain": ("accuracy", lambda row: _number(row["gain"], "+.1f")),
    "interval": (
        "accuracy",
        lambda row: f"{_number(row['gain_low'], '+.1f')} to {_number(row['gain_high'], '+.1f')}",
    ),
    "n": ("accuracy", lambda row: row["n"]),
    "least": ("accuracy", lambda row: _number(min(_by_seed(row), key=float))),
    "verdict": ("claims", lambda row: row["verdict"]),
    "claimed": ("claims", _gain),
    "never_removed": ("accuracy", lambda row: _ends(row, "never_removed")),
    "spread": ("gains", lambda row: _number(row["spread_ratio"], ".2f")),
    "p": ("claims", _p),
    "dip": ("convergence", _dip),
    "recovery": ("convergence", lambda row: _reached(row, "recovery_epochs")),
    "epochs_to": ("convergence", lambda row: _reached(row, "epochs_held")),
    "threshold": ("convergence", lambda row: _number(row["threshold"], "g")),
    "at_epoch": ("curves", lambda row: _number(row["test_acc"])),
}
_WHERE = (
    ("Arm", lambda row: row["arm"]),
    ("W/A", lambda row: row["bits"].removesuffix("/32") if row["bits"].count("/") == 2 else row["bits"]),
    ("Settings", lambda row: row["settings"] or "–"),
    ("Width", lambda row: row["width"]),
    ("Epochs", lambda row: row["epochs"]),
)
TABLES: dict[str, tuple[str, tuple[tuple[str, Callable[[Mapping[str, str]], str]], ...]]] = {
    "gains": (
        "accuracy",
        (
            *_WHERE,
            ("n", VALUES["n"][1]),
            ("Test accuracy, %", _accuracy),
            ("Never removed, %", VALUES["never_removed"][1]),
            ("Gain, points", _gain),
            ("Claim", lambda row: row["claim"] or "–"),
        ),
    ),
    "claims": (
        "claims",
        (
            ("Arm", lambda row: row["arm"]),
            ("Over", lambda row: row["over"]),
            ("At", lambda row: row["at"]),
            ("Pairs", lambda row: row["pairs"]),
            ("Gain, points", _gain),
            ("p (Holm)", _p),
            ("p, equivalent (Holm)", lambda row: _p(row, "p_equivalence_holm")),
            ("Seeds' spread, ratio", _spread),
            ("Verdict", lambda row: row["verdict"]),
        ),
    ),
    "tuning": (
        "tuning",
        (
            ("Arm", lambda row: row["arm"]),
            ("Configuration", lambda row: row["configuration"]),
            ("Held out, %", lambda row: _number(row["held_out"])),
        ),
    ),
    "removal": (
        "convergence",
        (
            *_WHERE,
            ("n", lambda row: row["n"]),
            ("Dip at removal, points", _dip),
            ("Recovery, epochs", VALUES["recovery"][1]),
        ),
    ),
    "reach": (
        "convergence",
        (
            *_WHERE,
            ("n", lambda row: row["n"]),
            ("Threshold, %", VALUES["threshold"][1]),
            ("Epochs, deployed, held", VALUES["epochs_to"][1]),
            ("Epochs, as trained", lambda row: _reached(row, "epochs_trained")),
            ("Seconds, deployed", lambda row: _reached(row, "seconds_deployed")),
        ),
    ),
}


# -- rows ----------------------------------------------------------------------------------------------------


@cache
def _rows(path: Path) -> Rows:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a table that can be quoted: {error}") from None


def _select(tables: Path, experiment: str, table: str, wanted: Mapping[str, str], where: str) -> Rows:
    rows = _rows(tables / experiment / f"{table}.csv")
    for key in wanted:
        if rows and key not in rows[0]:
            raise InputError(f"{where}: {key}: no column of {experiment}/{table}.csv.{nearest(key, rows[0])}")
    if table == "accuracy":  # claims are what accuracy.csv says beside its gains
        rows = [row for row in rows if row["role"] == ""]
    return [row for row in rows if all(_same(row, key, value) for key, value in wanted.items())]


def _same(row: Mapping[str, str], key: str, value: str) -> bool:
    return row[key] == value or (key == "bits" and row[key] == f"{value}/32")


def _compute(tables: Path) -> list[list[str]]:
    """Return what all recorded runs took, by data set, network and width, each run once.

    The trials that chose configurations stand in a row for each experiment.
    """
    runs = {
        row["run"]: row
        for path in sorted(tables.glob("*/runs.csv"))
        for row in _rows(path)
        if row["status"] == "done"
    }
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in runs.values():
        key = (row["dataset"], row["network"], row["width"], row["device"])
        groups.setdefault(key, []).append(float(row["wall_seconds"]) / 3600)
    body = [[*key, str(len(hours)), f"{sum(hours):.1f}"] for key, hours in sorted(groups.items())]
    tried = [row for path in sorted(tables.glob("*/tuning.csv")) for row in _rows(path)]
    for name in sorted({row["experiment"] for row in tried}):
        rows = [row for row in tried if row["experiment"] == name]
        hours = [float(row["seconds"] or 0) / 3600 for row in rows]
        trials = sum(len(row["held_out_by_seed"].split()) for row in rows)
        body.append([f"choosing for {name}", "", "", "", str(trials), f"{sum(hours):.1f}"])
        groups[name,] = hours
    trials = sum(int(row[-2]) for row in body)
    return [*body, ["all", "", "", "", str(trials), f"{sum(map(sum, groups.values())):.1f}"]]


# -- pages ---------------------------------------------------------------------------------------------------


def _table(name: str, experiment: str, wanted: Mapping[str, str], tables: Path, where: str) -> str:
    if name == "compute":
        header = ("Data", "Network", "Width", "Device", "Trials", "Core-hours")
        return markdown.table(header, _compute(tables))
    if name not in TABLES:
        raise InputError(f"{where}: {name}: no such table.{nearest(name, TABLES)}")
    source, columns = TABLES[name]
    rows = _select(tables, experiment, source, wanted, where)
    if name == "removal":
        rows = [row for row in rows if row["dip"]]
    if not rows:
        raise InputError(f"{where}: no row of {experiment}/{source}.csv has {dict(wanted)}")
    cells = [[show(row) for _, show in columns] for row in rows]
    values = [{row[i] for row in cells} for i in range(len(columns))]
    axes = dict(_WHERE[1:])  # an axis on which no row differs is said in the text
    kept = [
        i
        for i, (title, _) in enumerate(columns)
        if (len(values[i]) > 1 if title in axes else title == "Arm" or values[i] - {"–", "exploratory"})
    ]
    return markdown.table([columns[i][0] for i in kept], [[row[i] for i in kept] for row in cells])


def _value(experiment: str, name: str, wanted: Mapping[str, str], tables: Path, where: str) -> str:
    if name not in VALUES:
        raise InputError(f"{where}: {name}: no such value.{nearest(name, VALUES)}")
    source, show = VALUES[name]
    rows = _select(tables, experiment, source, wanted, where)
    if len(rows) != 1:
        raise InputError(
            f"{where}: {len(rows)} rows of {experiment}/{source}.csv have {dict(wanted)}; one is meant"
        )
    return show(rows[0])


def fill(text: str, tables: Path, name: str = "page") -> str:
    """Return ``text`` with every quoted place filled from ``tables``; raises ``InputError`` for a bad one."""

    def put(match: re.Match[str]) -> str:
        what = match[2]
        where = f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}"
        head, *conditions = [part.strip() for part in what.split(";")]
        words = head.split()
        if any("=" not in condition for condition in conditions) or not words:
            raise InputError(f"{where}: expected a table or value and column=value, separated by semicolons")
        wanted = {key.strip(): value.strip() for key, value in (c.split("=", 1) for c in conditions)}
        if match[1] == "=":
            if len(words) != 2:
                raise InputError(f"{where}: expected the experiment and the value")
            return f"<!--= {what} -->{_value(words[0], words[1], wanted, tables, where)}<!--/-->"
        return f"<!--table {what} -->\n{_table(words[0], words[-1], wanted, tables, where)}\n<!--/-->"

    return _PLACE.sub(put, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill or check pages; returns 1 where a checked page differs, 2 where a place cannot be filled."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.quote", description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--tables", type=Path, default=Path("paper_tables"))
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    differs = False
    for page in options.pages:
        try:
            text = page.read_text(encoding="utf-8")
            new = fill(text, options.tables, str(page))
        except (InputError, OSError) as error:
            print(error, file=sys.stderr)
            return 2
        if new != text:
            differs = True
            print(f"{page}: {'differs from' if options.check else 'filled from'} {options.tables}")
            if not options.check:
                write_atomic(page, new.encode())
    return int(differs and options.check)


if __name__ == "__main__":
    sys.exit(main())
