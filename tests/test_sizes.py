"""Modules and functions can be read at once; a docstring begins with a sentence of one line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 450, 60  # with its docstring
END_OF_SENTENCE = re.compile(r"[.!?][)`\"']*(\s|$)")


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_modules_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            assert length <= LINES_OF_A_FUNCTION, (node.name, length)


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_the_first_sentence_of_a_docstring_is_one_line(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *others = (ast.get_docstring(node) or "").split("\n")
            assert not others or END_OF_SENTENCE.search(first), (getattr(node, "name", "module"), first)
