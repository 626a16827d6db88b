"""What every test shares: one thread, forked processes, and the real images of ``BENCH_DATA``."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from bench.machine import processes
from tests.forking import Forking

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _forked_processes():
    """Processes that the suite starts within the tests' own process begin at once (``forking.py``)."""
    with mock.patch.object(processes, "CONTEXT", Forking()):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data folder with real images; skips, saying so, where there is none."""
    folder = os.environ.get("BENCH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real images: set BENCH_DATA to the folder that holds them")
    return Path(folder)
