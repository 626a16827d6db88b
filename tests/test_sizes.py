"""Modules and functions stay small enough to be read at once; what is larger has its reason here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 450, 60  # with its docstring
REASONS = {
    "networks/convert/rewrite.py": "one pass over a graph: its cases belong together and share their helpers",
}


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_what_is_large_has_a_reason(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(BENCH))
    assert text.count("\n") <= LINES_OF_A_FILE or name in REASONS
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            assert length <= LINES_OF_A_FUNCTION, (node.name, length)


def test_every_reason_is_needed() -> None:
    for name in REASONS:
        assert (BENCH / name).read_text(encoding="utf-8").count("\n") > LINES_OF_A_FILE
