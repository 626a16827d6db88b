"""The notebooks of ``examples/`` run from the first cell to the last, in an empty folder, at 2 epochs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    shutil.copy(EXAMPLES / name, tmp_path)
    notebook = nbformat.read(tmp_path / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed without outputs
    for cell in notebook.cells:
        cell.source = re.sub(r'(epochs = |"epochs": )\d+', r"\g<1>2", cell.source)
    resources = {"metadata": {"path": str(tmp_path)}}
    ran = nbclient.NotebookClient(notebook, timeout=600, resources=resources, kernel_name="python3").execute()
    nbformat.write(ran, tmp_path / "ran.ipynb")
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    figures = [cell for cell in code if cell.source.startswith("bench.plot.")]
    assert figures
    for cell in figures:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    for cell in code:
        assert not any(output.output_type == "error" for output in cell.outputs)
        table = [output.data for output in cell.outputs if "text/html" in output.get("data", {})]
        if 'found.trials[["arm", "seed", "status"' in cell.source:
            assert "done" in table[0]["text/html"] and "failed" not in table[0]["text/html"]


def test_the_examples_are_there():
    assert NOTEBOOKS == ["ablate_a_decay_schedule.ipynb", "add_a_quantizer.ipynb", "quickstart.ipynb"]
