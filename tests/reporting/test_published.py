"""The shipped published numbers: none twice, none second hand beside its original, none without a source."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from bench.reporting import published_tables
from bench.reporting.tables import kind_name

NAMES = published_tables.load_names()
FIGURE = published_tables.load_table(published_tables.find_table("svhn_figure", []), NAMES)
LITERATURE = published_tables.load_table(published_tables.find_table("literature", []), NAMES)
README = (published_tables.shipped() / "README.md").read_text(encoding="utf-8")

# Who may print an original number of a method that an arm of a shipped experiment, or a neighbour of it,
# trains.
OWN_SOURCES = {
    "SYQ": (),
    "Apprentice": (),
    "DoReFa-Net": ("repo tensorpack/tensorpack", "DoReFa-Net paper abstract"),
    "XNOR-Net": ("XNOR-Net paper (Rastegari et al., ECCV 2016)", "repo allenai/XNOR-Net"),
    "BNN": ("repo MatthieuCourbariaux/BinaryNet",),
    "TWN": ("TWN paper (Li et al.)",),
    "TTQ": ("repo czhu95/ternarynet",),
    "HWGQ": (),
    "Bi-Real Net": ("repo liuzechun/Bi-Real-net",),
    "LSQ": (),
    "PACT": ("PACT paper (Choi et al., 2018)",),
    "LQ-Nets": ("repo microsoft/LQ-Nets",),
    "IR-Net": ("repo htqin/IR-Net",),
    "ReActNet": ("repo liuzechun/ReActNet",),
}


def _network(name: str) -> str:
    """Return what tells networks apart: the entry of ``names.toml``, else the name itself."""
    for number, entry in enumerate(NAMES.networks):
        if name in entry.published:
            return f"entry {number}"
    return name


def _cell(row: published_tables.Row) -> tuple:
    bits = tuple(printed.replace("t", "2") for printed in (row.w_bits, row.a_bits, row.g_bits or ""))
    return row.dataset, _network(row.network), row.width, row.method, bits, row.metric


def _compared(row: published_tables.Row) -> tuple:
    """Return what a quote shares with the row it copies; the network may have another name in the quote."""
    dataset, network, width, method, bits, metric = _cell(row)
    if method == "Full precision":
        return dataset, network, width, method, bits, metric
    entries = [entry.published for entry in NAMES.methods if method in entry.published]
    return dataset, width, tuple(entries[0]) if entries else method, bits, metric


def test_a_source_prints_a_number_once():
    seen = Counter((*_cell(row), row.network, row.source, row.accuracy) for row in FIGURE + LITERATURE)
    assert [key for key, count in seen.items() if count > 1] == []


def test_nothing_is_quoted_that_was_read_where_it_was_measured():
    measured = defaultdict(list)
    for row in LITERATURE:
        if row.kind in ("original", "rerun_by_other_paper"):
            measured[_compared(row)].append(row.accuracy)
    rounding = 0.05 + 1e-9  # quotes print one decimal
    repeats = {
        (row.method, row.network, row.accuracy)
        for row in LITERATURE
        if row.kind == "quoted"
        and any(abs(row.accuracy - value) <= rounding for value in measured[_compared(row)])
    }
    # AlexNet's original number is the same as the one that LQ-Nets gives for ResNet-18: chance.
    assert repeats == {("DoReFa-Net", "ResNet-18", 53.4)}


def test_every_row_says_where_its_number_stands():
    assert [row.line for row in LITERATURE if not row.source_location] == []
    assert [row.line for row in LITERATURE if row.kind == "superseded" and not row.note] == []


def test_a_superseded_number_is_not_the_current_one():
    superseded = [row for row in LITERATURE if row.kind == "superseded"]
    current = {
        (_cell(row), row.source): row.accuracy
        for row in LITERATURE
        if row.kind in ("original", "reproduction")
    }
    assert superseded
    for row in superseded:
        assert current.get((_cell(row), row.source)) != row.accuracy, row
    assert kind_name("superseded") == "superseded by its source"


@pytest.mark.parametrize("method", OWN_SOURCES)
def test_an_original_comes_from_the_methods_own_authors(method):
    named = [row for row in LITERATURE if row.method.startswith(method)]
    assert {row.source for row in named if row.kind == "original"} == set(OWN_SOURCES[method])


def _readme_table() -> dict[str, list[int]]:
    table = README[README.index("| method | original |") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: [int(cell) for cell in row[1:6]] for row in cells}


def test_the_readme_counts_what_the_table_holds():
    assert f"{len(LITERATURE):,} accuracies" in README and f"The {len(FIGURE)} points" in README
    listed = _readme_table()
    assert listed.keys() == OWN_SOURCES.keys()
    for method, counts in listed.items():
        kinds = Counter(row.kind for row in LITERATURE if row.method.startswith(method))
        order = ("original", "superseded", "rerun_by_other_paper", "reproduction", "quoted")
        assert counts == [kinds[kind] for kind in order], method
