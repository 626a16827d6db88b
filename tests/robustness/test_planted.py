"""The faults that ``planted`` plants: each still finds its place, and the test that must notice it exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.planted import PLANTED, ROOT


@pytest.mark.parametrize("fault", PLANTED.values(), ids=PLANTED.keys())
def test_each_fault_finds_its_place_and_its_test(fault: tuple[str, str, str, str]) -> None:
    file, there, instead, test = fault
    assert there in (ROOT / file).read_text(encoding="utf-8") and instead != there
    path, *names = test.partition("[")[0].split("::")
    text = Path(ROOT / path).read_text(encoding="utf-8")
    assert all(f"class {name}" in text or f"def {name}(" in text for name in names)
