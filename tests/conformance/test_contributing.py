"""The examples of CONTRIBUTING.md are complete: each is registered as written and passes its checks.

The README's example is a quantizer of the suite, quoted to the letter.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bench import registry
from bench.machine.foreign import Grant, granted
from tests.conformance import checks, tables

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return file, table ("" for a whole file) and text of every Python example of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n# (\S+)(?:: (\w+))?\n(.*?)```", text, flags=re.DOTALL)


BLOCKS = blocks("CONTRIBUTING.md")
SOURCES = {Path(path).stem: (path, body) for path, _, body in BLOCKS if path.startswith("bench/")}
LINES = {re.match(r'"(\w+)"', body)[1]: (table, body) for path, table, body in BLOCKS if table}
PACKAGE = "examples_of_the_contributing_page"
GROUPS = {
    "QUANTIZERS": "quantizers",
    "STRATEGIES": "strategies",
    "FACTORS": "factors",
    "NETWORKS": "networks",
    "DATASETS": "datasets",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The examples as an installed package, allowed."""
    site = tmp_path_factory.mktemp("site")
    package = site / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("")
    points: dict[str, list[str]] = {}
    for name, (_, body) in SOURCES.items():
        (package / f"{name}.py").write_text(body, encoding="utf-8")
        points.setdefault(GROUPS[LINES[name][0]], []).append(f"{name} = {PACKAGE}.{name}")
    info = site / f"{PACKAGE}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1\n")
    text = "".join(f"[bench.{group}]\n" + "\n".join(lines) + "\n" for group, lines in points.items())
    (info / "entry_points.txt").write_text(text)
    sys.path.insert(0, str(site))
    registry.entries.cache_clear()
    with granted(Grant((PACKAGE,))):
        yield
    sys.path.remove(str(site))
    registry.entries.cache_clear()


def row(name: str):
    """Return the line of the table that the page gives for an example."""
    return eval("{" + LINES[name][1] + "}", vars(tables))[name]


def test_the_readme_quotes_a_quantizer_and_its_line():
    (path, _, body), (table_path, table, line) = blocks("README.md")
    assert body == (ROOT / path).read_text(encoding="utf-8")
    assert table == "QUANTIZERS" and f"    {line}" in (ROOT / table_path).read_text(encoding="utf-8")


def test_there_is_an_example_of_every_part():
    assert SOURCES.keys() == LINES.keys() and {table for table, _ in LINES.values()} == set(GROUPS)
    assert all(table in vars(tables) for table in GROUPS)


def test_no_source_file_is_long():
    assert all(len(body.splitlines()) <= 60 for _, body in SOURCES.values())


def test_quantizer(installed):
    checks.check_quantizer_weights("max_sign", row("max_sign"))
    checks.check_quantizer_activations("max_sign", row("max_sign"))
    checks.check_quantizer_compiled("max_sign")
    checks.check_declared_bits("max_sign")
    checks.check_levels("max_sign", row("max_sign"))
    checks.check_deployed_activations("max_sign")


def test_strategy(installed, tmp_path):
    for number, case in enumerate(row("confidence_penalty")):
        checks.check_strategy("confidence_penalty", case, tmp_path / str(number))


def test_schedule(installed):
    checks.check_factor("sigmoid", row("sigmoid"))


@pytest.mark.parametrize("merge", tables.MERGES)
def test_network(installed, merge):
    checks.check_network("small_convnet", row("small_convnet"), merge)


def test_network_size(installed):
    checks.check_declared_size("small_convnet")


def test_data_set(installed, tmp_path):
    checks.check_dataset("stripes", row("stripes"), tmp_path)
