"""A slice of the matrix of exports; ``make soak`` runs the whole of it (``matrix.py``)."""

from __future__ import annotations

import collections
import os

import pytest

from tests.export.matrix import Cell, all_cells, check
from tests.export.networks_for_export import NETWORKS, QUANTIZERS, STRATEGIES

pytest.importorskip("onnxscript", reason="needs progressive-bench[export]")
pytest.importorskip("qonnx", reason="needs progressive-bench[export]")

QUICK = [Cell("own", "syq_released", "2/2", "sum", "bf16")]
SLOW = [
    # twenty layers without a level between them: PyTorch's own logits are 0.8e-4 of their spread from float64
    Cell("torchvision_resnet18", "syq_released", "2/32", "joint", "fp32"),
    Cell("svhn_convnet_abs", "syq", "2/8", "difference", "fp32"),  # most quantizers refuse this network
    Cell("svhn_convnet", "ttq", "2/2", "preactivation", "bf16"),
    Cell("bnn_convnet", "bnn", "1/1", "sum", "fp32"),
    Cell("timm_test_resnet", "lsq", "2/2", "concat", "bf16"),
]
if os.environ.get("BENCH_EXPORT_CASES") == "all":
    SLOW.append(Cell("mobilenet_v2", "reactnet", "1/1", "sum", "fp32"))


def test_one_in_all_formats(tmp_path):
    assert check(QUICK, tmp_path) == dict.fromkeys(QUICK, ("equal", ""))


@pytest.mark.slow
def test_networks_quantizers_and_merges_in_all_formats(tmp_path):
    assert check(SLOW, tmp_path) == dict.fromkeys(SLOW, ("equal", ""))


def test_every_beginning_of_the_matrix_covers_it_evenly():
    cells = all_cells()
    assert len({(c.network, c.quantizer, c.merge, c.precision) for c in cells}) == len(cells)
    assert len(cells) == len(NETWORKS) * len(QUANTIZERS) * len(STRATEGIES) * 2
    beginning = cells[: 4 * len(NETWORKS)]
    for part, most in (("network", 4), ("quantizer", 8), ("merge", 40), ("precision", 90)):
        counts = collections.Counter(getattr(cell, part) for cell in beginning)
        assert max(counts.values()) <= most, part
    assert {cell.quantizer for cell in beginning} == set(QUANTIZERS)
